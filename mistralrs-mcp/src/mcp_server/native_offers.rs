//! The resources and prompts of this process, beside the upstreams'.

use std::sync::Arc;

use rmcp::model::{
    ClientRequest, CompleteRequestParams, CompleteResult, CompletionInfo, GetPromptRequestParams, Prompt, Reference,
    Resource, ResourceTemplate, ServerResult,
};
use tokio::sync::watch;

use super::namespace::{NATIVE_NAMESPACE, native_name};
use super::security::{AccessPolicy, Decision, ToolIdentity};
use crate::error::GatewayError;
use crate::gateway::Principal;
use crate::local_offers::{GatewayStatus, LocalOfferError, LocalOffers, NATIVE_SCHEME};

/// What the process offers, if it offers anything, to those who may have it.
pub(crate) struct NativeOffers {
    local: Option<Arc<dyn LocalOffers>>,
    policy: AccessPolicy,
}

impl NativeOffers {
    pub fn new(local: Option<Arc<dyn LocalOffers>>, policy: AccessPolicy) -> Self {
        Self { local, policy }
    }

    /// What `principal` may read.
    pub fn list_resources(&self, principal: &Principal) -> Vec<Resource> {
        self.visible(principal, LocalOffers::resources, |resource| &resource.uri)
    }

    /// What `principal` may read by a name.
    pub fn list_templates(&self, principal: &Principal) -> Vec<ResourceTemplate> {
        self.visible(principal, LocalOffers::templates, |template| &template.uri_template)
    }

    /// What `principal` may get.
    pub fn list_prompts(&self, principal: &Principal) -> Vec<Prompt> {
        let prompts = self.local.as_ref().map(|local| local.prompts()).unwrap_or_default();
        prompts.into_iter().filter(|prompt| self.allows(principal, &prompt.name)).collect()
    }

    /// Whether `uri` can be of nobody else's resource.
    pub fn owns_uri(&self, uri: &str) -> bool {
        self.local.is_some() && uri.starts_with(NATIVE_SCHEME)
    }

    /// Whether `name` is a native prompt's, in any of its spellings.
    pub fn owns_prompt(&self, name: &str) -> bool {
        let name = native_name(name);
        self.local.as_ref().is_some_and(|local| local.prompts().iter().any(|prompt| prompt.name == name))
    }

    /// Whether `request` is for something of ours.
    pub fn owns(&self, request: &ClientRequest) -> bool {
        match request {
            ClientRequest::ReadResourceRequest(read) => self.owns_uri(&read.params.uri),
            ClientRequest::GetPromptRequest(get) => self.owns_prompt(&get.params.name),
            ClientRequest::CompleteRequest(complete) => match &complete.params.r#ref {
                Reference::Resource(resource) => self.owns_uri(&resource.uri),
                Reference::Prompt(prompt) => self.owns_prompt(&prompt.name),
                _ => false,
            },
            _ => false,
        }
    }

    /// Answers what it [`Self::owns`].
    ///
    /// # Errors
    /// [`GatewayError::UnknownResource`] and [`GatewayError::UnknownPrompt`], also for what `principal` may not have;
    /// [`GatewayError::InvalidPromptArguments`].
    pub async fn answer(
        &self,
        request: ClientRequest,
        principal: &Principal,
        status: &GatewayStatus,
    ) -> Result<ServerResult, GatewayError> {
        let Some(local) = &self.local else {
            return Err(GatewayError::NotForwarded(request.method().to_owned()));
        };
        match request {
            ClientRequest::ReadResourceRequest(read) => {
                let uri = read.params.uri;
                if !self.allows_uri(&**local, principal, &uri) {
                    return Err(GatewayError::UnknownResource(uri));
                }
                let result = local.read(&uri, status);
                result.map(ServerResult::ReadResourceResult).map_err(|_| GatewayError::UnknownResource(uri))
            }
            ClientRequest::GetPromptRequest(get) => self.prompt(&**local, get.params, principal).await,
            ClientRequest::CompleteRequest(complete) => self.complete(&**local, complete.params, principal),
            other => Err(GatewayError::NotForwarded(other.method().to_owned())),
        }
    }

    /// Changes when the list of native resources does.
    pub fn changes(&self) -> Option<watch::Receiver<()>> {
        self.local.as_ref().map(|local| local.changes())
    }

    async fn prompt(
        &self,
        local: &dyn LocalOffers,
        params: GetPromptRequestParams,
        principal: &Principal,
    ) -> Result<ServerResult, GatewayError> {
        let name = native_name(&params.name);
        if !self.allows(principal, name) {
            return Err(GatewayError::UnknownPrompt(params.name));
        }
        let prompt = local.prompt(name, params.arguments.unwrap_or_default()).await;
        prompt.map(ServerResult::GetPromptResult).map_err(|error| match error {
            LocalOfferError::Unknown => GatewayError::UnknownPrompt(name.to_owned()),
            LocalOfferError::InvalidArguments(reason) => {
                GatewayError::InvalidPromptArguments { prompt: name.to_owned(), reason }
            }
        })
    }

    fn complete(
        &self,
        local: &dyn LocalOffers,
        params: CompleteRequestParams,
        principal: &Principal,
    ) -> Result<ServerResult, GatewayError> {
        let (mut of, argument) = (params.r#ref, params.argument);
        match &mut of {
            Reference::Prompt(prompt) => {
                prompt.name = native_name(&prompt.name).to_owned();
                if !self.allows(principal, &prompt.name) {
                    return Err(GatewayError::UnknownPrompt(prompt.name.clone()));
                }
            }
            Reference::Resource(resource) if !self.allows_uri(local, principal, &resource.uri) => {
                return Err(GatewayError::UnknownResource(resource.uri.clone()));
            }
            _ => {}
        }
        let mut values = local.complete(&of, &argument);
        values.truncate(CompletionInfo::MAX_VALUES);
        let completion = CompletionInfo::with_all_values(values).unwrap_or_default();
        Ok(ServerResult::CompleteResult(CompleteResult::new(completion)))
    }

    fn visible<T>(
        &self,
        principal: &Principal,
        entries: impl Fn(&dyn LocalOffers) -> Vec<T>,
        uri: fn(&T) -> &String,
    ) -> Vec<T> {
        let Some(local) = &self.local else { return Vec::new() };
        let mut entries = entries(&**local);
        entries.retain(|entry| self.allows_uri(&**local, principal, uri(entry)));
        entries
    }

    fn allows_uri(&self, local: &dyn LocalOffers, principal: &Principal, uri: &str) -> bool {
        local.kind_of(uri).is_some_and(|kind| self.allows(principal, kind))
    }

    /// As of native tools: what is blocked is blocked, whatever it is.
    fn allows(&self, principal: &Principal, name: &str) -> bool {
        let identity = ToolIdentity { namespace: NATIVE_NAMESPACE, tool: name };
        self.policy.decide(principal, identity) == Decision::Allow
    }
}
