//! What the locks of this process did, as Prometheus metrics made at scrape time.

use std::collections::HashMap;
use std::sync::LazyLock;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Counter, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::histogram::HistogramTotals;
use super::names;
use super::tally::{self, Totals};
use crate::buckets::LOCK_BUCKETS;
use crate::registry::Registry;

const LABEL: &str = "lock";

/// Registers the metrics of every lock of this process, those made later among them.
///
/// They are read when `registry` is gathered, without keeping any user of a lock waiting.
///
/// # Panics
/// If they are registered there already: a programming error, found at start.
pub fn register_lock_metrics(registry: &Registry) {
    registry.register(Box::new(LockCollector)).expect("lock metrics are registered once per registry");
}

struct LockCollector;

impl Collector for LockCollector {
    fn desc(&self) -> Vec<&Desc> {
        static DESCS: LazyLock<Vec<Desc>> =
            LazyLock::new(|| LockMetric::ALL.iter().map(|metric| metric.desc()).collect());
        DESCS.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let locks: Vec<_> = names::all()
            .map(|id| LockTotals { name: id.name(), is_rwlock: id.is_rwlock(), totals: tally::totals(id) })
            .collect();
        families(&locks)
    }
}

/// What is known of all locks of one name at one moment.
struct LockTotals {
    name: &'static str,
    /// Whether a reader-writer lock has the name: only then are there reads and writes to tell apart.
    is_rwlock: bool,
    totals: Totals,
}

fn families(locks: &[LockTotals]) -> Vec<MetricFamily> {
    LockMetric::ALL
        .iter()
        .map(|metric| {
            let mut family = MetricFamily::default();
            family.set_name(metric.name().to_owned());
            family.set_help(metric.help().to_owned());
            family.set_field_type(metric.metric_type());
            family.set_metric(locks.iter().filter_map(|lock| metric.sample(lock)).collect());
            family
        })
        .collect()
}

#[derive(Clone, Copy)]
enum LockMetric {
    Wait,
    Hold,
    Contention,
    Acquisitions,
    Reads,
    Writes,
}

impl LockMetric {
    const ALL: [Self; 6] = [Self::Wait, Self::Hold, Self::Contention, Self::Acquisitions, Self::Reads, Self::Writes];

    fn name(self) -> &'static str {
        match self {
            Self::Wait => "mistralrs_lock_wait_seconds",
            Self::Hold => "mistralrs_lock_hold_seconds",
            Self::Contention => "mistralrs_lock_contention_seconds",
            Self::Acquisitions => "mistralrs_lock_acquisition_count",
            Self::Reads => "mistralrs_rwlock_read_count",
            Self::Writes => "mistralrs_rwlock_write_count",
        }
    }

    fn help(self) -> &'static str {
        match self {
            Self::Wait => "Time waited for the lock, by every acquisition that found it taken and by no other.",
            Self::Hold => "Time the lock was held, of one acquisition in 128.",
            Self::Contention => "Time waited for the lock in seconds, summed over threads.",
            Self::Acquisitions => "Times the lock was taken, in any way.",
            Self::Reads => "Times the lock was taken for reading.",
            Self::Writes => "Times the lock was taken for writing.",
        }
    }

    fn metric_type(self) -> MetricType {
        match self {
            Self::Wait | Self::Hold => MetricType::HISTOGRAM,
            Self::Contention | Self::Acquisitions | Self::Reads | Self::Writes => MetricType::COUNTER,
        }
    }

    fn desc(self) -> Desc {
        Desc::new(self.name().to_owned(), self.help().to_owned(), vec![LABEL.to_owned()], HashMap::new())
            .expect("metric names are constants and valid")
    }

    fn sample(self, lock: &LockTotals) -> Option<Metric> {
        let totals = &lock.totals;
        let mut label = LabelPair::default();
        label.set_name(LABEL.to_owned());
        label.set_value(lock.name.to_owned());
        let mut metric = Metric::from_label(vec![label]);
        match self {
            Self::Wait => metric.set_histogram(histogram(&totals.waits)),
            Self::Hold => metric.set_histogram(histogram(&totals.holds)),
            Self::Contention => metric.set_counter(counter(totals.waits.sum_seconds())),
            Self::Acquisitions => {
                metric.set_counter(counter((totals.mutex_locks + totals.reads + totals.writes) as f64));
            }
            Self::Reads if lock.is_rwlock => metric.set_counter(counter(totals.reads as f64)),
            Self::Writes if lock.is_rwlock => metric.set_counter(counter(totals.writes as f64)),
            Self::Reads | Self::Writes => return None,
        }
        Some(metric)
    }
}

fn counter(value: f64) -> Counter {
    let mut counter = Counter::default();
    counter.set_value(value);
    counter
}

fn histogram(totals: &HistogramTotals) -> Histogram {
    let mut cumulative_count = 0;
    let buckets = LOCK_BUCKETS.iter().zip(&totals.buckets).map(|(&upper_bound, count)| {
        cumulative_count += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(upper_bound);
        bucket.set_cumulative_count(cumulative_count);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(totals.count());
    histogram.set_sample_sum(totals.sum_seconds());
    histogram
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;
    use crate::lock::tally::SAMPLE_ONE_IN;

    fn text(locks: &[LockTotals]) -> String {
        let families: Vec<_> = families(locks).into_iter().filter(|family| !family.get_metric().is_empty()).collect();
        TextEncoder::new().encode_to_string(&families).unwrap()
    }

    /// Durations as (bucket, nanoseconds).
    fn histogram_of(durations: &[(usize, u64)]) -> HistogramTotals {
        let mut totals = HistogramTotals::default();
        for &(bucket, nanos) in durations {
            totals.buckets[bucket] += 1;
            totals.sum_nanos += nanos;
        }
        totals
    }

    #[test]
    fn shows_a_mutex_without_reads_and_writes() {
        let totals = Totals {
            mutex_locks: 300,
            waits: histogram_of(&[(0, 100), (1, 150), (LOCK_BUCKETS.len(), 12_000_000_000)]),
            holds: histogram_of(&[(3, 1000), (3, 1000)]),
            ..Totals::default()
        };
        let lock = LockTotals { name: "request_queue", is_rwlock: false, totals };
        assert_eq!(text(&[lock]), include_str!("snapshots/mutex.prom"));
    }

    #[test]
    fn shows_reads_and_writes_of_an_rwlock_and_their_sum() {
        let totals = Totals { reads: 40, writes: 2, ..Totals::default() };
        let lock = LockTotals { name: "model_router", is_rwlock: true, totals };
        let counts: Vec<String> = text(&[lock])
            .lines()
            .filter(|line| line.contains("_count{") && !line.contains("_seconds"))
            .map(str::to_owned)
            .collect();
        assert_eq!(
            counts,
            [
                r#"mistralrs_lock_acquisition_count{lock="model_router"} 42"#,
                r#"mistralrs_rwlock_read_count{lock="model_router"} 40"#,
                r#"mistralrs_rwlock_write_count{lock="model_router"} 2"#,
            ]
        );
    }

    #[test]
    fn says_how_many_holds_are_timed() {
        assert!(LockMetric::Hold.help().ends_with(&format!(" in {SAMPLE_ONE_IN}.")));
    }
}
