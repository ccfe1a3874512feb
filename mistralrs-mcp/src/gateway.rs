//! The door: what the server calls.
#![expect(deprecated, reason = "logging is what every client before 2026-07-28 knows")]

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use mistralrs_telemetry::Mutex;
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CallToolResult, ClientRequest, JsonObject, LoggingLevel, Prompt,
    RequestMetaObject, Resource, ResourceTemplate, ServerResult, Tool,
};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::{GatewayConfig, ToolListing, UpstreamId};
use crate::downstream::{Downstream, DownstreamId};
use crate::error::GatewayError;
use crate::local_offers::{GatewayStatus, LocalOffers};
use crate::local_sampler::LocalSampler;
use crate::local_tools::{LocalTools, ProgressSink};
use crate::mcp_server::caller::{SessionState, severity};
use crate::mcp_server::downstream_peers::{DownstreamPeers, ListChanges};
use crate::mcp_server::handler::GatewayHandler;
use crate::mcp_server::held_calls::HeldCalls;
use crate::mcp_server::namespace::native_name;
use crate::mcp_server::native_offers::NativeOffers;
use crate::mcp_server::native_tools::NativeTools;
use crate::mcp_server::search_tool::{self, ToolQuery};
use crate::mcp_server::subscriptions::Subscriber;
use crate::mcp_server::tool_forwarder::ToolForwarder;
use crate::metrics::{Answered, GatewayMetrics, ToolKind, ToolMetrics};

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
    /// Who is waiting, for what an upstream asks and logs meanwhile; absent if nobody could answer.
    pub downstream: Option<Arc<dyn Downstream>>,
    /// What the caller said beside its request (trace context, for one); what is the protocol's own is not passed on.
    pub meta: RequestMetaObject,
}

impl CallContext {
    /// Of a caller that wants nothing but the answer.
    pub fn new(principal: Principal) -> Self {
        Self {
            principal,
            deadline: Gateway::call_deadline(),
            cancellation: CancellationToken::new(),
            progress: None,
            downstream: None,
            meta: RequestMetaObject::default(),
        }
    }
}

/// How an upstream stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamStatus {
    /// Its name in the configuration.
    pub id: UpstreamId,
    /// Why it has no connection; `None` if it has one.
    pub failure: Option<String>,
}

/// What this process has of its own, to be offered beside the upstreams'.
#[derive(Clone, Default)]
pub struct Local {
    /// Tools.
    pub tools: Option<Arc<dyn LocalTools>>,
    /// Resources and prompts.
    pub offers: Option<Arc<dyn LocalOffers>>,
    /// The model, for upstreams that may ask it.
    pub sampler: Option<Arc<dyn LocalSampler>>,
}

/// All tools, native and upstream, behind one name space.
pub struct Gateway {
    native: NativeTools,
    offers: NativeOffers,
    forwarder: ToolForwarder,
    peers: Arc<DownstreamPeers>,
    /// Sessions that said which log messages they want; written by each that does.
    loggers: Mutex<Vec<Weak<SessionState>>>,
    held: Arc<HeldCalls>,
    /// If `search_tools` stands in for the list of upstream tools: where its calls are counted.
    search: Option<ToolMetrics>,
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
        tools: Option<Arc<dyn LocalTools>>,
        metrics: GatewayMetrics,
    ) -> Result<Arc<Self>, GatewayError> {
        Self::start_with(config, Local { tools, ..Local::default() }, metrics).await
    }

    /// The same with more of its own than tools.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(
        config: GatewayConfig,
        local: Local,
        metrics: GatewayMetrics,
    ) -> Result<Arc<Self>, GatewayError> {
        let native = NativeTools::new(local.tools, config.access.clone(), &metrics);
        let offers = NativeOffers::new(local.offers, config.access.clone());
        let mut reserved = native.names();
        let search = (config.listing == ToolListing::Searched).then(|| {
            reserved.insert(search_tool::NAME.to_owned());
            metrics.tool(search_tool::NAME, ToolKind::Native)
        });
        let forwarder = ToolForwarder::start(config, reserved, local.sampler, metrics).await;
        let peers = Arc::new(DownstreamPeers::new());
        let changes = forwarder.changes().with_native(offers.changes());
        let shutdown = CancellationToken::new();
        let guard = shutdown.clone().drop_guard();
        tokio::spawn(Arc::clone(&peers).announce(changes, shutdown.clone()));
        let loggers = Mutex::new("log_levels", Vec::new());
        let held = Arc::new(HeldCalls::new());
        Ok(Arc::new(Self { native, offers, forwarder, peers, loggers, held, search, shutdown, _guard: guard }))
    }

    /// An MCP server over this gateway, for one client: take one for each session, and for each request without one.
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
        match self.search {
            None => tools.extend(self.forwarder.list_tools(principal)),
            Some(_) if self.native.allows(principal, search_tool::NAME) => tools.push(search_tool::describe()),
            Some(_) => {}
        }
        tools
    }

    /// How the upstreams stand at this moment, in configuration order.
    pub fn upstreams(&self) -> Vec<UpstreamStatus> {
        self.forwarder.upstreams()
    }

    /// What `query` tells of the upstream tools it finds, best first, of those that `principal` may call.
    pub fn search_tools(&self, query: &ToolQuery, principal: &Principal) -> Vec<Value> {
        self.forwarder.search_tools(query, principal)
    }

    /// Calls a native or an upstream tool. `isError` results are `Ok`.
    ///
    /// # Errors
    /// [`GatewayError`]; [`crate::mcp_server::answer`] says it in JSON-RPC.
    pub async fn call_tool(&self, call: ToolCall, context: CallContext) -> Result<CallToolResult, GatewayError> {
        let name = call.name.clone();
        let params = CallToolRequestParams::new(call.name).with_arguments(call.arguments);
        match self.forward(CallToolRequest::new(params).into(), &context).await? {
            ServerResult::CallToolResult(result) => Ok(result),
            ServerResult::InputRequiredResult(_) => {
                Err(GatewayError::Unanswered { reason: "this caller answers no questions".to_owned() })
            }
            _ => {
                Err(GatewayError::UnexpectedAnswer { upstream: UpstreamId::new(&name), answer: "no result of a call" })
            }
        }
    }

    /// Answers a call, a read, a prompt or a completion: here, or where it belongs.
    ///
    /// # Errors
    /// As [`Self::call_tool`].
    pub(crate) async fn forward(
        &self,
        request: ClientRequest,
        context: &CallContext,
    ) -> Result<ServerResult, GatewayError> {
        if self.shutdown.is_cancelled() {
            return Err(GatewayError::ShuttingDown);
        }
        match request {
            ClientRequest::CallToolRequest(call) if self.native.has(&call.params.name) => {
                self.native.call(call.params, context).await
            }
            ClientRequest::CallToolRequest(call) if native_name(&call.params.name) == search_tool::NAME => {
                self.call_search(call.params, context).await
            }
            request if self.offers.owns(&request) => {
                self.offers.answer(request, &context.principal, &self.status(&context.principal)).await
            }
            request => self.forwarder.forward(request, context).await,
        }
    }

    fn status(&self, principal: &Principal) -> GatewayStatus {
        GatewayStatus {
            upstreams: self.forwarder.visible_upstreams(principal),
            num_sessions: self.num_sessions(),
            num_subscriptions: self.num_subscriptions(),
        }
    }

    /// A client will be heard of no more.
    pub(crate) fn session_ended(self: &Arc<Self>, session: &SessionState) {
        self.peers.remove(session.id);
        if !session.has_subscribed() {
            return;
        }
        let unwanted = self.forwarder.forget_subscriber(session.id);
        if !unwanted.is_empty()
            && let Ok(runtime) = Handle::try_current()
        {
            let gateway = Arc::clone(self);
            runtime.spawn(async move { gateway.forwarder.unsubscribe_upstreams(unwanted).await });
        }
    }

    /// Resources that clients listen to.
    pub fn num_subscriptions(&self) -> usize {
        self.forwarder.num_subscriptions()
    }

    /// Clients that have shaken hands, and are told when a list changes.
    pub fn num_sessions(&self) -> usize {
        self.peers.len()
    }

    async fn call_search(
        &self,
        call: CallToolRequestParams,
        context: &CallContext,
    ) -> Result<ServerResult, GatewayError> {
        let Some(metrics) = self.search.as_ref().filter(|_| self.native.allows(&context.principal, search_tool::NAME))
        else {
            // An upstream may have a tool of this name.
            return self.forwarder.forward(CallToolRequest::new(call).into(), context).await;
        };
        let started = Instant::now();
        let query = ToolQuery::from_arguments(call.arguments.unwrap_or_default());
        let outcome = query
            .map(|query| search_tool::result(&self.search_tools(&query, &context.principal)).into())
            .map_err(|reason| GatewayError::InvalidArguments { tool: search_tool::NAME.to_owned(), reason });
        metrics.record(started.elapsed(), outcome.as_ref().map(Answered::of_result));
        outcome
    }

    /// Native prompts, then those of upstreams, that `principal` may get.
    pub fn list_prompts(&self, principal: &Principal) -> Vec<Prompt> {
        let of_upstreams = self.forwarder.list_prompts(principal);
        let mut prompts = self.offers.list_prompts(principal);
        prompts.extend(of_upstreams.into_iter().filter(|prompt| !self.offers.owns_prompt(&prompt.name)));
        prompts
    }

    /// Native resources, then those of upstreams, that `principal` may read.
    pub fn list_resources(&self, principal: &Principal) -> Vec<Resource> {
        let of_upstreams = self.forwarder.list_resources(principal);
        let mut resources = self.offers.list_resources(principal);
        resources.extend(of_upstreams.into_iter().filter(|resource| !self.offers.owns_uri(&resource.uri)));
        resources
    }

    /// Their templates.
    pub fn list_templates(&self, principal: &Principal) -> Vec<ResourceTemplate> {
        let of_upstreams = self.forwarder.list_templates(principal);
        let mut templates = self.offers.list_templates(principal);
        templates.extend(of_upstreams.into_iter().filter(|template| !self.offers.owns_uri(&template.uri_template)));
        templates
    }

    pub(crate) async fn subscribe(&self, subscriber: Subscriber, principal: &Principal) -> Result<(), GatewayError> {
        if self.offers.owns_uri(&subscriber.uri) {
            return Err(GatewayError::NotSubscribable(subscriber.uri));
        }
        self.forwarder.subscribe(subscriber, principal).await
    }

    pub(crate) async fn unsubscribe(
        &self,
        uri: &str,
        id: DownstreamId,
        principal: &Principal,
    ) -> Result<(), GatewayError> {
        if self.offers.owns_uri(uri) {
            return Err(GatewayError::NotSubscribable(uri.to_owned()));
        }
        self.forwarder.unsubscribe(uri, id, principal).await
    }

    /// A session wants `level` from now on: upstreams say as much as the most curious of them wants.
    pub(crate) async fn set_log_level(&self, session: &Arc<SessionState>, level: LoggingLevel) {
        let is_most_curious = {
            let mut loggers = self.loggers.lock();
            loggers.retain(|known| known.upgrade().is_some_and(|known| known.id != session.id));
            let others = loggers.iter().filter_map(Weak::upgrade).map(|known| known.log_level()).min();
            loggers.push(Arc::downgrade(session));
            others.is_none_or(|others| severity(level) <= others)
        };
        if is_most_curious {
            self.forwarder.set_log_level(level).await;
        }
    }

    /// Ends upstream connections; children are terminated and reaped. Calls that still run fail.
    pub async fn shutdown(&self) {
        self.shutdown.cancel();
        self.held.clear();
        self.forwarder.shutdown().await;
    }

    pub(crate) fn downstream_peers(&self) -> &DownstreamPeers {
        &self.peers
    }

    pub(crate) fn held_calls(&self) -> &Arc<HeldCalls> {
        &self.held
    }

    pub(crate) fn list_changes(&self) -> ListChanges {
        self.forwarder.changes().with_native(self.offers.changes())
    }

    pub(crate) async fn shutting_down(&self) {
        self.shutdown.cancelled().await;
    }
}
