//! A streamable-HTTP server with one tool, whose sessions can be forgotten.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use mistralrs_mcp::rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ListToolsResult, PaginatedRequestParams,
    ProtocolVersion, ServerCapabilities, ServerConfig, Tool,
};
use mistralrs_mcp::rmcp::service::RequestContext;
use mistralrs_mcp::rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use mistralrs_mcp::rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use mistralrs_mcp::rmcp::{ErrorData, RoleServer, ServerHandler};
use mistralrs_telemetry::Mutex;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::authorization_server::AuthorizationServer;
use super::object;

pub struct HttpUpstream {
    address: SocketAddr,
    gate: Arc<Gate>,
    stop: CancellationToken,
    stopped: tokio::task::JoinHandle<()>,
}

/// In front of the server: checks the key, and forgets sessions on demand.
struct Gate {
    lock: Lock,
    address: SocketAddr,
    /// What each client began with.
    beginnings: Mutex<Vec<String>>,
    /// The next request with a session is answered with this status; 0: none is.
    forget_with: AtomicU16,
}

/// Who may come in.
enum Lock {
    /// Who shows this; empty: anybody.
    Key(&'static str),
    /// Who shows a good token of this server, which it names to others.
    Tokens(AuthorizationServer),
}

impl HttpUpstream {
    /// `authorization`: what the header must be; empty: anything goes.
    pub async fn start(authorization: &'static str) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), authorization).await
    }

    pub async fn start_at(address: SocketAddr, authorization: &'static str) -> Self {
        Self::serve(address, Lock::Key(authorization), Greeter { versions: ProtocolVersion::KNOWN_VERSIONS }).await
    }

    pub async fn start_guarded(server: &AuthorizationServer) -> Self {
        let (address, greeter) =
            (SocketAddr::from(([127, 0, 0, 1], 0)), Greeter { versions: ProtocolVersion::KNOWN_VERSIONS });
        Self::serve(address, Lock::Tokens(server.clone()), greeter).await
    }

    pub async fn start_modern_only() -> Self {
        const MODERN: &[ProtocolVersion] = &[ProtocolVersion::V_2026_07_28];
        Self::serve(SocketAddr::from(([127, 0, 0, 1], 0)), Lock::Key(""), Greeter { versions: MODERN }).await
    }

    async fn serve(address: SocketAddr, lock: Lock, greeter: Greeter) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let gate = Arc::new(Gate {
            lock,
            address,
            beginnings: Mutex::new("beginnings", Vec::new()),
            forget_with: AtomicU16::new(0),
        });
        let stop = CancellationToken::new();
        let config = StreamableHttpServerConfig::default().with_cancellation_token(stop.child_token());
        let sessions = Arc::new(LocalSessionManager::default());
        let service = StreamableHttpService::new(move || Ok(greeter.clone()), sessions, config);
        let router = Router::new().nest_service("/mcp", service).layer(from_fn_with_state(Arc::clone(&gate), guard));
        let until = stop.clone().cancelled_owned();
        let stopped = tokio::spawn(async move {
            axum::serve(listener, router).with_graceful_shutdown(until).await.unwrap();
        });
        Self { address, gate, stop, stopped }
    }

    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next request with a session finds none, and is told so with `status`.
    pub fn forget_sessions(&self, status: u16) {
        self.gate.forget_with.store(status, Ordering::SeqCst);
    }

    /// The first request of each client: which era it took the server for.
    pub fn beginnings(&self) -> Vec<String> {
        self.gate.beginnings.lock().clone()
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.stopped.await.unwrap();
    }
}

async fn guard(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let shown = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    match &gate.lock {
        Lock::Key(key) if key.is_empty() || *key == shown => {}
        Lock::Key(_) => return StatusCode::UNAUTHORIZED.into_response(),
        Lock::Tokens(server) if server.is_good(shown) => {}
        Lock::Tokens(server) => return refuse(gate.address, server, request.uri().path()),
    }
    if request.method() == "POST" && !headers.contains_key("mcp-session-id") {
        let method = headers.get("mcp-method").map_or("initialize", |method| method.to_str().unwrap());
        if ["initialize", "server/discover"].contains(&method) {
            gate.beginnings.lock().push(method.to_owned());
        }
    }
    if request.method() == "POST" && headers.contains_key("mcp-session-id") {
        let status = gate.forget_with.swap(0, Ordering::SeqCst);
        if let Ok(status) = StatusCode::from_u16(status) {
            let error = json!({"code": -32000, "message": "Bad Request: No valid session ID provided"});
            let body = Body::from(json!({"jsonrpc": "2.0", "error": error, "id": null}).to_string());
            return (status, [("content-type", "application/json")], body).into_response();
        }
    }
    next.run(request).await
}

/// With where the metadata are, or with the metadata.
fn refuse(address: SocketAddr, server: &AuthorizationServer, path: &str) -> Response {
    const METADATA: &str = "/.well-known/oauth-protected-resource/mcp";
    if path == METADATA {
        let resource = format!("http://{address}/mcp");
        let metadata =
            json!({"resource": resource, "authorization_servers": [server.url()], "scopes_supported": ["tools"]});
        return ([("content-type", "application/json")], metadata.to_string()).into_response();
    }
    let challenge = format!("Bearer resource_metadata=\"http://{address}{METADATA}\"");
    (StatusCode::UNAUTHORIZED, [("www-authenticate", challenge)]).into_response()
}

#[derive(Clone)]
pub struct Greeter {
    pub versions: &'static [ProtocolVersion],
}

impl ServerHandler for Greeter {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Borrowed(self.versions)
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let tool = Tool::new("hello", "greets", object(json!({"type": "object"})));
        Ok(ListToolsResult::with_all_items(vec![tool]))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let name = request.arguments.as_ref().and_then(|arguments| arguments.get("name")?.as_str().map(str::to_owned));
        let text = format!("hello {}", name.unwrap_or_default());
        Ok(CallToolResult::success(vec![ContentBlock::text(text)]).into())
    }
}
