//! What an upstream says without being asked.

use std::sync::Arc;

use rmcp::model::{ClientCapabilities, ClientConfig, Implementation, ProtocolVersion};
use rmcp::service::NotificationContext;
use rmcp::{ClientHandler, RoleClient};
use tokio::sync::Notify;

/// Our side of a connection. It offers the upstream nothing (no sampling, no elicitation, no roots): what it cannot
/// pass on to someone who would answer, it must not claim.
pub(super) struct UpstreamEvents {
    list_changed: Arc<Notify>,
}

impl UpstreamEvents {
    /// `list_changed` is notified when the upstream says that its tools changed.
    pub fn new(list_changed: Arc<Notify>) -> Self {
        Self { list_changed }
    }
}

impl ClientHandler for UpstreamEvents {
    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.list_changed.notify_one();
    }

    fn get_info(&self) -> ClientConfig {
        let implementation = Implementation::new("mistralrs-server", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), implementation)
            .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE)
    }
}
