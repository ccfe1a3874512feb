//! Protocol 2026-07-28: no sessions, its version and the client's capabilities in each request. rmcp checks the
//! headers against the body and serves it; here its plain-text refusals become JSON-RPC errors.

use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Collected, Full};
use mistralrs_mcp::rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use mistralrs_mcp::rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use mistralrs_mcp::{Gateway, GatewayHandler};
use tokio_util::sync::CancellationToken;

use super::accept::Accept;
use super::answer::KEEP_ALIVE;
use super::error::EndpointError;

/// rmcp's own stateless service.
pub(super) struct Modern {
    service: StreamableHttpService<GatewayHandler, NeverSessionManager>,
    shutdown: CancellationToken,
}

/// Whether a request ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lifetime {
    /// With its response.
    Call,
    /// `subscriptions/listen`: goes on until one side leaves, so the shutdown has to end it.
    Subscription,
}

impl Modern {
    pub fn new(gateway: Arc<Gateway>, max_body_bytes: usize, shutdown: CancellationToken) -> Self {
        let config = StreamableHttpServerConfig::default()
            .with_legacy_session_mode(false)
            .with_sse_keep_alive(Some(KEEP_ALIVE))
            // `origin.rs` has checked, by the configuration's own rules.
            .disable_allowed_hosts()
            .with_max_request_body_bytes(max_body_bytes);
        // Each request is a client of its own: nothing here tells which belong together.
        let factory = move || Ok(gateway.handler());
        Self { service: StreamableHttpService::new(factory, NeverSessionManager::default().into(), config), shutdown }
    }

    pub async fn answer(&self, mut parts: Parts, body: Bytes, accept: Accept, lifetime: Lifetime) -> Response {
        // rmcp insists on both types; which one it sends is set beside it.
        let both = HeaderValue::from_static("application/json, text/event-stream");
        parts.headers.insert(header::ACCEPT, both);
        parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut service = self.service.clone();
        service.config.json_response = accept.json;
        if lifetime == Lifetime::Subscription {
            service.config.cancellation_token = self.shutdown.clone();
        }
        let response = service.handle(Request::from_parts(parts, Full::new(body))).await.map(Body::new);
        if response.status().is_success() || is_json(&response) { response } else { in_json_rpc(response).await }
    }
}

fn is_json(response: &Response) -> bool {
    response.headers().get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/json"))
}

async fn in_json_rpc(response: Response) -> Response {
    let status = response.status();
    let text = response.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let error = match status {
        status if status.is_server_error() => EndpointError::Internal(text),
        StatusCode::METHOD_NOT_ALLOWED => EndpointError::MethodNotAllowed { allow: "POST" },
        _ => EndpointError::InvalidRequest(text),
    };
    let mut response = error.into_response();
    *response.status_mut() = status;
    response
}
