//! What the gateway tells about itself; names are written once, here.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use mistralrs_telemetry::Mutex;
use mistralrs_telemetry::buckets::LATENCY_BUCKETS;
#[cfg(feature = "tool-forwarding")]
use mistralrs_telemetry::registry::gauge;
use mistralrs_telemetry::registry::{counter, histogram, register};
#[cfg(feature = "tool-forwarding")]
use prometheus::IntGaugeVec;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, Registry};
use rmcp::model::ServerResult;

#[cfg(feature = "tool-forwarding")]
use crate::config::UpstreamId;
use crate::error::GatewayError;

/// Tools beyond this share the label `other`: a histogram each, times its buckets, is what a scrape carries.
const MAX_TOOL_LABELS: usize = 2048;
/// The label of names that nobody configured or discovered.
const OTHER: &str = "other";

/// Handles of the gateway's metrics.
#[derive(Clone)]
pub struct GatewayMetrics {
    calls: IntCounterVec,
    native_calls: IntCounterVec,
    forwarded_calls: IntCounterVec,
    forwarded_duration: HistogramVec,
    errors: IntCounterVec,
    #[cfg(feature = "tool-forwarding")]
    active_connections: IntGaugeVec,
    #[cfg(feature = "tool-forwarding")]
    upstream_up: IntGaugeVec,
    #[cfg(feature = "tool-forwarding")]
    upstream_restarts: IntCounterVec,
    /// Tool names that have a label of their own; catalogs of several upstreams ask at once.
    labels: Arc<Mutex<HashSet<String>>>,
}

/// How a tool that was called answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answered {
    /// With a result, or with what it needs to go on.
    Well,
    /// With `isError`.
    WithError,
}

/// One tool's handles, looked up once when the tool becomes known.
#[derive(Clone)]
pub(crate) struct ToolMetrics {
    label: Arc<str>,
    calls: IntCounter,
    of_kind: IntCounter,
    /// Forwarded tools only.
    duration: Option<Histogram>,
    errors: IntCounterVec,
}

/// One upstream's handles.
#[cfg(feature = "tool-forwarding")]
#[derive(Clone)]
pub(crate) struct UpstreamMetrics {
    up: prometheus::IntGauge,
    restarts: IntCounter,
    active_connections: prometheus::IntGauge,
}

/// Where a tool's calls go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToolKind {
    /// To the model of this process.
    Native,
    /// To an upstream.
    #[cfg_attr(not(feature = "tool-forwarding"), expect(dead_code, reason = "there are no upstreams in this build"))]
    Forwarded,
}

/// Whether an upstream's connection is its first.
#[cfg(feature = "tool-forwarding")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opened {
    /// The first of this process.
    First,
    /// One was lost before.
    Again,
}

impl GatewayMetrics {
    /// Registers them.
    ///
    /// # Panics
    /// If they are registered in `registry` already.
    pub fn register(registry: &Registry) -> Self {
        Self {
            calls: register(registry, counter("mistralrs_tool_calls_total", "Tool calls", &["tool"])),
            native_calls: register(
                registry,
                counter("mistralrs_tool_native_calls_total", "Calls of the model's own tools", &["tool"]),
            ),
            forwarded_calls: register(
                registry,
                counter("mistralrs_tool_forwarded_calls_total", "Tool calls forwarded to an upstream", &["tool"]),
            ),
            forwarded_duration: register(
                registry,
                histogram(
                    "mistralrs_tool_forwarded_duration_seconds",
                    "Time from a forwarded call's arrival to its answer",
                    LATENCY_BUCKETS,
                    &["tool"],
                ),
            ),
            errors: register(
                registry,
                counter(
                    "mistralrs_tool_errors_total",
                    "Tool calls that could not be made, and those whose tool reported an error",
                    &["tool", "error"],
                ),
            ),
            #[cfg(feature = "tool-forwarding")]
            active_connections: register(
                registry,
                gauge("mistralrs_tool_active_connections", "Open connections to upstream servers", &[]),
            ),
            #[cfg(feature = "tool-forwarding")]
            upstream_up: register(
                registry,
                gauge("mistralrs_upstream_up", "Whether the upstream is connected", &["upstream"]),
            ),
            #[cfg(feature = "tool-forwarding")]
            upstream_restarts: register(
                registry,
                counter(
                    "mistralrs_upstream_restarts_total",
                    "Times an upstream's connection was opened again after it had been lost",
                    &["upstream"],
                ),
            ),
            labels: Arc::new(Mutex::new("tool_labels", HashSet::new())),
        }
    }

    /// Handles of a configured or discovered tool.
    pub(crate) fn tool(&self, name: &str, kind: ToolKind) -> ToolMetrics {
        let label = self.label(name);
        let (of_kind, duration) = match kind {
            ToolKind::Native => (self.native_calls.with_label_values(&[label]), None),
            ToolKind::Forwarded => (
                self.forwarded_calls.with_label_values(&[label]),
                Some(self.forwarded_duration.with_label_values(&[label])),
            ),
        };
        ToolMetrics {
            label: label.into(),
            calls: self.calls.with_label_values(&[label]),
            of_kind,
            duration,
            errors: self.errors.clone(),
        }
    }

    /// Counts a call that named no tool there is.
    pub(crate) fn unresolved(&self, error: &GatewayError) {
        self.calls.with_label_values(&[OTHER]).inc();
        self.errors.with_label_values(&[OTHER, error.kind()]).inc();
    }

    /// Handles of a configured upstream.
    #[cfg(feature = "tool-forwarding")]
    pub(crate) fn upstream(&self, id: &UpstreamId) -> UpstreamMetrics {
        UpstreamMetrics {
            up: self.upstream_up.with_label_values(&[id.as_str()]),
            restarts: self.upstream_restarts.with_label_values(&[id.as_str()]),
            active_connections: self.active_connections.with_label_values(&[] as &[&str]),
        }
    }

    fn label<'a>(&self, name: &'a str) -> &'a str {
        let mut labels = self.labels.lock();
        if labels.contains(name) {
            return name;
        }
        if labels.len() >= MAX_TOOL_LABELS {
            return OTHER;
        }
        labels.insert(name.to_owned());
        name
    }
}

impl Answered {
    /// By what the tool said of its result.
    pub(crate) fn of_result(result: &ServerResult) -> Self {
        match result {
            ServerResult::CallToolResult(result) if result.is_error == Some(true) => Self::WithError,
            _ => Self::Well,
        }
    }
}

impl ToolMetrics {
    /// Counts a finished call. A tool that reports an error has answered, so it is counted with its own word.
    pub(crate) fn record(&self, waited: Duration, outcome: Result<Answered, &GatewayError>) {
        self.calls.inc();
        self.of_kind.inc();
        if let Some(duration) = &self.duration {
            duration.observe(waited.as_secs_f64());
        }
        let kind = match outcome {
            Ok(Answered::WithError) => "reported",
            Ok(Answered::Well) => return,
            Err(error) => error.kind(),
        };
        self.errors.with_label_values(&[&*self.label, kind]).inc();
    }
}

#[cfg(feature = "tool-forwarding")]
impl UpstreamMetrics {
    /// A connection is open.
    pub(crate) fn connected(&self, opened: Opened) {
        self.up.set(1);
        self.active_connections.inc();
        if opened == Opened::Again {
            self.restarts.inc();
        }
    }

    /// The connection is gone.
    pub(crate) fn disconnected(&self) {
        self.up.set(0);
        self.active_connections.dec();
    }
}
