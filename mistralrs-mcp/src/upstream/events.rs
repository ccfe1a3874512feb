//! What an upstream says and asks of its own accord.
#![expect(deprecated, reason = "sampling and roots are what every server before 2026-07-28 asks for")]

use std::sync::Arc;

use rmcp::model::{
    ClientCapabilities, ClientConfig, ClientResult, ConstString, CreateMessageRequestMethod, ElicitationCapability,
    ElicitationCreateRequestMethod, ErrorCode, ErrorData, FormElicitationCapability, Implementation,
    ListRootsRequestMethod, ListRootsResult, ProtocolVersion, RootsCapabilities, SamplingCapability,
    ServerNotification, ServerRequest, UrlElicitationCapability,
};
use rmcp::service::{NotificationContext, RequestContext};
use rmcp::{RoleClient, Service};
use tokio::sync::Notify;

use super::tap::CallRoute;
use crate::mcp_server::subscriptions::Subscriptions;

/// Our side of a connection. Questions go to the client whose call they belong to; one that comes outside of any call,
/// or while several clients have calls running on a transport that does not say which it belongs to, goes to nobody.
pub(super) struct UpstreamEvents {
    /// In the configuration.
    place: usize,
    list_changed: Arc<Notify>,
    subscriptions: Arc<Subscriptions>,
}

impl UpstreamEvents {
    /// `list_changed` is notified when the upstream at `place` says that something it offers changed.
    pub fn new(place: usize, list_changed: Arc<Notify>, subscriptions: Arc<Subscriptions>) -> Self {
        Self { place, list_changed, subscriptions }
    }
}

impl Service<RoleClient> for UpstreamEvents {
    async fn handle_request(
        &self,
        request: ServerRequest,
        context: RequestContext<RoleClient>,
    ) -> Result<ClientResult, ErrorData> {
        if matches!(request, ServerRequest::PingRequest(_)) {
            return Ok(ClientResult::empty(()));
        }
        let method = method_of(&request);
        if ![CreateMessageRequestMethod::VALUE, ElicitationCreateRequestMethod::VALUE, ListRootsRequestMethod::VALUE]
            .contains(&method)
        {
            return Err(ErrorData::new(ErrorCode::METHOD_NOT_FOUND, method.to_owned(), None));
        }
        let Some(route) = context.extensions.get::<CallRoute>() else { return unattributed(&request) };
        tokio::select! {
            answer = route.ask(request) => answer,
            () = context.ct.cancelled() => Err(ErrorData::internal_error("the question was taken back", None)),
        }
    }

    async fn handle_notification(
        &self,
        notification: ServerNotification,
        _context: NotificationContext<RoleClient>,
    ) -> Result<(), ErrorData> {
        match notification {
            ServerNotification::ToolListChangedNotification(_)
            | ServerNotification::PromptListChangedNotification(_)
            | ServerNotification::ResourceListChangedNotification(_) => self.list_changed.notify_one(),
            ServerNotification::ResourceUpdatedNotification(updated) => {
                self.subscriptions.announce(self.place, &updated.params.uri).await;
            }
            _ => {}
        }
        Ok(())
    }

    /// The connection is shared, so it says what any client may be able to do; one that is not is told so when asked.
    fn get_info(&self) -> ClientConfig {
        let mut capabilities = ClientCapabilities::default();
        capabilities.sampling = Some(SamplingCapability::default());
        let mut elicitation = ElicitationCapability::default();
        elicitation.form = Some(FormElicitationCapability::default());
        elicitation.url = Some(UrlElicitationCapability::default());
        capabilities.elicitation = Some(elicitation);
        capabilities.roots = Some(RootsCapabilities::default());
        let implementation = Implementation::new("mistralrs-server", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(capabilities, implementation).with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE)
    }
}

/// Servers ask for roots as soon as they are connected: outside of a call there are none.
fn unattributed(request: &ServerRequest) -> Result<ClientResult, ErrorData> {
    if matches!(request, ServerRequest::ListRootsRequest(_)) {
        return Ok(ClientResult::ListRootsResult(ListRootsResult::default()));
    }
    let reason = "no client has a call running here that this can belong to, or several have";
    Err(ErrorData::internal_error(reason, None))
}

fn method_of(request: &ServerRequest) -> &str {
    match request {
        ServerRequest::CreateMessageRequest(_) => CreateMessageRequestMethod::VALUE,
        ServerRequest::ElicitRequest(_) => ElicitationCreateRequestMethod::VALUE,
        ServerRequest::ListRootsRequest(_) => ListRootsRequestMethod::VALUE,
        ServerRequest::CustomRequest(custom) => &custom.method,
        _ => "",
    }
}
