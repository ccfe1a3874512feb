//! What a call can fail with before a tool answered.

use std::time::Duration;

use rmcp::model::ErrorData;

use crate::config::UpstreamId;
use crate::mcp_server::security::DenyReason;

/// Why a call could not be made, or why nobody will learn its answer. A tool that ran and failed is a
/// `CallToolResult` with `isError`, not one of these.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GatewayError {
    /// No tool has this name.
    #[error("unknown tool `{0}`; `tools/list` names those there are")]
    UnknownTool(String),
    /// The bare name belongs to tools of several upstreams.
    #[error("`{name}` is the name of several tools; call one of {}", candidates.join(", "))]
    AmbiguousTool {
        /// What was asked for.
        name: String,
        /// Qualified names of those it could be.
        candidates: Vec<String>,
    },
    /// No prompt has this name, or several upstreams have one of it.
    #[error("unknown prompt `{0}`; `prompts/list` names those there are")]
    UnknownPrompt(String),
    /// No upstream has a resource of this URI.
    #[error("unknown resource `{0}`; `resources/list` names those there are")]
    UnknownResource(String),
    /// A native resource, which tells of no changes.
    #[error("resource `{0}` tells of no changes; read it again after its `ttlMs`")]
    NotSubscribable(String),
    /// The arguments do not fit a native prompt.
    #[error("invalid arguments for prompt `{prompt}`: {reason}")]
    InvalidPromptArguments {
        /// The prompt's name.
        prompt: String,
        /// What is wrong with them.
        reason: String,
    },
    /// A method that no upstream is asked.
    #[error("method `{0}` is not served here")]
    NotForwarded(String),
    /// All clients together listen to as many resources as is allowed.
    #[error("{limit} resources are subscribed to already")]
    TooManySubscriptions {
        /// How many.
        limit: usize,
    },
    /// The access policy refuses it.
    #[error("tool `{tool}` is not allowed: {reason}")]
    Denied {
        /// Qualified name.
        tool: String,
        /// Which rule.
        reason: DenyReason,
    },
    /// The arguments do not fit the tool's schema.
    #[error("invalid arguments for tool `{tool}`: {reason}")]
    InvalidArguments {
        /// The tool's name.
        tool: String,
        /// What is wrong with them.
        reason: String,
    },
    /// The upstream has no connection and none could be made.
    #[error("upstream `{upstream}` is not available: {reason}")]
    Unavailable {
        /// Which one.
        upstream: UpstreamId,
        /// Why not, as the last attempt to connect told.
        reason: String,
    },
    /// Every call slot of the upstream stayed taken until the deadline.
    #[error("upstream `{upstream}` already has {max_concurrent_calls} calls running")]
    Busy {
        /// Which one.
        upstream: UpstreamId,
        /// Its limit.
        max_concurrent_calls: usize,
    },
    /// The connection ended after the call was sent: the tool may have run.
    #[error("upstream `{upstream}` went away before it answered; the tool may have run ({reason})")]
    ConnectionLost {
        /// Which one.
        upstream: UpstreamId,
        /// How it ended.
        reason: String,
    },
    /// No answer before the deadline.
    #[error("`{tool}` did not answer within {waited:?}")]
    Timeout {
        /// Qualified name.
        tool: String,
        /// From the call's arrival here.
        waited: Duration,
    },
    /// The caller left or took the call back.
    #[error("the call was cancelled")]
    Cancelled,
    /// The upstream refused the call with a JSON-RPC error, which is passed on as it is.
    #[error("upstream `{upstream}` refused the call: {}", error.message)]
    Refused {
        /// Which one.
        upstream: UpstreamId,
        /// Its error, unchanged.
        error: ErrorData,
    },
    /// The upstream answered with something that is not a tool result.
    #[error("upstream `{upstream}` answered with {answer}")]
    UnexpectedAnswer {
        /// Which one.
        upstream: UpstreamId,
        /// What it was.
        answer: &'static str,
    },
    /// The upstream needs to know something of the client before it answers.
    #[error("it needs an answer of the client first, which is not to be had: {reason}")]
    Unanswered {
        /// Why not.
        reason: String,
    },
    /// The gateway is ending.
    #[error("the gateway is shutting down")]
    ShuttingDown,
}

impl GatewayError {
    /// True only where the upstream cannot have begun the call: a tool must not run twice.
    pub fn is_safe_to_retry(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// True where the connection failed and a new one may do better.
    pub fn is_connection_failure(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::ConnectionLost { .. })
    }

    /// A word for the `error` label of `mistralrs_tool_errors_total`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::UnknownTool(_) | Self::AmbiguousTool { .. } => "unknown_tool",
            Self::UnknownPrompt(_) => "unknown_prompt",
            Self::UnknownResource(_) => "unknown_resource",
            Self::NotSubscribable(_) => "not_subscribable",
            Self::NotForwarded(_) => "not_forwarded",
            Self::TooManySubscriptions { .. } => "too_many_subscriptions",
            Self::Denied { .. } => "denied",
            Self::InvalidArguments { .. } | Self::InvalidPromptArguments { .. } => "invalid_arguments",
            Self::Unavailable { .. } => "unavailable",
            Self::Busy { .. } => "busy",
            Self::ConnectionLost { .. } => "connection_lost",
            Self::Timeout { .. } => "timeout",
            Self::Cancelled => "cancelled",
            Self::Refused { .. } => "refused",
            Self::UnexpectedAnswer { .. } => "unexpected_answer",
            Self::Unanswered { .. } => "unanswered",
            Self::ShuttingDown => "shutting_down",
        }
    }
}
