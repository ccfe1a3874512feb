//! The forwarder of a build without upstreams: it knows nothing.
#![expect(deprecated, reason = "what 2026-07-28 removed is what every client before it asks for")]

use std::collections::HashSet;
use std::sync::Arc;

use rmcp::model::{ClientRequest, LoggingLevel, Prompt, Resource, ResourceTemplate, ServerResult, Tool};
use serde_json::Value;
use tokio::sync::watch;

use super::downstream_peers::ListChanges;
use super::offers::Owned;
use super::search_tool::ToolQuery;
use super::subscriptions::Subscriber;
use crate::config::GatewayConfig;
use crate::downstream::DownstreamId;
use crate::error::GatewayError;
use crate::gateway::{CallContext, Principal, UpstreamStatus};
use crate::local_sampler::LocalSampler;
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
    pub async fn start(
        _config: GatewayConfig,
        _native: HashSet<String>,
        _sampler: Option<Arc<dyn LocalSampler>>,
        metrics: GatewayMetrics,
    ) -> Self {
        Self { metrics, unchanging: watch::Sender::new(()) }
    }

    pub fn upstreams(&self) -> Vec<UpstreamStatus> {
        Vec::new()
    }

    pub fn visible_upstreams(&self, _principal: &Principal) -> Vec<UpstreamStatus> {
        Vec::new()
    }

    pub fn list_tools(&self, _principal: &Principal) -> Vec<Tool> {
        Vec::new()
    }

    pub fn search_tools(&self, _query: &ToolQuery, _principal: &Principal) -> Vec<Value> {
        Vec::new()
    }

    pub fn list_prompts(&self, _principal: &Principal) -> Vec<Prompt> {
        Vec::new()
    }

    pub fn list_resources(&self, _principal: &Principal) -> Vec<Resource> {
        Vec::new()
    }

    pub fn list_templates(&self, _principal: &Principal) -> Vec<ResourceTemplate> {
        Vec::new()
    }

    pub async fn forward(&self, request: ClientRequest, _context: &CallContext) -> Result<ServerResult, GatewayError> {
        let error = match request {
            ClientRequest::CallToolRequest(call) => GatewayError::UnknownTool(call.params.name.into_owned()),
            ClientRequest::ReadResourceRequest(read) => GatewayError::UnknownResource(read.params.uri),
            ClientRequest::GetPromptRequest(get) => GatewayError::UnknownPrompt(get.params.name),
            other => GatewayError::NotForwarded(other.method().to_owned()),
        };
        self.metrics.unresolved(&error);
        Err(error)
    }

    pub async fn subscribe(&self, subscriber: Subscriber, _principal: &Principal) -> Result<(), GatewayError> {
        Err(GatewayError::UnknownResource(subscriber.uri))
    }

    pub async fn unsubscribe(&self, uri: &str, _id: DownstreamId, _principal: &Principal) -> Result<(), GatewayError> {
        Err(GatewayError::UnknownResource(uri.to_owned()))
    }

    pub fn forget_subscriber(&self, _id: DownstreamId) -> Vec<Owned> {
        Vec::new()
    }

    pub async fn unsubscribe_upstreams(&self, _resources: Vec<Owned>) {}

    pub fn num_subscriptions(&self) -> usize {
        0
    }

    pub async fn set_log_level(&self, _level: LoggingLevel) {}

    pub fn changes(&self) -> ListChanges {
        ListChanges::new(std::array::from_fn(|_| self.unchanging.subscribe()))
    }

    pub async fn shutdown(&self) {}
}
