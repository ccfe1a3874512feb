//! The life of the process: bind, answer while loading, serve, and drain at a signal.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use mistralrs_core::metrics::EngineMetrics;
use mistralrs_core::{LoadError, Model};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::{self, App, AppState};
use crate::config::{ModelSettings, ServerSettings, Settings};
use crate::health::Stage;
use crate::hub::{self, HubError, LocatedPair};
use crate::listener::{self, BindError, ConnectionLimits};
#[cfg(feature = "http-mcp-stream")]
use crate::mcp_endpoint::McpEndpoint;
use crate::metrics;

/// After the drain timeout connections are given this long to write what they have.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// Status of a process that a second signal ended: 128 + SIGINT, as shells have it.
const KILLED: i32 = 130;

/// Why the process could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A port could not be opened.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The model could not be fetched.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The model could not be loaded.
    #[error("cannot load the model: {0}")]
    Load(#[from] LoadError),
    /// The gateway could not start.
    #[cfg(feature = "http-mcp-stream")]
    #[error("cannot start the MCP gateway: {0}")]
    Gateway(#[from] mistralrs_mcp::GatewayError),
}

/// A model that has been found and waits to be loaded.
pub struct PendingModel {
    /// Where its files and its draft model's are, or what to fetch.
    pub located: LocatedPair,
    /// How to load it.
    pub settings: ModelSettings,
}

/// Servers on their ports, and the token that ends them.
pub(crate) struct Servers {
    tasks: TaskTracker,
    shutdown: CancellationToken,
    limits: ConnectionLimits,
}

impl Servers {
    /// Serves `router` on `listener` until the shutdown.
    pub fn spawn(&self, listener: TcpListener, router: axum::Router) {
        self.tasks.spawn(listener::serve(listener, router, self.limits, self.shutdown.clone()));
    }

    /// Fires when the process is to end: long-lived streams end themselves then.
    #[cfg(feature = "http-mcp-stream")]
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }
}

/// Serves until a signal, then drains. All ports are bound before anything is loaded; the main one answers while
/// loading goes on.
///
/// # Errors
/// [`ProcessError`]: a port in use, a model that cannot be fetched or loaded, a gateway that cannot start.
pub async fn run(settings: Settings, model: Option<PendingModel>) -> Result<(), ProcessError> {
    let registry = metrics::new_registry();
    if settings.lock_metrics {
        mistralrs_telemetry::lock::register_lock_metrics(&registry);
    }
    let app = App::new(&settings.server, registry);
    let servers =
        Servers { tasks: TaskTracker::new(), shutdown: CancellationToken::new(), limits: settings.server.connections };
    let main_port = listener::bind("the OpenAI API", settings.server.addr).await?;
    #[cfg(feature = "http-mcp-stream")]
    let mut mcp = McpEndpoint::bind(settings.mcp).await?;

    end_at_signal(servers.shutdown.clone());
    warn_if_open(&settings.server);
    tokio::spawn(Arc::clone(&app.responses).sweep(servers.shutdown.clone()));
    announce("OpenAI API", &main_port, "/v1");
    servers.spawn(main_port, app::router(&app, &settings.server));

    let is_gateway_only = model.is_none();
    #[cfg(feature = "http-mcp-stream")]
    let models = model.as_ref().map(|_| Arc::clone(&app.models));
    let loading = load(&app, model);
    #[cfg(feature = "http-mcp-stream")]
    let starting = async { tokio::try_join!(loading, mcp.start(&app, &servers, models)).map(|_| ()) };
    #[cfg(not(feature = "http-mcp-stream"))]
    let starting = loading;
    let outcome = tokio::select! {
        outcome = starting => outcome,
        () = servers.shutdown.cancelled() => Ok(()),
    };
    if outcome.is_ok() {
        if is_gateway_only {
            app.readiness.advance(Stage::Ready);
        }
        servers.shutdown.cancelled().await;
    }
    drain(&app, servers, settings.server.drain_timeout).await;
    #[cfg(feature = "http-mcp-stream")]
    mcp.stop().await;
    outcome
}

/// Fetches what is not on this machine, loads it, and lets requests in.
async fn load(app: &AppState, model: Option<PendingModel>) -> Result<(), ProcessError> {
    let Some(PendingModel { located, mut settings }) = model else { return Ok(()) };
    let source = hub::fetch_pair(located, &mut settings).await?;
    let metrics = EngineMetrics::register(&app.registry);
    let loaded = tokio::task::spawn_blocking(move || Model::load(&source, &settings.engine, &metrics)).await;
    let model = match loaded {
        Ok(model) => model?,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    };
    let info = model.info();
    tracing::info!(
        model = info.id,
        architecture = info.description.architecture,
        quantization = info.description.quantization,
        context_tokens = info.max_model_len,
        "the model is ready"
    );
    app.models.insert(model);
    app.readiness.advance(Stage::Ready);
    Ok(())
}

/// Refuses new work, lets running work finish within the drain timeout, and waits for open connections.
async fn drain(app: &AppState, servers: Servers, drain_timeout: Duration) {
    app.readiness.advance(Stage::Draining);
    servers.shutdown.cancel();
    app.responses.cancel_running();
    servers.tasks.close();
    let models = app.models.models();
    let models = join_all(models.iter().map(Model::shutdown));
    let connections = tokio::time::timeout(drain_timeout + LAST_WRITES, servers.tasks.wait());
    let (_, connections) = tokio::join!(models, connections);
    if connections.is_err() {
        tracing::warn!("connections were still open after the drain timeout and are cut off");
    }
}

/// The first signal drains, the second ends the process where it stands.
fn end_at_signal(shutdown: CancellationToken) {
    tokio::spawn(async move {
        let signal = next_signal().await;
        tracing::info!(signal, "draining: running requests finish, new ones are refused; again to end at once");
        shutdown.cancel();
        next_signal().await;
        std::process::exit(KILLED);
    });
}

/// Waits to be told to end, and says how.
#[cfg(unix)]
pub(crate) async fn next_signal() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).expect("the runtime has signal handling enabled");
    let mut terminate = signal(SignalKind::terminate()).expect("the runtime has signal handling enabled");
    tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    }
}

/// Waits to be told to end.
#[cfg(not(unix))]
pub(crate) async fn next_signal() -> &'static str {
    tokio::signal::ctrl_c().await.expect("the runtime has signal handling enabled");
    "Ctrl-C"
}

fn warn_if_open(settings: &ServerSettings) {
    if !settings.addr.ip().is_loopback() && settings.api_keys.is_empty() {
        tracing::warn!(addr = %settings.addr, "anybody who reaches this address can use the model; give --api-key KEY");
    }
}

/// Says where something is served: with port 0 this line is the only one who knows.
pub(crate) fn announce(what: &str, listener: &TcpListener, path: &str) {
    match listener.local_addr() {
        Ok(addr) => tracing::info!(url = %format_args!("http://{addr}{path}"), "listening: {what}"),
        Err(error) => tracing::warn!(%error, "listening: {what}"),
    }
}
