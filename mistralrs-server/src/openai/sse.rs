//! A running answer as server-sent events, ended by its API's last event or its error event, always.
//!
//! [`respond`] runs any API's [`EventRenderer`]; [`stream`] is that of the two completion endpoints: chunks as they come,
//! one error event if it fails, then `[DONE]`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;
use http::{HeaderName, HeaderValue};
use mistralrs_core::request::Usage;

use super::generation::{Generation, Piece};
use super::options::UsageReport;
use super::types::UsageField;
use crate::error::ApiError;

/// A comment is sent when nothing else was for this long: proxies close silent connections, and a
/// client that left is noticed.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// How one API renders a running answer as events.
pub(crate) trait EventRenderer: Send + 'static {
    /// What comes before the first piece.
    fn begin(&mut self) -> Vec<Event> {
        Vec::new()
    }

    /// The events for one piece, in order.
    fn piece(&mut self, piece: Piece) -> Vec<Event>;

    /// The last events of a complete answer.
    fn end(&mut self, usage: Usage) -> Vec<Event>;

    /// The last events of an answer that cannot be completed.
    fn fail(&mut self, error: &ApiError) -> Vec<Event>;

    /// What is sent when nothing else was for a while; a comment, where the API has no event for it.
    fn idle(&self) -> Event {
        Event::DEFAULT_KEEP_ALIVE
    }
}

/// Streams `generation`. Dropping the response's body, as the server does when the client leaves, cancels it.
pub(crate) fn respond(generation: Generation, mut renderer: impl EventRenderer) -> Response {
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE_INTERVAL).event(renderer.idle());
    let pending = renderer.begin().into();
    let state = Streaming { generation, renderer, pending, phase: Phase::Running };
    let events = stream::unfold(state, |mut state| async {
        let event = state.next_event().await?;
        Some((Ok::<_, Infallible>(event), state))
    });
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // nginx would otherwise collect the stream and deliver it at once.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

struct Streaming<R> {
    generation: Generation,
    renderer: R,
    pending: VecDeque<Event>,
    phase: Phase,
}

enum Phase {
    Running,
    /// All that is left is in `pending`.
    Ending,
}

impl<R: EventRenderer> Streaming<R> {
    async fn next_event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            if matches!(self.phase, Phase::Ending) {
                return None;
            }
            match self.generation.next().await {
                Some(Ok(piece)) => self.pending.extend(self.renderer.piece(piece)),
                Some(Err(error)) => self.end_with(|renderer, _| renderer.fail(&error)),
                None => self.end_with(EventRenderer::end),
            }
        }
    }

    fn end_with(&mut self, last: impl FnOnce(&mut R, Usage) -> Vec<Event>) {
        self.phase = Phase::Ending;
        self.pending.extend(last(&mut self.renderer, self.generation.usage()));
    }
}

/// How one completion endpoint renders pieces as chunks, in JSON.
pub(super) trait Chunks: Send + 'static {
    /// The chunks for one piece, in order.
    fn render(&mut self, piece: Piece, usage: UsageField) -> Vec<String>;

    /// The chunk without choices that tells what was used.
    fn render_usage(&mut self, usage: UsageField) -> String;
}

/// Streams `generation` as chunks.
pub(super) fn stream(generation: Generation, chunks: impl Chunks, usage_report: UsageReport) -> Response {
    respond(generation, ChunkEvents { chunks, usage_report })
}

struct ChunkEvents<C> {
    chunks: C,
    usage_report: UsageReport,
}

impl<C: Chunks> EventRenderer for ChunkEvents<C> {
    fn piece(&mut self, piece: Piece) -> Vec<Event> {
        let usage = match self.usage_report {
            UsageReport::Omit => UsageField::Absent,
            UsageReport::Include => UsageField::Later,
        };
        self.chunks.render(piece, usage).into_iter().map(data).collect()
    }

    fn end(&mut self, usage: Usage) -> Vec<Event> {
        match self.usage_report {
            UsageReport::Omit => vec![done()],
            UsageReport::Include => vec![data(self.chunks.render_usage(UsageField::Known(usage.into()))), done()],
        }
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Event> {
        vec![data(error.to_json().to_string()), done()]
    }
}

/// An event without a name.
fn data(json: String) -> Event {
    // JSON text has no line breaks outside of strings, and none unescaped inside.
    Event::default().data(json)
}

/// What tells clients of OpenAI's APIs that nothing more comes.
pub(super) fn done() -> Event {
    Event::default().data("[DONE]")
}
