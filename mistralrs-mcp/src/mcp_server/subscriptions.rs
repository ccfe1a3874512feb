//! Who wants to hear when a resource changes, and of whom we asked it.

use std::collections::HashMap;
use std::time::Duration;

use futures::future::join_all;
use mistralrs_telemetry::Mutex;
use rmcp::RoleServer;
use rmcp::model::ResourceUpdatedNotificationParam;
use rmcp::service::{Peer, SubscriptionSink};
use tokio::sync::watch;
use tokio::time::timeout;

use super::offers::Owned;
use crate::downstream::DownstreamId;
use crate::error::GatewayError;

/// Of all clients together: each is a line in an upstream's table too.
const MAX_SUBSCRIPTIONS: usize = 65_536;
/// A client whose stream is full or not open is not waited for longer.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(1);

/// The subscriptions of all clients, by what they are to; an upstream is asked once for each.
pub(crate) struct Subscriptions {
    /// Written as clients come and go.
    by_resource: Mutex<HashMap<Owned, Vec<Subscriber>>>,
    changed: watch::Sender<()>,
}

/// A client, and how to tell it.
#[derive(Clone)]
pub(crate) struct Subscriber {
    pub id: DownstreamId,
    /// As it wrote it, which is how it will know it again.
    pub uri: String,
    pub sink: Sink,
}

/// Where a client hears of updates.
#[derive(Clone)]
pub(crate) enum Sink {
    /// A session of an older revision.
    Session(Peer<RoleServer>),
    /// A stream of 2026-07-28.
    Stream(SubscriptionSink),
}

impl Subscriptions {
    pub fn new() -> Self {
        Self { by_resource: Mutex::new("resource_subscriptions", HashMap::new()), changed: watch::Sender::new(()) }
    }

    /// A receiver that changes when somebody wants something that nobody did before, or the other way round.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Remembers a subscriber; true if it is the first to `resource`.
    ///
    /// # Errors
    /// [`GatewayError::TooManySubscriptions`].
    pub fn add(&self, resource: Owned, subscriber: Subscriber) -> Result<bool, GatewayError> {
        let mut all = self.by_resource.lock();
        if all.values().map(Vec::len).sum::<usize>() >= MAX_SUBSCRIPTIONS {
            all.values_mut().for_each(|subscribers| subscribers.retain(Subscriber::is_alive));
            if all.values().map(Vec::len).sum::<usize>() >= MAX_SUBSCRIPTIONS {
                return Err(GatewayError::TooManySubscriptions { limit: MAX_SUBSCRIPTIONS });
            }
        }
        let subscribers = all.entry(resource).or_default();
        let is_first = subscribers.is_empty();
        subscribers.retain(|known| known.id != subscriber.id || known.uri != subscriber.uri);
        subscribers.push(subscriber);
        if is_first {
            self.changed.send_replace(());
        }
        Ok(is_first)
    }

    /// Forgets a subscriber; true if it was the last to `resource`.
    pub fn remove(&self, resource: &Owned, id: DownstreamId) -> bool {
        let mut all = self.by_resource.lock();
        let Some(subscribers) = all.get_mut(resource) else { return false };
        subscribers.retain(|subscriber| subscriber.id != id);
        let is_last = subscribers.is_empty();
        if is_last {
            all.remove(resource);
            self.changed.send_replace(());
        }
        is_last
    }

    /// Forgets a client; returns what it was the last subscriber to.
    pub fn remove_all(&self, id: DownstreamId) -> Vec<Owned> {
        let mut all = self.by_resource.lock();
        let mut unwanted = Vec::new();
        all.retain(|resource, subscribers| {
            subscribers.retain(|subscriber| subscriber.id != id);
            if subscribers.is_empty() {
                unwanted.push(resource.clone());
            }
            !subscribers.is_empty()
        });
        if !unwanted.is_empty() {
            self.changed.send_replace(());
        }
        unwanted
    }

    /// How many there are, of all clients.
    pub fn len(&self) -> usize {
        self.by_resource.lock().values().map(Vec::len).sum()
    }

    /// What somebody wants to hear of, of the upstream at `place`: for a connection that is opened anew.
    pub fn wanted_of(&self, place: usize) -> Vec<String> {
        let all = self.by_resource.lock();
        all.keys().filter(|resource| resource.upstream == place).map(|resource| resource.name.clone()).collect()
    }

    /// Tells all who want to know that `uri` of the upstream at `place` changed.
    pub async fn announce(&self, place: usize, uri: &str) {
        let resource = Owned { upstream: place, name: uri.to_owned() };
        let subscribers = self.by_resource.lock().get(&resource).cloned().unwrap_or_default();
        let told = join_all(subscribers.iter().map(|subscriber| timeout(NOTIFY_TIMEOUT, subscriber.tell()))).await;
        for (subscriber, told) in subscribers.iter().zip(told) {
            if told.is_err() || !subscriber.is_alive() {
                tracing::debug!(uri, "a subscriber could not be told of an update");
            }
        }
        self.forget_the_gone(&resource);
    }
}

impl Subscriptions {
    fn forget_the_gone(&self, resource: &Owned) {
        let mut all = self.by_resource.lock();
        let Some(subscribers) = all.get_mut(resource) else { return };
        subscribers.retain(Subscriber::is_alive);
        if subscribers.is_empty() {
            all.remove(resource);
            self.changed.send_replace(());
        }
    }
}

impl Subscriber {
    async fn tell(&self) {
        let uri = self.uri.clone();
        // It fails only together with the connection, and then there is nobody to tell.
        match &self.sink {
            Sink::Session(peer) => {
                drop(peer.notify_resource_updated(ResourceUpdatedNotificationParam::new(uri)).await);
            }
            Sink::Stream(stream) => drop(stream.notify_resource_updated(uri).await),
        }
    }

    fn is_alive(&self) -> bool {
        match &self.sink {
            Sink::Session(peer) => !peer.is_transport_closed(),
            // Its listener removes it when the stream ends.
            Sink::Stream(_) => true,
        }
    }
}
