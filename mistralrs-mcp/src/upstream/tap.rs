//! What passes on a connection, seen where its order is still known: between rmcp's loop and the transport.
//!
//! rmcp handles each notification in a task of its own, so that a progress report may be handled after the answer it
//! belongs to, and it tells nobody whether a request had been handed to the transport when the connection ended. Both
//! matter here: progress is text that must arrive in order, and a call that was never sent may be made again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rmcp::RoleClient;
use rmcp::model::{GetExtensions, GetMeta, JsonRpcMessage, JsonRpcNotification, ProgressToken, ServerNotification};
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::local_tools::ProgressUpdate;

/// Travels in a request's extensions, from the call to the tap.
#[derive(Clone)]
pub(super) struct CallTicket {
    is_sent: Arc<AtomicBool>,
    progress: Option<mpsc::Sender<ProgressUpdate>>,
}

/// What the connection's users see of it.
pub(super) struct ConnectionState {
    closed: CancellationToken,
    /// Messages handed to the transport that it has not written yet.
    unwritten: AtomicUsize,
}

/// A transport that is looked at.
pub(super) struct TappedTransport<T> {
    inner: T,
    state: Arc<ConnectionState>,
    /// Where reports of running calls go. Only rmcp's loop, which owns this, touches it.
    routes: HashMap<ProgressToken, mpsc::Sender<ProgressUpdate>>,
}

impl CallTicket {
    /// For one call. With a capacity, its progress can be read from the second value; what is not read in time is
    /// dropped.
    pub fn new(progress_capacity: Option<usize>) -> (Self, Option<mpsc::Receiver<ProgressUpdate>>) {
        let (progress, updates) = progress_capacity.map(mpsc::channel).unzip();
        (Self { is_sent: Arc::default(), progress }, updates)
    }

    /// Whether the transport was given the request: from then on the upstream may have begun it.
    pub fn is_sent(&self) -> bool {
        self.is_sent.load(Ordering::Acquire)
    }
}

impl ConnectionState {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { closed: CancellationToken::new(), unwritten: AtomicUsize::new(0) })
    }

    /// Fires when nothing can be received any more, or when someone found the connection unusable.
    pub fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    pub fn num_unwritten(&self) -> usize {
        self.unwritten.load(Ordering::Relaxed)
    }
}

impl<T> TappedTransport<T> {
    pub fn new(inner: T, state: Arc<ConnectionState>) -> Self {
        Self { inner, state, routes: HashMap::new() }
    }

    fn note_request(&mut self, message: &TxJsonRpcMessage<RoleClient>) -> Option<CallTicket> {
        let JsonRpcMessage::Request(request) = message else { return None };
        let ticket = request.request.extensions().get::<CallTicket>()?.clone();
        if let (Some(progress), Some(token)) = (&ticket.progress, request.request.get_meta().get_progress_token()) {
            // Calls end by dropping their receiver; as many routes stay as calls run.
            self.routes.retain(|_, route| !route.is_closed());
            self.routes.insert(token, progress.clone());
        }
        Some(ticket)
    }

    /// Takes a progress report out of the stream; gives every other message back.
    fn take_progress(&self, message: RxJsonRpcMessage<RoleClient>) -> Option<RxJsonRpcMessage<RoleClient>> {
        let JsonRpcMessage::Notification(JsonRpcNotification {
            notification: ServerNotification::ProgressNotification(report),
            ..
        }) = message
        else {
            return Some(message);
        };
        let report = report.params;
        if let Some(route) = self.routes.get(&report.progress_token) {
            let update = ProgressUpdate { progress: report.progress, total: report.total, message: report.message };
            if route.try_send(update).is_err() {
                tracing::debug!("a progress report was dropped: its reader is slow or gone");
            }
        }
        None
    }
}

impl<T: Transport<RoleClient>> Transport<RoleClient> for TappedTransport<T> {
    type Error = T::Error;

    fn send(
        &mut self,
        message: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        let ticket = self.note_request(&message);
        let sending = self.inner.send(message);
        let unwritten = Unwritten::new(Arc::clone(&self.state));
        async move {
            let _unwritten = unwritten;
            if let Some(ticket) = ticket {
                ticket.is_sent.store(true, Ordering::Release);
            }
            sending.await
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            let Some(message) = self.inner.receive().await else {
                self.state.closed.cancel();
                return None;
            };
            if let Some(message) = self.take_progress(message) {
                return Some(message);
            }
        }
    }

    fn close(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send {
        self.state.closed.cancel();
        self.inner.close()
    }
}

/// Counts a message until it is written or given up.
struct Unwritten(Arc<ConnectionState>);

impl Unwritten {
    fn new(state: Arc<ConnectionState>) -> Self {
        state.unwritten.fetch_add(1, Ordering::Relaxed);
        Self(state)
    }
}

impl Drop for Unwritten {
    fn drop(&mut self) {
        self.0.unwritten.fetch_sub(1, Ordering::Relaxed);
    }
}
