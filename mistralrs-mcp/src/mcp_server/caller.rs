//! A client of the endpoint, as a call sees it: where progress, questions and log messages go.
#![expect(deprecated, reason = "sampling, roots and logging are what every client before 2026-07-28 knows")]

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use rmcp::RoleServer;
use rmcp::model::{
    ClientCapabilities, ClientResult, ErrorData, Extensions, GetExtensions, LoggingLevel,
    LoggingMessageNotificationParam, ProgressNotificationParam, ProgressToken, ProtocolVersion, ServerRequest,
};
use rmcp::service::{Peer, RequestContext, ServiceError};

use crate::downstream::{Downstream, DownstreamId};
use crate::gateway::Gateway;
use crate::local_tools::{ProgressSink, ProgressUpdate};

/// What one client is known by, over all its requests.
pub(crate) struct SessionState {
    pub id: DownstreamId,
    /// The least severe level that it wants to hear of; until it says so, what upstreams send is passed on.
    log_level: AtomicU8,
    /// Most never do: to forget one that did is a walk through all subscriptions.
    has_subscribed: AtomicBool,
    /// Told when it is gone.
    gateway: Weak<Gateway>,
}

/// The client that made a request.
pub(super) struct PeerDownstream {
    peer: Peer<RoleServer>,
    session: Arc<SessionState>,
    capabilities: ClientCapabilities,
    era: Era,
}

/// How a client is asked and told.
#[derive(Debug, Clone, Copy)]
enum Era {
    /// By requests of ours, while its own runs.
    Legacy,
    /// Only by results that say what is needed ([`super::held_calls`]). Log messages if it asked for this level in the request.
    Modern { log_level: Option<u8> },
}

impl SessionState {
    /// Of a client that nobody knew before.
    pub fn new(gateway: &Arc<Gateway>) -> Self {
        let log_level = AtomicU8::new(severity(LoggingLevel::Debug));
        Self {
            id: DownstreamId::unique(),
            log_level,
            has_subscribed: AtomicBool::new(false),
            gateway: Arc::downgrade(gateway),
        }
    }

    /// Remembers that it listens to a resource.
    pub fn subscribed(&self) {
        self.has_subscribed.store(true, Ordering::Relaxed);
    }

    /// Whether it ever did.
    pub fn has_subscribed(&self) -> bool {
        self.has_subscribed.load(Ordering::Relaxed)
    }

    pub fn set_log_level(&self, level: LoggingLevel) {
        self.log_level.store(severity(level), Ordering::Relaxed);
    }

    /// What [`severity`] gives.
    pub fn log_level(&self) -> u8 {
        self.log_level.load(Ordering::Relaxed)
    }
}

impl Drop for SessionState {
    fn drop(&mut self) {
        if let Some(gateway) = self.gateway.upgrade() {
            gateway.session_ended(self);
        }
    }
}

impl PeerDownstream {
    pub fn new(context: &RequestContext<RoleServer>, session: Arc<SessionState>) -> Self {
        let log_level = context.meta.log_level().map(severity);
        let era = if is_modern(context) { Era::Modern { log_level } } else { Era::Legacy };
        let capabilities = context.client_capabilities().unwrap_or_default();
        Self { peer: context.peer.clone(), session, capabilities, era }
    }

    /// Whether it said that it can answer `question`.
    ///
    /// # Errors
    /// What its upstream is told if not.
    pub fn check_able(&self, question: &ServerRequest) -> Result<(), ErrorData> {
        let is_able = match question {
            ServerRequest::CreateMessageRequest(_) => self.capabilities.sampling.is_some(),
            ServerRequest::ListRootsRequest(_) => self.capabilities.roots.is_some(),
            _ => self.capabilities.elicitation.is_some(),
        };
        let refusal = || ErrorData::invalid_request("the client that made this call cannot answer this", None);
        if is_able { Ok(()) } else { Err(refusal()) }
    }
}

#[async_trait]
impl Downstream for PeerDownstream {
    fn id(&self) -> DownstreamId {
        self.session.id
    }

    fn capabilities(&self) -> ClientCapabilities {
        self.capabilities.clone()
    }

    async fn ask(&self, mut question: ServerRequest) -> Result<ClientResult, ErrorData> {
        self.check_able(&question)?;
        // Of the upstream's connection; rmcp puts in which of the client's requests this belongs to.
        *question.extensions_mut() = Extensions::new();
        self.peer.send_request(question).await.map_err(|error| match error {
            ServiceError::McpError(error) => error,
            error => ErrorData::internal_error(format!("the client did not answer: {error}"), None),
        })
    }

    async fn log(&self, message: LoggingMessageNotificationParam) {
        let least = match self.era {
            Era::Legacy => Some(self.session.log_level()),
            Era::Modern { log_level } => log_level,
        };
        if least.is_some_and(|least| severity(message.level) >= least) {
            // It fails only together with the connection, and then nobody listens.
            let _ = self.peer.notify_logging_message(message).await;
        }
    }
}

/// Whether the request is of 2026-07-28 or newer.
pub(super) fn is_modern(context: &RequestContext<RoleServer>) -> bool {
    let version = context.protocol_version();
    version.is_some_and(|version| version.as_str() >= ProtocolVersion::V_2026_07_28.as_str())
}

/// Grows from debug to emergency.
pub(crate) fn severity(level: LoggingLevel) -> u8 {
    level as u8
}

/// Progress as `notifications/progress` with the caller's own token.
pub(super) struct PeerProgress {
    pub peer: Peer<RoleServer>,
    pub token: ProgressToken,
}

#[async_trait]
impl ProgressSink for PeerProgress {
    async fn send(&self, progress: f64, message: String) -> bool {
        self.forward(ProgressUpdate { progress, total: None, message: Some(message) }).await
    }

    async fn forward(&self, update: ProgressUpdate) -> bool {
        let mut report = ProgressNotificationParam::new(self.token.clone(), update.progress);
        report.total = update.total;
        report.message = update.message;
        self.peer.notify_progress(report).await.is_ok()
    }
}
