//! One request to the endpoint: which of the protocol's three worlds it belongs to, and its answer there.
//!
//! - **modern** (2026-07-28): says its version in each request; rmcp checks and serves it, without sessions;
//! - **session**: `initialize`, and what carries a session id;
//! - **stateless**: everything else, curl for one; read as protocol 2025-03-26.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use mistralrs_mcp::Principal;
use mistralrs_mcp::mcp_server::namespace::native_name;
use mistralrs_mcp::rmcp::model::{
    ClientJsonRpcMessage, ClientRequest, GetExtensions, GetMeta, JsonRpcRequest, ProgressToken, ProtocolVersion,
    RequestMetaObject,
};
use mistralrs_mcp::rmcp::transport::streamable_http_server::session::ServerSseMessage;
use serde_json::Value;

use super::Endpoint;
use super::accept::{Accept, Events};
use super::answer::{AnswerPlan, Closing, Messages, Streaming, answer, listen};
use super::error::{EndpointError, Refusal};
use super::handshake_only::HandshakeOnly;
use super::incoming::Payload;
use super::metrics::Observed;
use super::modern::Lifetime;
use super::stateless::{Answering, StatelessCall};
use crate::extract::collect_limited;

/// A body arrives within this time, or the sender is slow on purpose.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
pub(super) const SESSION_ID: &str = "mcp-session-id";
const PROTOCOL_VERSION: &str = "mcp-protocol-version";
/// Methods that 2026-07-28 has no more.
const REMOVED_METHODS: [&str; 5] =
    ["initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"];
/// Native tools that can say their answer piece by piece.
const STREAMING_TOOLS: [&str; 2] = ["generate", "chat"];

impl Endpoint {
    /// Answers any request to an MCP route.
    pub(super) async fn serve(&self, request: Request<Body>) -> Response {
        if self.shutdown.is_cancelled() {
            return EndpointError::ShuttingDown.into_response();
        }
        let (parts, body) = request.into_parts();
        let answered = match parts.method {
            Method::POST => return self.post(parts, body).await,
            Method::GET => self.open_stream(parts).await,
            Method::DELETE => self.end_session(&parts).await,
            _ => Err(EndpointError::MethodNotAllowed { allow: "POST, GET, DELETE, OPTIONS" }),
        };
        answered.unwrap_or_else(EndpointError::into_response)
    }

    async fn post(&self, parts: Parts, body: Body) -> Response {
        let read = async {
            let accept = Accept::from_headers(&parts.headers)?;
            require_json(&parts.headers)?;
            let body = read_body(body, self.max_body_bytes).await?;
            let payload = Payload::parse(&body).map_err(|refusal| as_of(&parts.headers, refusal))?;
            Ok::<_, Refusal>((accept, body, payload))
        };
        let (accept, body, payload) = match read.await {
            Ok(read) => read,
            Err(refusal) => return refusal.into_response(),
        };
        observed(&parts).method(payload.method_label());
        let answered = match payload {
            Payload::One(message) => self.post_message(parts, body, *message, accept).await,
            Payload::Batch(members) => self.post_batch(parts, members, accept).await,
        };
        answered.unwrap_or_else(Refusal::into_response)
    }

    async fn post_message(
        &self,
        parts: Parts,
        body: Bytes,
        message: ClientJsonRpcMessage,
        accept: Accept,
    ) -> Result<Response, Refusal> {
        let id = match &message {
            ClientJsonRpcMessage::Request(request) => Some(request.id.clone()),
            _ => None,
        };
        let answered = match self.world_of(&parts.headers, &message) {
            Ok(World::Modern) => {
                let lifetime = lifetime_of(&message);
                Ok(self.modern.answer(parts, with_token(message, body, accept), accept, lifetime).await)
            }
            Ok(World::Handshake) => self.open_session(parts, message, accept).await,
            Ok(World::Session(id)) => self.in_session(&id, parts, message, accept).await,
            Ok(World::Stateless(closing)) => self.without_session(parts, message, accept, closing).await,
            Err(error) => Err(error),
        };
        answered.map_err(|error| Refusal { id, error })
    }

    /// # Errors
    /// [`EndpointError::UnsupportedVersion`] for a version in the header that nobody knows, `UnknownSession`.
    fn world_of(&self, headers: &HeaderMap, message: &ClientJsonRpcMessage) -> Result<World, EndpointError> {
        if let ClientJsonRpcMessage::Request(request) = message {
            match &request.request {
                // The handshake belongs to the revisions that have one, whatever version it names; with
                // the id of a session that is gone, it opens a new one.
                ClientRequest::InitializeRequest(_) => return Ok(World::Handshake),
                ClientRequest::DiscoverRequest(_) => return Ok(World::Modern),
                request if request.get_meta().protocol_version().is_some() => return Ok(World::Modern),
                _ => {}
            }
        }
        match supported_version(headers)? {
            Some(version) if is_modern(&version) => Ok(World::Modern),
            // A client that shook hands reads its answers as a client does: nothing comes after the response.
            _ if self.handshake_only.find(headers)?.is_some() => Ok(World::Stateless(Closing::Nothing)),
            _ => Ok(session_id(headers).map_or(World::Stateless(Closing::Done), World::Session)),
        }
    }

    async fn without_session(
        &self,
        parts: Parts,
        message: ClientJsonRpcMessage,
        accept: Accept,
        closing: Closing,
    ) -> Result<Response, EndpointError> {
        match message {
            ClientJsonRpcMessage::Request(mut request) => {
                let streaming = watch(&mut request, accept);
                let closing = if streaming == Streaming::Wanted { closing } else { Closing::Nothing };
                let plan = AnswerPlan { accept, streaming, closing, observed: observed(&parts) };
                Ok(answer(self.call(request, parts), plan).await)
            }
            // `notifications/initialized`, for one.
            ClientJsonRpcMessage::Notification(_) => Ok(StatusCode::ACCEPTED.into_response()),
            ClientJsonRpcMessage::Response(_) | ClientJsonRpcMessage::Error(_) => {
                Err(EndpointError::InvalidRequest("nothing was asked outside of a session".to_owned()))
            }
        }
    }

    async fn in_session(
        &self,
        id: &str,
        parts: Parts,
        message: ClientJsonRpcMessage,
        accept: Accept,
    ) -> Result<Response, EndpointError> {
        let lease = self.sessions.lease(id, principal(&parts))?;
        let ClientJsonRpcMessage::Request(mut request) = message else {
            lease.accept(with_parts(message, parts)).await?;
            return Ok(StatusCode::ACCEPTED.into_response());
        };
        let streaming = watch(&mut request, accept);
        let plan = AnswerPlan { accept, streaming, closing: Closing::Nothing, observed: observed(&parts) };
        let messages = lease.call(with_parts(ClientJsonRpcMessage::Request(request), parts)).await?;
        Ok(answer(messages, plan).await)
    }

    pub(super) fn call(&self, request: JsonRpcRequest<ClientRequest>, parts: Parts) -> Messages {
        Box::pin(StatelessCall::start(Answering(self.gateway.handler()), request, parts))
    }

    async fn open_session(
        &self,
        parts: Parts,
        message: ClientJsonRpcMessage,
        accept: Accept,
    ) -> Result<Response, EndpointError> {
        let (streaming, closing) = (Streaming::IfNeeded, Closing::Nothing);
        let plan = AnswerPlan { accept, streaming, closing, observed: observed(&parts) };
        let (id, messages): (Option<HeaderValue>, Messages) = match message {
            ClientJsonRpcMessage::Request(request) if knows_no_sessions(&request) => {
                (Some(HandshakeOnly::issue()), self.call(request, parts))
            }
            message => {
                let principal = principal(&parts).clone();
                let handler = Answering(self.gateway.handler());
                let (id, response) = self.sessions.open(handler, principal, with_parts(message, parts)).await?;
                let id = id.map(|id| HeaderValue::from_str(&id).expect("session ids are UUIDs"));
                (id, Box::pin(futures::stream::iter([ServerSseMessage::from_message(response)])))
            }
        };
        let mut response = answer(messages, plan).await;
        if let Some(id) = id {
            response.headers_mut().insert(SESSION_ID, id);
        }
        Ok(response)
    }

    /// GET: the stream from server to client. It ends when the server shuts down, which waits for open bodies.
    async fn open_stream(&self, parts: Parts) -> Result<Response, EndpointError> {
        supported_version(&parts.headers)?;
        if self.handshake_only.find(&parts.headers)?.is_some() {
            return Err(EndpointError::StreamNeedsSession);
        }
        let id = session_id(&parts.headers).ok_or(EndpointError::StreamNeedsSession)?;
        if Accept::from_headers(&parts.headers)?.events == Events::Refused {
            return Err(EndpointError::NotAcceptable);
        }
        let last_event_id = parts.headers.get("last-event-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
        let messages = self.sessions.lease(&id, principal(&parts))?.listen(last_event_id).await?;
        let shutdown = self.shutdown.clone().cancelled_owned();
        Ok(listen(Box::pin(messages.take_until(Box::pin(shutdown)))))
    }

    async fn end_session(&self, parts: &Parts) -> Result<Response, EndpointError> {
        if let Some(id) = self.handshake_only.find(&parts.headers)? {
            self.handshake_only.end(id);
        } else {
            let id = session_id(&parts.headers).ok_or(EndpointError::UnknownSession)?;
            self.sessions.close(self.sessions.lease(&id, principal(parts))?).await;
        }
        Ok(StatusCode::NO_CONTENT.into_response())
    }
}

enum World {
    Modern,
    Handshake,
    Session(String),
    Stateless(Closing),
}

fn is_modern(version: &ProtocolVersion) -> bool {
    version.as_str() >= ProtocolVersion::V_2026_07_28.as_str()
}

/// What the newest revision removed is gone there, whether its params are right or not.
fn as_of(headers: &HeaderMap, mut refusal: Refusal) -> Refusal {
    if let EndpointError::InvalidParams { method, .. } = refusal.error
        && REMOVED_METHODS.contains(&method)
        && supported_version(headers).is_ok_and(|version| version.is_some_and(|version| is_modern(&version)))
    {
        refusal.error = EndpointError::MethodRemoved { method };
    }
    refusal
}

fn lifetime_of(message: &ClientJsonRpcMessage) -> Lifetime {
    match message {
        ClientJsonRpcMessage::Request(request) => match request.request {
            ClientRequest::SubscriptionsListenRequest(_) => Lifetime::Subscription,
            _ => Lifetime::Call,
        },
        _ => Lifetime::Call,
    }
}

pub(super) fn supported_version(headers: &HeaderMap) -> Result<Option<ProtocolVersion>, EndpointError> {
    let Some(version) = headers.get(PROTOCOL_VERSION) else { return Ok(None) };
    let known = ProtocolVersion::KNOWN_VERSIONS.iter().find(|known| known.as_str().as_bytes() == version.as_bytes());
    let unsupported = || EndpointError::UnsupportedVersion(String::from_utf8_lossy(version.as_bytes()).into_owned());
    known.cloned().map(Some).ok_or_else(unsupported)
}

pub(super) fn session_id(headers: &HeaderMap) -> Option<String> {
    Some(headers.get(SESSION_ID)?.to_str().ok()?.to_owned())
}

fn knows_no_sessions(request: &JsonRpcRequest<ClientRequest>) -> bool {
    match &request.request {
        ClientRequest::InitializeRequest(initialize) => {
            initialize.params.protocol_version == ProtocolVersion::V_2024_11_05
        }
        _ => false,
    }
}

pub(super) fn principal(parts: &Parts) -> &Principal {
    parts.extensions.get().unwrap_or(&Principal::Anonymous)
}

fn observed(parts: &Parts) -> Observed {
    parts.extensions.get().cloned().unwrap_or_default()
}

/// The handler reads the principal from the HTTP request's parts, which rmcp carries in the message's extensions.
pub(super) fn with_parts(mut message: ClientJsonRpcMessage, parts: Parts) -> ClientJsonRpcMessage {
    match &mut message {
        ClientJsonRpcMessage::Request(request) => request.request.extensions_mut().insert(parts),
        ClientJsonRpcMessage::Notification(notification) => notification.notification.extensions_mut().insert(parts),
        ClientJsonRpcMessage::Response(_) | ClientJsonRpcMessage::Error(_) => None,
    };
    message
}

/// Whether the caller wants to watch the call. `"stream": true` in the arguments of a native tool asks for it as
/// a progress token does, and gets one, so that there is one way from here on.
fn watch(request: &mut JsonRpcRequest<ClientRequest>, accept: Accept) -> Streaming {
    let ClientRequest::CallToolRequest(call) = &request.request else { return Streaming::IfNeeded };
    if call.extensions.get::<RequestMetaObject>().is_some_and(|meta| meta.get_progress_token().is_some()) {
        return Streaming::Wanted;
    }
    let arguments = call.params.arguments.as_ref();
    let asks = arguments.is_some_and(|arguments| arguments.get("stream") == Some(&Value::Bool(true)));
    if !asks || accept.events == Events::Refused || !is_streaming_tool(&call.params.name) {
        return Streaming::IfNeeded;
    }
    request.request.get_meta_mut().set_progress_token(ProgressToken(request.id.clone()));
    Streaming::Wanted
}

/// The same for a request whose body goes to rmcp: written anew only where [`watch`] added a token.
fn with_token(message: ClientJsonRpcMessage, body: Bytes, accept: Accept) -> Bytes {
    let ClientJsonRpcMessage::Request(mut request) = message else { return body };
    let had_token = request.request.get_meta().get_progress_token().is_some();
    match watch(&mut request, accept) {
        Streaming::Wanted if !had_token => serde_json::to_vec(&request).map_or(body, Bytes::from),
        _ => body,
    }
}

fn is_streaming_tool(name: &str) -> bool {
    STREAMING_TOOLS.contains(&native_name(name))
}

/// # Errors
/// [`EndpointError::UnsupportedMediaType`]: browsers send other types across origins without asking first.
fn require_json(headers: &HeaderMap) -> Result<(), EndpointError> {
    let Some(content_type) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let essence = content_type.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
    let is_json = essence.trim_ascii().eq_ignore_ascii_case(b"application/json");
    if is_json { Ok(()) } else { Err(EndpointError::UnsupportedMediaType) }
}

async fn read_body(body: Body, limit_bytes: usize) -> Result<Bytes, EndpointError> {
    match tokio::time::timeout(BODY_TIMEOUT, collect_limited(body, limit_bytes)).await {
        Ok(Ok(Some(body))) => Ok(body),
        Ok(Ok(None)) => Err(EndpointError::BodyTooLarge { limit_bytes }),
        Ok(Err(error)) => Err(EndpointError::BodyIncomplete(error.to_string())),
        Err(_elapsed) => Err(EndpointError::BodyTimeout { limit: BODY_TIMEOUT }),
    }
}
