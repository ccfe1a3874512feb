//! The response object, as it is answered, streamed and kept.

use std::collections::BTreeMap;

use mistralrs_core::request::Usage;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::item::OutputMessage;
use crate::openai::labels::ServiceTier;

/// A response: the request's parameters as they were used, and what came of them.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Response")]
pub(super) struct ResponseObject {
    /// `resp_…`.
    pub id: String,
    pub object: &'static str,
    /// Seconds since 1970.
    pub created_at: u64,
    pub status: ResponseStatus,
    pub background: bool,
    /// Seconds since 1970; only of completed responses.
    pub completed_at: Option<u64>,
    pub error: Option<ResponseError>,
    pub incomplete_details: Option<IncompleteDetails>,
    pub instructions: Option<String>,
    pub max_output_tokens: Option<usize>,
    pub max_tool_calls: Option<usize>,
    pub metadata: BTreeMap<String, String>,
    pub model: String,
    pub output: Vec<OutputMessage>,
    pub parallel_tool_calls: bool,
    pub previous_response_id: Option<String>,
    pub prompt_cache_key: Option<String>,
    pub reasoning: ReasoningObject,
    pub safety_identifier: Option<String>,
    pub service_tier: ServiceTier,
    pub store: bool,
    pub temperature: f32,
    pub text: TextConfig,
    pub tool_choice: Value,
    pub tools: Vec<Value>,
    pub top_logprobs: usize,
    pub top_p: f32,
    pub truncation: &'static str,
    pub usage: Option<ResponseUsage>,
    pub user: Option<String>,
}

/// How far a response is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ResponseStatus {
    /// In the background, waiting for its first token.
    Queued,
    InProgress,
    Completed,
    /// Cut off by a limit of its own; `incomplete_details` says which.
    Incomplete,
    /// `error` says why.
    Failed,
    Cancelled,
}

impl ResponseStatus {
    /// Whether it may still change.
    pub fn is_running(self) -> bool {
        matches!(self, Self::Queued | Self::InProgress)
    }

    /// As clients read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Why a response failed.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct ResponseError {
    pub code: &'static str,
    pub message: String,
}

/// Which limit cut a response off.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct IncompleteDetails {
    pub reason: &'static str,
}

/// How much is reasoned.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub(super) struct ReasoningObject {
    pub effort: Option<&'static str>,
    pub summary: Option<&'static str>,
}

/// What shape the text has.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct TextConfig {
    pub format: TextFormat,
    pub verbosity: &'static str,
}

/// Plain text; others are refused.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct TextFormat {
    pub r#type: &'static str,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self { format: TextFormat { r#type: "text" }, verbosity: "medium" }
    }
}

/// What a response used, in tokens.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub(super) struct ResponseUsage {
    input_tokens: usize,
    input_tokens_details: InputTokensDetails,
    output_tokens: usize,
    output_tokens_details: OutputTokensDetails,
    total_tokens: usize,
}

#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
struct InputTokensDetails {
    cached_tokens: usize,
    /// OpenAI bills writes to its cache; here they are free and not counted.
    cache_write_tokens: usize,
}

#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
struct OutputTokensDetails {
    reasoning_tokens: usize,
}

impl From<Usage> for ResponseUsage {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.num_prompt_tokens,
            input_tokens_details: InputTokensDetails { cached_tokens: usage.num_cached_tokens, cache_write_tokens: 0 },
            output_tokens: usage.num_completion_tokens,
            output_tokens_details: OutputTokensDetails { reasoning_tokens: 0 },
            total_tokens: usage.num_prompt_tokens + usage.num_completion_tokens,
        }
    }
}

/// The answer to a deletion.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct DeletedResponse {
    pub id: String,
    pub object: &'static str,
    pub deleted: bool,
}
