//! candle's threads, each with a share of the work of its own.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::utils::barrier_pool;
use mistralrs_quant::Threads;

/// Parts that a share is taken in, at most: few enough that taking costs nothing, so many that threads end together.
const PARTS_PER_SHARE: usize = 16;

/// candle's threads, which wait at a barrier: they are there within a microsecond. Work must not call it.
///
/// A thread goes through one run of neighbouring units: what it reads next is what follows, so that it can be asked for in
/// time. One that is done takes units from the end of the others' runs.
pub(super) struct Pool;

impl Threads for Pool {
    fn count(&self) -> usize {
        barrier_pool().n_workers() + 1
    }

    fn run(&self, num_units: usize, work: &(dyn Fn(Range<usize>) + Sync)) {
        let num_shares = self.count().min(num_units);
        with_shares(num_shares, |shares| {
            for (index, share) in shares.iter_mut().enumerate() {
                *share = Share::new(index * num_units / num_shares..(index + 1) * num_units / num_shares);
            }
            let shares = &*shares;
            barrier_pool()
                .execute_chunked(num_shares, |own: Range<usize>| own.for_each(|own| drain(shares, own, work)));
        });
    }
}

/// Works through a share, then through what is left of the others.
fn drain(shares: &[Share], own: usize, work: &(dyn Fn(Range<usize>) + Sync)) {
    while let Some(units) = shares[own].take(Side::Front) {
        work(units);
    }
    for other in (own + 1..shares.len()).chain(0..own) {
        while let Some(units) = shares[other].take(Side::Back) {
            work(units);
        }
    }
}

/// Lends `num_shares` shares, whose memory the thread keeps: a step allocates nothing.
fn with_shares(num_shares: usize, use_them: impl FnOnce(&mut [Share])) {
    thread_local! {
        static SHARES: Cell<Vec<Share>> = const { Cell::new(Vec::new()) };
    }
    let mut shares = SHARES.take();
    shares.resize_with(num_shares.max(shares.len()), || Share::new(0..0));
    use_them(&mut shares[..num_shares]);
    SHARES.set(shares);
}

/// Units that nobody has taken yet. A cache line of its own: whoever works through another one does not wait for it.
#[repr(align(64))]
struct Share {
    /// The first in the low half, the end in the high one.
    left: AtomicU64,
    /// Taken at once.
    part: u32,
}

#[derive(Clone, Copy)]
enum Side {
    Front,
    Back,
}

impl Share {
    fn new(units: Range<usize>) -> Self {
        let end = u32::try_from(units.end).expect("units of work fit 32 bits");
        let part = units.len().div_ceil(PARTS_PER_SHARE) as u32;
        Self { left: AtomicU64::new(pair(units.start as u32, end)), part }
    }

    /// The next units at a side; `None` if none are left. Relaxed: what units read was there before the pool was called,
    /// what they write is seen when it returns.
    fn take(&self, side: Side) -> Option<Range<usize>> {
        let split = |left: u64| {
            let (start, end) = (left as u32, (left >> 32) as u32);
            let part = self.part.min(end - start);
            match side {
                Side::Front => (start..start + part, start + part..end),
                Side::Back => (end - part..end, start..end - part),
            }
        };
        let rest = |left: u64| Some(split(left).1).filter(|_| left as u32 != (left >> 32) as u32);
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            rest(left).map(|rest| pair(rest.start, rest.end))
        });
        taken.ok().map(|left| split(left).0).map(|units| units.start as usize..units.end as usize)
    }
}

fn pair(start: u32, end: u32) -> u64 {
    u64::from(start) | u64::from(end) << 32
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn every_unit_is_worked_on_once() {
        for num_units in [0, 1, 2, 3, 7, 100, 1000] {
            let counts: Vec<AtomicUsize> = (0..num_units).map(|_| AtomicUsize::new(0)).collect();
            Pool.run(num_units, &|units| {
                assert!(!units.is_empty());
                units.for_each(|unit| _ = counts[unit].fetch_add(1, Ordering::Relaxed));
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{num_units} units");
        }
    }

    #[test]
    fn a_share_is_taken_from_both_sides_until_nothing_is_left() {
        let share = Share::new(100..140);
        assert_eq!(share.take(Side::Front), Some(100..103));
        assert_eq!(share.take(Side::Back), Some(137..140));
        assert_eq!(share.take(Side::Front), Some(103..106));
        let mut num_left = 0;
        while let Some(units) = share.take(Side::Back) {
            assert!(units.start >= 106 && units.end <= 137);
            num_left += units.len();
        }
        assert_eq!((num_left, share.take(Side::Front)), (31, None));
    }

    #[test]
    fn a_thread_works_through_its_share_in_order() {
        let shares = [Share::new(0..50), Share::new(50..100)];
        let (sender, receiver) = mpsc::sync_channel(100);
        drain(&shares, 1, &|units| sender.send(units).unwrap());
        drop(sender);
        let order: Vec<usize> = receiver.into_iter().flatten().collect();
        assert!(order[..50].iter().copied().eq(50..100), "its own first");
        assert_eq!(order.len(), 100);
        assert!(order[50] >= 40, "then the end of the other's");
    }
}
