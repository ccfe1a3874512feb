//! The door: what the server calls.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rmcp::model::{CallToolResult, JsonObject, Tool};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::GatewayConfig;
use crate::error::GatewayError;
use crate::local_tools::{LocalTools, ProgressSink};
use crate::mcp_server::downstream_peers::DownstreamPeers;
use crate::mcp_server::handler::GatewayHandler;
use crate::mcp_server::native_tools::NativeTools;
use crate::mcp_server::tool_forwarder::ToolForwarder;
use crate::metrics::GatewayMetrics;

/// No call lives longer, whatever it does: the longest that a generation on a slow machine takes. Upstream calls end
/// sooner, at their own `tool_timeout_seconds`.
const MAX_CALL_DURATION: Duration = Duration::from_mins(10);

/// Who was authenticated downstream. The server puts one into each HTTP request's extensions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Principal {
    /// No key is configured, or the caller is this process.
    Anonymous,
    /// The n-th configured key.
    ApiKey(usize),
}

/// A tool call as a downstream made it.
#[derive(Debug, Clone)]
pub struct ToolCall {
    /// Qualified name, API-safe alias, or native name.
    pub name: String,
    /// The arguments.
    pub arguments: JsonObject,
}

/// What travels with a call, whole way.
#[derive(Clone)]
pub struct CallContext {
    /// Who asks.
    pub principal: Principal,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// Fires when the caller left or cancelled.
    pub cancellation: CancellationToken,
    /// Where progress goes, if the caller wants it.
    pub progress: Option<Arc<dyn ProgressSink>>,
}

/// All tools, native and upstream, behind one name space.
pub struct Gateway {
    native: NativeTools,
    forwarder: ToolForwarder,
    peers: Arc<DownstreamPeers>,
    shutdown: CancellationToken,
    /// Ends the background work of a gateway that is dropped without a shutdown.
    _guard: DropGuard,
}

impl Gateway {
    /// Connects the upstreams in parallel. One that fails is logged, marked down and retried on its next call; it never
    /// keeps the others, or this function, waiting beyond the connect deadline.
    ///
    /// # Errors
    /// None today: what can be wrong with a configuration is found when it is checked.
    pub async fn start(
        config: GatewayConfig,
        local: Option<Arc<dyn LocalTools>>,
        metrics: GatewayMetrics,
    ) -> Result<Arc<Self>, GatewayError> {
        let native = NativeTools::new(local, config.access.clone(), &metrics);
        let forwarder = ToolForwarder::start(config, native.names(), metrics).await;
        let peers = Arc::new(DownstreamPeers::new());
        let shutdown = CancellationToken::new();
        let guard = shutdown.clone().drop_guard();
        tokio::spawn(Arc::clone(&peers).announce(forwarder.changes(), shutdown.clone()));
        Ok(Arc::new(Self { native, forwarder, peers, shutdown, _guard: guard }))
    }

    /// An MCP server over this gateway. Clone it for each session or request.
    pub fn handler(self: &Arc<Self>) -> GatewayHandler {
        GatewayHandler::new(Arc::clone(self))
    }

    /// When a call that begins now ends at the latest.
    pub fn call_deadline() -> Instant {
        Instant::now() + MAX_CALL_DURATION
    }

    /// Native tools first, then upstream ones in catalog order: what `principal` may call.
    pub fn list_tools(&self, principal: &Principal) -> Vec<Tool> {
        let mut tools = self.native.list_tools(principal);
        tools.extend(self.forwarder.list_tools(principal));
        tools
    }

    /// Calls a native or an upstream tool. `isError` results are `Ok`.
    ///
    /// # Errors
    /// [`GatewayError`]; [`crate::mcp_server::answer`] says it in JSON-RPC.
    pub async fn call_tool(&self, call: ToolCall, context: CallContext) -> Result<CallToolResult, GatewayError> {
        if self.shutdown.is_cancelled() {
            return Err(GatewayError::ShuttingDown);
        }
        if self.native.has(&call.name) {
            self.native.call(&call, &context).await
        } else {
            self.forwarder.forward(&call, &context).await
        }
    }

    /// Ends upstream connections; children are terminated and reaped. Calls that still run fail.
    pub async fn shutdown(&self) {
        self.shutdown.cancel();
        self.forwarder.shutdown().await;
    }

    pub(crate) fn downstream_peers(&self) -> &DownstreamPeers {
        &self.peers
    }

    pub(crate) fn tool_changes(&self) -> watch::Receiver<()> {
        self.forwarder.changes()
    }

    pub(crate) async fn shutting_down(&self) {
        self.shutdown.cancelled().await;
    }
}
