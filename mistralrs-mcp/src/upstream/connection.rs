//! One open connection to an upstream. Calls share it; answers find their call by id.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::StatusCode;
use rmcp::RoleClient;
use rmcp::model::{
    CancelledNotificationParam, ClientRequest, ErrorData, GetExtensions, ProtocolVersion, RequestId, RequestMetaObject,
    ServerPeerInfo, ServerResult,
};
use rmcp::service::{Peer, PeerRequestOptions, RequestHandle, RunningService, ServiceError};
use rmcp::transport::DynamicTransportError;
use rmcp::transport::streamable_http_client::StreamableHttpError;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Error as WebSocketError;
use tokio_util::sync::CancellationToken;

use super::credentials::HttpError;
use super::events::UpstreamEvents;
use super::tap::{CallEvent, CallTicket, ConnectionState, Question};
use crate::config::{UpstreamConfig, UpstreamId};
use crate::downstream::Downstream;
use crate::error::GatewayError;
use crate::gateway::CallContext;

/// Messages that may wait to be written, beside two for each call that may run (itself and its cancellation). With
/// more the upstream has stopped reading and is connected anew: nothing else would ever remove what abandoned calls
/// leave behind.
const UNWRITTEN_SLACK: usize = 256;
/// Metadata of the protocol itself, which each side of a gateway has its own of.
const PROTOCOL_META_PREFIX: &str = "io.modelcontextprotocol/";
const PROGRESS_TOKEN: &str = "progressToken";

/// What callers hold of a connection.
pub(super) struct Connection {
    upstream: UpstreamId,
    peer: Peer<RoleClient>,
    state: Arc<ConnectionState>,
    max_unwritten: usize,
}

/// What its owner holds: ending it ends the child or the session.
pub(super) type OpenConnection = RunningService<RoleClient, UpstreamEvents>;

impl Connection {
    pub fn new(upstream: &UpstreamConfig, open: &OpenConnection, state: Arc<ConnectionState>) -> Self {
        let max_unwritten = 2 * upstream.max_concurrent_calls + UNWRITTEN_SLACK;
        Self { upstream: upstream.id.clone(), peer: open.peer().clone(), state, max_unwritten }
    }

    /// Fires when the connection is of no more use.
    pub fn closed(&self) -> &CancellationToken {
        self.state.closed()
    }

    pub fn is_closed(&self) -> bool {
        self.state.closed().is_cancelled() || self.peer.is_transport_closed()
    }

    /// Sends a request in the upstream's own names. Dropping the future sends `notifications/cancelled`.
    ///
    /// # Errors
    /// [`GatewayError::Unavailable`] if the upstream cannot have begun the call, otherwise what became of it.
    pub async fn send(&self, mut request: ClientRequest, context: &CallContext) -> Result<ServerResult, GatewayError> {
        if self.state.num_unwritten() > self.max_unwritten {
            self.closed().cancel();
            return Err(self.unavailable("it has stopped reading its input"));
        }
        let (ticket, events) = CallTicket::new(context.downstream.as_deref().map(Downstream::id));
        request.extensions_mut().insert(ticket.clone());
        let options = PeerRequestOptions::no_options().with_meta(self.meta_of(context));
        let answer = match self.peer.send_request_with_option(request, options).await {
            Ok(pending) => answer_of(pending, events, context).await,
            Err(error) => Err(error),
        };
        answer.map_err(|error| self.explain(error, ticket.is_sent()))
    }

    /// Sends what nobody waits for: a refusal, or no answer within `limit`, is a line in the log.
    pub async fn tell(&self, request: ClientRequest, limit: Duration) {
        let options = PeerRequestOptions::with_timeout(limit);
        let answer = match self.peer.send_request_with_option(request, options).await {
            Ok(pending) => pending.await_response().await,
            Err(error) => Err(error),
        };
        if let Err(error) = answer {
            tracing::debug!(upstream = %self.upstream, %error, "it did not take what it was told");
        }
    }

    /// What the server said of itself when it was connected.
    pub fn server(&self) -> Option<Arc<ServerPeerInfo>> {
        self.peer.peer_info()
    }

    /// Whether it speaks 2026-07-28 or newer, without sessions and handshake.
    pub fn is_modern(&self) -> bool {
        self.server().is_some_and(|server| server.protocol_version.as_str() >= ProtocolVersion::V_2026_07_28.as_str())
    }

    pub fn upstream(&self) -> &UpstreamId {
        &self.upstream
    }

    pub fn peer(&self) -> &Peer<RoleClient> {
        &self.peer
    }

    /// The caller's own metadata (trace context, for one), and for a server that reads them in each request the
    /// capabilities of that caller, where a connection has those of all.
    fn meta_of(&self, context: &CallContext) -> RequestMetaObject {
        let mut meta = context.meta.clone();
        let log_level = meta.log_level();
        meta.retain(|key, _| !key.starts_with(PROTOCOL_META_PREFIX) && key != PROGRESS_TOKEN);
        if self.is_modern() {
            let capabilities = context.downstream.as_deref().map(Downstream::capabilities);
            meta.set_client_capabilities(capabilities.unwrap_or_default());
            if let Some(level) = log_level {
                meta.set_log_level(level);
            }
        }
        meta
    }

    /// What rmcp's error means for the call. A connection that can serve no other call is given up.
    pub fn explain(&self, error: ServiceError, is_sent: bool) -> GatewayError {
        let lost =
            |reason: &str| GatewayError::ConnectionLost { upstream: self.upstream.clone(), reason: reason.to_owned() };
        match error {
            ServiceError::McpError(error) => GatewayError::Refused { upstream: self.upstream.clone(), error },
            ServiceError::TransportSend(error) => match judge(&error) {
                SendFailure::NotBegun => {
                    self.closed().cancel();
                    self.unavailable(&root_cause(&*error.error))
                }
                SendFailure::Refused => self.unavailable(&root_cause(&*error.error)),
                SendFailure::Unknown => lost(&root_cause(&*error.error)),
            },
            ServiceError::TransportClosed => {
                // Over HTTP it may be the stream of this call alone that broke off.
                if self.peer.is_transport_closed() {
                    self.closed().cancel();
                }
                if is_sent { lost("the connection was closed") } else { self.unavailable("the connection was closed") }
            }
            ServiceError::Timeout { timeout } => {
                GatewayError::Timeout { tool: self.upstream.to_string(), waited: timeout }
            }
            ServiceError::Cancelled { .. } => GatewayError::Cancelled,
            _ => GatewayError::UnexpectedAnswer { upstream: self.upstream.clone(), answer: "something unreadable" },
        }
    }

    fn unavailable(&self, reason: &str) -> GatewayError {
        GatewayError::Unavailable { upstream: self.upstream.clone(), reason: reason.to_owned() }
    }

    pub fn unexpected(&self, answer: &ServerResult) -> GatewayError {
        let answer = match answer {
            ServerResult::InputRequiredResult(_) => "a question, which this version cannot pass on",
            ServerResult::CreateTaskResult(_) => "a task to poll, which was not asked for",
            _ => "something that is not the result of this request",
        };
        GatewayError::UnexpectedAnswer { upstream: self.upstream.clone(), answer }
    }
}

/// What a failed send tells.
enum SendFailure {
    /// It did not reach the server, and nothing else will.
    NotBegun,
    /// It reached the server, which did not let it in.
    Refused,
    /// It may have been read.
    Unknown,
}

fn judge(error: &DynamicTransportError) -> SendFailure {
    // A pipe that breaks has no reader for the end of the line, without which a message is none.
    if error.error.is::<std::io::Error>() {
        return SendFailure::NotBegun;
    }
    if let Some(WebSocketError::ConnectionClosed | WebSocketError::AlreadyClosed) = error.error.downcast_ref() {
        return SendFailure::NotBegun;
    }
    match error.error.downcast_ref::<HttpError>() {
        Some(StreamableHttpError::Client(error)) => match error.status() {
            Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => SendFailure::Refused,
            _ if error.is_connect() => SendFailure::NotBegun,
            _ => SendFailure::Unknown,
        },
        // rmcp has opened a new session already, or could not.
        Some(StreamableHttpError::SessionExpired | StreamableHttpError::ReinitializationFailed(_)) => {
            SendFailure::NotBegun
        }
        Some(
            StreamableHttpError::Auth(_)
            | StreamableHttpError::AuthRequired(_)
            | StreamableHttpError::InsufficientScope(_),
        ) => SendFailure::Refused,
        _ => SendFailure::Unknown,
    }
}

/// The innermost message: the outer ones only say that a request failed. Without the URL, which may have a key in it: this is
/// read by who called the tool.
pub(super) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source().or_else(|| client_error(innermost)) {
        innermost = source;
    }
    let message = innermost.to_string();
    match innermost.downcast_ref::<reqwest::Error>().and_then(reqwest::Error::url) {
        Some(url) => message.replace(&format!(" for url ({url})"), ""),
        None => message,
    }
}

/// What rmcp wraps without saying that it is the source.
fn client_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a (dyn std::error::Error + 'static)> {
    match error.downcast_ref::<HttpError>()? {
        StreamableHttpError::Client(error) => Some(error),
        _ => None,
    }
}

/// Waits for the answer and passes on what the upstream says meanwhile. In this task: rmcp knows by the task which of a
/// client's requests a question belongs to.
async fn answer_of(
    pending: RequestHandle<RoleClient>,
    mut events: mpsc::Receiver<CallEvent>,
    context: &CallContext,
) -> Result<ServerResult, ServiceError> {
    let mut abandoned = CancelOnDrop { peer: pending.peer.clone(), request: Some(pending.id.clone()) };
    let mut progress = context.progress.as_deref();
    let mut questions = FuturesUnordered::new();
    let answer = pending.await_response();
    tokio::pin!(answer);
    let answer = loop {
        tokio::select! {
            // The tap delivers all events before the answer; so does this.
            biased;
            Some(event) = events.recv() => match event {
                CallEvent::Progress(update) => {
                    if let Some(sink) = progress && !sink.forward(update).await {
                        // Nobody reads; that alone does not end the call.
                        progress = None;
                    }
                }
                CallEvent::Log(message) => {
                    if let Some(downstream) = &context.downstream {
                        downstream.log(message).await;
                    }
                }
                CallEvent::Question(question) => questions.push(put(question, context)),
            },
            Some(()) = questions.next() => {}
            answer = &mut answer => break answer,
        }
    };
    abandoned.request = None;
    answer
}

/// Puts a question to the caller, until the upstream takes it back.
async fn put(mut question: Question, context: &CallContext) {
    let answer = async {
        match &context.downstream {
            Some(downstream) => downstream.ask(question.request).await,
            None => Err(ErrorData::internal_error("the caller of this tool answers no questions", None)),
        }
    };
    tokio::select! {
        answer = answer => drop(question.answer.send(answer)),
        () = question.answer.closed() => {}
    }
}

/// Tells the upstream that nobody waits for the answer any more.
struct CancelOnDrop {
    peer: Peer<RoleClient>,
    request: Option<RequestId>,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let (Some(request), Ok(runtime)) = (self.request.take(), tokio::runtime::Handle::try_current()) else { return };
        let peer = self.peer.clone();
        let reason = Some("the caller stopped waiting".to_owned());
        runtime.spawn(async move {
            // It fails only together with the connection, and then there is nobody to tell.
            let _ = peer.notify_cancelled(CancelledNotificationParam::new(Some(request), reason)).await;
        });
    }
}
