//! The endpoint's router against a real gateway with scripted native tools: what goes over the wire, as text.

mod client;
mod guard;
mod sessions;
mod streaming;
mod wire;

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::Response;
use http::{Request, header};
use http_body_util::BodyExt;
use mistralrs_mcp::config::GatewayConfig;
use mistralrs_mcp::rmcp::model::{CallToolResult, ContentBlock, JsonObject};
use mistralrs_mcp::{Gateway, GatewayMetrics, LocalTool, LocalToolError, LocalTools, ProgressSink};
use prometheus::{Registry, TextEncoder};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::HttpMcp;
use crate::config::HttpMcpConfig;

/// A loopback endpoint without keys or limits.
pub(super) fn config() -> HttpMcpConfig {
    HttpMcpConfig {
        addr: "127.0.0.1:4322".parse().unwrap(),
        older_addr: None,
        api_keys: Vec::new(),
        allowed_origins: Vec::new(),
        allowed_methods: Vec::new(),
        allowed_hosts: Vec::new(),
        rate_limit: None,
        max_body_bytes: 64 * 1024,
        max_sessions: 1_024,
        session_idle_limit: Duration::from_mins(30),
        paths: vec!["/mcp/stream".to_owned(), "/mcp".to_owned()],
    }
}

/// Native tools that do as the test says.
#[derive(Default)]
pub(super) struct ScriptedTools {
    /// `wait` has begun.
    pub began: Notify,
    /// A call has ended, by itself or because it was dropped.
    pub ended: Notify,
    num_running: AtomicUsize,
}

impl ScriptedTools {
    /// Calls that have not ended.
    pub fn num_running(&self) -> usize {
        self.num_running.load(Ordering::Relaxed)
    }
}

struct EndNotice<'a>(&'a ScriptedTools);

impl<'a> EndNotice<'a> {
    fn new(tools: &'a ScriptedTools) -> Self {
        tools.num_running.fetch_add(1, Ordering::Relaxed);
        Self(tools)
    }
}

impl Drop for EndNotice<'_> {
    fn drop(&mut self) {
        self.0.num_running.fetch_sub(1, Ordering::Relaxed);
        self.0.ended.notify_one();
    }
}

#[async_trait]
impl LocalTools for ScriptedTools {
    fn tools(&self) -> Vec<LocalTool> {
        let object = || json!({"type": "object"}).as_object().cloned().unwrap_or_default();
        let tool = |name| LocalTool {
            name,
            description: format!("Does {name}."),
            input_schema: object(),
            output_schema: None,
            is_read_only: true,
        };
        vec![tool("generate"), tool("wait"), tool("fail"), tool("panic")]
    }

    async fn call(
        &self,
        name: &str,
        arguments: JsonObject,
        progress: Option<&dyn ProgressSink>,
        cancellation: CancellationToken,
    ) -> Result<CallToolResult, LocalToolError> {
        let _notice = EndNotice::new(self);
        match name {
            "generate" => generate(&arguments, progress).await,
            "wait" => {
                self.began.notify_one();
                cancellation.cancelled().await;
                Ok(CallToolResult::error(vec![ContentBlock::text("cancelled")]))
            }
            "fail" => Ok(CallToolResult::error(vec![ContentBlock::text("it did not work")])),
            _ => panic!("a native tool with a bug"),
        }
    }
}

/// Says the prompt word by word.
async fn generate(
    arguments: &JsonObject,
    progress: Option<&dyn ProgressSink>,
) -> Result<CallToolResult, LocalToolError> {
    let Some(prompt) = arguments.get("prompt").and_then(|prompt| prompt.as_str()) else {
        return Err(LocalToolError::InvalidArguments("missing field `prompt`".to_owned()));
    };
    if let Some(progress) = progress {
        for (number, word) in (1_u32..).zip(prompt.split(' ')) {
            progress.send(number.into(), word.to_owned()).await;
        }
    }
    let mut result = CallToolResult::success(vec![ContentBlock::text(prompt)]);
    result.structured_content = Some(json!({"text": prompt, "finish_reason": "length"}));
    Ok(result)
}

/// An endpoint without a socket.
pub(super) struct TestServer {
    pub router: Router,
    pub tools: Arc<ScriptedTools>,
    pub gateway: Arc<Gateway>,
    pub registry: Registry,
    pub shutdown: CancellationToken,
}

impl TestServer {
    pub async fn start(config: HttpMcpConfig) -> Self {
        let (registry, shutdown) = (Registry::new(), CancellationToken::new());
        let tools = Arc::new(ScriptedTools::default());
        let metrics = GatewayMetrics::register(&registry);
        let gateway = Gateway::start(GatewayConfig::default(), Some(tools.clone()), metrics).await.unwrap();
        let router = HttpMcp::new(Arc::clone(&gateway), &config, &registry, shutdown.clone()).router();
        Self { router, tools, gateway, registry, shutdown }
    }

    pub async fn send(&self, request: Request<Body>) -> Response {
        self.router.clone().oneshot(request).await.unwrap()
    }

    /// The answer as text: status, the headers that matter, body.
    pub async fn exchange(&self, request: Request<Body>) -> String {
        show(self.send(request).await).await
    }

    /// Posts `body` as curl does, with `headers` of the form `name: value`.
    pub async fn post(&self, headers: &[&str], body: &str) -> String {
        self.exchange(post(headers, body)).await
    }

    /// Lines of `/metrics` that begin with `prefix`.
    pub fn metrics(&self, prefix: &str) -> String {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap();
        text.lines().filter(|line| line.starts_with(prefix)).collect::<Vec<_>>().join("\n")
    }
}

pub(super) fn post(headers: &[&str], body: &str) -> Request<Body> {
    let mut headers = headers.to_vec();
    headers.push("content-type: application/json");
    request("POST", "/mcp/stream", &headers, body)
}

pub(super) fn request(method: &str, path: &str, headers: &[&str], body: &str) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, "localhost:4322");
    for line in headers {
        let (name, value) = line.split_once(": ").unwrap();
        request = request.header(name, value);
    }
    let peer: SocketAddr = "127.0.0.1:50000".parse().unwrap();
    request.extension(ConnectInfo(peer)).body(Body::from(body.to_owned())).unwrap()
}

/// Headers that clients decide by.
const SHOWN_HEADERS: [&str; 12] = [
    "content-type",
    "allow",
    "www-authenticate",
    "retry-after",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "x-accel-buffering",
    "access-control-allow-origin",
    "access-control-allow-methods",
    "access-control-allow-headers",
    "access-control-expose-headers",
];

pub(super) async fn show(response: Response) -> String {
    let mut text = response.status().as_u16().to_string();
    let is_cross_origin = response.headers().contains_key("access-control-allow-origin");
    for name in SHOWN_HEADERS {
        if let Some(value) = response.headers().get(name)
            && (is_cross_origin || !name.starts_with("access-control"))
        {
            write!(text, "\n{name}: {}", value.to_str().unwrap()).unwrap();
        }
    }
    let body = response.into_body().collect().await.unwrap().to_bytes();
    if !body.is_empty() {
        text += "\n\n";
        text += std::str::from_utf8(&body).unwrap();
    }
    text
}

pub(super) fn call(name: &str, arguments: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}})
        .to_string()
}
