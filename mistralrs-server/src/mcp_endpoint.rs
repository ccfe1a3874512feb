//! The MCP endpoint as a part of the process: its ports, its gateway, the model as its native tools.

use std::sync::Arc;
use std::time::Duration;

use mistralrs_core::ModelRouter;
use mistralrs_mcp::{Gateway, GatewayMetrics, Local};
use tokio::net::TcpListener;

use crate::adapters::{ModelSampler, ModelTools, ServerOffers};
use crate::app::AppState;
use crate::config::McpSettings;
use crate::http_mcp::HttpMcp;
use crate::listener::{self, BindError};
use crate::process::{ProcessError, Servers, announce};

/// Upstream servers and their children are given this long to end.
const GATEWAY_SHUTDOWN: Duration = Duration::from_secs(5);

/// The endpoint, empty where it is not configured.
pub(crate) struct McpEndpoint {
    settings: Option<McpSettings>,
    listeners: Vec<TcpListener>,
    gateway: Option<Arc<Gateway>>,
}

impl McpEndpoint {
    /// Opens the configured ports. Connections wait there until [`Self::start`].
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn bind(settings: Option<McpSettings>) -> Result<Self, BindError> {
        let mut listeners = Vec::new();
        if let Some(McpSettings { http, .. }) = &settings {
            listeners.push(listener::bind("the MCP endpoint", http.addr).await?);
            if let Some(addr) = http.older_addr {
                listeners.push(listener::bind("the MCP endpoint, --mcp-port", addr).await?);
            }
        }
        Ok(Self { settings, listeners, gateway: None })
    }

    /// Connects the upstreams and serves. `models` are those that the process has or will have.
    ///
    /// # Errors
    /// [`ProcessError::Gateway`].
    pub async fn start(
        &mut self,
        app: &AppState,
        servers: &Servers,
        models: Option<Arc<ModelRouter>>,
    ) -> Result<(), ProcessError> {
        let Some(McpSettings { http, gateway }) = self.settings.take() else { return Ok(()) };
        let metrics = GatewayMetrics::register(&app.registry);
        let gateway = Gateway::start_with(gateway, local(app, models), metrics).await?;
        self.gateway = Some(Arc::clone(&gateway));
        let router = HttpMcp::new(gateway, &http, &app.registry, servers.shutdown()).router();
        // Both answer to both paths; each is announced with the one its users write.
        for (listener, path) in self.listeners.drain(..).zip(["/mcp/stream", "/mcp"]) {
            announce("MCP endpoint", &listener, path);
            servers.spawn(listener, router.clone());
        }
        Ok(())
    }

    /// Ends upstream connections; children are terminated and reaped.
    pub async fn stop(self) {
        let Some(gateway) = self.gateway else { return };
        if tokio::time::timeout(GATEWAY_SHUTDOWN, gateway.shutdown()).await.is_err() {
            tracing::warn!("upstream MCP servers did not end in time and are left behind");
        }
    }
}

/// What the process has of its own. Without a model that is its status: a tool that can only fail teaches a model to fail.
fn local(app: &AppState, models: Option<Arc<ModelRouter>>) -> Local {
    let mut local = Local::default();
    if let Some(models) = &models {
        local.tools = Some(Arc::new(ModelTools::new(Arc::clone(models))));
        local.sampler = Some(Arc::new(ModelSampler::new(Arc::clone(models))));
    }
    local.offers = Some(Arc::new(ServerOffers::new(Arc::clone(app), models)));
    local
}
