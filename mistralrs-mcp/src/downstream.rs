//! The client behind a call, for what an upstream asks and says while the call runs.
#![expect(deprecated, reason = "logging is what every client before 2026-07-28 knows")]

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use rmcp::model::{ClientCapabilities, ClientResult, ErrorData, LoggingMessageNotificationParam, ServerRequest};

/// Tells one client from another, for as long as this process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DownstreamId(u64);

impl DownstreamId {
    /// One that nobody had before.
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A client that is waiting for an answer.
#[async_trait]
pub trait Downstream: Send + Sync {
    /// The same for calls of one client only: what cannot be told whose it is goes to nobody.
    fn id(&self) -> DownstreamId;

    /// What it said it can do.
    fn capabilities(&self) -> ClientCapabilities;

    /// Asks it for a completion, for its user's input or for its roots.
    ///
    /// # Errors
    /// What it refused with, or why it cannot be asked.
    async fn ask(&self, question: ServerRequest) -> Result<ClientResult, ErrorData>;

    /// Passes on what an upstream logged during the call, if it wants that level.
    async fn log(&self, message: LoggingMessageNotificationParam);
}
