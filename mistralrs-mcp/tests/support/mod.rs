//! A gateway with upstreams of the test's choice.

pub mod authorization_server;
pub mod downstream;
pub mod http_upstream;
pub mod natives;
pub mod url_upstreams;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mistralrs_mcp::config::{
    GatewayConfig, HttpAuth, HttpConfig, NamingConfig, Secret, SecurityConfig, StdioConfig, ToolListing,
    TransportConfig, UpstreamConfig,
};
use mistralrs_mcp::mcp_server::security::AccessPolicy;
use mistralrs_mcp::rmcp::model::{CallToolResult, ContentBlock, JsonObject, Tool};
use mistralrs_mcp::{
    CallContext, Gateway, GatewayError, GatewayMetrics, Local, LocalOffers, LocalSampler, LocalTool, LocalToolError,
    LocalTools, Principal, ProgressSink, ToolCall,
};
use prometheus::{Registry, TextEncoder};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Nothing here takes this long; what does is stuck.
const PATIENCE: Duration = Duration::from_mins(1);

#[derive(Default)]
pub struct Setup {
    config: GatewayConfig,
    offers: Option<Arc<dyn LocalOffers>>,
    sampler: Option<Arc<dyn LocalSampler>>,
}

pub struct TestGateway {
    pub gateway: Arc<Gateway>,
    registry: Registry,
}

impl Setup {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn upstream(&mut self, upstream: UpstreamConfig) {
        self.config.upstreams.push(upstream);
    }

    pub fn with(mut self, upstream: UpstreamConfig) -> Self {
        self.upstream(upstream);
        self
    }

    pub fn security(mut self, security: &SecurityConfig) -> Self {
        self.config.access = AccessPolicy::new(security).unwrap();
        self
    }

    pub fn naming(mut self, naming: NamingConfig) -> Self {
        self.config.naming = naming;
        self
    }

    /// With `search_tools` in place of the list.
    pub fn searched(mut self) -> Self {
        self.config.listing = ToolListing::Searched;
        self
    }

    /// With resources and prompts of its own.
    pub fn offering(mut self, offers: impl LocalOffers) -> Self {
        self.offers = Some(Arc::new(offers));
        self
    }

    /// With a model that upstreams may ask.
    pub fn sampled_by(mut self, sampler: impl LocalSampler) -> Self {
        self.sampler = Some(Arc::new(sampler));
        self
    }

    pub async fn start(self) -> TestGateway {
        let registry = Registry::new();
        let metrics = GatewayMetrics::register(&registry);
        let tools: Option<Arc<dyn LocalTools>> = Some(Arc::new(FakeModel));
        let local = Local { tools, offers: self.offers, sampler: self.sampler };
        let start = Gateway::start_with(self.config, local, metrics);
        let gateway = tokio::time::timeout(PATIENCE, start).await.unwrap().unwrap();
        TestGateway { gateway, registry }
    }
}

impl TestGateway {
    pub fn names(&self) -> Vec<String> {
        self.gateway.list_tools(&Principal::Anonymous).into_iter().map(|tool| tool.name.into_owned()).collect()
    }

    pub fn tool(&self, name: &str) -> Tool {
        self.gateway.list_tools(&Principal::Anonymous).into_iter().find(|tool| tool.name == name).unwrap()
    }

    pub async fn call(&self, name: &str, arguments: Value) -> Result<CallToolResult, GatewayError> {
        self.call_with(name, arguments, context()).await
    }

    pub async fn call_with(
        &self,
        name: &str,
        arguments: Value,
        context: CallContext,
    ) -> Result<CallToolResult, GatewayError> {
        let call = ToolCall { name: name.to_owned(), arguments: object(arguments) };
        tokio::time::timeout(PATIENCE, self.gateway.call_tool(call, context)).await.expect("the call is stuck")
    }

    pub async fn call_text(&self, name: &str, arguments: Value) -> String {
        text_of(&self.call(name, arguments).await.unwrap())
    }

    /// Until the child has seen a `notifications/cancelled`.
    pub async fn wait_until_cancelled_upstream(&self, upstream: &str) {
        let name = format!("{upstream}::cancelled");
        let wait = async {
            while self.call_text(&name, json!({})).await == "[]" {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the upstream was told of a cancellation");
    }

    pub fn metrics(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap()
    }

    pub async fn shutdown(&self) {
        tokio::time::timeout(PATIENCE, self.gateway.shutdown()).await.expect("the shutdown is stuck");
    }
}

/// Of a caller that wants nothing special.
pub fn context() -> CallContext {
    CallContext::new(Principal::Anonymous)
}

/// An upstream that is `fixtures/stdio_server.py`.
pub fn child(name: &str, args: &[&str]) -> UpstreamConfig {
    let mut config = command(name, "python3");
    if let TransportConfig::Stdio(stdio) = &mut config.transport {
        stdio.args = vec![fixture().display().to_string()];
        stdio.args.extend(args.iter().map(|arg| (*arg).to_owned()));
    }
    config
}

/// An upstream that offers one of everything, in the era named: what the conformance suite is run against.
pub fn everything(name: &str, era: &str) -> UpstreamConfig {
    let mut config = command(name, "python3");
    if let TransportConfig::Stdio(stdio) = &mut config.transport {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/conformance/fixture.py");
        stdio.args = vec![fixture.display().to_string(), era.to_owned()];
    }
    config
}

pub fn command(name: &str, command: &str) -> UpstreamConfig {
    let stdio = StdioConfig { command: command.to_owned(), args: Vec::new(), env: BTreeMap::new(), cwd: None };
    UpstreamConfig::new(name, TransportConfig::Stdio(stdio))
}

pub fn url(name: &str, url: &str) -> UpstreamConfig {
    let http = HttpConfig { url: url.to_owned(), headers: http::HeaderMap::new(), auth: None };
    UpstreamConfig::new(name, TransportConfig::StreamableHttp(http))
}

pub fn set_bearer(config: &mut UpstreamConfig, token: &str) {
    if let TransportConfig::StreamableHttp(http) = &mut config.transport {
        http.auth = Some(HttpAuth::Bearer(Secret::new(token)));
    }
}

pub fn object(value: Value) -> JsonObject {
    let Value::Object(object) = value else { panic!("not an object: {value}") };
    object
}

pub fn text_of(result: &CallToolResult) -> String {
    let texts = result.content.iter().filter_map(|block| block.as_text());
    texts.map(|text| text.text.as_str()).collect()
}

/// The schema as the fixture writes it, read back in the same order.
pub fn odd_schema() -> String {
    let fixture = std::fs::read_to_string(fixture()).unwrap();
    let start = fixture.find("ODD_SCHEMA = (").unwrap();
    let lines = fixture[start..].lines().skip(1).take_while(|line| *line != ")");
    let text: String = lines.map(|line| line.trim().trim_matches('\'')).collect();
    let schema: Value = serde_json::from_str(&text.replace("\\\\u", "\\u")).unwrap();
    serde_json::to_string(&schema).unwrap()
}

pub fn kill(pid: &str) {
    let status = std::process::Command::new("kill").args(["-9", pid]).status().unwrap();
    assert!(status.success());
}

/// A process that waits to be reaped does not run any more.
pub fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
    stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}

pub async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("it never happened: {what}"));
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stdio_server.py")
}

/// The model as a tool: `generate` says two words, one report each.
struct FakeModel;

#[async_trait]
impl LocalTools for FakeModel {
    fn tools(&self) -> Vec<LocalTool> {
        ["generate", "tell"]
            .into_iter()
            .map(|name| LocalTool {
                name,
                description: name.to_owned(),
                input_schema: object(json!({"type": "object"})),
                output_schema: None,
                is_read_only: true,
            })
            .collect()
    }

    async fn call(
        &self,
        _name: &str,
        arguments: JsonObject,
        progress: Option<&dyn ProgressSink>,
        _cancellation: CancellationToken,
    ) -> Result<CallToolResult, LocalToolError> {
        let Some(prompt) = arguments.get("prompt").and_then(Value::as_str) else {
            return Err(LocalToolError::InvalidArguments("`prompt` must be a string".into()));
        };
        if let Some(progress) = progress {
            progress.send(1.0, prompt.to_owned()).await;
            progress.send(2.0, " there".to_owned()).await;
        }
        Ok(CallToolResult::success(vec![ContentBlock::text(format!("{prompt} there"))]))
    }
}
