//! What a new connection is told to tell us: which lists changed, and which resources that clients subscribed to.
#![expect(deprecated, reason = "servers before 2026-07-28 know nothing else")]

use std::sync::Arc;
use std::time::Duration;

use rmcp::model::{ClientRequest, ServerNotification, SubscribeRequest, SubscribeRequestParams, SubscriptionFilter};
use rmcp::service::{ServiceError, Subscription};
use tokio::sync::{Notify, watch};

use super::TELL_TIMEOUT;
use super::connection::Connection;
use crate::mcp_server::subscriptions::Subscriptions;

/// Before a stream that ended is opened again.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// Whom to tell of what is heard.
pub(super) struct Listener {
    pub connection: Arc<Connection>,
    /// Notified when a list changed.
    pub list_changed: Arc<Notify>,
    pub subscriptions: Arc<Subscriptions>,
    /// Of the upstream, in the configuration.
    pub place: usize,
}

impl Listener {
    /// Until the connection ends.
    pub async fn run(self) {
        let closed = self.connection.closed().clone();
        closed.run_until_cancelled(self.listen()).await;
    }

    async fn listen(&self) {
        if !self.connection.is_modern() {
            return self.subscribe_again().await;
        }
        let mut wishes = self.subscriptions.changes();
        loop {
            wishes.mark_unchanged();
            match self.connection.peer().listen(self.filter()).await {
                Ok(stream) => self.follow(stream, &mut wishes).await,
                // It has nothing to tell, or does not know how to; lists are still fetched by interval.
                Err(ServiceError::McpError(_)) => return,
                Err(_) => tokio::time::sleep(REOPEN_AFTER).await,
            }
        }
    }

    /// Older servers push what changed by themselves, and forgot with their last connection who wanted to hear of what.
    async fn subscribe_again(&self) {
        for uri in self.subscriptions.wanted_of(self.place) {
            let request = ClientRequest::SubscribeRequest(SubscribeRequest::new(SubscribeRequestParams::new(uri)));
            self.connection.tell(request, TELL_TIMEOUT).await;
        }
    }

    fn filter(&self) -> SubscriptionFilter {
        let lists = SubscriptionFilter::builder().tools_list_changed().prompts_list_changed().resources_list_changed();
        let wanted = self.subscriptions.wanted_of(self.place);
        if wanted.is_empty() { lists.build() } else { lists.resource_subscriptions(wanted).build() }
    }

    /// Until the stream ends, or has to be another one.
    async fn follow(&self, mut stream: Subscription, wishes: &mut watch::Receiver<()>) {
        loop {
            tokio::select! {
                heard = stream.next() => match heard {
                    Ok(Some(ServerNotification::ResourceUpdatedNotification(updated))) => {
                        self.subscriptions.announce(self.place, &updated.params.uri).await;
                    }
                    Ok(Some(_)) => self.list_changed.notify_one(),
                    Ok(None) | Err(_) => return tokio::time::sleep(REOPEN_AFTER).await,
                },
                Ok(()) = wishes.changed() => {
                    // It fails only together with the connection.
                    let _ = stream.cancel().await;
                    return;
                }
            }
        }
    }
}
