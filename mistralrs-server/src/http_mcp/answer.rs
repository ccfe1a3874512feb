//! One answer from the messages that a request led to: a JSON body where the response is all there is to say,
//! an event stream where something comes before it or the caller wants to watch.

use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;

use axum::Json;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt, stream};
use http::{HeaderName, HeaderValue, StatusCode};
use mistralrs_mcp::rmcp::model::{ErrorCode, ServerJsonRpcMessage, ServerResult};
use mistralrs_mcp::rmcp::transport::streamable_http_server::session::ServerSseMessage;
use serde_json::json;

use super::accept::{Accept, Events};
use super::error::ErrorKind;
use super::metrics::Observed;

/// Silence on a stream after which a comment is sent, so that proxies keep it open (nginx gives up after 60 s).
/// Also how long a caller that reads both types is kept without a header before its answer becomes a stream.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What a request leads to, in order; ends with its response. Dropping it means that nobody reads any more.
pub(super) type Messages = Pin<Box<dyn Stream<Item = ServerSseMessage> + Send>>;

/// How a request wants to be answered.
#[derive(Debug, Clone)]
pub(super) struct AnswerPlan {
    pub accept: Accept,
    pub streaming: Streaming,
    pub closing: Closing,
    pub observed: Observed,
}

/// Whether the caller asked to watch the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Streaming {
    /// By a progress token or `"stream": true`: the stream opens at once.
    Wanted,
    IfNeeded,
}

/// What comes after the response on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closing {
    Nothing,
    /// `event: done` with the finish reason: for curl and scripts, which want to see that nothing is missing.
    Done,
}

/// Answers with JSON or a stream.
pub(super) async fn answer(mut messages: Messages, plan: AnswerPlan) -> Response {
    let may_stream = plan.accept.events != Events::Refused;
    if !plan.accept.json || (may_stream && plan.streaming == Streaming::Wanted) {
        return stream_events(Vec::new(), messages, plan);
    }
    // Only who names event streams gets one without asking: for anybody else JSON is the plain reading.
    let mut held = Vec::new();
    let may_switch = plan.accept.events == Events::Named;
    loop {
        let next = if may_switch {
            tokio::time::timeout(KEEP_ALIVE, messages.next()).await
        } else {
            Ok(messages.next().await)
        };
        match next {
            Err(_slow) => return stream_events(held, messages, plan),
            // Cancelled by its own client: accepted, and nobody waits for more.
            Ok(None) => return StatusCode::ACCEPTED.into_response(),
            Ok(Some(message)) => match &message.message {
                Some(response) if is_response(response) => return json_answer(response),
                Some(_) if may_switch => {
                    held.push(message);
                    return stream_events(held, messages, plan);
                }
                Some(_) => {}
                None => held.push(message),
            },
        }
    }
}

/// Serves messages as they come, until `messages` ends: the stream from server to client.
pub(super) fn listen(messages: Messages) -> Response {
    event_stream(messages.flat_map(|message| stream::iter(to_events(&message, Closing::Nothing))))
}

/// Serves finished messages, one event each.
pub(super) fn texts_as_events(messages: Vec<String>) -> Response {
    event_stream(stream::iter(messages).map(|message| Event::default().event("message").data(message)))
}

fn stream_events(held: Vec<ServerSseMessage>, messages: Messages, plan: AnswerPlan) -> Response {
    let messages: Messages = Box::pin(stream::iter(held).chain(messages));
    // The body ends with the response even if the channel behind it stays open: clients read to the end.
    let until_response = stream::unfold(Some(messages), |messages| async {
        let mut messages = messages?;
        let message = messages.next().await?;
        let is_last = message.message.as_deref().is_some_and(is_response);
        Some((message, (!is_last).then_some(messages)))
    });
    event_stream(until_response.flat_map(move |message| {
        if let Some(kind) = message.message.as_deref().and_then(error_kind) {
            plan.observed.error(kind);
        }
        stream::iter(to_events(&message, plan.closing))
    }))
}

fn event_stream(events: impl Stream<Item = Event> + Send + 'static) -> Response {
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    let mut response = Sse::new(events.map(Ok::<_, Infallible>)).keep_alive(keep_alive).into_response();
    // nginx would collect the events otherwise.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

fn json_answer(message: &ServerJsonRpcMessage) -> Response {
    let mut response = Json(message).into_response();
    if let Some(kind) = error_kind(message) {
        response.extensions_mut().insert(kind);
    }
    response
}

fn to_events(message: &ServerSseMessage, closing: Closing) -> Vec<Event> {
    let mut event = Event::default();
    if let Some(id) = &message.event_id {
        event = event.id(id);
    }
    if let Some(retry) = message.retry {
        event = event.retry(retry);
    }
    let Some(message) = message.message.as_deref() else { return vec![event.data("")] };
    let text = serde_json::to_string(message).expect("messages have string keys only");
    let mut events = vec![event.event("message").data(text)];
    if closing == Closing::Done && is_response(message) {
        let data = json!({"finish_reason": finish_reason(message)});
        events.push(Event::default().event("done").data(data.to_string()));
    }
    events
}

pub(super) fn is_response(message: &ServerJsonRpcMessage) -> bool {
    matches!(message, ServerJsonRpcMessage::Response(_) | ServerJsonRpcMessage::Error(_))
}

/// The model's reason where it gave one; otherwise whether the tool failed.
fn finish_reason(message: &ServerJsonRpcMessage) -> &str {
    let ServerJsonRpcMessage::Response(response) = message else { return "error" };
    let ServerResult::CallToolResult(result) = &response.result else { return "stop" };
    let reason = result.structured_content.as_ref().and_then(|content| content.get("finish_reason")?.as_str());
    match (reason, result.is_error) {
        (Some(reason), _) => reason,
        (None, Some(true)) => "error",
        (None, _) => "stop",
    }
}

/// The `type` label of a JSON-RPC error that the gateway answered.
pub(super) fn error_kind(message: &ServerJsonRpcMessage) -> Option<ErrorKind> {
    let ServerJsonRpcMessage::Error(error) = message else { return None };
    Some(ErrorKind(match error.error.code {
        ErrorCode::METHOD_NOT_FOUND => "method_not_found",
        ErrorCode::INVALID_PARAMS => "invalid_params",
        ErrorCode::INVALID_REQUEST => "invalid_request",
        ErrorCode::RESOURCE_NOT_FOUND => "resource_not_found",
        ErrorCode::INTERNAL_ERROR => "internal_error",
        _ => "other",
    }))
}
