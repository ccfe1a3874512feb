//! One open connection to an upstream. Calls share it; answers find their call by id.

use std::sync::Arc;
use std::time::Duration;

use rmcp::RoleClient;
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CallToolResult, CancelledNotificationParam, ClientRequest, JsonObject,
    ListToolsRequest, ListToolsResult, PaginatedRequestParams, RequestId, ServerResult, Tool,
};
use rmcp::service::{Peer, PeerRequestOptions, RequestHandle, RunningService, ServiceError};
use rmcp::transport::DynamicTransportError;
use rmcp::transport::streamable_http_client::StreamableHttpError;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::events::UpstreamEvents;
use super::streamable_http::HttpError;
use super::tap::{CallTicket, ConnectionState};
use crate::config::{UpstreamConfig, UpstreamId};
use crate::error::GatewayError;
use crate::local_tools::{ProgressSink, ProgressUpdate};

/// A server that pages further gives the same page again and again.
const MAX_LIST_PAGES: usize = 100;
/// For one page of `tools/list`.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// Messages that may wait to be written, beside two for each call that may run (itself and its cancellation). With
/// more the upstream has stopped reading and is connected anew: nothing else would ever remove what abandoned calls
/// leave behind.
const UNWRITTEN_SLACK: usize = 256;
/// Reports of one call that wait for its reader. More are dropped: progress may have gaps, and the connection that
/// all calls share must not wait for one of them.
const MAX_WAITING_UPDATES: usize = 256;

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

    /// Calls a tool. Dropping the future sends `notifications/cancelled`.
    ///
    /// # Errors
    /// [`GatewayError::Unavailable`] if the upstream cannot have begun the call, otherwise what became of it.
    pub async fn call_tool(
        &self,
        tool: &str,
        arguments: JsonObject,
        progress: Option<&dyn ProgressSink>,
    ) -> Result<CallToolResult, GatewayError> {
        if self.state.num_unwritten() > self.max_unwritten {
            self.closed().cancel();
            return Err(self.unavailable("it has stopped reading its input"));
        }
        let (ticket, updates) = CallTicket::new(progress.is_some().then_some(MAX_WAITING_UPDATES));
        let mut request = CallToolRequest::new(CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments));
        request.extensions.insert(ticket.clone());
        let request = ClientRequest::CallToolRequest(request);
        let answer = match self.peer.send_request_with_option(request, PeerRequestOptions::no_options()).await {
            Ok(pending) => answer_of(pending, progress.zip(updates)).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(ServerResult::CallToolResult(result)) => Ok(result),
            Ok(other) => Err(self.unexpected(&other)),
            Err(error) => Err(self.explain(error, ticket.is_sent())),
        }
    }

    /// Lists all tools, over all pages; none from a server without the capability.
    ///
    /// # Errors
    /// As [`Self::call_tool`].
    pub async fn list_tools(&self) -> Result<Vec<Tool>, GatewayError> {
        if self.peer.peer_info().is_some_and(|info| info.capabilities.tools.is_none()) {
            return Ok(Vec::new());
        }
        let (mut tools, mut cursor) = (Vec::new(), None);
        for _ in 0..MAX_LIST_PAGES {
            let page = self.list_page(cursor.clone()).await?;
            tools.extend(page.tools);
            if page.next_cursor.is_none() || page.next_cursor == cursor {
                return Ok(tools);
            }
            cursor = page.next_cursor;
        }
        tracing::warn!(upstream = %self.upstream, MAX_LIST_PAGES, "the tool list has too many pages; the rest is left out");
        Ok(tools)
    }

    /// Not through rmcp's `Peer::list_tools`, which answers from its own cache where the upstream does not answer.
    async fn list_page(&self, cursor: Option<String>) -> Result<ListToolsResult, GatewayError> {
        let params = PaginatedRequestParams::default().with_cursor(cursor);
        let request = ClientRequest::ListToolsRequest(ListToolsRequest::with_param(params));
        let options = PeerRequestOptions::with_timeout(LIST_TIMEOUT);
        let answer = match self.peer.send_request_with_option(request, options).await {
            Ok(pending) => pending.await_response().await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(ServerResult::ListToolsResult(page)) => Ok(page),
            Ok(ServerResult::CustomResult(page)) => self.salvage(page.0),
            Ok(other) => Err(self.unexpected(&other)),
            Err(error) => Err(self.explain(error, true)),
        }
    }

    /// One tool that breaks the schema makes the whole page unreadable as such; the others are still good.
    fn salvage(&self, mut page: Value) -> Result<ListToolsResult, GatewayError> {
        let Some(Value::Array(entries)) = page.get_mut("tools").map(Value::take) else {
            return Err(GatewayError::UnexpectedAnswer { upstream: self.upstream.clone(), answer: "no list of tools" });
        };
        let mut tools = Vec::new();
        for entry in entries {
            let name = entry.get("name").and_then(Value::as_str).unwrap_or("?").to_owned();
            match serde_json::from_value(entry) {
                Ok(tool) => tools.push(tool),
                Err(error) => {
                    tracing::warn!(upstream = %self.upstream, tool = name, %error, "tool left out: unreadable");
                }
            }
        }
        let mut result = ListToolsResult::with_all_items(tools);
        result.next_cursor = page.get("nextCursor").and_then(Value::as_str).map(str::to_owned);
        Ok(result)
    }

    /// What rmcp's error means for the call. A connection that can serve no other call is given up.
    fn explain(&self, error: ServiceError, is_sent: bool) -> GatewayError {
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
                self.closed().cancel();
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

    fn unexpected(&self, answer: &ServerResult) -> GatewayError {
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
    match error.error.downcast_ref::<HttpError>() {
        Some(StreamableHttpError::Client(error)) if error.is_connect() => SendFailure::NotBegun,
        // rmcp has opened a new session already, or could not.
        Some(StreamableHttpError::SessionExpired | StreamableHttpError::ReinitializationFailed(_)) => {
            SendFailure::NotBegun
        }
        Some(StreamableHttpError::AuthRequired(_) | StreamableHttpError::InsufficientScope(_)) => SendFailure::Refused,
        _ => SendFailure::Unknown,
    }
}

/// The innermost message: the outer ones only say that a request failed.
pub(super) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Waits for the answer and passes on what the upstream reports meanwhile.
async fn answer_of(
    pending: RequestHandle<RoleClient>,
    progress: Option<(&dyn ProgressSink, mpsc::Receiver<ProgressUpdate>)>,
) -> Result<ServerResult, ServiceError> {
    let mut abandoned = CancelOnDrop { peer: pending.peer.clone(), request: Some(pending.id.clone()) };
    let answer = match progress {
        None => pending.await_response().await,
        Some((sink, updates)) => relay(pending, sink, updates).await,
    };
    abandoned.request = None;
    answer
}

/// The tap delivers all reports before the answer; so does this.
async fn relay(
    pending: RequestHandle<RoleClient>,
    sink: &dyn ProgressSink,
    mut updates: mpsc::Receiver<ProgressUpdate>,
) -> Result<ServerResult, ServiceError> {
    let answer = pending.await_response();
    tokio::pin!(answer);
    loop {
        tokio::select! {
            biased;
            Some(update) = updates.recv() => {
                if !sink.forward(update).await {
                    // Nobody reads; that alone does not end the call.
                    return answer.await;
                }
            }
            answer = &mut answer => return answer,
        }
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
