//! The owner of an upstream's connection: opens it, lists its tools, waits for its end, opens it again.

use std::sync::Arc;
use std::time::Duration;

use rmcp::RoleClient;
use rmcp::model::ProtocolVersion;
use rmcp::service::{ClientInitializeError, ClientLifecycleMode, serve_client_with_lifecycle};
use rmcp::transport::Transport;
use rmcp::transport::streamable_http_client::StreamableHttpError;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{Connection, OpenConnection, root_cause};
use super::credentials::HttpError;
use super::events::UpstreamEvents;
use super::listening::Listener;
use super::stderr::LastWords;
use super::tap::{ConnectionState, TappedTransport};
use super::{Link, Shared, Upstream, legacy_sse, stderr, stdio, streamable_http, websocket};
use crate::config::{ProtocolEra, StdioConfig, TransportConfig};
use crate::error::GatewayError;
use crate::metrics::Opened;
use crate::reliability::ReconnectPace;

/// Tools are listed again this often, for servers that do not tell when they change.
const REFRESH_EVERY: Duration = Duration::from_mins(1);
/// A server that says so all the time is listened to this often.
const MIN_REFRESH_INTERVAL: Duration = Duration::from_millis(500);
/// A closing connection ends its child or its session within this; what is left then is killed with its handles.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The last words of a child that failed to start may arrive after its end.
const STDERR_GRACE: Duration = Duration::from_millis(200);

/// Owns one upstream's connection.
pub(crate) struct Supervisor {
    upstream: Arc<Upstream>,
    /// In the configuration, and so in the catalog.
    place: usize,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
    /// Connections that are being closed.
    closing: TaskTracker,
    pace: ReconnectPace,
    opened: Opened,
    /// Configured, or found out once: a server does not change what it speaks between two connections.
    speaks: ProtocolEra,
}

/// A connection that has shaken hands and listed its tools.
struct Established {
    open: OpenConnection,
    connection: Arc<Connection>,
    list_changed: Arc<Notify>,
}

/// Why there is none.
enum ConnectFailure {
    /// For people.
    Reason(String),
    /// The server let the handshake not in, for this reason: it may know the other era's only.
    Refused(String),
}

impl Supervisor {
    /// For the upstream at `place`; `closing` tracks what outlives it.
    pub fn new(
        upstream: Arc<Upstream>,
        place: usize,
        shared: Arc<Shared>,
        shutdown: CancellationToken,
        closing: TaskTracker,
    ) -> Self {
        let (speaks, pace) = (upstream.config.protocol, ReconnectPace::default());
        Self { upstream, place, shared, shutdown, closing, pace, opened: Opened::First, speaks }
    }

    /// Until shutdown.
    pub async fn run(mut self) {
        let shutdown = self.shutdown.clone();
        while !shutdown.is_cancelled() {
            self.publish(Link::Connecting);
            let attempt = tokio::select! {
                attempt = self.connect() => attempt,
                () = shutdown.cancelled() => break,
            };
            match attempt {
                Ok(established) => self.serve(established).await,
                Err(reason) => {
                    self.pace.failed();
                    tracing::warn!(upstream = %self.upstream.id(), reason, "could not connect; trying again later");
                    self.publish(Link::Failed(reason.into()));
                }
            }
            tokio::select! {
                () = self.pause() => {}
                () = shutdown.cancelled() => {}
            }
        }
        self.publish(Link::Ended);
    }

    /// Until a call wants the connection (then briefly) or nobody did for a while.
    async fn pause(&self) {
        let since = Instant::now();
        tokio::select! {
            () = self.upstream.wanted.notified() => sleep_until(since + self.pace.pause_for_call()).await,
            () = sleep(self.pace.pause_unasked()) => {}
        }
    }

    /// Holds the connection until it ends, and keeps the catalog's part fresh.
    async fn serve(&mut self, established: Established) {
        let Established { open, connection, list_changed } = established;
        let listener = Listener {
            connection: Arc::clone(&connection),
            list_changed: Arc::clone(&list_changed),
            subscriptions: Arc::clone(&self.shared.subscriptions),
            place: self.place,
        };
        tokio::spawn(listener.run());
        let since = Instant::now();
        self.upstream.metrics.connected(self.opened);
        self.opened = Opened::Again;
        self.publish(Link::Up(Arc::clone(&connection)));
        tracing::info!(upstream = %self.upstream.id(), "connected");
        tokio::select! {
            () = connection.closed().cancelled() => tracing::warn!(upstream = %self.upstream.id(), "connection lost"),
            () = self.shutdown.cancelled() => {}
            () = self.keep_fresh(&connection, &list_changed) => {}
        }
        self.upstream.metrics.disconnected();
        self.publish(Link::Lost);
        self.pace.lost(since.elapsed());
        // Not waited for: a child may take its time to end, and a call waits for the next one.
        self.closing.spawn(close(open));
    }

    async fn keep_fresh(&self, connection: &Connection, list_changed: &Notify) {
        loop {
            sleep(MIN_REFRESH_INTERVAL).await;
            tokio::select! {
                () = list_changed.notified() => {}
                () = sleep(REFRESH_EVERY) => {}
            }
            if let Err(error) = self.list(connection).await {
                tracing::warn!(upstream = %self.upstream.id(), %error, "could not list its tools; keeping the last list");
            }
        }
    }

    async fn list(&self, connection: &Connection) -> Result<(), GatewayError> {
        let (tools, offer) = tokio::join!(connection.list_tools(), connection.list_offer());
        self.shared.catalog.replace(self.place, tools?);
        self.shared.offers.replace(self.place, offer);
        Ok(())
    }

    async fn connect(&mut self) -> Result<Established, String> {
        let last_words = LastWords::default();
        let discover = || ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::LATEST] };
        let attempt = async {
            if self.speaks == ProtocolEra::Modern {
                return self.attempt(discover(), &last_words).await;
            }
            match self.attempt(ClientLifecycleMode::Initialize, &last_words).await {
                // If it does not know that one either, the first refusal says more.
                Err(ConnectFailure::Refused(reason)) if self.speaks == ProtocolEra::Auto => {
                    let second = self.attempt(discover(), &last_words).await;
                    second.map_err(|_| ConnectFailure::Reason(reason))
                }
                outcome => outcome,
            }
        };
        let limit = self.upstream.config.connect_timeout;
        let reason = match timeout(limit, attempt).await {
            Ok(Ok(established)) => {
                let is_modern = established.connection.is_modern();
                self.speaks = if is_modern { ProtocolEra::Modern } else { ProtocolEra::Legacy };
                return Ok(established);
            }
            Ok(Err(ConnectFailure::Reason(reason) | ConnectFailure::Refused(reason))) => reason,
            Err(_) => format!("it did not answer within {limit:?}"),
        };
        Err(match last_words.get() {
            Some(words) => format!("{reason}; its stderr ends with: {words}"),
            None => reason,
        })
    }

    async fn attempt(
        &self,
        lifecycle: ClientLifecycleMode,
        last_words: &LastWords,
    ) -> Result<Established, ConnectFailure> {
        let credentials = self.upstream.credentials.clone();
        match &self.upstream.config.transport {
            TransportConfig::Stdio(config) => self.attempt_stdio(config, lifecycle, last_words).await,
            TransportConfig::StreamableHttp(config) => {
                let transport = streamable_http::transport(&self.upstream.config, config, credentials)
                    .map_err(|error| ConnectFailure::Reason(root_cause(&error)))?;
                self.establish(transport, lifecycle).await
            }
            TransportConfig::LegacySse(config) => {
                let transport = legacy_sse::connect(&self.upstream.config, config, credentials).await;
                self.establish(transport.map_err(ConnectFailure::Reason)?, lifecycle).await
            }
            TransportConfig::WebSocket(config) => {
                let transport = websocket::connect(&self.upstream.config, config, &credentials).await;
                self.establish(transport.map_err(ConnectFailure::Reason)?, lifecycle).await
            }
        }
    }

    async fn attempt_stdio(
        &self,
        config: &StdioConfig,
        lifecycle: ClientLifecycleMode,
        last_words: &LastWords,
    ) -> Result<Established, ConnectFailure> {
        let id = self.upstream.id();
        let (child, stderr) = stdio::spawn(id, config).map_err(|error| ConnectFailure::Reason(error.to_string()))?;
        // Ends with the child's stderr.
        let drained = tokio::spawn(stderr::drain(id.clone(), stderr, last_words.clone()));
        let outcome = self.establish(child, lifecycle).await;
        if outcome.is_err() {
            let _ = timeout(STDERR_GRACE, drained).await;
        }
        outcome
    }

    /// Shakes hands and fills the catalog's part, so that nobody sees a connection without tools.
    async fn establish<T: Transport<RoleClient> + 'static>(
        &self,
        transport: T,
        lifecycle: ClientLifecycleMode,
    ) -> Result<Established, ConnectFailure> {
        let state = ConnectionState::new();
        let list_changed = Arc::new(Notify::new());
        let subscriptions = Arc::clone(&self.shared.subscriptions);
        let events = UpstreamEvents::new(self.place, Arc::clone(&list_changed), subscriptions);
        let transport = TappedTransport::new(transport, self.upstream.id().clone(), Arc::clone(&state));
        let open = serve_client_with_lifecycle(events, transport, lifecycle).await.map_err(explain)?;
        let connection = Arc::new(Connection::new(&self.upstream.config, &open, state));
        self.list(&connection).await.map_err(|error| ConnectFailure::Reason(error.to_string()))?;
        Ok(Established { open, connection, list_changed })
    }

    fn publish(&self, link: Link) {
        self.upstream.link.send_replace(link);
    }
}

async fn close(mut open: OpenConnection) {
    if let Err(error) = open.close_with_timeout(CLOSE_TIMEOUT).await {
        tracing::warn!(%error, "closing an upstream connection failed");
    }
}

fn explain(error: ClientInitializeError) -> ConnectFailure {
    match error {
        // With whatever code: servers without a handshake complain of what it lacks for them.
        ClientInitializeError::JsonRpcError(error) => ConnectFailure::Refused(format!("it refused: {}", error.message)),
        ClientInitializeError::ConnectionClosed(_) => ConnectFailure::Reason("it ended before it answered".to_owned()),
        ClientInitializeError::TransportError { error, .. } => match error.error.downcast_ref::<HttpError>() {
            Some(StreamableHttpError::UnexpectedServerResponse(answer)) if answer.starts_with("HTTP 4") => {
                ConnectFailure::Refused(answer.to_string())
            }
            _ => ConnectFailure::Reason(root_cause(&*error.error)),
        },
        error => ConnectFailure::Reason(error.to_string()),
    }
}
