//! Counters and histograms that one thread writes and any thread reads.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::buckets::LOCK_BUCKETS;

/// A count that only its owner adds to, by load and store: exact, at a fraction of the cost of an atomic add.
#[derive(Default)]
pub(super) struct OwnCounter(AtomicU64);

impl OwnCounter {
    pub(super) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds, as the only writer, and returns the value before.
    #[inline]
    pub(super) fn add(&self, amount: u64) -> u64 {
        let before = self.0.load(Ordering::Relaxed);
        self.0.store(before.wrapping_add(amount), Ordering::Relaxed);
        before
    }

    /// Adds to a counter that has no owner: every writer has to use this.
    pub(super) fn add_shared(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }
}

/// The bounds of [`LOCK_BUCKETS`], and one bucket for what is beyond them.
const NUM_BUCKETS: usize = LOCK_BUCKETS.len() + 1;

const BOUNDS_NANOS: [u64; LOCK_BUCKETS.len()] = bounds_nanos();

const fn bounds_nanos() -> [u64; LOCK_BUCKETS.len()] {
    let mut nanos = [0; LOCK_BUCKETS.len()];
    let mut index = 0;
    while index < nanos.len() {
        nanos[index] = (LOCK_BUCKETS[index] * 1e9 + 0.5) as u64;
        index += 1;
    }
    nanos
}

/// The durations one thread met.
#[derive(Default)]
pub(super) struct Histogram {
    buckets: [OwnCounter; NUM_BUCKETS],
    sum_nanos: OwnCounter,
}

/// The sum of histograms at one scrape; buckets are not cumulative.
#[derive(Clone, Default, PartialEq, Debug)]
pub(super) struct HistogramTotals {
    pub(super) buckets: [u64; NUM_BUCKETS],
    pub(super) sum_nanos: u64,
}

impl Histogram {
    /// Adds one duration; for the owner only.
    pub(super) fn record(&self, nanos: u64) {
        let bucket = BOUNDS_NANOS.partition_point(|&bound| bound < nanos);
        self.buckets[bucket].add(1);
        self.sum_nanos.add(nanos);
    }

    pub(super) fn add_to(&self, totals: &mut HistogramTotals) {
        for (total, bucket) in totals.buckets.iter_mut().zip(&self.buckets) {
            *total += bucket.get();
        }
        totals.sum_nanos += self.sum_nanos.get();
    }
}

impl HistogramTotals {
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    pub(super) fn sum_seconds(&self) -> f64 {
        self.sum_nanos as f64 / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn puts_a_duration_in_the_first_bucket_that_bounds_it() {
        let check = |nanos: u64, expected_bound: f64| {
            let histogram = Histogram::default();
            histogram.record(nanos);
            let mut totals = HistogramTotals::default();
            histogram.add_to(&mut totals);
            let bucket = totals.buckets.iter().position(|&count| count == 1).unwrap();
            let bound = LOCK_BUCKETS.get(bucket).copied().unwrap_or(f64::INFINITY);
            assert_eq!((bound.to_bits(), totals.sum_nanos), (expected_bound.to_bits(), nanos), "{nanos} ns");
        };
        check(0, 1e-7);
        check(100, 1e-7);
        check(101, 2.5e-7);
        check(1_000_000, 1e-3);
        check(10_000_000_001, f64::INFINITY);
    }

    #[test]
    fn has_ascending_bounds() {
        assert!(BOUNDS_NANOS.is_sorted_by(|lower, upper| lower < upper), "{BOUNDS_NANOS:?}");
    }
}
