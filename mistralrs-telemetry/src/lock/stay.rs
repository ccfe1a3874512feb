//! What a guard knows of its own time: how long it waited for the lock, and how long it has had it.

use std::time::{Duration, Instant};

use super::tally::{Access, Tally};

/// How long a thread that found a mutex taken leaves it alone before it queues for it.
///
/// Whoever asks takes the lock's cache line away from the thread inside, and parking_lot asks some ten times before it
/// puts a thread to sleep. A microsecond is less than sleeping and being woken takes, so a waiter loses little, and
/// holds of a few nanoseconds get half as much again done in it: more than counting costs (`benches/locks.rs`).
const BACK_OFF: Duration = Duration::from_micros(1);

/// How often a thread that found a reader-writer lock taken asks again before it queues for it. Readers come and go
/// together, so asking more often than for a mutex pays; where holds are long it does not, see [`wait_among_readers`].
const ASK_EVERY: Duration = Duration::from_nanos(250);

/// How many times it asks: two microseconds in all.
const NUM_ASKS: u32 = 8;

/// Takes the place of a measured zero, because zero means "not measured".
const SHORTEST_NANOS: u64 = 1;

/// Takes a mutex that was found taken: leaves it alone for [`BACK_OFF`], then calls `lock`, which may sleep.
/// Returns its guard and the nanoseconds waited, at least one. All it does under the lock is to read the clock.
#[inline]
pub(super) fn wait<Guard>(lock: impl FnOnce() -> Guard) -> (Guard, u64) {
    let asked = Instant::now();
    leave_alone(asked, BACK_OFF);
    let guard = lock();
    (guard, nanos_since(asked))
}

/// [`wait`] for reader-writer locks: tries a few times before it calls `lock`, or not at all where holds are long: only
/// a writer that queues keeps new readers out, and where there are more threads than cores, waiting is another's time.
#[inline]
pub(super) fn wait_among_readers<Guard>(
    tally: &Tally,
    try_lock: impl Fn() -> Option<Guard>,
    lock: impl FnOnce() -> Guard,
) -> (Guard, u64) {
    let asked = Instant::now();
    let try_later = |ask: u32| {
        leave_alone(asked, ASK_EVERY * ask);
        try_lock()
    };
    let early = if tally.has_short_holds() { (1..=NUM_ASKS).find_map(try_later) } else { None };
    let guard = early.unwrap_or_else(lock);
    (guard, nanos_since(asked))
}

/// Returns `pause` after `asked`.
fn leave_alone(asked: Instant, pause: Duration) {
    while asked.elapsed() < pause {
        std::hint::spin_loop();
    }
}

/// One stay in a lock, from acquisition to release. Declared after the lock's own guard in ours, so that it is
/// dropped, and its durations recorded, when the lock is free for the next thread.
pub(super) struct Stay {
    /// Where to record. The thread's own, unless the guard is kept in a thread-local value and outlives the lease of the
    /// thread's shard: then its times may collide with those of the next owner, and one of them be lost.
    tally: &'static Tally,
    /// 0 for most: the lock was free.
    waited_nanos: u64,
    /// None for most: the hold is not one of the sample.
    held_since: Option<Instant>,
    /// 0 until the end, and for holds that are not timed.
    held_nanos: u64,
}

impl Stay {
    /// Counts an acquisition after `waited_nanos`, 0 if the lock was free.
    #[inline]
    pub(super) fn begin(tally: &'static Tally, access: Access, waited_nanos: u64) -> Self {
        let held_since = if tally.count(access) { Some(now()) } else { None };
        Self { tally, waited_nanos, held_since, held_nanos: 0 }
    }

    /// Ends the hold. To be called while the lock is still held: waking the next thread is not part of it.
    #[inline]
    pub(super) fn end(&mut self) {
        if let Some(since) = self.held_since {
            self.held_nanos = nanos_since(since);
        }
    }
}

impl Drop for Stay {
    #[inline]
    fn drop(&mut self) {
        if self.waited_nanos | self.held_nanos != 0 {
            record(self.tally, self.waited_nanos, self.held_nanos);
        }
    }
}

// Out of line and by value, so that a stay without times lives in registers.

#[cold]
#[inline(never)]
fn now() -> Instant {
    Instant::now()
}

#[cold]
#[inline(never)]
fn nanos_since(since: Instant) -> u64 {
    // 64 bits of nanoseconds are 584 years.
    (since.elapsed().as_nanos() as u64).max(SHORTEST_NANOS)
}

#[cold]
#[inline(never)]
fn record(tally: &'static Tally, waited_nanos: u64, held_nanos: u64) {
    if waited_nanos != 0 {
        tally.record_wait(waited_nanos);
    }
    if held_nanos != 0 {
        tally.record_hold(held_nanos);
    }
}
