//! What the endpoint tells about itself; names are fixed, dashboards use them.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http::header;
use http_body::{Body as HttpBody, Frame, SizeHint};
use mistralrs_telemetry::buckets::LATENCY_BUCKETS;
use mistralrs_telemetry::registry::{
    HistogramVec, IntCounterVec, IntGaugeVec, Registry, counter, gauge, histogram, register,
};
use prometheus::IntGauge;

use super::error::ErrorKind;
use super::incoming::OTHER_METHOD;

/// Status label of a request whose caller left before there was an answer; nginx's number.
const CLIENT_LEFT: u16 = 499;

/// Handles of the endpoint's metrics.
#[derive(Clone)]
pub(super) struct EndpointMetrics {
    requests: IntCounterVec,
    duration: HistogramVec,
    active: IntGaugeVec,
    /// Written by the table of sessions.
    pub sessions: IntGauge,
    stream_bytes: IntCounterVec,
    errors: IntCounterVec,
}

impl EndpointMetrics {
    pub fn register(registry: &Registry) -> Self {
        Self {
            requests: register(
                registry,
                counter("http_mcp_requests_total", "Requests to the MCP endpoint, answered", &["method", "status"]),
            ),
            duration: register(
                registry,
                histogram(
                    "http_mcp_request_duration_seconds",
                    "Time from a request's head to the last byte of its answer",
                    LATENCY_BUCKETS,
                    &["method"],
                ),
            ),
            active: register(
                registry,
                gauge("http_mcp_active_connections", "Requests being answered and streams open, now", &[]),
            ),
            sessions: register(
                registry,
                gauge("http_mcp_sessions", "Sessions of revisions before 2026-07-28, open now", &[]),
            )
            .with_label_values::<&str>(&[]),
            stream_bytes: register(registry, counter("http_mcp_stream_bytes_sent", "Bytes sent in event streams", &[])),
            errors: register(
                registry,
                counter("http_mcp_errors_total", "Requests refused or answered with an error", &["type", "method"]),
            ),
        }
    }
}

/// What only the handler knows of a request, and may learn after the response's head is gone; in the request's
/// extensions. Each is said once, so the first word stands.
#[derive(Debug, Clone, Default)]
pub(super) struct Observed(Arc<Observations>);

#[derive(Debug, Default)]
struct Observations {
    method: OnceLock<&'static str>,
    error: OnceLock<ErrorKind>,
}

impl Observed {
    pub fn method(&self, label: &'static str) {
        let _ = self.0.method.set(label);
    }

    pub fn error(&self, kind: ErrorKind) {
        let _ = self.0.error.set(kind);
    }
}

/// Middleware around everything: counts, times, and watches the body to its end.
pub(super) async fn measure(State(metrics): State<EndpointMetrics>, mut request: Request, next: Next) -> Response {
    let mut measured = Measured::begin(metrics);
    request.extensions_mut().insert(measured.observed.clone());
    let response = next.run(request).await;

    measured.status = response.status().as_u16();
    if let Some(kind) = response.extensions().get() {
        measured.observed.error(*kind);
    }
    let content_type = response.headers().get(header::CONTENT_TYPE);
    measured.is_stream = content_type.is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
    response.map(|body| Body::new(MeasuredBody { body, measured }))
}

/// One request from its head to the end of its answer, however that comes.
struct Measured {
    metrics: EndpointMetrics,
    started: Instant,
    status: u16,
    observed: Observed,
    is_stream: bool,
}

impl Measured {
    fn begin(metrics: EndpointMetrics) -> Self {
        metrics.active.with_label_values::<&str>(&[]).inc();
        Self { metrics, started: Instant::now(), status: CLIENT_LEFT, observed: Observed::default(), is_stream: false }
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        let Self { metrics, observed: Observed(observed), .. } = self;
        let method = observed.method.get().copied().unwrap_or(OTHER_METHOD);
        metrics.active.with_label_values::<&str>(&[]).dec();
        metrics.requests.with_label_values(&[method, &self.status.to_string()]).inc();
        metrics.duration.with_label_values(&[method]).observe(self.started.elapsed().as_secs_f64());
        if let Some(ErrorKind(kind)) = observed.error.get() {
            metrics.errors.with_label_values(&[kind, method]).inc();
        }
    }
}

struct MeasuredBody {
    body: Body,
    measured: Measured,
}

impl HttpBody for MeasuredBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if self.measured.is_stream
            && let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            let sent = self.measured.metrics.stream_bytes.with_label_values::<&str>(&[]);
            sent.inc_by(data.len() as u64);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
