//! What passes on a connection, seen where its order is still known: between rmcp's loop and the transport.
//!
//! rmcp handles each message in a task of its own, so that a progress report may be handled after the answer it belongs
//! to, and it tells nobody whether a request had been handed to the transport when the connection ended. Both matter
//! here: progress is text that must arrive in order, and a call that was never sent may be made again.
//!
//! And one connection carries the calls of many clients. What an upstream says or asks during a call goes to the client
//! that made it and to no other; where that cannot be told, to nobody.
#![expect(deprecated, reason = "logging is what every server before 2026-07-28 does")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rmcp::RoleClient;
use rmcp::model::{
    ClientResult, ErrorData, GetExtensions, GetMeta, JsonRpcMessage, JsonRpcNotification, JsonRpcRequest,
    LoggingMessageNotificationParam, ProgressNotificationParam, ProgressToken, RequestId, ServerNotification,
    ServerRequest,
};
use rmcp::service::{InboundStreamOrigin, RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::config::UpstreamId;
use crate::downstream::DownstreamId;
use crate::local_tools::ProgressUpdate;

/// Events of one call that wait for its reader. More reports are dropped: progress may have gaps, and the connection
/// that all calls share must not wait for one of them.
const MAX_WAITING_EVENTS: usize = 256;

/// What an upstream says during a call, before it answers.
pub(super) enum CallEvent {
    Progress(ProgressUpdate),
    Log(LoggingMessageNotificationParam),
    Question(Question),
}

/// A request of the upstream's own, which waits for the client's answer.
pub(super) struct Question {
    pub request: ServerRequest,
    pub answer: oneshot::Sender<Result<ClientResult, ErrorData>>,
}

/// Where what belongs to one call goes, and whose call it is. Travels in the extensions of an upstream's question.
#[derive(Clone)]
pub(super) struct CallRoute {
    caller: Option<DownstreamId>,
    events: mpsc::Sender<CallEvent>,
}

/// Travels in a request's extensions, from the call to the tap.
#[derive(Clone)]
pub(super) struct CallTicket {
    is_sent: Arc<AtomicBool>,
    route: CallRoute,
}

/// What the connection's users see of it.
pub(super) struct ConnectionState {
    closed: CancellationToken,
    /// Messages handed to the transport that it has not written yet.
    unwritten: AtomicUsize,
}

/// A transport that is looked at.
pub(super) struct TappedTransport<T> {
    inner: T,
    upstream: UpstreamId,
    state: Arc<ConnectionState>,
    /// The calls that run. Only rmcp's loop, which owns this, touches it.
    calls: HashMap<RequestId, RunningCall>,
    num_begun: u64,
}

struct RunningCall {
    /// How many began before it.
    number: u64,
    progress_token: Option<ProgressToken>,
    route: CallRoute,
}

impl CallRoute {
    /// Asks whoever made the call.
    ///
    /// # Errors
    /// What they refused with, or that they cannot be asked any more.
    pub async fn ask(&self, request: ServerRequest) -> Result<ClientResult, ErrorData> {
        let (answer, answered) = oneshot::channel();
        let question = CallEvent::Question(Question { request, answer });
        self.events
            .try_send(question)
            .map_err(|_| ErrorData::internal_error("the caller cannot be asked now", None))?;
        answered.await.unwrap_or_else(|_| Err(ErrorData::internal_error("the call ended", None)))
    }
}

impl CallTicket {
    /// For one call of `caller`; what the upstream says meanwhile is read from the second value.
    pub fn new(caller: Option<DownstreamId>) -> (Self, mpsc::Receiver<CallEvent>) {
        let (events, received) = mpsc::channel(MAX_WAITING_EVENTS);
        (Self { is_sent: Arc::default(), route: CallRoute { caller, events } }, received)
    }

    /// Whether the transport was given the request: from then on the upstream may have begun it.
    pub fn is_sent(&self) -> bool {
        self.is_sent.load(Ordering::Acquire)
    }
}

impl ConnectionState {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { closed: CancellationToken::new(), unwritten: AtomicUsize::new(0) })
    }

    /// Fires when nothing can be received any more, or when someone found the connection unusable.
    pub fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    pub fn num_unwritten(&self) -> usize {
        self.unwritten.load(Ordering::Relaxed)
    }
}

impl<T> TappedTransport<T> {
    pub fn new(inner: T, upstream: UpstreamId, state: Arc<ConnectionState>) -> Self {
        Self { inner, upstream, state, calls: HashMap::new(), num_begun: 0 }
    }

    fn note_request(&mut self, message: &TxJsonRpcMessage<RoleClient>) -> Option<CallTicket> {
        let JsonRpcMessage::Request(request) = message else { return None };
        let ticket = request.request.extensions().get::<CallTicket>()?.clone();
        // Calls end by dropping their receiver; as many routes stay as calls run.
        self.calls.retain(|_, call| !call.route.events.is_closed());
        let (number, route) = (self.num_begun, ticket.route.clone());
        let progress_token = request.request.get_meta().get_progress_token();
        self.calls.insert(request.id.clone(), RunningCall { number, progress_token, route });
        self.num_begun += 1;
        Some(ticket)
    }

    /// Takes out of the stream what belongs to a call, and marks an upstream's question with whose it is.
    fn route(&self, message: RxJsonRpcMessage<RoleClient>) -> Option<RxJsonRpcMessage<RoleClient>> {
        match message {
            JsonRpcMessage::Notification(JsonRpcNotification { notification, jsonrpc }) => match notification {
                ServerNotification::ProgressNotification(report) => self.pass_progress(report.params),
                ServerNotification::LoggingMessageNotification(message) => self.pass_log(message.params),
                notification => {
                    return Some(JsonRpcMessage::Notification(JsonRpcNotification { jsonrpc, notification }));
                }
            },
            JsonRpcMessage::Request(mut request) => {
                if let Some(route) = self.route_of(&request) {
                    request.request.extensions_mut().insert(route);
                }
                return Some(JsonRpcMessage::Request(request));
            }
            message => return Some(message),
        }
        None
    }

    fn pass_progress(&self, report: ProgressNotificationParam) {
        let token = Some(&report.progress_token);
        let Some(call) = self.calls.values().find(|call| call.progress_token.as_ref() == token) else { return };
        let update = ProgressUpdate { progress: report.progress, total: report.total, message: report.message };
        if call.route.events.try_send(CallEvent::Progress(update)).is_err() {
            tracing::debug!(upstream = %self.upstream, "a progress report was dropped: its reader is slow or gone");
        }
    }

    /// To the caller if there is but one; a line in our own log otherwise, where operators look for it.
    fn pass_log(&self, message: LoggingMessageNotificationParam) {
        let Some(route) = self.only_caller() else {
            tracing::debug!(upstream = %self.upstream, level = ?message.level, data = %message.data, "it says");
            return;
        };
        if route.events.try_send(CallEvent::Log(message)).is_err() {
            tracing::debug!(upstream = %self.upstream, "a log message was dropped: its reader is slow or gone");
        }
    }

    /// By the stream that the question came on; where transports have none, by there being only one client.
    fn route_of(&self, request: &JsonRpcRequest<ServerRequest>) -> Option<CallRoute> {
        match request.request.extensions().get::<InboundStreamOrigin>() {
            Some(InboundStreamOrigin::OutboundRequest(id)) => self.calls.get(id).map(|call| call.route.clone()),
            Some(InboundStreamOrigin::Unassociated) | None => self.only_caller().cloned(),
        }
    }

    /// Of the calls that run the newest, if all are of one client: an older one may be held, and is not looked after then.
    fn only_caller(&self) -> Option<&CallRoute> {
        let live = || self.calls.values().filter(|call| !call.route.events.is_closed());
        let newest = &live().max_by_key(|call| call.number)?.route;
        (newest.caller.is_some() && live().all(|call| call.route.caller == newest.caller)).then_some(newest)
    }
}

impl<T: Transport<RoleClient>> Transport<RoleClient> for TappedTransport<T> {
    type Error = T::Error;

    fn send(
        &mut self,
        message: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        let ticket = self.note_request(&message);
        let sending = self.inner.send(message);
        let unwritten = Unwritten::new(Arc::clone(&self.state));
        async move {
            let _unwritten = unwritten;
            if let Some(ticket) = ticket {
                ticket.is_sent.store(true, Ordering::Release);
            }
            sending.await
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            let Some(message) = self.inner.receive().await else {
                self.state.closed.cancel();
                return None;
            };
            if let Some(message) = self.route(message) {
                return Some(message);
            }
        }
    }

    fn close(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send {
        self.state.closed.cancel();
        self.inner.close()
    }
}

/// Counts a message until it is written or given up.
struct Unwritten(Arc<ConnectionState>);

impl Unwritten {
    fn new(state: Arc<ConnectionState>) -> Self {
        state.unwritten.fetch_add(1, Ordering::Relaxed);
        Self(state)
    }
}

impl Drop for Unwritten {
    fn drop(&mut self) {
        self.0.unwritten.fetch_sub(1, Ordering::Relaxed);
    }
}
