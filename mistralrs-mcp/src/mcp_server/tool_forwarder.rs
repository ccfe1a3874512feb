//! From a tool call to the upstream that answers it. There is no other way to an upstream.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use futures::future::join_all;
use rmcp::model::{CallToolResult, Tool};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::catalog::{Catalog, CatalogTool};
use super::security::{AccessPolicy, Decision};
use crate::config::GatewayConfig;
use crate::error::GatewayError;
use crate::gateway::{CallContext, Principal, ToolCall};
use crate::metrics::GatewayMetrics;
use crate::reliability::{self, CallLimits, IsRepeatable, RetryPolicy};
use crate::upstream::{Supervisor, Upstream};

/// The upstreams, their tools, and who may call them.
pub(crate) struct ToolForwarder {
    catalog: Arc<Catalog>,
    policy: AccessPolicy,
    /// In configuration order, as the catalog counts them.
    upstreams: Vec<Arc<Upstream>>,
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
    pub async fn start(config: GatewayConfig, native: HashSet<String>, metrics: GatewayMetrics) -> Self {
        let catalog = Arc::new(Catalog::new(&config.upstreams, config.naming, native, metrics.clone()));
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        // Also for a start that is given up half way.
        let guard = shutdown.clone().drop_guard();
        let upstreams = config.upstreams.into_iter().map(|config| {
            let metrics = metrics.upstream(&config.id);
            Upstream::new(config, metrics)
        });
        let upstreams: Vec<Arc<Upstream>> = upstreams.collect();
        for (place, upstream) in upstreams.iter().enumerate() {
            let (upstream, catalog) = (Arc::clone(upstream), Arc::clone(&catalog));
            let supervisor = Supervisor::new(upstream, place, catalog, shutdown.clone(), tasks.clone());
            tasks.spawn(supervisor.run());
        }
        join_all(upstreams.iter().map(|upstream| upstream.first_attempt())).await;
        Self { catalog, policy: config.access, upstreams, metrics, tasks, shutdown, _guard: guard }
    }

    /// What `principal` may call, in catalog order.
    pub fn list_tools(&self, principal: &Principal) -> Vec<Tool> {
        let catalog = self.catalog.snapshot();
        let visible = catalog.listed().iter().filter(|tool| self.allows(principal, tool));
        visible.map(|tool| tool.listed.clone()).collect()
    }

    /// Forwards one call.
    ///
    /// # Errors
    /// [`GatewayError`], if no answer of the tool can be had. `isError` is an answer.
    pub async fn forward(&self, call: &ToolCall, context: &CallContext) -> Result<CallToolResult, GatewayError> {
        let started = Instant::now();
        let target = self.resolve(&call.name, &context.principal)?;
        let upstream = &self.upstreams[target.upstream];
        let deadline = upstream.deadline(started, context.deadline);
        let limits = CallLimits { tool: &target.qualified, started, deadline, cancellation: &context.cancellation };
        let outcome = async {
            self.authorize(&context.principal, &target)?;
            // Arguments are an object by their type; whether they fit the schema is checked by the tool's owner.
            let (tool, progress) = (&target.tool.name, context.progress.as_deref());
            reliability::run(&RetryPolicy::LOCAL_LLM, limits, IsRepeatable(target.is_repeatable()), || {
                upstream.call_tool(tool, call.arguments.clone(), deadline, progress)
            })
            .await
        }
        .await;
        target.metrics.record(started.elapsed(), &outcome);
        outcome
    }

    /// A receiver that changes when the catalog does.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.catalog.changes()
    }

    /// Ends all connections. Children have ended when it returns.
    pub async fn shutdown(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn resolve(&self, name: &str, principal: &Principal) -> Result<Arc<CatalogTool>, GatewayError> {
        let target = self.catalog.snapshot().resolve(name, |tool| self.allows(principal, tool));
        target.inspect_err(|error| self.metrics.unresolved(error))
    }

    fn authorize(&self, principal: &Principal, target: &CatalogTool) -> Result<(), GatewayError> {
        match self.policy.decide(principal, target.identity()) {
            Decision::Allow => Ok(()),
            Decision::Deny(reason) => Err(GatewayError::Denied { tool: target.qualified.clone(), reason }),
        }
    }

    fn allows(&self, principal: &Principal, tool: &CatalogTool) -> bool {
        self.policy.decide(principal, tool.identity()) == Decision::Allow
    }
}
