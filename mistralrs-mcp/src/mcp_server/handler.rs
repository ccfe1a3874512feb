//! The gateway as an MCP server, for whatever transport a downstream comes by.
#![expect(deprecated, reason = "what 2026-07-28 removed is what every client before it asks for")]

use std::sync::Arc;

use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CallToolResponse, ClientRequest, CompleteRequest, CompleteRequestParams,
    CompleteResult, ErrorCode, GetPromptRequest, GetPromptRequestParams, GetPromptResponse, Implementation,
    InputRequiredResult, ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult, ListToolsResult,
    PaginatedRequestParams, ReadResourceRequest, ReadResourceRequestParams, ReadResourceResponse, ResultType,
    ServerCapabilities, ServerConfig, ServerResult, SetLevelRequestParams, SubscribeRequestParams, SubscriptionFilter,
    Tool, UnsubscribeRequestParams,
};
use rmcp::service::{NotificationContext, RequestContext, SubscriptionContext};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use tokio_util::sync::CancellationToken;

use super::caller::{PeerDownstream, PeerProgress, SessionState, is_modern};
use super::downstream_peers::ChangedList;
use super::held_calls::{AskingCall, HeldCalls, Stage, subject_of};
use super::questions::{continuation, forward_with_answers};
use super::subscriptions::{Sink, Subscriber};
use super::{answer, to_error_data};
use crate::downstream::DownstreamId;
use crate::error::GatewayError;
use crate::gateway::{CallContext, Gateway, Principal};
use crate::local_tools::ProgressSink;

/// Shown to models by clients that pass it on.
const INSTRUCTIONS: &str = "Tools of the local language model, and of other MCP servers as `server::tool`.";
/// A list may be taken for fresh as long as ours of the upstreams'.
const LIST_TTL_MS: u64 = 60_000;

/// One downstream's view of the gateway: a client's, with a session for as long as that lives, without one for one
/// request. A clone is the same client.
#[derive(Clone)]
pub struct GatewayHandler {
    gateway: Arc<Gateway>,
    session: Arc<SessionState>,
}

impl GatewayHandler {
    pub(crate) fn new(gateway: Arc<Gateway>) -> Self {
        let session = Arc::new(SessionState::new(&gateway));
        Self { gateway, session }
    }

    async fn forward(
        &self,
        request: impl Into<ClientRequest>,
        context: RequestContext<RoleServer>,
    ) -> Result<ServerResult, GatewayError> {
        let request = request.into();
        let mut result = if is_modern(&context) {
            self.forward_and_hold(request, context).await?
        } else {
            let downstream = PeerDownstream::new(&context, Arc::clone(&self.session));
            let progress = progress(&context).map(|progress| Arc::new(progress) as Arc<dyn ProgressSink>);
            let context = CallContext { downstream: Some(Arc::new(downstream)), progress, ..call_context(&context) };
            without_cache_hints(forward_with_answers(&self.gateway, request, &context).await?)
        };
        mark_complete(&mut result);
        Ok(result)
    }

    /// A client of 2026-07-28 is not asked, but told what its call needs; that is held until the client comes back.
    async fn forward_and_hold(
        &self,
        mut request: ClientRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<ServerResult, GatewayError> {
        let client = PeerDownstream::new(&context, Arc::clone(&self.session));
        let (progress, left) = (progress(&context), context.ct.clone());
        let held = self.gateway.held_calls();
        let mut call = match continuation(&mut request) {
            Some((answers, Some(state))) if HeldCalls::is_ours(state) => {
                let (answers, state) = (answers.take().unwrap_or_default(), state.clone());
                let call = held.resume(&state, &principal(&context), &subject_of(&request), answers)?;
                call.is_continued_by(client, progress);
                call
            }
            _ => {
                // This request may end before the call does.
                let context = CallContext { cancellation: CancellationToken::new(), ..call_context(&context) };
                AskingCall::new(Arc::clone(&self.gateway), request, context, client, progress)
            }
        };
        match left.run_until_cancelled(call.advance()).await {
            None => {
                call.cancel().await;
                Err(GatewayError::Cancelled)
            }
            Some(Stage::Done(outcome)) => *outcome,
            Some(Stage::Asks(requests)) => Ok(InputRequiredResult::new(Some(requests), Some(held.hold(call)?)).into()),
        }
    }

    /// Subscribes to those of `uris` that there are.
    async fn subscribe_stream(&self, subscription: &SubscriptionContext) -> DownstreamId {
        let (id, principal) = (DownstreamId::unique(), principal(subscription.request_context()));
        for uri in subscription.accepted().resource_subscriptions.iter().flatten() {
            let sink = Sink::Stream(subscription.sink().clone());
            let subscriber = Subscriber { id, uri: uri.clone(), sink };
            if let Err(error) = self.gateway.subscribe(subscriber, &principal).await {
                tracing::debug!(uri, %error, "a client listens to a resource that it cannot hear of");
            }
        }
        id
    }

    async fn unsubscribe_stream(&self, subscription: &SubscriptionContext, id: DownstreamId) {
        let principal = principal(subscription.request_context());
        for uri in subscription.accepted().resource_subscriptions.iter().flatten() {
            // It may not have been subscribed to.
            let _ = self.gateway.unsubscribe(uri, id, &principal).await;
        }
    }

    async fn pass_changes(&self, subscription: &SubscriptionContext) {
        let (mut changes, accepted, sink) = (self.gateway.list_changes(), subscription.accepted(), subscription.sink());
        while let Some(list) = changes.next().await {
            let passed = match list {
                ChangedList::Tools if accepted.tools_list_changed == Some(true) => {
                    sink.notify_tool_list_changed().await
                }
                ChangedList::Prompts if accepted.prompts_list_changed == Some(true) => {
                    sink.notify_prompt_list_changed().await
                }
                ChangedList::Resources if accepted.resources_list_changed == Some(true) => {
                    sink.notify_resource_list_changed().await
                }
                _ => Ok(()),
            };
            if passed.is_err() {
                return;
            }
        }
    }
}

/// Declares a method that answers with a whole list: clients in the field ignore `nextCursor`.
macro_rules! list {
    ($method:ident, $result:ident, $list:ident) => {
        async fn $method(
            &self,
            request: Option<PaginatedRequestParams>,
            context: RequestContext<RoleServer>,
        ) -> Result<$result, ErrorData> {
            if let Some(cursor) = request.and_then(|request| request.cursor) {
                return Err(ErrorData::invalid_params(format!("`{cursor}` is not a cursor of this list"), None));
            }
            let mut result = $result::with_all_items(self.gateway.$list(&principal(&context)));
            // Older revisions have no such field.
            result.ttl_ms = is_modern(&context).then_some(LIST_TTL_MS);
            Ok(result)
        }
    };
}

impl ServerHandler for GatewayHandler {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_tools()
            .enable_tool_list_changed()
            .enable_prompts()
            .enable_prompts_list_changed()
            .enable_resources()
            .enable_resources_list_changed()
            .enable_resources_subscribe()
            .enable_completions()
            .enable_logging()
            .build();
        let mut config = ServerConfig::new(capabilities);
        config.server_info = Implementation::new("mistralrs-server", env!("CARGO_PKG_VERSION"));
        config.instructions = Some(INSTRUCTIONS.to_owned());
        config
    }

    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        self.gateway.downstream_peers().add(self.session.id, context.peer);
    }

    list!(list_tools, ListToolsResult, list_tools);
    list!(list_prompts, ListPromptsResult, list_prompts);
    list!(list_resources, ListResourcesResult, list_resources);
    list!(list_resource_templates, ListResourceTemplatesResult, list_templates);

    fn get_tool(&self, _name: &str) -> Option<Tool> {
        // rmcp would check calls against it; the forwarder does, with an answer that says more.
        None
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        match answer(self.forward(CallToolRequest::new(request), context).await)? {
            ServerResult::CallToolResult(mut result) => {
                result.result_type.get_or_insert(ResultType::COMPLETE);
                Ok(result.into())
            }
            ServerResult::InputRequiredResult(needed) => Ok(needed.into()),
            _ => Err(unexpected()),
        }
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        match self.forward(GetPromptRequest::new(request), context).await.map_err(to_error_data)? {
            ServerResult::GetPromptResult(result) => Ok(result.into()),
            ServerResult::InputRequiredResult(needed) => Ok(needed.into()),
            _ => Err(unexpected()),
        }
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        match self.forward(ReadResourceRequest::new(request), context).await.map_err(to_error_data)? {
            ServerResult::ReadResourceResult(result) => Ok(result.into()),
            ServerResult::InputRequiredResult(needed) => Ok(needed.into()),
            _ => Err(unexpected()),
        }
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        match self.forward(CompleteRequest::new(request), context).await {
            Ok(ServerResult::CompleteResult(result)) => Ok(result),
            Ok(_) => Err(unexpected()),
            // We complete for all upstreams, some of which do not.
            Err(GatewayError::Refused { error, .. }) if error.code == ErrorCode::METHOD_NOT_FOUND => {
                Ok(CompleteResult::default())
            }
            Err(error) => Err(to_error_data(error)),
        }
    }

    async fn set_level(
        &self,
        request: SetLevelRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.session.set_log_level(request.level);
        self.gateway.set_log_level(&self.session, request.level).await;
        Ok(())
    }

    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let principal = principal(&context);
        self.session.subscribed();
        let subscriber = Subscriber { id: self.session.id, uri: request.uri, sink: Sink::Session(context.peer) };
        self.gateway.subscribe(subscriber, &principal).await.map_err(to_error_data)
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let unsubscribed = self.gateway.unsubscribe(&request.uri, self.session.id, &principal(&context)).await;
        unsubscribed.map_err(to_error_data)
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(requested.clone())
    }

    async fn listen(&self, subscription: SubscriptionContext) -> Result<(), ErrorData> {
        let id = self.subscribe_stream(&subscription).await;
        tokio::select! {
            () = subscription.cancelled() => {}
            () = self.gateway.shutting_down() => {}
            () = self.pass_changes(&subscription) => {}
        }
        self.unsubscribe_stream(&subscription, id).await;
        Ok(())
    }
}

/// Without whom to ask, and where progress goes.
fn call_context(context: &RequestContext<RoleServer>) -> CallContext {
    CallContext { meta: context.meta.clone(), cancellation: context.ct.clone(), ..CallContext::new(principal(context)) }
}

fn progress(context: &RequestContext<RoleServer>) -> Option<PeerProgress> {
    let token = context.meta.get_progress_token()?;
    Some(PeerProgress { peer: context.peer.clone(), token })
}

/// Whoever the server found behind the HTTP request.
fn principal(context: &RequestContext<RoleServer>) -> Principal {
    let parts = context.extensions.get::<http::request::Parts>();
    parts.and_then(|parts| parts.extensions.get::<Principal>()).cloned().unwrap_or(Principal::Anonymous)
}

/// Upstreams of the legacy era do not say so; rmcp takes it out again for downstreams of that era.
fn mark_complete(result: &mut ServerResult) {
    let result_type = match result {
        ServerResult::CallToolResult(result) => &mut result.result_type,
        ServerResult::GetPromptResult(result) => &mut result.result_type,
        ServerResult::ReadResourceResult(result) => &mut result.result_type,
        ServerResult::CompleteResult(result) => &mut result.result_type,
        _ => return,
    };
    result_type.get_or_insert(ResultType::COMPLETE);
}

/// Older revisions have no such fields.
fn without_cache_hints(mut result: ServerResult) -> ServerResult {
    if let ServerResult::ReadResourceResult(read) = &mut result {
        (read.ttl_ms, read.cache_scope) = (None, None);
    }
    result
}

fn unexpected() -> ErrorData {
    ErrorData::internal_error("the upstream answered with something that is not the result of this request", None)
}
