//! The side upstreams see: one connection each, shared by all calls, opened again when it is lost.
//!
//! A supervisor task owns each connection; callers read which one is live, and wake it when there is none.

mod connection;
mod credentials;
mod events;
mod http_client;
mod legacy_sse;
mod listening;
mod listing;
mod oauth;
mod stderr;
mod stdio;
mod streamable_http;
mod supervisor;
mod tap;
mod websocket;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rmcp::model::{ClientRequest, ServerCapabilities, ServerResult};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::timeout_at;

use connection::Connection;
use credentials::Credentials;
pub(crate) use supervisor::Supervisor;

use crate::config::{Namespace, SamplingConfig, UpstreamConfig, UpstreamId};
use crate::error::GatewayError;
use crate::gateway::CallContext;
use crate::gateway::UpstreamStatus;
use crate::mcp_server::catalog::Catalog;
use crate::mcp_server::offers::Offers;
use crate::mcp_server::subscriptions::Subscriptions;
use crate::metrics::UpstreamMetrics;

/// An upstream that is told something which no call waits for answers within this, or is not waited for.
const TELL_TIMEOUT: Duration = Duration::from_secs(5);

/// What all upstreams fill, each its own part.
pub(crate) struct Shared {
    pub catalog: Catalog,
    pub offers: Offers,
    pub subscriptions: Arc<Subscriptions>,
}

/// One upstream, as callers see it.
pub(crate) struct Upstream {
    config: UpstreamConfig,
    /// Written by its supervisor only.
    link: watch::Sender<Link>,
    /// A call found no connection.
    wanted: Notify,
    permits: Semaphore,
    credentials: Credentials,
    metrics: UpstreamMetrics,
}

/// Where the connection stands.
#[derive(Clone)]
enum Link {
    /// An attempt is running.
    Connecting,
    Up(Arc<Connection>),
    /// It was up; the next attempt has not begun.
    Lost,
    /// The last attempt failed, for this reason.
    Failed(Arc<str>),
    /// There will be none.
    Ended,
}

impl Upstream {
    /// Not connected yet: that is its supervisor's work.
    pub fn new(config: UpstreamConfig, metrics: UpstreamMetrics) -> Arc<Self> {
        let permits = Semaphore::new(config.max_concurrent_calls);
        let (link, wanted, credentials) =
            (watch::Sender::new(Link::Connecting), Notify::new(), Credentials::new(&config));
        Arc::new(Self { config, link, wanted, permits, credentials, metrics })
    }

    /// How it stands at this moment.
    pub fn status(&self) -> UpstreamStatus {
        let failure = match &*self.link.borrow() {
            Link::Up(connection) if !connection.is_closed() => None,
            Link::Up(_) | Link::Lost => Some("its connection was lost".to_owned()),
            Link::Connecting => Some("it is still connecting".to_owned()),
            Link::Failed(reason) => Some(reason.to_string()),
            Link::Ended => Some("the gateway is shutting down".to_owned()),
        };
        UpstreamStatus { id: self.id().clone(), failure }
    }

    /// What stands before its tool names.
    pub fn namespace(&self) -> &Namespace {
        &self.config.namespace
    }

    /// Who answers when it asks for a completion.
    pub fn sampling(&self) -> SamplingConfig {
        self.config.sampling
    }

    /// When a call that began at `started` must end here, if its caller waits until `deadline`.
    pub fn deadline(&self, started: Instant, deadline: Instant) -> Instant {
        deadline.min(started + self.config.tool_timeout)
    }

    /// Waits until the first attempt to connect has ended, one way or the other, or its time is over.
    pub async fn first_attempt(&self) {
        let mut link = self.link.subscribe();
        let ended = link.wait_for(|link| !matches!(link, Link::Connecting));
        let _ = tokio::time::timeout(self.config.connect_timeout, ended).await;
    }

    /// Sends a request in the upstream's own names, over a connection that is opened first if there is none. The caller
    /// bounds the whole.
    ///
    /// # Errors
    /// [`GatewayError::Busy`] and [`GatewayError::Unavailable`] when `deadline` passes before the call begins; what
    /// the connection says otherwise.
    pub async fn send(
        &self,
        request: ClientRequest,
        deadline: Instant,
        context: &CallContext,
    ) -> Result<ServerResult, GatewayError> {
        let permit = timeout_at(deadline.into(), self.permits.acquire()).await;
        let _permit = permit.map_err(|_| self.busy())?.map_err(|_| GatewayError::ShuttingDown)?;
        let connection = timeout_at(deadline.into(), self.connection()).await;
        let connection = connection.map_err(|_| self.unavailable("it is still connecting"))??;
        connection.send(request, context).await
    }

    /// Tells it what only older revisions have, if it speaks one and has what `is_able` looks for. Without a connection
    /// there is nothing to tell: a new one begins with all of it.
    pub async fn tell(&self, request: ClientRequest, is_able: impl Fn(&ServerCapabilities) -> bool) {
        let connection = match &*self.link.borrow() {
            Link::Up(connection) if !connection.is_modern() => Arc::clone(connection),
            _ => return,
        };
        if connection.server().is_some_and(|server| is_able(&server.capabilities)) {
            connection.tell(request, TELL_TIMEOUT).await;
        }
    }

    /// The live connection. Without one, the supervisor is woken, and the end of its next attempt decides.
    async fn connection(&self) -> Result<Arc<Connection>, GatewayError> {
        let mut link = self.link.subscribe();
        let mut is_first_look = true;
        loop {
            match &*link.borrow_and_update() {
                Link::Up(connection) if !connection.is_closed() => return Ok(Arc::clone(connection)),
                Link::Failed(reason) if !is_first_look => return Err(self.unavailable(reason)),
                Link::Ended => return Err(GatewayError::ShuttingDown),
                Link::Connecting => {}
                // Closed but not yet noticed, lost, or failed before this call came.
                Link::Up(_) | Link::Lost | Link::Failed(_) => self.wanted.notify_one(),
            }
            is_first_look = false;
            link.changed().await.map_err(|_| GatewayError::ShuttingDown)?;
        }
    }

    fn id(&self) -> &UpstreamId {
        &self.config.id
    }

    fn busy(&self) -> GatewayError {
        GatewayError::Busy { upstream: self.id().clone(), max_concurrent_calls: self.config.max_concurrent_calls }
    }

    fn unavailable(&self, reason: &str) -> GatewayError {
        GatewayError::Unavailable { upstream: self.id().clone(), reason: reason.to_owned() }
    }
}
