//! An answer as server-sent events: chunks as they come, one error event if it fails, then `[DONE]`, always.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;
use http::{HeaderName, HeaderValue};

use super::generation::{Generation, Piece};
use super::options::UsageReport;
use super::types::UsageField;

/// A comment is sent when nothing else was for this long: proxies close silent connections, and a
/// client that left is noticed.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// How one endpoint renders pieces as chunks, in JSON.
pub(super) trait Chunks: Send + 'static {
    /// The chunks for one piece, in order.
    fn render(&mut self, piece: Piece, usage: UsageField) -> Vec<String>;

    /// The chunk without choices that tells what was used.
    fn render_usage(&mut self, usage: UsageField) -> String;
}

/// Streams `generation`. Dropping the response's body, as the server does when the client leaves, cancels it.
pub(super) fn stream(generation: Generation, chunks: impl Chunks, usage_report: UsageReport) -> Response {
    let state = Streaming { generation, chunks, usage_report, pending: VecDeque::new(), phase: Phase::Running };
    let events = stream::unfold(state, |mut state| async {
        let event = state.next_event().await?;
        Some((Ok::<_, Infallible>(event), state))
    });
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE_INTERVAL);
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // nginx would otherwise collect the stream and deliver it at once.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

struct Streaming<C> {
    generation: Generation,
    chunks: C,
    usage_report: UsageReport,
    pending: VecDeque<Event>,
    phase: Phase,
}

enum Phase {
    Running,
    /// All that is left is in `pending`.
    Ending,
}

impl<C: Chunks> Streaming<C> {
    async fn next_event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            if matches!(self.phase, Phase::Ending) {
                return None;
            }
            match self.generation.next().await {
                Some(Ok(piece)) => self.push_piece(piece),
                Some(Err(error)) => self.end_with(Some(error.to_json().to_string())),
                None => {
                    let usage = self.usage_chunk();
                    self.end_with(usage);
                }
            }
        }
    }

    fn push_piece(&mut self, piece: Piece) {
        let usage = match self.usage_report {
            UsageReport::Omit => UsageField::Absent,
            UsageReport::Include => UsageField::Later,
        };
        self.pending.extend(self.chunks.render(piece, usage).into_iter().map(data));
    }

    fn usage_chunk(&mut self) -> Option<String> {
        match self.usage_report {
            UsageReport::Omit => None,
            UsageReport::Include => Some(self.chunks.render_usage(UsageField::Known(self.generation.usage().into()))),
        }
    }

    fn end_with(&mut self, last: Option<String>) {
        self.pending.extend(last.map(data));
        self.pending.push_back(Event::default().data("[DONE]"));
        self.phase = Phase::Ending;
    }
}

fn data(chunk: String) -> Event {
    // JSON text has no line breaks outside of strings, and none unescaped inside.
    Event::default().data(chunk)
}
