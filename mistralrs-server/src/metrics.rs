//! The registry and what the HTTP side tells about itself; names are SPEC section 6's. Serves the metrics page.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{Method, header};
use http_body::{Body as _, Frame, SizeHint};
use mistralrs_telemetry::buckets::LATENCY_BUCKETS;
use mistralrs_telemetry::registry::{
    HistogramVec, IntCounterVec, IntGaugeVec, Registry, counter, gauge, histogram, register,
};
use prometheus::{Encoder, TextEncoder};

use crate::access_log::{self, Answered, Arrival, Findings, Outcome};
use crate::app::AppState;
use crate::openapi::{Operation, Tag};

/// Cardinality: 10 methods × the routes × the loaded models × the statuses the handlers have.
const REQUEST_LABELS: &[&str] = &["method", "path", "model", "status"];

/// Label of requests that no route matched: their paths are the client's to choose.
const UNMATCHED: &str = "unmatched";

/// Status label of requests whose client left before there was an answer.
const CLIENT_LEFT: &str = "499";

/// HTTP requests, counted twice: dashboards of the field use both families of names.
#[derive(Clone)]
pub struct HttpMetrics {
    requests: [IntCounterVec; 2],
    durations: [HistogramVec; 2],
    in_flight: IntGaugeVec,
}

impl HttpMetrics {
    /// Registers them.
    pub fn register(registry: &Registry) -> Self {
        let requests = |name| register(registry, counter(name, "HTTP requests answered.", REQUEST_LABELS));
        let durations = |name| {
            let help = "Time from a request's arrival to the last byte of its answer.";
            register(registry, histogram(name, help, LATENCY_BUCKETS, REQUEST_LABELS))
        };
        Self {
            requests: [requests("requests_total"), requests("http_requests_total")],
            durations: [durations("request_duration_seconds"), durations("http_request_duration_seconds")],
            in_flight: register(
                registry,
                gauge(
                    "http_requests_in_flight",
                    "HTTP requests being answered, open streams included.",
                    &["method", "path"],
                ),
            ),
        }
    }

    fn begin(&self, request: &Request) -> RequestInFlight {
        let path = request.extensions().get::<MatchedPath>().map_or(UNMATCHED, MatchedPath::as_str);
        let method = method_label(request.method());
        self.in_flight.with_label_values(&[method, path]).inc();
        RequestInFlight {
            metrics: self.clone(),
            method,
            path: path.to_owned(),
            arrival: Arrival::new(request),
            findings: Findings::default(),
            status: None,
            outcome: Outcome::ClientLeft,
            num_bytes: 0,
            arrived: Instant::now(),
        }
    }
}

/// A registry with the process's own metrics: memory, CPU, threads, open files, start time, build.
pub fn new_registry() -> Registry {
    let registry = Registry::new();
    #[cfg(target_os = "linux")]
    registry
        .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
        .expect("the registry is empty");
    let help = "Version and Cargo features of this build; always 1.";
    let build = register(&registry, gauge("mistralrs_build_info", help, &["version", "features"]));
    build.with_label_values(&[env!("CARGO_PKG_VERSION"), &features()]).set(1);
    registry
}

fn features() -> String {
    let features = [
        ("prometheus-locks", cfg!(feature = "prometheus-locks")),
        ("http-mcp-stream", cfg!(feature = "http-mcp-stream")),
        ("tool-forwarding", cfg!(feature = "tool-forwarding")),
    ];
    features.iter().filter(|(_, is_on)| *is_on).map(|(name, _)| *name).collect::<Vec<_>>().join(",")
}

/// Middleware around every route: counts, times, follows the answer to its last byte, and logs how it went.
pub async fn measure(State(app): State<AppState>, request: Request, next: Next) -> Response {
    let mut in_flight = app.http_metrics.begin(&request);
    let has_no_body = request.method() == Method::HEAD;
    let (response, findings) = access_log::gather(next.run(request)).await;
    in_flight.findings = findings;
    in_flight.status = Some(response.status().as_u16());
    if has_no_body || response.body().is_end_stream() {
        // Nobody will read it to its end.
        in_flight.outcome = Outcome::Sent;
    }
    response.map(|body| Body::new(MeasuredBody { body, in_flight }))
}

/// `GET /metrics`: the text format. Reads counters; never waits for a model step.
pub async fn scrape(State(app): State<AppState>) -> Response {
    let mut text = Vec::new();
    if let Err(error) = TextEncoder::new().encode(&app.registry.gather(), &mut text) {
        tracing::error!(%error, "the metrics cannot be encoded");
    }
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response()
}

/// What it does, for the API's document.
pub(crate) fn describe_scrape() -> Operation {
    Operation::new("getMetrics", Tag::Operation, "Metrics in Prometheus's text format.").answers_text("text/plain")
}

/// One request; counted when this is dropped, which is when its answer is sent or its client has left.
struct RequestInFlight {
    metrics: HttpMetrics,
    method: &'static str,
    path: String,
    arrival: Arrival,
    findings: Findings,
    status: Option<u16>,
    outcome: Outcome,
    num_bytes: u64,
    arrived: Instant,
}

impl Drop for RequestInFlight {
    fn drop(&mut self) {
        let status = self.status.map_or_else(|| CLIENT_LEFT.to_owned(), |status| status.to_string());
        let labels = [self.method, &self.path, &self.findings.model, &status];
        let duration = self.arrived.elapsed();
        let seconds = duration.as_secs_f64();
        self.arrival.log(&Answered {
            method: self.method,
            route: &self.path,
            status: &status,
            outcome: self.outcome,
            duration,
            num_bytes: self.num_bytes,
            findings: &self.findings,
        });
        self.metrics.requests.iter().for_each(|family| family.with_label_values(&labels).inc());
        self.metrics.durations.iter().for_each(|family| family.with_label_values(&labels).observe(seconds));
        self.metrics.in_flight.with_label_values(&[self.method, &self.path]).dec();
    }
}

/// A body that keeps its request counted as in flight, and notes how far it is read.
struct MeasuredBody {
    body: Body,
    in_flight: RequestInFlight,
}

impl http_body::Body for MeasuredBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let has_ended = match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.in_flight.num_bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                // Who knows that nothing follows does not ask again.
                self.body.is_end_stream()
            }
            Poll::Ready(None) => true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => false,
        };
        if has_ended {
            self.in_flight.outcome = Outcome::Sent;
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

/// Methods are the client's to choose too.
fn method_label(method: &Method) -> &'static str {
    const KNOWN: &[&str] = &["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "CONNECT", "PATCH", "TRACE"];
    KNOWN.iter().find(|known| **known == method.as_str()).copied().unwrap_or("other")
}
