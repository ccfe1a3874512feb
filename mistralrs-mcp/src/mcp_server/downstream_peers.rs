//! Downstream sessions that are told when the tools change.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use mistralrs_telemetry::Mutex;
use rmcp::RoleServer;
use rmcp::service::Peer;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Sessions beyond this are served but not told; they list again when they like.
const MAX_PEERS: usize = 4096;
/// A session whose stream is full or not open is not waited for longer.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(1);
/// Several upstreams that change at once are told of once.
const SETTLE_TIME: Duration = Duration::from_millis(50);

/// Peers of live sessions; sessions come and go on any thread.
pub(crate) struct DownstreamPeers(Mutex<Vec<Peer<RoleServer>>>);

impl DownstreamPeers {
    pub fn new() -> Self {
        Self(Mutex::new("downstream_peers", Vec::new()))
    }

    /// Remembers a session that has shaken hands.
    pub fn add(&self, peer: Peer<RoleServer>) {
        let mut peers = self.0.lock();
        if peers.len() >= MAX_PEERS {
            peers.retain(|peer| !peer.is_transport_closed());
        }
        if peers.len() < MAX_PEERS {
            peers.push(peer);
        }
    }

    /// Tells all of them whenever `changes` does, until `shutdown`.
    pub async fn announce(self: Arc<Self>, mut changes: watch::Receiver<()>, shutdown: CancellationToken) {
        while let Some(Ok(())) = shutdown.run_until_cancelled(changes.changed()).await {
            tokio::time::sleep(SETTLE_TIME).await;
            changes.mark_unchanged();
            let live = self.live();
            join_all(live.iter().map(|peer| timeout(NOTIFY_TIMEOUT, peer.notify_tool_list_changed()))).await;
        }
    }

    fn live(&self) -> Vec<Peer<RoleServer>> {
        let mut peers = self.0.lock();
        peers.retain(|peer| !peer.is_transport_closed());
        peers.clone()
    }
}
