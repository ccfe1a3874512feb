//! What the engine tells about itself; names are SPEC section 6's.

use mistralrs_telemetry::buckets::LATENCY_BUCKETS;
use mistralrs_telemetry::registry::{
    Counter, CounterVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, counter,
    counter_of_seconds, gauge, histogram, register,
};

use crate::request::FinishReason;
use crate::speculation::GuessSource;

/// The engine's metrics, one set per process; [`EngineMetrics::for_model`] gives one model's part. Labels: `model` is a
/// configured name, `phase` is `prefill`, `decode` or `mixed`, `reason` and `source` one of the few words of an enum.
#[derive(Clone)]
pub struct EngineMetrics {
    time_to_first_token: HistogramVec,
    inter_token_latency: HistogramVec,
    queue_wait: HistogramVec,
    step: HistogramVec,
    tokens_processed: IntCounterVec,
    sequences_running: IntGaugeVec,
    sequences_waiting: IntGaugeVec,
    sequences_capacity: IntGaugeVec,
    sequences_completed: IntCounterVec,
    sequences_rejected: IntCounterVec,
    blocks_used: IntGaugeVec,
    blocks_total: IntGaugeVec,
    kv_used_bytes: IntGaugeVec,
    kv_capacity_bytes: IntGaugeVec,
    prefix_cached_bytes: IntGaugeVec,
    prefix_lookups: IntCounterVec,
    prefix_hits: IntCounterVec,
    prefix_evictions: IntCounterVec,
    preemptions: IntCounterVec,
    speculation: SpeculationMetrics,
}

impl EngineMetrics {
    /// Registers all of them; once per registry.
    pub fn register(registry: &Registry) -> Self {
        let seconds = |name, help, labels: &[&str]| register(registry, histogram(name, help, LATENCY_BUCKETS, labels));
        let count = |name, help, labels: &[&str]| register(registry, counter(name, help, labels));
        let total = |name, help| count(name, help, &["model"]);
        let level = |name, help| register(registry, gauge(name, help, &["model"]));
        let model = ["model"];
        Self {
            time_to_first_token: seconds(
                "mistralrs_time_to_first_token_seconds",
                "Time from arrival to the first token of a choice",
                &model,
            ),
            inter_token_latency: seconds(
                "mistralrs_inter_token_latency_seconds",
                "Time between two tokens of one choice",
                &model,
            ),
            queue_wait: seconds("mistralrs_queue_wait_seconds", "Time from arrival to first prefill", &model),
            step: seconds("mistralrs_step_seconds", "Duration of one engine step", &["model", "phase"]),
            tokens_processed: total(
                "mistralrs_tokens_processed_total",
                "Tokens computed, prompt and generated, recomputed ones included",
            ),
            sequences_running: level("mistralrs_sequences_running", "Sequences in the batch"),
            sequences_waiting: level("mistralrs_sequences_waiting", "Sequences waiting for admission"),
            sequences_capacity: level("mistralrs_sequences_capacity", "Sequences the batch can hold"),
            sequences_completed: count(
                "mistralrs_sequences_completed_total",
                "Sequences that ended, by reason",
                &["model", "reason"],
            ),
            sequences_rejected: count(
                "mistralrs_sequences_rejected_total",
                "Sequences refused before their first step, by reason",
                &["model", "reason"],
            ),
            blocks_used: level("mistralrs_kv_cache_blocks_used", "KV blocks held by sequences"),
            blocks_total: level("mistralrs_kv_cache_blocks_total", "KV blocks in all"),
            kv_used_bytes: level("mistralrs_kv_cache_used_bytes", "Bytes of the KV blocks held by sequences"),
            kv_capacity_bytes: level("mistralrs_kv_cache_capacity_bytes", "Bytes of all KV blocks"),
            prefix_cached_bytes: level(
                "mistralrs_prefix_cache_bytes",
                "Bytes of KV blocks that no sequence holds, kept for their contents",
            ),
            prefix_lookups: total(
                "mistralrs_prefix_cache_lookups_total",
                "Full prompt blocks looked up in the prefix cache",
            ),
            prefix_hits: total("mistralrs_prefix_cache_hits_total", "Prompt blocks found in the prefix cache"),
            prefix_evictions: total("mistralrs_prefix_cache_evictions_total", "Cached blocks given up for new ones"),
            preemptions: total(
                "mistralrs_paged_preemptions_total",
                "Sequences that lost their KV blocks and recompute",
            ),
            speculation: SpeculationMetrics::register(registry),
        }
    }

    /// The part of one model, with every series at zero so that rates start at the first event.
    pub(crate) fn for_model(&self, model: &str) -> ModelMetrics {
        let labels = [model];
        let by_reason = |metric: &IntCounterVec, reason: &str| metric.with_label_values(&[model, reason]);
        ModelMetrics {
            time_to_first_token: self.time_to_first_token.with_label_values(&labels),
            inter_token_latency: self.inter_token_latency.with_label_values(&labels),
            queue_wait: self.queue_wait.with_label_values(&labels),
            step_prefill: self.step.with_label_values(&[model, "prefill"]),
            step_decode: self.step.with_label_values(&[model, "decode"]),
            step_mixed: self.step.with_label_values(&[model, "mixed"]),
            tokens_processed: self.tokens_processed.with_label_values(&labels),
            sequences_running: self.sequences_running.with_label_values(&labels),
            sequences_waiting: self.sequences_waiting.with_label_values(&labels),
            sequences_capacity: self.sequences_capacity.with_label_values(&labels),
            completed: FinishReason::ALL.map(|reason| by_reason(&self.sequences_completed, reason.as_str())),
            rejected: Rejection::ALL.map(|reason| by_reason(&self.sequences_rejected, reason.as_str())),
            blocks_used: self.blocks_used.with_label_values(&labels),
            blocks_total: self.blocks_total.with_label_values(&labels),
            kv_used_bytes: self.kv_used_bytes.with_label_values(&labels),
            kv_capacity_bytes: self.kv_capacity_bytes.with_label_values(&labels),
            prefix_cached_bytes: self.prefix_cached_bytes.with_label_values(&labels),
            prefix_lookups: self.prefix_lookups.with_label_values(&labels),
            prefix_hits: self.prefix_hits.with_label_values(&labels),
            prefix_evictions: self.prefix_evictions.with_label_values(&labels),
            preemptions: self.preemptions.with_label_values(&labels),
            speculation: self.speculation.for_model(model),
        }
    }
}

/// Why a request was refused before its first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejection {
    QueueFull,
    TooLong,
    ShuttingDown,
    QueueTimeout,
}

impl Rejection {
    const ALL: [Self; 4] = [Self::QueueFull, Self::TooLong, Self::ShuttingDown, Self::QueueTimeout];

    fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::TooLong => "too_long",
            Self::ShuttingDown => "shutting_down",
            Self::QueueTimeout => "queue_timeout",
        }
    }
}

/// Handles of one model's series, so that the step looks nothing up by name.
#[derive(Clone)]
pub(crate) struct ModelMetrics {
    pub time_to_first_token: Histogram,
    pub inter_token_latency: Histogram,
    pub queue_wait: Histogram,
    pub step_prefill: Histogram,
    pub step_decode: Histogram,
    pub step_mixed: Histogram,
    pub tokens_processed: IntCounter,
    pub sequences_running: IntGauge,
    pub sequences_waiting: IntGauge,
    pub sequences_capacity: IntGauge,
    completed: [IntCounter; 4],
    rejected: [IntCounter; 4],
    pub blocks_used: IntGauge,
    pub blocks_total: IntGauge,
    pub kv_used_bytes: IntGauge,
    pub kv_capacity_bytes: IntGauge,
    pub prefix_cached_bytes: IntGauge,
    pub prefix_lookups: IntCounter,
    pub prefix_hits: IntCounter,
    pub prefix_evictions: IntCounter,
    pub preemptions: IntCounter,
    pub speculation: ModelSpeculationMetrics,
}

impl ModelMetrics {
    /// The counter of sequences that ended for `reason`.
    pub fn completed(&self, reason: FinishReason) -> &IntCounter {
        &self.completed[reason as usize]
    }

    /// The counter of sequences refused for `reason`.
    pub fn rejected(&self, reason: Rejection) -> &IntCounter {
        &self.rejected[reason as usize]
    }
}

/// What guessing tells about itself.
#[derive(Clone)]
struct SpeculationMetrics {
    drafted: IntCounterVec,
    accepted: IntCounterVec,
    drafting_seconds: CounterVec,
    draft_blocks_used: IntGaugeVec,
}

impl SpeculationMetrics {
    fn register(registry: &Registry) -> Self {
        let by_source = |name, help| register(registry, counter(name, help, &["model", "source"]));
        let drafting_seconds = counter_of_seconds(
            "mistralrs_speculative_drafting_seconds_total",
            "Time the draft model took, as part of engine steps",
            &["model"],
        );
        let draft_blocks_used = gauge(
            "mistralrs_speculative_draft_blocks_used",
            "KV blocks of the draft model held by sequences",
            &["model"],
        );
        Self {
            drafted: by_source(
                "mistralrs_speculative_draft_tokens_total",
                "Tokens guessed and verified beside sampled ones, by who guessed",
            ),
            accepted: by_source(
                "mistralrs_speculative_accepted_tokens_total",
                "Guessed tokens that came true, by who guessed",
            ),
            drafting_seconds: register(registry, drafting_seconds),
            draft_blocks_used: register(registry, draft_blocks_used),
        }
    }

    fn for_model(&self, model: &str) -> ModelSpeculationMetrics {
        let by_source =
            |metric: &IntCounterVec| GuessSource::ALL.map(|source| metric.with_label_values(&[model, source.as_str()]));
        ModelSpeculationMetrics {
            drafted: by_source(&self.drafted),
            accepted: by_source(&self.accepted),
            drafting_seconds: self.drafting_seconds.with_label_values(&[model]),
            draft_blocks_used: self.draft_blocks_used.with_label_values(&[model]),
        }
    }
}

/// Those of one model.
#[derive(Clone)]
pub(crate) struct ModelSpeculationMetrics {
    drafted: [IntCounter; 2],
    accepted: [IntCounter; 2],
    pub drafting_seconds: Counter,
    pub draft_blocks_used: IntGauge,
}

impl ModelSpeculationMetrics {
    /// The counter of guesses that `source` made.
    pub fn drafted(&self, source: GuessSource) -> &IntCounter {
        &self.drafted[source as usize]
    }

    /// The counter of guesses of `source` that came true.
    pub fn accepted(&self, source: GuessSource) -> &IntCounter {
        &self.accepted[source as usize]
    }
}
