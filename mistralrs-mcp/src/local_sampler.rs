//! The model as upstreams may ask it (`sampling/createMessage`). The server implements [`LocalSampler`] over it.
#![expect(deprecated, reason = "sampling is what every server before 2026-07-28 asks for")]

use async_trait::async_trait;
use rmcp::model::{CreateMessageRequestParams, CreateMessageResult, ErrorData};

/// Answers an upstream in the place of a client that cannot.
#[async_trait]
pub trait LocalSampler: Send + Sync + 'static {
    /// Answers with at most `request.max_tokens` tokens, which are within the upstream's limit. Dropping the future
    /// stops the model.
    ///
    /// # Errors
    /// A sentence for the upstream: there is no model, or the question is not one of text.
    async fn create_message(&self, request: CreateMessageRequestParams) -> Result<CreateMessageResult, ErrorData>;
}
