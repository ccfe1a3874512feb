//! Sessions of the protocol revisions before 2026-07-28: opened by `initialize`, bound to who opened them, counted,
//! and gone when nobody used them for a while. rmcp runs each; this table decides which exist.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt};
use mistralrs_mcp::Principal;
use mistralrs_mcp::rmcp::model::{ClientJsonRpcMessage, ProtocolVersion, ServerJsonRpcMessage, ServerResult};
use mistralrs_mcp::rmcp::service::serve_server_with_ct;
use mistralrs_mcp::rmcp::transport::TransportAdapterIdentity;
use mistralrs_mcp::rmcp::transport::streamable_http_server::SessionManager;
use mistralrs_mcp::rmcp::transport::streamable_http_server::session::local::{LocalSessionManager, SessionConfig};
use mistralrs_mcp::rmcp::transport::streamable_http_server::session::{ServerSseMessage, SessionId};
use mistralrs_mcp::rmcp::{RoleServer, Service};
use mistralrs_telemetry::Mutex;
use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::answer::Messages;
use super::error::EndpointError;

/// When the table is full, a session idle for this long (or for the idle limit, if that is less) makes room for a new one.
const EVICTABLE_AFTER: Duration = Duration::from_mins(1);

/// How many sessions there are at most, and how long one that nobody uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SessionLimits {
    pub max_sessions: usize,
    /// A session that no request and no open stream used for this long is closed: most clients never say goodbye.
    pub idle: Duration,
}

/// All sessions of one endpoint. Dropping it ends them.
pub(super) struct Sessions {
    inner: Arc<Inner>,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

struct Inner {
    manager: LocalSessionManager,
    /// Shared by every request handler and each session's own task; held for map operations only.
    table: Mutex<HashMap<SessionId, Entry>>,
    capacity: Arc<Semaphore>,
    limits: SessionLimits,
    /// Those of the table.
    num_sessions: IntGauge,
}

struct Entry {
    principal: Principal,
    version: ProtocolVersion,
    last_used: Instant,
    /// Requests in flight and open streams: while there is one, the session is not idle.
    num_open: usize,
    _counted: CountedSession,
}

/// A place in the table, and one in the gauge.
struct CountedSession {
    gauge: IntGauge,
    _permit: OwnedSemaphorePermit,
}

impl CountedSession {
    fn new(gauge: IntGauge, permit: OwnedSemaphorePermit) -> Self {
        gauge.inc();
        Self { gauge, _permit: permit }
    }
}

impl Drop for CountedSession {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

impl Sessions {
    /// None yet; `num_sessions` follows how many there are.
    pub fn new(limits: SessionLimits, num_sessions: IntGauge) -> Self {
        // Idle time is counted here, where open streams are known; rmcp would end a session that only listens.
        let mut session_config = SessionConfig::default();
        session_config.keep_alive = None;
        let mut manager = LocalSessionManager::default();
        manager.session_config = session_config;
        let inner = Inner {
            manager,
            table: Mutex::new("mcp_sessions", HashMap::new()),
            capacity: Arc::new(Semaphore::new(limits.max_sessions)),
            limits,
            num_sessions,
        };
        let stop = CancellationToken::new();
        Self { inner: Arc::new(inner), _stop_on_drop: stop.clone().drop_guard(), stop }
    }

    /// Opens a session with `initialize`, an `initialize` request. A refusal by the handler opens none and has no id.
    ///
    /// # Errors
    /// [`EndpointError::SessionsExhausted`] if all are in use.
    pub async fn open<S: Service<RoleServer>>(
        &self,
        service: S,
        principal: Principal,
        initialize: ClientJsonRpcMessage,
    ) -> Result<(Option<SessionId>, ServerJsonRpcMessage), EndpointError> {
        let permit = self.reserve().await?;
        let inner = &self.inner;
        let (id, transport) = inner.manager.create_session().await.map_err(internal)?;
        // In the table before anything can fail: its task removes it when it ends, whatever the reason.
        let entry = Entry {
            principal,
            version: ProtocolVersion::V_2025_03_26,
            last_used: Instant::now(),
            num_open: 0,
            _counted: CountedSession::new(inner.num_sessions.clone(), permit),
        };
        inner.table.lock().insert(id.clone(), entry);
        self.spawn(id.clone(), service, transport);

        let response = inner.manager.initialize_session(&id, initialize).await.map_err(internal)?;
        let Some(version) = negotiated_version(&response) else {
            inner.forget(&id).await;
            return Ok((None, response));
        };
        if let Some(entry) = inner.table.lock().get_mut(&id) {
            entry.version = version;
        }
        Ok((Some(id), response))
    }

    /// Borrows a session for one request or stream.
    ///
    /// # Errors
    /// [`EndpointError::UnknownSession`] if there is none of this id, or it is somebody else's.
    pub fn lease(&self, id: &str, principal: &Principal) -> Result<Lease, EndpointError> {
        let mut table = self.inner.table.lock();
        let (id, _) = table.get_key_value(id).ok_or(EndpointError::UnknownSession)?;
        let id = id.clone();
        let entry = table.get_mut(&id).filter(|entry| entry.principal == *principal);
        let entry = entry.ok_or(EndpointError::UnknownSession)?;
        entry.num_open += 1;
        Ok(Lease { inner: self.inner.clone(), id, version: entry.version.clone() })
    }

    /// Ends a session at its client's wish.
    pub async fn close(&self, lease: Lease) {
        self.inner.forget(&lease.id).await;
    }

    async fn reserve(&self) -> Result<OwnedSemaphorePermit, EndpointError> {
        let capacity = &self.inner.capacity;
        if let Ok(permit) = capacity.clone().try_acquire_owned() {
            return Ok(permit);
        }
        if let Some(idle) = self.inner.longest_idle() {
            tracing::info!("all MCP sessions are taken; the one idle for longest makes room");
            self.inner.forget(&idle).await;
        }
        let limit = self.inner.limits.max_sessions;
        capacity.clone().try_acquire_owned().map_err(|_| EndpointError::SessionsExhausted { limit })
    }

    fn spawn<S: Service<RoleServer>>(
        &self,
        id: SessionId,
        service: S,
        transport: <LocalSessionManager as SessionManager>::Transport,
    ) {
        let inner = Arc::downgrade(&self.inner);
        let stop = self.stop.child_token();
        tokio::spawn(async move {
            let served = serve_server_with_ct::<S, _, _, TransportAdapterIdentity>(service, transport, stop).await;
            match served {
                Ok(running) => tokio::select! {
                    _ = running.waiting() => {}
                    () = expired(&inner, &id) => tracing::debug!("an idle MCP session was closed"),
                },
                Err(error) => tracing::debug!(%error, "an MCP session did not get past initialize"),
            }
            if let Some(inner) = inner.upgrade() {
                inner.forget(&id).await;
            }
        });
    }
}

/// Returns when nobody used the session for as long as is allowed.
async fn expired(inner: &Weak<Inner>, id: &SessionId) {
    while let Some(deadline) = inner.upgrade().and_then(|inner| inner.idle_deadline(id)) {
        if deadline <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(deadline).await;
    }
}

impl Inner {
    async fn forget(&self, id: &SessionId) {
        self.table.lock().remove(id);
        if let Err(error) = self.manager.close_session(id).await {
            tracing::debug!(%error, "an MCP session had ended already");
        }
    }

    /// The earliest moment at which the session can have been idle for long enough; `None` if it is gone.
    fn idle_deadline(&self, id: &SessionId) -> Option<Instant> {
        let table = self.table.lock();
        let entry = table.get(id)?;
        let idle_since = if entry.num_open > 0 { Instant::now() } else { entry.last_used };
        Some(idle_since + self.limits.idle)
    }

    fn longest_idle(&self) -> Option<SessionId> {
        let (now, evictable_after) = (Instant::now(), EVICTABLE_AFTER.min(self.limits.idle));
        let table = self.table.lock();
        let idle = table.iter().filter(|(_, entry)| entry.num_open == 0 && now - entry.last_used >= evictable_after);
        idle.min_by_key(|(_, entry)| entry.last_used).map(|(id, _)| id.clone())
    }
}

/// A session in use. While one exists, the session does not count as idle.
pub(super) struct Lease {
    inner: Arc<Inner>,
    id: SessionId,
    pub version: ProtocolVersion,
}

impl Lease {
    /// Sends a request into the session. Dropping the messages does not cancel it: in these revisions a
    /// disconnect is no cancel.
    pub async fn call(self, request: ClientJsonRpcMessage) -> Result<Messages, EndpointError> {
        let messages = self.inner.manager.create_stream(&self.id, request).await.map_err(gone)?;
        Ok(self.hold(Box::pin(messages)))
    }

    /// Passes on a notification, or the answer to something the server asked.
    pub async fn accept(self, message: ClientJsonRpcMessage) -> Result<(), EndpointError> {
        self.inner.manager.accept_message(&self.id, message).await.map_err(gone)
    }

    /// The stream from server to client; with `last_event_id`, the rest of an interrupted one.
    pub async fn listen(self, last_event_id: Option<String>) -> Result<Messages, EndpointError> {
        let manager = &self.inner.manager;
        let messages: Messages = match last_event_id {
            None => Box::pin(manager.create_standalone_stream(&self.id).await.map_err(gone)?),
            Some(last_event_id) => match manager.resume(&self.id, last_event_id).await {
                Ok(messages) => Box::pin(messages),
                // An error would make an EventSource ask for the same event for ever; an empty stream ends it.
                Err(_unknown_event) => Box::pin(futures::stream::empty()),
            },
        };
        Ok(self.hold(messages))
    }

    fn hold(self, messages: Messages) -> Messages {
        // The event without a message that lets a client resume came with 2025-11-25; older ones stumble over it.
        let knows_priming = self.version.as_str() >= ProtocolVersion::V_2025_11_25.as_str();
        let messages = messages.filter(move |event| std::future::ready(knows_priming || event.message.is_some()));
        Box::pin(Leased { messages: Box::pin(messages), _lease: self })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(entry) = self.inner.table.lock().get_mut(&self.id) {
            entry.num_open -= 1;
            entry.last_used = Instant::now();
        }
    }
}

struct Leased {
    messages: Messages,
    _lease: Lease,
}

impl Stream for Leased {
    type Item = ServerSseMessage;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.messages.as_mut().poll_next(context)
    }
}

fn negotiated_version(response: &ServerJsonRpcMessage) -> Option<ProtocolVersion> {
    match response {
        ServerJsonRpcMessage::Response(response) => match &response.result {
            ServerResult::InitializeResult(result) => Some(result.protocol_version.clone()),
            _ => None,
        },
        _ => None,
    }
}

fn internal(error: impl std::error::Error) -> EndpointError {
    EndpointError::Internal(error.to_string())
}

/// The session ended between the lookup and the use.
fn gone(_error: impl std::error::Error) -> EndpointError {
    EndpointError::UnknownSession
}
