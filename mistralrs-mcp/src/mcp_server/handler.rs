//! The gateway as an MCP server, for whatever transport a downstream comes by.

use std::sync::Arc;

use async_trait::async_trait;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, Implementation, ListToolsResult, PaginatedRequestParams,
    ProgressNotificationParam, ProgressToken, ResultType, ServerCapabilities, ServerConfig, SubscriptionFilter, Tool,
};
use rmcp::service::{NotificationContext, Peer, RequestContext, SubscriptionContext};
use rmcp::{ErrorData, RoleServer, ServerHandler};

use super::answer;
use crate::gateway::{CallContext, Gateway, Principal, ToolCall};
use crate::local_tools::{ProgressSink, ProgressUpdate};

/// Shown to models by clients that pass it on.
const INSTRUCTIONS: &str = "Tools of the local language model, and of other MCP servers as `server::tool`.";

/// One downstream's view of the gateway; cheap to clone, one for each session or request.
#[derive(Clone)]
pub struct GatewayHandler {
    gateway: Arc<Gateway>,
}

impl GatewayHandler {
    pub(crate) fn new(gateway: Arc<Gateway>) -> Self {
        Self { gateway }
    }
}

impl ServerHandler for GatewayHandler {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder().enable_tools().enable_tool_list_changed().build();
        let mut config = ServerConfig::new(capabilities);
        config.server_info = Implementation::new("mistralrs-server", env!("CARGO_PKG_VERSION"));
        config.instructions = Some(INSTRUCTIONS.to_owned());
        config
    }

    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        self.gateway.downstream_peers().add(context.peer);
    }

    /// All tools on one page: clients in the field ignore `nextCursor`.
    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        if let Some(cursor) = request.and_then(|request| request.cursor) {
            return Err(ErrorData::invalid_params(format!("`{cursor}` is not a cursor of this list"), None));
        }
        Ok(ListToolsResult::with_all_items(self.gateway.list_tools(&principal(&context))))
    }

    fn get_tool(&self, _name: &str) -> Option<Tool> {
        // rmcp would check calls against it; the forwarder does, with an answer that says more.
        None
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let call = ToolCall { name: request.name.into_owned(), arguments: request.arguments.unwrap_or_default() };
        let progress = context.meta.get_progress_token().map(|token| {
            let sink: Arc<dyn ProgressSink> = Arc::new(PeerProgress { peer: context.peer.clone(), token });
            sink
        });
        let context = CallContext {
            principal: principal(&context),
            deadline: Gateway::call_deadline(),
            cancellation: context.ct,
            progress,
        };
        let mut result = answer(self.gateway.call_tool(call, context).await)?;
        // Upstreams of the legacy era leave it out; rmcp takes it out again for downstreams of that era.
        result.result_type.get_or_insert(ResultType::COMPLETE);
        Ok(CallToolResponse::from(result))
    }

    fn accepted_subscription_filter(&self, _requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(SubscriptionFilter::builder().tools_list_changed().build())
    }

    async fn listen(&self, subscription: SubscriptionContext) -> Result<(), ErrorData> {
        let mut changes = self.gateway.tool_changes();
        loop {
            tokio::select! {
                () = subscription.cancelled() => return Ok(()),
                () = self.gateway.shutting_down() => return Ok(()),
                changed = changes.changed() => {
                    if changed.is_err() || subscription.sink().notify_tool_list_changed().await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// Whoever the server found behind the HTTP request.
fn principal(context: &RequestContext<RoleServer>) -> Principal {
    let parts = context.extensions.get::<http::request::Parts>();
    parts.and_then(|parts| parts.extensions.get::<Principal>()).cloned().unwrap_or(Principal::Anonymous)
}

/// Progress as `notifications/progress` with the caller's own token.
struct PeerProgress {
    peer: Peer<RoleServer>,
    token: ProgressToken,
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
