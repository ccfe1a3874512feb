//! What the store tells about itself.

use mistralrs_telemetry::registry::{IntCounterVec, IntGauge, Registry, counter, gauge, register};

/// Gauges and counters of the store.
pub(super) struct StoreMetrics {
    pub stored: IntGauge,
    pub stored_bytes: IntGauge,
    evicted: IntCounterVec,
}

/// Why a response is not kept any more although nobody deleted it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Eviction {
    /// It was too old.
    Age,
    /// There were too many.
    Number,
    /// They were too large together.
    Size,
    /// It was too large for itself, and never kept.
    NeverFits,
}

impl Eviction {
    const ALL: [Self; 4] = [Self::Age, Self::Number, Self::Size, Self::NeverFits];

    fn label(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Number => "number",
            Self::Size => "size",
            Self::NeverFits => "never_fits",
        }
    }
}

impl StoreMetrics {
    /// Registers them, those that count from zero.
    pub fn register(registry: &Registry) -> Self {
        let gauge = |name, help| register(registry, gauge(name, help, &[])).with_label_values::<&str>(&[]);
        let help = "Responses that were given up although nobody deleted them.";
        let evicted = register(registry, counter("mistralrs_responses_evicted_total", help, &["reason"]));
        for reason in Eviction::ALL {
            evicted.with_label_values(&[reason.label()]);
        }
        Self {
            stored: gauge("mistralrs_responses_stored", "Responses kept, those that run in the background included."),
            stored_bytes: gauge("mistralrs_responses_stored_bytes", "Bytes of these, with their conversations."),
            evicted,
        }
    }

    pub fn evicted(&self, reason: Eviction) {
        self.evicted.with_label_values(&[reason.label()]).inc();
    }
}
