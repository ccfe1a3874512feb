//! The forwarder of a build without upstreams: it knows no tool.

use std::collections::HashSet;

use rmcp::model::{CallToolResult, Tool};
use tokio::sync::watch;

use crate::config::GatewayConfig;
use crate::error::GatewayError;
use crate::gateway::{CallContext, Principal, ToolCall};
use crate::metrics::GatewayMetrics;

/// Stands where the forwarder stands in other builds.
pub(crate) struct ToolForwarder {
    metrics: GatewayMetrics,
    unchanging: watch::Sender<()>,
}

#[expect(
    clippy::unused_async,
    clippy::unused_self,
    reason = "the forwarder's signatures, in a build that forwards nothing"
)]
impl ToolForwarder {
    pub async fn start(_config: GatewayConfig, _native: HashSet<String>, metrics: GatewayMetrics) -> Self {
        Self { metrics, unchanging: watch::Sender::new(()) }
    }

    pub fn list_tools(&self, _principal: &Principal) -> Vec<Tool> {
        Vec::new()
    }

    pub async fn forward(&self, call: &ToolCall, _context: &CallContext) -> Result<CallToolResult, GatewayError> {
        let error = GatewayError::UnknownTool(call.name.clone());
        self.metrics.unresolved(&error);
        Err(error)
    }

    pub fn changes(&self) -> watch::Receiver<()> {
        self.unchanging.subscribe()
    }

    pub async fn shutdown(&self) {}
}
