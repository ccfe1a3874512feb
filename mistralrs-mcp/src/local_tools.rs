//! Tools that this process answers itself. The server implements [`LocalTools`] over the model; this crate never sees it.

use async_trait::async_trait;
use rmcp::model::{CallToolResult, JsonObject};
use tokio_util::sync::CancellationToken;

/// A native tool's name, description and schemas.
#[derive(Debug, Clone)]
pub struct LocalTool {
    /// Its name; also answers to `mistralrs::<name>` and `mistralrs__<name>`.
    pub name: &'static str,
    /// One or two sentences, for models and people.
    pub description: String,
    /// JSON Schema of the arguments.
    pub input_schema: JsonObject,
    /// JSON Schema of `structuredContent`, if the tool gives any.
    pub output_schema: Option<JsonObject>,
    /// Whether a call changes nothing.
    pub is_read_only: bool,
}

/// One report of a running call.
#[derive(Debug, Clone, PartialEq)]
pub struct ProgressUpdate {
    /// How far it is; grows with each report.
    pub progress: f64,
    /// Where it ends, if known.
    pub total: Option<f64>,
    /// For people, or a piece of the answer.
    pub message: Option<String>,
}

/// Where a running call reports pieces of its answer. Bounded: a slow reader makes `send` wait, and
/// a reader that left makes it return `false`.
#[async_trait]
pub trait ProgressSink: Send + Sync {
    /// Reports `message` as `notifications/progress` number `progress`.
    async fn send(&self, progress: f64, message: String) -> bool;

    /// Passes on what an upstream reported. A sink that can carry `total`, or tell no message from an empty one,
    /// has its own.
    async fn forward(&self, update: ProgressUpdate) -> bool {
        self.send(update.progress, update.message.unwrap_or_default()).await
    }
}

/// Why a native tool could not be called. A tool that ran and failed is a `CallToolResult` with `isError`.
#[derive(Debug, thiserror::Error)]
pub enum LocalToolError {
    /// No native tool has this name.
    #[error("no native tool named `{0}`")]
    Unknown(String),
    /// The arguments do not fit the schema: JSON-RPC -32602.
    #[error("{0}")]
    InvalidArguments(String),
}

/// The tools of this process.
#[async_trait]
pub trait LocalTools: Send + Sync + 'static {
    /// All of them, in a fixed order.
    fn tools(&self) -> Vec<LocalTool>;

    /// Calls one. `progress` is present if the caller gave a progress token or asked with `"stream": true`.
    async fn call(
        &self,
        name: &str,
        arguments: JsonObject,
        progress: Option<&dyn ProgressSink>,
        cancellation: CancellationToken,
    ) -> Result<CallToolResult, LocalToolError>;
}
