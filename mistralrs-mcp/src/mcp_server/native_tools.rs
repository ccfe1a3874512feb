//! The tools of this process, beside the upstreams'.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use rmcp::model::{CallToolRequestParams, CallToolResult, JsonObject, ServerResult, Tool, ToolAnnotations};

use super::namespace::{NATIVE_NAMESPACE, native_name};
use super::security::{AccessPolicy, Decision, ToolIdentity};
use crate::error::GatewayError;
use crate::gateway::{CallContext, Principal};
use crate::local_tools::{LocalTool, LocalToolError, LocalTools};
use crate::metrics::{Answered, GatewayMetrics, ToolKind, ToolMetrics};
use crate::reliability::{self, CallLimits};

/// The native tools, if the process has any.
pub(crate) struct NativeTools {
    local: Option<Arc<dyn LocalTools>>,
    policy: AccessPolicy,
    metrics: HashMap<String, ToolMetrics>,
}

impl NativeTools {
    /// The names are those that `local` has now.
    pub fn new(local: Option<Arc<dyn LocalTools>>, policy: AccessPolicy, metrics: &GatewayMetrics) -> Self {
        let tools = local.as_ref().map(|local| local.tools()).unwrap_or_default();
        let metrics = tools.iter().map(|tool| (tool.name.to_owned(), metrics.tool(tool.name, ToolKind::Native)));
        Self { metrics: metrics.collect(), local, policy }
    }

    /// Names that no upstream's tool may take.
    pub fn names(&self) -> HashSet<String> {
        self.metrics.keys().cloned().collect()
    }

    /// What `principal` may call, in the owner's order.
    pub fn list_tools(&self, principal: &Principal) -> Vec<Tool> {
        let tools = self.local.as_ref().map(|local| local.tools()).unwrap_or_default();
        tools.into_iter().filter(|tool| self.decide(principal, tool.name) == Decision::Allow).map(describe).collect()
    }

    /// Whether `name` is a native tool's, in any of its spellings.
    pub fn has(&self, name: &str) -> bool {
        self.metrics.contains_key(native_name(name))
    }

    /// Whether `principal` may list and call what is native and named `tool`.
    pub fn allows(&self, principal: &Principal, tool: &str) -> bool {
        self.decide(principal, tool) == Decision::Allow
    }

    /// Calls one.
    ///
    /// # Errors
    /// [`GatewayError`], if the tool did not run to its end.
    pub async fn call(&self, call: CallToolRequestParams, context: &CallContext) -> Result<ServerResult, GatewayError> {
        let started = Instant::now();
        let name = native_name(&call.name);
        let (Some(local), Some(metrics)) = (&self.local, self.metrics.get(name)) else {
            return Err(GatewayError::UnknownTool(call.name.to_string()));
        };
        let limits =
            CallLimits { tool: name, started, deadline: context.deadline, cancellation: &context.cancellation };
        let arguments = call.arguments.unwrap_or_default();
        let outcome = match self.decide(&context.principal, name) {
            Decision::Allow => reliability::bounded(limits, run(local.as_ref(), name, arguments, context)).await,
            Decision::Deny(reason) => Err(GatewayError::Denied { tool: name.to_owned(), reason }),
        };
        let outcome = outcome.map(ServerResult::CallToolResult);
        metrics.record(started.elapsed(), outcome.as_ref().map(Answered::of_result));
        outcome
    }

    fn decide(&self, principal: &Principal, tool: &str) -> Decision {
        self.policy.decide(principal, ToolIdentity { namespace: NATIVE_NAMESPACE, tool })
    }
}

async fn run(
    local: &dyn LocalTools,
    name: &str,
    arguments: JsonObject,
    context: &CallContext,
) -> Result<CallToolResult, GatewayError> {
    let cancellation = context.cancellation.child_token();
    // When this future is dropped, at the deadline or because the caller left, the model stops too.
    let _guard = cancellation.clone().drop_guard();
    let answer = local.call(name, arguments, context.progress.as_deref(), cancellation).await;
    answer.map_err(|error| match error {
        LocalToolError::Unknown(name) => GatewayError::UnknownTool(name),
        LocalToolError::InvalidArguments(reason) => GatewayError::InvalidArguments { tool: name.to_owned(), reason },
    })
}

fn describe(local: LocalTool) -> Tool {
    let mut tool = Tool::new(local.name, local.description, local.input_schema)
        .with_annotations(ToolAnnotations::new().read_only(local.is_read_only));
    tool.output_schema = local.output_schema.map(Arc::new);
    tool
}
