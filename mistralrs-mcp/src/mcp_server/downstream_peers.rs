//! Downstream sessions that are told when a list changes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use mistralrs_telemetry::Mutex;
use rmcp::RoleServer;
use rmcp::service::{Peer, ServiceError};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::downstream::DownstreamId;

/// Sessions beyond this are served but not told; they list again when they like.
const MAX_PEERS: usize = 4096;
/// A session whose stream is full or not open is not waited for longer.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(1);
/// Several upstreams that change at once are told of once.
const SETTLE_TIME: Duration = Duration::from_millis(50);

/// Peers of live sessions; sessions come and go on any thread.
pub(crate) struct DownstreamPeers(Mutex<HashMap<DownstreamId, Peer<RoleServer>>>);

/// Each changes when a list of that kind does.
pub(crate) struct ListChanges {
    pub tools: watch::Receiver<()>,
    pub prompts: watch::Receiver<()>,
    pub resources: watch::Receiver<()>,
    /// Native resources, if there are any.
    native: Option<watch::Receiver<()>>,
}

/// A list that changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChangedList {
    Tools,
    Prompts,
    Resources,
}

impl ListChanges {
    /// Of upstreams alone.
    pub fn new([tools, prompts, resources]: [watch::Receiver<()>; 3]) -> Self {
        Self { tools, prompts, resources, native: None }
    }

    /// And of what is native.
    #[must_use]
    pub fn with_native(self, native: Option<watch::Receiver<()>>) -> Self {
        Self { native, ..self }
    }

    /// The next list that changed; `None` if none will any more.
    pub async fn next(&mut self) -> Option<ChangedList> {
        let (changed, list) = tokio::select! {
            changed = self.tools.changed() => (changed, ChangedList::Tools),
            changed = self.prompts.changed() => (changed, ChangedList::Prompts),
            changed = self.resources.changed() => (changed, ChangedList::Resources),
            changed = changed(self.native.as_mut()) => (changed, ChangedList::Resources),
        };
        changed.is_ok().then_some(list)
    }

    fn settle(&mut self, list: ChangedList) {
        match list {
            ChangedList::Tools => self.tools.mark_unchanged(),
            ChangedList::Prompts => self.prompts.mark_unchanged(),
            ChangedList::Resources => {
                self.resources.mark_unchanged();
                if let Some(native) = &mut self.native {
                    native.mark_unchanged();
                }
            }
        }
    }
}

/// Never, where there is nothing that could.
async fn changed(changes: Option<&mut watch::Receiver<()>>) -> Result<(), watch::error::RecvError> {
    match changes {
        Some(changes) => changes.changed().await,
        None => std::future::pending().await,
    }
}

impl DownstreamPeers {
    pub fn new() -> Self {
        Self(Mutex::new("downstream_peers", HashMap::new()))
    }

    /// Remembers a session that has shaken hands, until it is removed.
    pub fn add(&self, id: DownstreamId, peer: Peer<RoleServer>) {
        let mut peers = self.0.lock();
        if peers.len() < MAX_PEERS {
            peers.insert(id, peer);
        }
    }

    /// Forgets one that has ended.
    pub fn remove(&self, id: DownstreamId) {
        let removed = self.0.lock().remove(&id);
        // Its channels are freed outside of the lock.
        drop(removed);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// Tells all of them whenever a list changes, until `shutdown`.
    pub async fn announce(self: Arc<Self>, mut changes: ListChanges, shutdown: CancellationToken) {
        while let Some(Some(list)) = shutdown.run_until_cancelled(changes.next()).await {
            tokio::time::sleep(SETTLE_TIME).await;
            changes.settle(list);
            let live = self.live();
            join_all(live.iter().map(|peer| timeout(NOTIFY_TIMEOUT, tell(peer, list)))).await;
        }
    }

    fn live(&self) -> Vec<Peer<RoleServer>> {
        let peers = self.0.lock();
        peers.values().filter(|peer| !peer.is_transport_closed()).cloned().collect()
    }
}

async fn tell(peer: &Peer<RoleServer>, list: ChangedList) -> Result<(), ServiceError> {
    match list {
        ChangedList::Tools => peer.notify_tool_list_changed().await,
        ChangedList::Prompts => peer.notify_prompt_list_changed().await,
        ChangedList::Resources => peer.notify_resource_list_changed().await,
    }
}
