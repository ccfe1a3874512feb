//! What a request is for: which upstream, and the request in that upstream's own names.

use std::sync::Arc;
use std::time::Duration;

use rmcp::model::{ClientRequest, Reference, ServerResult};

use super::catalog::{Catalog, CatalogTool};
use super::offers::{Offers, Owned};
use super::security::{AccessPolicy, Decision};
use crate::error::GatewayError;
use crate::gateway::Principal;
use crate::metrics::Answered;

/// Where a request goes.
pub(crate) struct Target {
    /// Which upstream, by place in the configuration.
    pub upstream: usize,
    /// For messages: what is asked for, under its qualified name.
    pub name: String,
    /// In the upstream's own names.
    pub request: ClientRequest,
    /// Whether a second run changes nothing that the first did not.
    pub is_repeatable: bool,
    /// Of a call.
    pub tool: Option<Arc<CatalogTool>>,
}

/// What names can mean, to one principal.
pub(crate) struct Names<'a> {
    pub catalog: &'a Catalog,
    pub offers: &'a Offers,
    pub policy: &'a AccessPolicy,
    pub principal: &'a Principal,
}

impl Names<'_> {
    /// Finds what `request` is for.
    ///
    /// # Errors
    /// [`GatewayError::UnknownTool`] and the like, if it is for nothing that the principal may see.
    pub fn resolve(&self, request: ClientRequest) -> Result<Target, GatewayError> {
        match request {
            ClientRequest::CallToolRequest(mut call) => {
                let is_visible = |tool: &CatalogTool| self.allows(tool);
                let tool = self.catalog.snapshot().resolve(&call.params.name, is_visible)?;
                call.params.name.clone_from(&tool.tool.name);
                // A call without arguments has none of them; servers differ in whether they take that from an absent object.
                call.params.arguments.get_or_insert_default();
                let (name, is_repeatable) = (tool.qualified.clone(), tool.is_repeatable());
                let upstream = tool.upstream;
                Ok(Target { upstream, name, request: call.into(), is_repeatable, tool: Some(tool) })
            }
            ClientRequest::ReadResourceRequest(mut read) => {
                let owned = self.resource(&read.params.uri)?;
                let name = std::mem::replace(&mut read.params.uri, owned.name);
                Ok(Target { upstream: owned.upstream, name, request: read.into(), is_repeatable: true, tool: None })
            }
            ClientRequest::GetPromptRequest(mut get) => {
                let owned = self.prompt(&get.params.name)?;
                let name = std::mem::replace(&mut get.params.name, owned.name);
                Ok(Target { upstream: owned.upstream, name, request: get.into(), is_repeatable: true, tool: None })
            }
            ClientRequest::CompleteRequest(mut complete) => {
                let (upstream, name) = match &mut complete.params.r#ref {
                    Reference::Prompt(prompt) => {
                        let owned = self.prompt(&prompt.name)?;
                        (owned.upstream, std::mem::replace(&mut prompt.name, owned.name))
                    }
                    Reference::Resource(resource) => {
                        let owned = self.resource(&resource.uri)?;
                        (owned.upstream, std::mem::replace(&mut resource.uri, owned.name))
                    }
                    _ => return Err(GatewayError::NotForwarded("completion of anything else".to_owned())),
                };
                Ok(Target { upstream, name, request: complete.into(), is_repeatable: true, tool: None })
            }
            other => Err(GatewayError::NotForwarded(other.method().to_owned())),
        }
    }

    /// The resource that `uri` means.
    ///
    /// # Errors
    /// [`GatewayError::UnknownResource`].
    pub fn resource(&self, uri: &str) -> Result<Owned, GatewayError> {
        self.offers.resolve_uri(uri, |namespace| self.policy.allows_namespace(self.principal, namespace))
    }

    fn prompt(&self, name: &str) -> Result<Owned, GatewayError> {
        self.offers.resolve_prompt(name, |namespace| self.policy.allows_namespace(self.principal, namespace))
    }

    fn allows(&self, tool: &CatalogTool) -> bool {
        self.policy.decide(self.principal, tool.identity()) == Decision::Allow
    }
}

impl Target {
    /// Whether `principal` may have it. What is not a tool has passed already: nothing else is found.
    ///
    /// # Errors
    /// [`GatewayError::Denied`].
    pub fn authorize(&self, policy: &AccessPolicy, principal: &Principal) -> Result<(), GatewayError> {
        let Some(tool) = &self.tool else { return Ok(()) };
        match policy.decide(principal, tool.identity()) {
            Decision::Allow => Ok(()),
            Decision::Deny(reason) => Err(GatewayError::Denied { tool: tool.qualified.clone(), reason }),
        }
    }

    /// Counts what became of a call.
    pub fn record(&self, waited: Duration, outcome: &Result<ServerResult, GatewayError>) {
        let Some(tool) = &self.tool else { return };
        tool.metrics.record(waited, outcome.as_ref().map(Answered::of_result));
    }
}
