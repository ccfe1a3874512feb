//! Reading metrics back, for tests.

use prometheus::proto::{Metric, MetricFamily, MetricType};
use prometheus::{Registry, TextEncoder};

/// The value of a metric, as Prometheus would see it: the sum of all series of `name` that carry every one of
/// `labels`, or none if there is no such series.
///
/// Counters and gauges have a value; histograms have those of their `_count` and `_sum`. Buckets are in [`text`].
pub fn value(registry: &Registry, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let families = registry.gather();
    let sample = |family: &MetricFamily| sum_of(family, labels, plain_value);
    if let Some(family) = families.iter().find(|family| family.name() == name) {
        return sample(family);
    }
    let histogram_part = |suffix: &str, part: fn(&Metric) -> f64| {
        let histogram = name.strip_suffix(suffix)?;
        let family = families.iter().find(|family| family.name() == histogram)?;
        sum_of(family, labels, |metric_type, metric| (metric_type == MetricType::HISTOGRAM).then(|| part(metric)))
    };
    histogram_part("_count", |metric| metric.get_histogram().get_sample_count() as f64)
        .or_else(|| histogram_part("_sum", |metric| metric.get_histogram().get_sample_sum()))
}

/// All metrics in the text format, as `/metrics` sends them.
///
/// # Panics
/// If a metric cannot be encoded, which a registered metric always can.
pub fn text(registry: &Registry) -> String {
    TextEncoder::new().encode_to_string(&registry.gather()).expect("registered metrics can be encoded")
}

fn plain_value(metric_type: MetricType, metric: &Metric) -> Option<f64> {
    match metric_type {
        MetricType::COUNTER => Some(metric.get_counter().get_value()),
        MetricType::GAUGE => Some(metric.get_gauge().get_value()),
        MetricType::HISTOGRAM | MetricType::SUMMARY | MetricType::UNTYPED => None,
    }
}

fn sum_of(
    family: &MetricFamily,
    labels: &[(&str, &str)],
    value: impl Fn(MetricType, &Metric) -> Option<f64>,
) -> Option<f64> {
    let has_label = |metric: &Metric, (name, value): (&str, &str)| {
        metric.get_label().iter().any(|label| label.name() == name && label.value() == value)
    };
    family
        .get_metric()
        .iter()
        .filter(|metric| labels.iter().all(|&label| has_label(metric, label)))
        .filter_map(|metric| value(family.get_field_type(), metric))
        .reduce(|sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{counter, gauge, histogram, register};

    fn check(name: &str, labels: &[(&str, &str)], expected: Option<f64>) {
        let registry = Registry::new();
        let requests = register(&registry, counter("requests_total", "Requests.", &["model", "status"]));
        requests.with_label_values(&["a", "ok"]).inc_by(3);
        requests.with_label_values(&["a", "error"]).inc();
        requests.with_label_values(&["b", "ok"]).inc_by(10);
        register(&registry, gauge("queue_length", "Length.", &[])).with_label_values(&[] as &[&str]).set(7);
        let seconds = register(&registry, histogram("wait_seconds", "Wait.", &[1.0], &["model"]));
        seconds.with_label_values(&["a"]).observe(0.5);
        seconds.with_label_values(&["a"]).observe(2.0);
        assert_eq!(value(&registry, name, labels), expected, "{name} {labels:?}");
    }

    #[test]
    fn sums_the_series_that_carry_the_labels() {
        check("requests_total", &[], Some(14.0));
        check("requests_total", &[("model", "a")], Some(4.0));
        check("requests_total", &[("model", "a"), ("status", "ok")], Some(3.0));
        check("requests_total", &[("model", "c")], None);
        check("queue_length", &[], Some(7.0));
        check("unknown", &[], None);
    }

    #[test]
    fn reads_counts_and_sums_of_histograms() {
        check("wait_seconds_count", &[("model", "a")], Some(2.0));
        check("wait_seconds_sum", &[], Some(2.5));
        check("wait_seconds", &[], None);
        check("requests_total_count", &[], None);
    }

    #[test]
    fn encodes_what_is_registered() {
        let registry = Registry::new();
        register(&registry, gauge("queue_length", "Length.", &[])).with_label_values(&[] as &[&str]).set(7);
        assert_eq!(text(&registry), "# HELP queue_length Length.\n# TYPE queue_length gauge\nqueue_length 7\n");
    }
}
