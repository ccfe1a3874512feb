//! Why the endpoint itself refuses a request: one enum, and the only place here that knows HTTP status and
//! JSON-RPC codes. What a tool or an upstream answers never passes through it.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use mistralrs_mcp::rmcp::model::{ErrorCode, ProtocolVersion, RequestId};
use serde_json::{Value, json};

/// JSON-RPC leaves -32000 to -32099 to servers; this one says "look at the HTTP status".
const TRANSPORT_REFUSAL: i32 = -32000;
/// What the TypeScript and Python SDKs use, and look for, beside a 404.
const SESSION_NOT_FOUND: i32 = -32001;
/// MCP 2026-07-28: the only revision with a code for it; older clients see a 400 and read the message.
const UNSUPPORTED_VERSION: i32 = ErrorCode::UNSUPPORTED_PROTOCOL_VERSION.0;

/// A request that was refused before it reached the gateway.
#[derive(Debug, thiserror::Error)]
pub(super) enum EndpointError {
    #[error("the body is not valid JSON: {0}")]
    Parse(String),
    #[error("{0}")]
    InvalidRequest(String),
    #[error("invalid params of `{method}`: {reason}")]
    InvalidParams { method: &'static str, reason: String },
    #[error("MCP 2026-07-28 has no `{method}`")]
    MethodRemoved { method: &'static str },
    #[error("MCP protocol version `{0}` is not supported")]
    UnsupportedVersion(String),
    #[error("the Accept header names neither application/json nor text/event-stream")]
    NotAcceptable,
    #[error("Content-Type must be application/json")]
    UnsupportedMediaType,
    #[error("the body is larger than {limit_bytes} bytes")]
    BodyTooLarge { limit_bytes: usize },
    #[error("the body did not arrive: {0}")]
    BodyIncomplete(String),
    #[error("the body did not arrive within {} s", limit.as_secs())]
    BodyTimeout { limit: Duration },
    #[error("{0}")]
    Unauthorized(&'static str),
    #[error("Origin `{0}` is not allowed; add it to http_mcp.cors.allow_origins")]
    ForbiddenOrigin(String),
    #[error("Host `{0}` is not allowed; add it to http_mcp.allowed_hosts")]
    ForbiddenHost(String),
    #[error("too many requests; try again in {} s", retry_after.as_secs())]
    RateLimited { retry_after: Duration },
    #[error("unknown or expired session; send `initialize` without Mcp-Session-Id")]
    UnknownSession,
    #[error("all {limit} sessions are in use; try again later or call without a session")]
    SessionsExhausted { limit: usize },
    #[error("GET opens the stream of a session and needs its Mcp-Session-Id; without one, POST a JSON-RPC request")]
    StreamNeedsSession,
    #[error("this method is not allowed here")]
    MethodNotAllowed { allow: &'static str },
    #[error("nothing is served here; the MCP endpoint is POST /mcp/stream")]
    NotFound,
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("internal error: {0}")]
    Internal(String),
}

impl EndpointError {
    /// The `type` label of `http_mcp_errors_total`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Parse(_) => "parse_error",
            Self::InvalidRequest(_) => "invalid_request",
            Self::InvalidParams { .. } => "invalid_params",
            Self::MethodRemoved { .. } => "method_not_found",
            Self::UnsupportedVersion(_) => "unsupported_version",
            Self::NotAcceptable => "not_acceptable",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::BodyIncomplete(_) | Self::BodyTimeout { .. } => "body_incomplete",
            Self::Unauthorized(_) => "unauthorized",
            Self::ForbiddenOrigin(_) => "forbidden_origin",
            Self::ForbiddenHost(_) => "forbidden_host",
            Self::RateLimited { .. } => "rate_limited",
            Self::UnknownSession => "unknown_session",
            Self::SessionsExhausted { .. } => "sessions_exhausted",
            Self::StreamNeedsSession | Self::MethodNotAllowed { .. } => "method_not_allowed",
            Self::NotFound => "not_found",
            Self::ShuttingDown => "shutting_down",
            Self::Internal(_) => "internal_error",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Parse(_) | Self::InvalidRequest(_) | Self::UnsupportedVersion(_) | Self::BodyIncomplete(_) => {
                StatusCode::BAD_REQUEST
            }
            // The envelope was right, so this is an answer like any other error of a method.
            Self::InvalidParams { .. } => StatusCode::OK,
            Self::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::ForbiddenOrigin(_) | Self::ForbiddenHost(_) => StatusCode::FORBIDDEN,
            Self::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::UnknownSession | Self::MethodRemoved { .. } | Self::NotFound => StatusCode::NOT_FOUND,
            Self::SessionsExhausted { .. } | Self::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Self::StreamNeedsSession | Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn code(&self) -> i32 {
        match self {
            Self::Parse(_) => ErrorCode::PARSE_ERROR.0,
            Self::InvalidRequest(_) => ErrorCode::INVALID_REQUEST.0,
            Self::InvalidParams { .. } => ErrorCode::INVALID_PARAMS.0,
            Self::MethodRemoved { .. } => ErrorCode::METHOD_NOT_FOUND.0,
            Self::UnsupportedVersion(_) => UNSUPPORTED_VERSION,
            Self::UnknownSession => SESSION_NOT_FOUND,
            Self::Internal(_) => ErrorCode::INTERNAL_ERROR.0,
            _ => TRANSPORT_REFUSAL,
        }
    }

    /// A header that this status must carry.
    fn header(&self) -> Option<(header::HeaderName, HeaderValue)> {
        match self {
            Self::Unauthorized(_) => {
                Some((header::WWW_AUTHENTICATE, HeaderValue::from_static(r#"Bearer realm="mistralrs-server""#)))
            }
            Self::RateLimited { retry_after } => Some((header::RETRY_AFTER, retry_after.as_secs().into())),
            Self::SessionsExhausted { .. } | Self::ShuttingDown => Some((header::RETRY_AFTER, 5.into())),
            Self::StreamNeedsSession => Some((header::ALLOW, HeaderValue::from_static("POST"))),
            Self::MethodNotAllowed { allow } => Some((header::ALLOW, HeaderValue::from_static(allow))),
            _ => None,
        }
    }

    fn data(&self) -> Option<Value> {
        let Self::UnsupportedVersion(requested) = self else { return None };
        let supported = ProtocolVersion::KNOWN_VERSIONS.iter().map(ProtocolVersion::as_str).collect::<Vec<_>>();
        Some(json!({"supported": supported, "requested": requested}))
    }
}

/// An [`EndpointError`] with the id of the request it answers, where that could be read.
#[derive(Debug)]
pub(super) struct Refusal {
    pub id: Option<RequestId>,
    pub error: EndpointError,
}

impl From<EndpointError> for Refusal {
    fn from(error: EndpointError) -> Self {
        Self { id: None, error }
    }
}

impl Refusal {
    pub fn of(id: RequestId, error: EndpointError) -> Self {
        Self { id: Some(id), error }
    }

    /// The JSON-RPC error object. JSON-RPC 2.0 asks for `null` where no id could be read.
    pub fn to_json(&self) -> Value {
        let mut error = json!({"code": self.error.code(), "message": self.error.to_string()});
        if let Some(data) = self.error.data() {
            error["data"] = data;
        }
        json!({"jsonrpc": "2.0", "id": self.id, "error": error})
    }
}

/// The `type` of what went wrong, for the metrics layer; in the response's extensions.
#[derive(Debug, Clone, Copy)]
pub(super) struct ErrorKind(pub &'static str);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.error.status(), Json(self.to_json())).into_response();
        if let Some((name, value)) = self.error.header() {
            response.headers_mut().insert(name, value);
        }
        response.extensions_mut().insert(ErrorKind(self.error.kind()));
        response
    }
}

impl IntoResponse for EndpointError {
    fn into_response(self) -> Response {
        Refusal::from(self).into_response()
    }
}
