//! Distributions of latencies.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// A microsecond to an hour, exact to a thousandth.
const MAX_MICROSECONDS: u64 = 3_600_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;

/// Latencies of one load.
pub(super) struct Latencies(Histogram<u64>);

/// What is told of them, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LatencySummary {
    /// Arithmetic mean.
    pub mean: f64,
    /// Half of them are at most this.
    pub p50: f64,
    /// 95 % of them are at most this.
    pub p95: f64,
    /// 99 % of them are at most this.
    pub p99: f64,
    /// The longest.
    pub max: f64,
    /// How many there are.
    pub count: u64,
}

impl Latencies {
    pub fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, MAX_MICROSECONDS, SIGNIFICANT_DIGITS);
        Self(histogram.expect("the bounds are constant and valid"))
    }

    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(latency.as_micros() as u64);
    }

    /// `None` if there were none.
    pub fn summary(&self) -> Option<LatencySummary> {
        let milliseconds = |microseconds: u64| microseconds as f64 / 1e3;
        (!self.0.is_empty()).then(|| LatencySummary {
            mean: rounded(self.0.mean() / 1e3),
            p50: milliseconds(self.0.value_at_quantile(0.5)),
            p95: milliseconds(self.0.value_at_quantile(0.95)),
            p99: milliseconds(self.0.value_at_quantile(0.99)),
            max: milliseconds(self.0.max()),
            count: self.0.len(),
        })
    }
}

/// Three digits behind the point: more is noise.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_thousandth() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.summary(), None);
        (1..=1000).for_each(|millisecond| latencies.record(Duration::from_millis(millisecond)));
        let summary = latencies.summary().unwrap();
        let is_near = |found: f64, expected: f64| (found / expected - 1.0).abs() < 2e-3;
        assert!(is_near(summary.p50, 500.0) && is_near(summary.p99, 990.0), "{summary:?}");
        assert!(is_near(summary.p95, 950.0), "{summary:?}");
        assert!(is_near(summary.max, 1000.0) && is_near(summary.mean, 500.5), "{summary:?}");
        assert_eq!(summary.count, 1000);
    }

    #[test]
    fn what_is_too_short_or_too_long_is_counted_at_the_bounds() {
        let mut latencies = Latencies::new();
        latencies.record(Duration::ZERO);
        latencies.record(Duration::from_hours(9));
        let summary = latencies.summary().unwrap();
        assert_eq!((summary.p50, summary.count), (0.0, 2));
        assert!((summary.max / 3_600_000.0 - 1.0).abs() < 2e-3, "{summary:?}");
    }
}
