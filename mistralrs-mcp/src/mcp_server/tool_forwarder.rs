//! From a request to the upstream that answers it. There is no other way to an upstream.
#![expect(deprecated, reason = "what 2026-07-28 removed is what every client before it asks for")]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use futures::future::join_all;
use rmcp::model::{
    ClientRequest, LoggingLevel, Prompt, Resource, ResourceTemplate, ServerCapabilities, ServerResult, SetLevelRequest,
    SetLevelRequestParams, SubscribeRequest, SubscribeRequestParams, Tool, UnsubscribeRequest,
    UnsubscribeRequestParams,
};
use serde_json::Value;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::catalog::{Catalog, CatalogTool};
use super::downstream_peers::ListChanges;
use super::offers::{Offers, Owned};
use super::sampling::AskableCall;
use super::search_tool::ToolQuery;
use super::security::{AccessPolicy, Decision};
use super::subscriptions::{Subscriber, Subscriptions};
use super::target::{Names, Target};
use crate::config::GatewayConfig;
use crate::downstream::DownstreamId;
use crate::error::GatewayError;
use crate::gateway::{CallContext, Principal, UpstreamStatus};
use crate::local_sampler::LocalSampler;
use crate::metrics::GatewayMetrics;
use crate::reliability::{self, CallLimits, IsRepeatable, RetryPolicy};
use crate::upstream::{Shared, Supervisor, Upstream};

/// The upstreams, what they offer, and who may have it.
pub(crate) struct ToolForwarder {
    shared: Arc<Shared>,
    policy: AccessPolicy,
    /// In configuration order, as the catalog counts them.
    upstreams: Vec<Arc<Upstream>>,
    /// Answers upstreams whose configuration allows it.
    sampler: Option<Arc<dyn LocalSampler>>,
    metrics: GatewayMetrics,
    /// Supervisors, and connections that are being closed.
    tasks: TaskTracker,
    shutdown: CancellationToken,
    /// Ends the supervisors of a forwarder that is dropped without a shutdown.
    _guard: DropGuard,
}

impl ToolForwarder {
    /// Connects all upstreams at once, and returns when each has answered or its connect timeout is over. `native` names
    /// are never given to an upstream's tool.
    pub async fn start(
        config: GatewayConfig,
        native: HashSet<String>,
        sampler: Option<Arc<dyn LocalSampler>>,
        metrics: GatewayMetrics,
    ) -> Self {
        let shared = Arc::new(Shared {
            catalog: Catalog::new(&config.upstreams, config.naming.clone(), native, metrics.clone()),
            offers: Offers::new(&config.upstreams, config.naming),
            subscriptions: Arc::new(Subscriptions::new()),
        });
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        // Also for a start that is given up half way.
        let guard = shutdown.clone().drop_guard();
        let upstreams = config.upstreams.into_iter().map(|config| {
            let metrics = metrics.upstream(&config.id);
            Upstream::new(config, metrics)
        });
        let upstreams: Vec<Arc<Upstream>> = upstreams.collect();
        for (place, upstream) in upstreams.iter().enumerate() {
            let (upstream, shared) = (Arc::clone(upstream), Arc::clone(&shared));
            let supervisor = Supervisor::new(upstream, place, shared, shutdown.clone(), tasks.clone());
            tasks.spawn(supervisor.run());
        }
        join_all(upstreams.iter().map(|upstream| upstream.first_attempt())).await;
        Self { shared, policy: config.access, upstreams, sampler, metrics, tasks, shutdown, _guard: guard }
    }

    /// How the upstreams stand, in configuration order.
    pub fn upstreams(&self) -> Vec<UpstreamStatus> {
        self.upstreams.iter().map(|upstream| upstream.status()).collect()
    }

    /// The same of those whose namespace `principal` may see.
    pub fn visible_upstreams(&self, principal: &Principal) -> Vec<UpstreamStatus> {
        let is_visible =
            |upstream: &&Arc<Upstream>| self.policy.allows_namespace(principal, upstream.namespace().as_str());
        self.upstreams.iter().filter(is_visible).map(|upstream| upstream.status()).collect()
    }

    /// What `principal` may call, in catalog order.
    pub fn list_tools(&self, principal: &Principal) -> Vec<Tool> {
        let catalog = self.shared.catalog.snapshot();
        let visible = catalog.listed().iter().filter(|tool| self.allows(principal, tool));
        visible.map(|tool| tool.listed.clone()).collect()
    }

    /// What `query` tells of the tools it finds, of those that `principal` may call.
    pub fn search_tools(&self, query: &ToolQuery, principal: &Principal) -> Vec<Value> {
        let catalog = self.shared.catalog.snapshot();
        let found = catalog.search(&query.query).filter(|tool| self.allows(principal, tool)).take(query.limit);
        found.map(|tool| query.tell(&tool.listed)).collect()
    }

    /// The prompts that `principal` may get.
    pub fn list_prompts(&self, principal: &Principal) -> Vec<Prompt> {
        self.shared.offers.prompts(|namespace| self.policy.allows_namespace(principal, namespace))
    }

    /// The resources that `principal` may read.
    pub fn list_resources(&self, principal: &Principal) -> Vec<Resource> {
        self.shared.offers.resources(|namespace| self.policy.allows_namespace(principal, namespace))
    }

    /// Their templates.
    pub fn list_templates(&self, principal: &Principal) -> Vec<ResourceTemplate> {
        self.shared.offers.templates(|namespace| self.policy.allows_namespace(principal, namespace))
    }

    /// Forwards a call, a read, a prompt or a completion.
    ///
    /// # Errors
    /// [`GatewayError`], if no answer of the upstream can be had. `isError` is an answer, and so is what it needs first.
    pub async fn forward(&self, request: ClientRequest, context: &CallContext) -> Result<ServerResult, GatewayError> {
        let started = Instant::now();
        let target = self.resolve(request, &context.principal)?;
        let upstream = &self.upstreams[target.upstream];
        let deadline = upstream.deadline(started, context.deadline);
        let limits = CallLimits { tool: &target.name, started, deadline, cancellation: &context.cancellation };
        let call = AskableCall::new(context, upstream.sampling(), self.sampler.as_ref());
        let outcome = async {
            target.authorize(&self.policy, &context.principal)?;
            // Arguments are an object by their type; whether they fit the schema is checked by the tool's owner.
            reliability::run(&RetryPolicy::LOCAL_LLM, limits, IsRepeatable(target.is_repeatable), || {
                // Boxed: what a call waits for is large, and every layer above would carry it.
                Box::pin(call.send(upstream, target.request.clone(), deadline))
            })
            .await
        }
        .await;
        target.record(started.elapsed(), &outcome);
        outcome
    }

    /// Tells `subscriber` when its resource changes.
    ///
    /// # Errors
    /// [`GatewayError::UnknownResource`], [`GatewayError::TooManySubscriptions`].
    pub async fn subscribe(&self, subscriber: Subscriber, principal: &Principal) -> Result<(), GatewayError> {
        let resource = self.names(principal).resource(&subscriber.uri)?;
        if self.shared.subscriptions.add(resource.clone(), subscriber)? {
            let request = SubscribeRequest::new(SubscribeRequestParams::new(resource.name.clone())).into();
            self.tell(&resource, request).await;
        }
        Ok(())
    }

    /// Tells it no more.
    ///
    /// # Errors
    /// [`GatewayError::UnknownResource`].
    pub async fn unsubscribe(&self, uri: &str, id: DownstreamId, principal: &Principal) -> Result<(), GatewayError> {
        let resource = self.names(principal).resource(uri)?;
        if self.shared.subscriptions.remove(&resource, id) {
            self.unsubscribe_upstream(&resource).await;
        }
        Ok(())
    }

    /// Forgets the subscriptions of a client that is gone; returns what nobody wants to hear of any more.
    pub fn forget_subscriber(&self, id: DownstreamId) -> Vec<Owned> {
        self.shared.subscriptions.remove_all(id)
    }

    /// Tells upstreams that nobody wants to hear of these.
    pub async fn unsubscribe_upstreams(&self, resources: Vec<Owned>) {
        join_all(resources.iter().map(|resource| self.unsubscribe_upstream(resource))).await;
    }

    /// Subscriptions of all clients.
    pub fn num_subscriptions(&self) -> usize {
        self.shared.subscriptions.len()
    }

    /// Asks all upstreams that log to say as much as the most curious client wants.
    pub async fn set_log_level(&self, level: LoggingLevel) {
        let request = || SetLevelRequest::new(SetLevelRequestParams::new(level)).into();
        let told = self.upstreams.iter().map(|upstream| upstream.tell(request(), |able| able.logging.is_some()));
        join_all(told).await;
    }

    /// What changes when a list does.
    pub fn changes(&self) -> ListChanges {
        let (prompts, resources) = self.shared.offers.changes();
        ListChanges::new([self.shared.catalog.changes(), prompts, resources])
    }

    /// Ends all connections. Children have ended when it returns.
    pub async fn shutdown(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn resolve(&self, request: ClientRequest, principal: &Principal) -> Result<Target, GatewayError> {
        self.names(principal).resolve(request).inspect_err(|error| self.metrics.unresolved(error))
    }

    fn names<'a>(&'a self, principal: &'a Principal) -> Names<'a> {
        Names { catalog: &self.shared.catalog, offers: &self.shared.offers, policy: &self.policy, principal }
    }

    async fn unsubscribe_upstream(&self, resource: &Owned) {
        let request = UnsubscribeRequest::new(UnsubscribeRequestParams::new(resource.name.clone())).into();
        self.tell(resource, request).await;
    }

    async fn tell(&self, resource: &Owned, request: ClientRequest) {
        let is_able = |able: &ServerCapabilities| {
            able.resources.as_ref().is_some_and(|resources| resources.subscribe == Some(true))
        };
        self.upstreams[resource.upstream].tell(request, is_able).await;
    }

    fn allows(&self, principal: &Principal, tool: &CatalogTool) -> bool {
        self.policy.decide(principal, tool.identity()) == Decision::Allow
    }
}
