//! The side downstreams see: names, policy, the catalog, and the way of a call.

#[cfg(feature = "tool-forwarding")]
pub(crate) mod catalog;
pub(crate) mod downstream_peers;
pub mod handler;
pub mod namespace;
pub(crate) mod native_tools;
pub mod security;
#[cfg(feature = "tool-forwarding")]
pub(crate) mod tool_forwarder;
#[cfg(not(feature = "tool-forwarding"))]
#[path = "tool_forwarder_off.rs"]
pub(crate) mod tool_forwarder;

use rmcp::ErrorData;
use rmcp::model::{CallToolResult, ContentBlock};

use crate::error::GatewayError;

/// A call's outcome as JSON-RPC has it. What the caller got wrong, and what an upstream itself answered with, is an
/// error; a tool that could not be reached is a result with `isError` and a sentence, because a model reads results
/// and can do something else, while clients show errors to nobody.
///
/// # Errors
/// The JSON-RPC error.
pub fn answer(outcome: Result<CallToolResult, GatewayError>) -> Result<CallToolResult, ErrorData> {
    match outcome {
        Ok(result) => Ok(result),
        Err(
            error @ (GatewayError::Unavailable { .. }
            | GatewayError::Busy { .. }
            | GatewayError::ConnectionLost { .. }
            | GatewayError::Timeout { .. }
            | GatewayError::UnexpectedAnswer { .. }),
        ) => Ok(CallToolResult::error(vec![ContentBlock::text(error.to_string())])),
        Err(error) => Err(to_error_data(error)),
    }
}

/// The JSON-RPC error for `error`: -32602 for what the caller named wrongly, an upstream's own error as it is, -32603
/// for the rest.
pub fn to_error_data(error: GatewayError) -> ErrorData {
    match error {
        GatewayError::Refused { error, .. } => error,
        GatewayError::UnknownTool(_)
        | GatewayError::AmbiguousTool { .. }
        | GatewayError::Denied { .. }
        | GatewayError::InvalidArguments { .. } => ErrorData::invalid_params(error.to_string(), None),
        GatewayError::Unavailable { .. }
        | GatewayError::Busy { .. }
        | GatewayError::ConnectionLost { .. }
        | GatewayError::Timeout { .. }
        | GatewayError::UnexpectedAnswer { .. }
        | GatewayError::Cancelled
        | GatewayError::ShuttingDown => ErrorData::internal_error(error.to_string(), None),
    }
}
