//! The side downstreams see: names, policy, the catalog, and the way of a call.

pub(crate) mod caller;
#[cfg(feature = "tool-forwarding")]
pub(crate) mod catalog;
pub(crate) mod downstream_peers;
pub mod handler;
pub(crate) mod held_calls;
pub mod namespace;
pub(crate) mod native_offers;
pub(crate) mod native_tools;
#[cfg_attr(not(feature = "tool-forwarding"), expect(dead_code, reason = "there are no upstreams in this build"))]
pub(crate) mod offers;
mod questions;
#[cfg(feature = "tool-forwarding")]
pub(crate) mod sampling;
#[cfg(feature = "tool-forwarding")]
pub(crate) mod search;
pub mod search_tool;
pub mod security;
#[cfg_attr(not(feature = "tool-forwarding"), expect(dead_code, reason = "there are no upstreams in this build"))]
pub(crate) mod subscriptions;
#[cfg(feature = "tool-forwarding")]
pub(crate) mod target;
#[cfg(feature = "tool-forwarding")]
pub(crate) mod tool_forwarder;
#[cfg(not(feature = "tool-forwarding"))]
#[path = "tool_forwarder_off.rs"]
pub(crate) mod tool_forwarder;

use rmcp::ErrorData;
use rmcp::model::{CallToolResult, ContentBlock, ErrorCode};
use serde_json::json;

use crate::error::GatewayError;

/// A call's outcome as JSON-RPC has it. What the caller got wrong, and what an upstream itself answered with, is an
/// error; a tool that could not be reached is a result with `isError` and a sentence, because a model reads results
/// and can do something else, while clients show errors to nobody.
///
/// # Errors
/// The JSON-RPC error.
pub fn answer<T: From<CallToolResult>>(outcome: Result<T, GatewayError>) -> Result<T, ErrorData> {
    match outcome {
        Ok(result) => Ok(result),
        Err(
            error @ (GatewayError::Unavailable { .. }
            | GatewayError::Busy { .. }
            | GatewayError::ConnectionLost { .. }
            | GatewayError::Timeout { .. }
            | GatewayError::UnexpectedAnswer { .. }
            | GatewayError::Unanswered { .. }),
        ) => Ok(CallToolResult::error(vec![ContentBlock::text(error.to_string())]).into()),
        Err(error) => Err(to_error_data(error)),
    }
}

/// The JSON-RPC error for `error`: -32602 for what the caller named wrongly, an upstream's own error as it is, -32603
/// for the rest.
pub fn to_error_data(error: GatewayError) -> ErrorData {
    match error {
        GatewayError::Refused { error, .. } => error,
        GatewayError::UnknownResource(uri) => {
            let message = GatewayError::UnknownResource(uri.clone()).to_string();
            ErrorData::resource_not_found(message, Some(json!({ "uri": uri })))
        }
        GatewayError::NotForwarded(_) => ErrorData::new(ErrorCode::METHOD_NOT_FOUND, error.to_string(), None),
        GatewayError::UnknownTool(_)
        | GatewayError::UnknownPrompt(_)
        | GatewayError::AmbiguousTool { .. }
        | GatewayError::InvalidPromptArguments { .. }
        | GatewayError::NotSubscribable(_)
        | GatewayError::Denied { .. }
        | GatewayError::InvalidArguments { .. } => ErrorData::invalid_params(error.to_string(), None),
        GatewayError::Unavailable { .. }
        | GatewayError::Busy { .. }
        | GatewayError::ConnectionLost { .. }
        | GatewayError::Timeout { .. }
        | GatewayError::UnexpectedAnswer { .. }
        | GatewayError::Unanswered { .. }
        | GatewayError::TooManySubscriptions { .. }
        | GatewayError::Cancelled
        | GatewayError::ShuttingDown => ErrorData::internal_error(error.to_string(), None),
    }
}
