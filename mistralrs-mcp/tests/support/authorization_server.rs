//! An authorization server that counts what it gives, revokes it on demand, and fails in several ways.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderMap, StatusCode};
use mistralrs_mcp::config::{AuthorizationServer as Found, HttpAuth, OAuthConfig, Secret};
use serde_json::{Value, json};
use tokio::net::TcpListener;

pub const CLIENT_SECRET: &str = "hunter2-and-more";

#[derive(Clone)]
pub struct AuthorizationServer {
    address: SocketAddr,
    issuer: Arc<Issuer>,
}

struct Issuer {
    /// What it does instead of answering well.
    fault: ArcSwap<Fault>,
    /// Seconds; 0: it does not say.
    expires_in: AtomicU64,
    /// Each token is `token-N`, or this.
    token: &'static str,
    num_issued: AtomicU64,
    /// Tokens up to this one are good no more.
    num_revoked: AtomicU64,
    /// The last request for a token: its `Authorization` and its form.
    last: ArcSwap<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    RefusesClient,
    Hangs,
    SaysNothingReadable,
    SaysItIsAnother,
    TakesTokensElsewhere,
}

impl AuthorizationServer {
    pub async fn start() -> Self {
        Self::start_giving("").await
    }

    /// Every token is `token`.
    pub async fn start_giving(token: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let issuer = Issuer {
            fault: ArcSwap::from_pointee(Fault::None),
            expires_in: AtomicU64::new(0),
            token,
            num_issued: AtomicU64::new(0),
            num_revoked: AtomicU64::new(0),
            last: ArcSwap::default(),
        };
        let server = Self { address, issuer: Arc::new(issuer) };
        let routes = Router::new()
            .route("/.well-known/oauth-authorization-server", get(metadata))
            .route("/token", post(issue))
            .with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn token_url(&self) -> String {
        format!("{}/token", self.url())
    }

    pub fn set_fault(&self, fault: Fault) {
        self.issuer.fault.store(Arc::new(fault));
    }

    pub fn set_expires_in(&self, seconds: u64) {
        self.issuer.expires_in.store(seconds, Ordering::SeqCst);
    }

    pub fn num_issued(&self) -> u64 {
        self.issuer.num_issued.load(Ordering::SeqCst)
    }

    pub fn revoke_all(&self) {
        self.issuer.num_revoked.store(self.num_issued(), Ordering::SeqCst);
    }

    /// Whether a resource may let in who shows this.
    pub fn is_good(&self, authorization: &str) -> bool {
        let number = authorization.strip_prefix("Bearer token-").and_then(|number| number.parse::<u64>().ok());
        number.is_some_and(|number| number > self.issuer.num_revoked.load(Ordering::SeqCst))
    }

    pub fn last_request(&self) -> (String, String) {
        self.issuer.last.load().as_ref().clone()
    }
}

/// We as a client of `server`, which is found in that way.
pub fn oauth(server: Found) -> HttpAuth {
    HttpAuth::OAuth(Box::new(OAuthConfig {
        client_id: "gateway".to_owned(),
        client_secret: Secret::new(CLIENT_SECRET),
        server,
        scopes: Vec::new(),
        authentication: None,
    }))
}

async fn metadata(State(server): State<AuthorizationServer>) -> Json<Value> {
    let (url, fault) = (server.url(), *server.issuer.fault.load_full());
    let issuer = if fault == Fault::SaysItIsAnother { "http://127.0.0.1:9" } else { &url };
    let token_endpoint = match fault {
        Fault::TakesTokensElsewhere => "http://login.example/token".to_owned(),
        _ => server.token_url(),
    };
    Json(json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{url}/authorize"),
        "token_endpoint": token_endpoint,
        "response_types_supported": ["code"],
        "grant_types_supported": ["client_credentials"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic"],
    }))
}

async fn issue(State(server): State<AuthorizationServer>, headers: HeaderMap, form: String) -> Response {
    let authorization = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    server.issuer.last.store(Arc::new((authorization.to_owned(), form)));
    match *server.issuer.fault.load_full() {
        Fault::RefusesClient => {
            let error = json!({"error": "invalid_client", "error_description": "nobody knows you"});
            return (StatusCode::UNAUTHORIZED, Json(error)).into_response();
        }
        Fault::Hangs => std::future::pending().await,
        Fault::SaysNothingReadable => return "<html>".into_response(),
        _ => {}
    }
    let number = server.issuer.num_issued.fetch_add(1, Ordering::SeqCst) + 1;
    let token = if server.issuer.token.is_empty() { format!("token-{number}") } else { server.issuer.token.to_owned() };
    let mut answer = json!({"access_token": token, "token_type": "Bearer"});
    let expires_in = server.issuer.expires_in.load(Ordering::SeqCst);
    if expires_in > 0 {
        answer["expires_in"] = json!(expires_in);
    }
    Json(answer).into_response()
}
