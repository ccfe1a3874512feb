//! The MCP endpoint: JSON-RPC over HTTP on its own port.
//!
//! Every request passes, in this order: CORS (answers preflights), `Host` and `Origin`, the API key, the rate
//! limit, the body's size; then [`dispatch`] finds which of the protocol's worlds it belongs to, and [`answer`] says
//! the outcome in a type the caller reads.
//!
//! **Never** here: what a tool does, who may call which (that is the gateway's policy), anything about models.

mod accept;
mod answer;
mod auth;
mod batch;
mod dispatch;
mod error;
mod handshake_only;
mod incoming;
mod metrics;
mod modern;
mod origin;
mod rate_limit;
mod sessions;
mod stateless;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Extension, Json, Router};
use http::header;
use http::request::Parts;
use mistralrs_mcp::{Gateway, Principal};
use prometheus::Registry;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::auth::ApiKeys;
use self::error::EndpointError;
use self::handshake_only::HandshakeOnly;
use self::metrics::EndpointMetrics;
use self::modern::Modern;
use self::origin::OriginPolicy;
use self::rate_limit::{Exceeded, RateLimits, RateStatus};
use self::sessions::{SessionLimits, Sessions};
use crate::config::HttpMcpConfig;

/// Tools for people with a browser.
const LIST_PATH: &str = "/mcp/list";

/// The endpoint, ready to be served; its tools are the gateway's.
pub struct HttpMcp {
    endpoint: Arc<Endpoint>,
    paths: Vec<String>,
}

/// What all requests share. Immutable but for the sessions and the limiters' counters.
struct Endpoint {
    gateway: Arc<Gateway>,
    sessions: Sessions,
    handshake_only: HandshakeOnly,
    modern: Modern,
    origins: OriginPolicy,
    keys: ApiKeys,
    limits: Option<RateLimits>,
    max_body_bytes: usize,
    metrics: EndpointMetrics,
    shutdown: CancellationToken,
}

impl HttpMcp {
    /// Builds the endpoint in front of `gateway`.
    ///
    /// When `shutdown` fires, new requests are refused and streams that only listen are closed; calls in flight go on
    /// until they end or their connection is dropped.
    ///
    /// # Panics
    /// If `registry` has the endpoint's metrics already.
    pub fn new(
        gateway: Arc<Gateway>,
        config: &HttpMcpConfig,
        registry: &Registry,
        shutdown: CancellationToken,
    ) -> Self {
        let metrics = EndpointMetrics::register(registry);
        let session_limits = SessionLimits { max_sessions: config.max_sessions, idle: config.session_idle_limit };
        let endpoint = Endpoint {
            modern: Modern::new(Arc::clone(&gateway), config.max_body_bytes, shutdown.clone()),
            gateway,
            sessions: Sessions::new(session_limits, metrics.sessions.clone()),
            handshake_only: HandshakeOnly::new(),
            origins: OriginPolicy::new(config),
            keys: ApiKeys::new(&config.api_keys),
            limits: config.rate_limit.as_ref().map(|limits| RateLimits::new(limits, config.api_keys.len())),
            max_body_bytes: config.max_body_bytes,
            metrics,
            shutdown,
        };
        Self { endpoint: Arc::new(endpoint), paths: config.paths.clone() }
    }

    /// The routes. Served with `ConnectInfo<SocketAddr>`, which the limit per address reads.
    pub fn router(self) -> Router {
        let mut routes = Router::new().route(LIST_PATH, get(list_tools));
        for path in &self.paths {
            routes = routes.route(path, any(serve));
        }
        let endpoint = self.endpoint;
        routes
            .route_layer(middleware::from_fn_with_state(endpoint.clone(), guard))
            // Outside of the guard: clients look for /.well-known documents before they have a key, and take 404 for "none".
            .fallback(not_found)
            .method_not_allowed_fallback(list_is_read_only)
            .layer(endpoint.origins.cors())
            .layer(middleware::from_fn_with_state(endpoint.metrics.clone(), metrics::measure))
            .with_state(endpoint)
    }
}

async fn serve(State(endpoint): State<Arc<Endpoint>>, request: Request) -> Response {
    endpoint.serve(request).await
}

async fn list_tools(State(endpoint): State<Arc<Endpoint>>, Extension(principal): Extension<Principal>) -> Json<Value> {
    let tools = endpoint.gateway.list_tools(&principal);
    Json(json!({"num_tools": tools.len(), "tools": tools}))
}

async fn list_is_read_only() -> EndpointError {
    EndpointError::MethodNotAllowed { allow: "GET, OPTIONS" }
}

async fn not_found() -> EndpointError {
    EndpointError::NotFound
}

/// Lets a request in, with its principal, or says why not.
async fn guard(State(endpoint): State<Arc<Endpoint>>, request: Request<Body>, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let (admitted, status) = endpoint.admit(&mut parts);
    let mut response = match admitted {
        Ok(()) => next.run(Request::from_parts(parts, body)).await,
        Err(error) => error.into_response(),
    };
    if let Some(status) = status {
        status.write(response.headers_mut());
    }
    response
}

impl Endpoint {
    fn admit(&self, parts: &mut Parts) -> (Result<(), EndpointError>, Option<RateStatus>) {
        let authenticated = self.origins.check(parts).and_then(|()| self.keys.authenticate(&parts.headers));
        // They have served, and go no further: neither into logs nor to upstreams.
        parts.headers.remove(header::AUTHORIZATION);
        parts.headers.remove(auth::API_KEY);

        let address = client_address(parts);
        let limits = self.limits.as_ref();
        let (outcome, admitted) = match authenticated {
            Ok(principal) => {
                let admitted = limits.map(|limits| limits.admit(&principal, address, NonZeroU32::MIN));
                parts.extensions.insert(principal);
                (Ok(()), admitted)
            }
            // Who guesses keys is limited like who has none, and takes nothing from the callers who have one.
            Err(error @ EndpointError::Unauthorized(_)) => {
                (Err(error), limits.map(|limits| limits.admit_stranger(address)))
            }
            Err(error) => (Err(error), None),
        };
        match admitted {
            None => (outcome, None),
            Some(Ok(status)) => (outcome, status),
            Some(Err(Exceeded(status))) => (Err(Exceeded(status).into()), Some(status)),
        }
    }
}

/// The peer of the connection. `X-Forwarded-For` is not read: anybody can write it.
fn client_address(parts: &Parts) -> IpAddr {
    let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>();
    peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(address)| address.ip())
}
