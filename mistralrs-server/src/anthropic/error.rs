//! Errors in Anthropic's shape: `{"type": "error", "error": {"type", "message"}, "request_id"}`.
//!
//! Statuses stay those of `crate::error`. A full queue is 503 here too, not Anthropic's own 529: proxies and balancers in
//! front of a self-hosted server know 503 with `Retry-After`, and Anthropic's clients come back for either. Its `type` is
//! `overloaded_error` all the same.

use std::sync::Arc;

use axum::Json;
use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use schemars::JsonSchema;
use serde::Serialize;

use crate::error::ApiError;
use crate::request_id::X_REQUEST_ID;

/// Routes whose errors have this shape.
const ROUTES: &str = "/v1/messages";
/// Where Anthropic's clients look for it.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// The body of an error.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AnthropicError")]
pub struct ErrorBody<'a> {
    #[schemars(extend("const" = "error"))]
    r#type: &'static str,
    error: ErrorObject,
    request_id: Option<&'a str>,
}

/// What went wrong.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AnthropicErrorObject")]
pub(super) struct ErrorObject {
    r#type: &'static str,
    message: String,
}

impl<'a> ErrorBody<'a> {
    fn new(error: &ApiError, request_id: Option<&'a str>) -> Self {
        Self { r#type: "error", error: error.into(), request_id }
    }
}

impl From<&ApiError> for ErrorObject {
    fn from(error: &ApiError) -> Self {
        Self { r#type: kind(error.status()), message: error.message() }
    }
}

fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => "timeout_error",
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    }
}

/// Middleware around all routes: renders the errors of these again, those of other middleware and of panics included.
pub async fn render_errors(request: Request, next: Next) -> Response {
    let is_ours = request.extensions().get::<MatchedPath>().is_some_and(|path| path.as_str().starts_with(ROUTES));
    if !is_ours {
        return next.run(request).await;
    }
    let request_id = request.headers().get(X_REQUEST_ID).cloned();
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions_mut().remove::<Arc<ApiError>>() {
        response = render(&error, request_id.as_ref(), response);
    }
    if let Some(id) = request_id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Everything but the body stays: the status, and headers such as `Retry-After`.
fn render(error: &ApiError, request_id: Option<&HeaderValue>, response: Response) -> Response {
    let request_id = request_id.and_then(|id| id.to_str().ok());
    let (parts, _) = response.into_parts();
    let mut rendered = (parts.status, Json(ErrorBody::new(error, request_id))).into_response();
    for (name, value) in &parts.headers {
        if *name != header::CONTENT_LENGTH && *name != header::CONTENT_TYPE {
            rendered.headers_mut().insert(name, value.clone());
        }
    }
    rendered
}
