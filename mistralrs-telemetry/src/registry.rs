//! Registering metrics without ceremony.

pub use prometheus::{
    Counter, CounterVec, Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Registry,
};

use prometheus::{HistogramOpts, Opts, core::Collector};

/// Registers `metric` and hands it back.
///
/// # Panics
/// If a metric of the same name and labels is registered already: a programming error, found at start.
pub fn register<M: Collector + Clone + 'static>(registry: &Registry, metric: M) -> M {
    registry.register(Box::new(metric.clone())).expect("each metric is registered once per registry");
    metric
}

/// A histogram with labels.
///
/// # Panics
/// If the name or a label is not a valid Prometheus name.
pub fn histogram(name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> HistogramVec {
    HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)
        .expect("metric names are constants and valid")
}

/// A counter with labels.
///
/// # Panics
/// If the name or a label is not a valid Prometheus name.
pub fn counter(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), labels).expect("metric names are constants and valid")
}

/// A counter of fractions with labels: seconds.
///
/// # Panics
/// If the name or a label is not a valid Prometheus name.
pub fn counter_of_seconds(name: &str, help: &str, labels: &[&str]) -> CounterVec {
    CounterVec::new(Opts::new(name, help), labels).expect("metric names are constants and valid")
}

/// A gauge with labels.
///
/// # Panics
/// If the name or a label is not a valid Prometheus name.
pub fn gauge(name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    IntGaugeVec::new(Opts::new(name, help), labels).expect("metric names are constants and valid")
}
