//! Where acquisitions are counted: in shards that only their own thread writes.
//!
//! An atomic add costs as much as taking the lock itself, and one counter beside each lock would be one more cache
//! line to pass around under contention. A load and a store by the only writer cost neither and lose nothing. Shards
//! are chained, never freed, and handed on with their counts when a thread ends: totals only grow, the memory is
//! bounded by the threads alive at one time, and a reader needs no lock.

use std::cell::Cell;
use std::iter;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::histogram::{Histogram, HistogramTotals, OwnCounter};
use super::names::{LockId, MAX_NAMES};

/// One hold in so many is timed: two clock reads and a record, some 60 ns, become half a nanosecond per acquisition.
pub(super) const SAMPLE_ONE_IN: u64 = 128;

/// A hold that outlasts most of a waiter's backing off.
const LONG_HOLD_NANOS: u64 = 500;

/// The ways to take a lock, which are counted apart.
#[derive(Clone, Copy, Debug)]
pub(super) enum Access {
    Mutex,
    Read,
    Write,
}

const NUM_ACCESSES: usize = 3;

/// One thread's part in the locks of one name, or what all ending threads share.
pub(super) struct Tally {
    /// By [`Access`].
    counts: [OwnCounter; NUM_ACCESSES],
    /// Whether more than one thread writes here.
    is_shared: bool,
    /// The newest hold that was timed.
    newest_hold_nanos: AtomicU64,
    /// Made with the first duration: many threads never meet one.
    times: OnceLock<Box<Times>>,
}

/// On cache lines of its own, as [`Shard`] is.
#[derive(Default)]
#[repr(align(128))]
struct Times {
    waits: Histogram,
    holds: Histogram,
}

/// What all threads together did with the locks of one name.
#[derive(Clone, Default, PartialEq, Debug)]
pub(super) struct Totals {
    pub(super) mutex_locks: u64,
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) waits: HistogramTotals,
    pub(super) holds: HistogramTotals,
}

/// The tally for the calling thread to write in.
#[inline]
pub(super) fn own(id: LockId) -> &'static Tally {
    let shard = OWN_SHARD.get().unwrap_or_else(take_lease);
    &shard.tallies[id.index()]
}

/// Sums up all shards. What other threads add meanwhile may or may not be in it.
pub(super) fn totals(id: LockId) -> Totals {
    let mut totals = Totals::default();
    for tally in Shard::chain().map(|shard| &shard.tallies[id.index()]) {
        let [mutex_locks, reads, writes] = tally.counts.each_ref().map(OwnCounter::get);
        totals.mutex_locks += mutex_locks;
        totals.reads += reads;
        totals.writes += writes;
        if let Some(times) = tally.times.get() {
            times.waits.add_to(&mut totals.waits);
            times.holds.add_to(&mut totals.holds);
        }
    }
    totals
}

impl Tally {
    const fn new(is_shared: bool) -> Self {
        Self {
            counts: [const { OwnCounter::new() }; NUM_ACCESSES],
            is_shared,
            newest_hold_nanos: AtomicU64::new(0),
            times: OnceLock::new(),
        }
    }

    /// Counts one acquisition by the calling thread, whose tally this is. True: the hold that begins is to be timed.
    #[inline]
    pub(super) fn count(&self, access: Access) -> bool {
        let counter = &self.counts[access as usize];
        if self.is_shared { count_shared(counter) } else { is_sampled(counter.add(1)) }
    }

    /// Whether leaving the lock alone for a moment may be all the waiting there is: not where holds are long.
    pub(super) fn has_short_holds(&self) -> bool {
        self.newest_hold_nanos.load(Ordering::Relaxed) < LONG_HOLD_NANOS
    }

    /// Records how long one acquisition by the calling thread had to wait.
    pub(super) fn record_wait(&self, nanos: u64) {
        if let Some(times) = self.own_times() {
            times.waits.record(nanos);
        }
    }

    /// Records how long the calling thread held one lock.
    pub(super) fn record_hold(&self, nanos: u64) {
        if let Some(times) = self.own_times() {
            self.newest_hold_nanos.store(nanos, Ordering::Relaxed);
            times.holds.record(nanos);
        }
    }

    /// None where writers would get into each other's way: ending threads are counted, but not timed.
    fn own_times(&self) -> Option<&Times> {
        (!self.is_shared).then(|| &**self.times.get_or_init(Box::default))
    }
}

#[cold]
#[inline(never)]
fn count_shared(counter: &OwnCounter) -> bool {
    counter.add_shared(1);
    false
}

/// Picks one count in [`SAMPLE_ONE_IN`], the first among them, by a golden-ratio (Weyl) sequence: evenly spread and
/// without a period, so that call sites which take turns are sampled alike. Every 128th would see only one of two.
#[inline]
fn is_sampled(count: u64) -> bool {
    const GOLDEN_RATIO: u64 = 0x9E37_79B9_7F4A_7C15;
    count.wrapping_mul(GOLDEN_RATIO) < u64::MAX / SAMPLE_ONE_IN
}

/// The tallies of one thread, on cache lines of its own (two: they are fetched in pairs).
#[repr(align(128))]
struct Shard {
    tallies: [Tally; MAX_NAMES],
    /// Whether a live thread writes here; its release and acquire hand the counts from owner to owner.
    is_owned: AtomicBool,
    next: OnceLock<&'static Shard>,
}

/// Head of the chain, shared by threads that are too far in their ending to own a shard.
static ENDING_THREADS: Shard = Shard::shared();

thread_local! {
    /// Without a destructor, so that reading it is one instruction.
    static OWN_SHARD: Cell<Option<&'static Shard>> = const { Cell::new(None) };
    /// Gives the shard back when the thread ends.
    static LEASE: Lease = Lease::take();
}

struct Lease(&'static Shard);

impl Lease {
    fn take() -> Self {
        let shard = Shard::claim();
        OWN_SHARD.set(Some(shard));
        Self(shard)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        OWN_SHARD.set(None);
        self.0.is_owned.store(false, Ordering::Release);
    }
}

impl Shard {
    /// A shard that its maker has claimed.
    const fn owned() -> Self {
        Self::with_tallies([const { Tally::new(false) }; MAX_NAMES])
    }

    /// A shard that nobody can claim, because many write in it.
    const fn shared() -> Self {
        Self::with_tallies([const { Tally::new(true) }; MAX_NAMES])
    }

    const fn with_tallies(tallies: [Tally; MAX_NAMES]) -> Self {
        Self { tallies, is_owned: AtomicBool::new(true), next: OnceLock::new() }
    }

    fn chain() -> impl Iterator<Item = &'static Shard> {
        iter::successors(Some(&ENDING_THREADS), |shard| shard.next.get().copied())
    }

    /// A shard whose owner has ended, or a new one at the end of the chain.
    fn claim() -> &'static Shard {
        let is_free =
            |shard: &&Shard| shard.is_owned.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if let Some(shard) = Self::chain().find(is_free) {
            return shard;
        }
        let shard: &'static Shard = Box::leak(Box::new(Self::owned()));
        let mut last = &ENDING_THREADS;
        while last.next.set(shard).is_err() {
            last = last.next.get().expect("a link that cannot be set is set");
        }
        shard
    }
}

/// For the first acquisition of a thread, and for those after its lease has ended.
#[cold]
#[inline(never)]
fn take_lease() -> &'static Shard {
    LEASE.try_with(|lease| lease.0).unwrap_or(&ENDING_THREADS)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn count_once(id: LockId) {
        own(id).count(Access::Mutex);
    }

    #[test]
    fn samples_the_same_share_of_every_subsequence() {
        for stride in [1, 2, 3, 64, 128, 1000] {
            let num_sampled = (0..1000 * SAMPLE_ONE_IN).filter(|step| is_sampled(step * stride)).count();
            assert!((900..1100).contains(&num_sampled), "{num_sampled} instead of 1000 at stride {stride}");
        }
    }

    #[test]
    fn samples_the_first() {
        assert!(is_sampled(0));
    }

    #[test]
    fn hands_the_shard_of_an_ended_thread_on_with_its_counts() {
        let id = LockId::of("tally_handed_on");
        let num_shards = || Shard::chain().count();
        let before = num_shards();
        for _ in 0..200 {
            thread::spawn(move || count_once(id)).join().unwrap();
        }
        assert_eq!(totals(id).mutex_locks, 200);
        // Other tests run beside this one, each with a few threads of its own.
        assert!(num_shards() < before + 100, "{before} shards became {}", num_shards());
    }

    #[test]
    fn counts_what_a_thread_still_locks_while_its_local_values_are_destroyed() {
        struct LocksWhenDropped(LockId);
        impl Drop for LocksWhenDropped {
            fn drop(&mut self) {
                count_once(self.0);
            }
        }
        thread_local! {
            static EARLY: LocksWhenDropped = LocksWhenDropped(LockId::of("tally_early"));
            static LATE: LocksWhenDropped = LocksWhenDropped(LockId::of("tally_late"));
        }
        // One is made before the thread's lease and one after it, so one of them is destroyed after it.
        let work = || {
            EARLY.with(|early| count_once(early.0));
            LATE.with(|late| count_once(late.0));
        };
        thread::spawn(work).join().unwrap();
        for name in ["tally_early", "tally_late"] {
            assert_eq!(totals(LockId::of(name)).mutex_locks, 2, "{name}");
        }
        let num_without_lease = ["tally_early", "tally_late"]
            .map(|name| ENDING_THREADS.tallies[LockId::of(name).index()].counts[Access::Mutex as usize].get());
        assert_eq!(num_without_lease.iter().sum::<u64>(), 1, "{num_without_lease:?}");
    }
}
