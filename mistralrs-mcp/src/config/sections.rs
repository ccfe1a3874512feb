//! The sections as people write them: `[mcp_client]` and `[tool_forwarding]`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use super::auth::AuthConfig;

/// `[mcp_client]`: the upstream MCP servers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct McpClientConfig {
    /// `false`: no upstream is connected. Default: `true`.
    pub enabled: bool,
    /// The servers, in the order in which their tools are listed. Default: none.
    pub servers: Vec<ServerConfig>,
}

/// `[[mcp_client.servers]]`: one upstream, either a child process (`command`) or a URL (`url`).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Names it in tool names, logs and metrics: 1 to 32 of `A-Z a-z 0-9 _ -`, unique.
    pub name: String,
    /// `false`: left out. Default: `true`.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Stands before its tool names. Default: `name`. Empty: its tools are listed under their own names.
    pub namespace: Option<String>,
    /// How it is reached: `stdio`, `http`, `sse` (2024-11-05), `websocket`. Default: `stdio` with `command`, `websocket` with a
    /// `ws://` or `wss://` URL, `http` with any other.
    pub transport: Option<TransportName>,
    /// Which protocol it speaks: `legacy` (up to 2025-11-25, with a handshake), `modern` (2026-07-28), or `auto`: the
    /// one, and if it refuses the handshake the other. Default: `auto`.
    #[serde(default)]
    pub protocol: ProtocolEra,
    /// Program to start, found in `PATH`.
    pub command: Option<String>,
    /// Its arguments. Default: none.
    #[serde(default)]
    pub args: Vec<String>,
    /// Variables added to its environment, which is ours without our own secrets. Default: none.
    #[serde(default)]
    pub env: BTreeMap<String, Secret>,
    /// Its working directory. Default: ours.
    pub cwd: Option<PathBuf>,
    /// The server's MCP endpoint: `http://`, `https://`, `ws://` or `wss://`.
    pub url: Option<String>,
    /// Headers sent with each request. Default: none.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// How we authenticate. Default: not.
    pub auth: Option<AuthConfig>,
    /// Seconds to connect and list the tools. Default: 5 for a URL; 30 for a child, which may first install itself.
    pub connect_timeout_seconds: Option<f64>,
    /// Seconds one call may take. Default: 30.
    #[serde(alias = "tool_timeout_secs")]
    pub tool_timeout_seconds: Option<f64>,
    /// Calls that run at once; more wait. Default: 64.
    pub max_concurrent_calls: Option<usize>,
    /// Seconds of silence after which a WebSocket server is sent a ping; after twice as many the connection is opened
    /// anew. Default: 20.
    pub keep_alive_seconds: Option<f64>,
    /// Who answers when it asks for a completion during a call (`sampling/createMessage`). Default: `client`.
    #[serde(default)]
    pub sampling: SamplingMode,
    /// Tokens of an answer of the local model at most, however many are asked for. Default: 512.
    pub sampling_max_tokens: Option<u32>,
}

/// Who answers an upstream that asks for a completion.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SamplingMode {
    /// The client whose call is running.
    #[default]
    Client,
    /// That client if it says that it can, else the model of this process.
    Local,
    /// Nobody.
    Off,
}

/// How an upstream is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportName {
    /// A child process, one JSON-RPC message a line.
    Stdio,
    /// Streamable HTTP.
    #[serde(alias = "streamable-http", alias = "streamable_http", alias = "streamableHttp")]
    Http,
    /// HTTP with server-sent events, of revision 2024-11-05.
    Sse,
    /// WebSocket.
    #[serde(alias = "ws", alias = "WebSocket")]
    WebSocket,
}

/// Which of the protocol's eras an upstream speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProtocolEra {
    /// Found out by trying.
    #[default]
    Auto,
    /// With a handshake.
    Legacy,
    /// 2026-07-28 and newer.
    Modern,
}

/// `[tool_forwarding]`: which upstream tools appear here, and under which names.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ToolForwardingConfig {
    /// `false`: no upstream is connected. Default: `true`.
    pub enabled: bool,
    /// How upstream tools are named. Default: `server_prefix`.
    pub namespace_strategy: NamespaceStrategy,
    /// What stands between namespace and tool in listed names. Default: `::`. Calls accept every spelling.
    pub separator: Separator,
    /// Which tools may be listed and called. Default: all.
    pub security: SecurityConfig,
    /// Finding tools by words.
    pub search: SearchConfig,
    /// What single tools are called, whatever the strategy: the alias by `namespace::tool`. Default: none.
    pub aliases: BTreeMap<String, String>,
    /// Not supported yet.
    pub rate_limit: Option<NotYet>,
    /// Not supported yet.
    pub cache: Option<NotYet>,
}

/// How upstream tools are named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceStrategy {
    /// `filesystem::read_file`.
    #[default]
    ServerPrefix,
    /// `read_file`; of two equal names the server configured first keeps it, the other is refused.
    Flat,
    /// As `aliases` says, which must name some; `filesystem::read_file` for the others.
    Custom,
}

/// What stands between namespace and tool in listed names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum Separator {
    /// `filesystem::read_file`.
    #[default]
    #[serde(rename = "::")]
    Colons,
    /// `filesystem__read_file`, for clients that take `[A-Za-z0-9_-]{1,64}` only.
    #[serde(rename = "__")]
    Underscores,
}

/// `[tool_forwarding.security]`. Patterns may hold `*` and `?`. An upstream tool passes if every list of allowed
/// things that is present allows it, and `blocked_tools` does not match; native tools if `blocked_tools` does not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SecurityConfig {
    /// Namespaces whose tools pass. Absent: all. Empty: none.
    pub allowed_namespaces: Option<Vec<String>>,
    /// Tools that pass, as `namespace::tool`, or `tool` for any namespace. Absent: all. Empty: none.
    pub allowed_tools: Option<Vec<String>>,
    /// Tools that never pass, written the same way. Default: none.
    pub blocked_tools: Vec<String>,
}

/// `[tool_forwarding.search]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SearchConfig {
    /// `true`: `tools/list` has the tool `search_tools` in place of all upstream tools, which can still be called.
    /// Default: `false`.
    pub as_tool: bool,
}

/// A value that logs must not show.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

/// A key that is known but not supported yet: its presence is an error with a reason, instead of an unknown key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotYet;

impl McpClientConfig {
    /// The servers of both, this one's first. Those of a disabled section stay disabled.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        let servers = [self, other].into_iter().flat_map(|section| {
            let is_enabled = section.enabled;
            section
                .servers
                .into_iter()
                .map(move |server| ServerConfig { enabled: server.enabled && is_enabled, ..server })
        });
        Self { enabled: true, servers: servers.collect() }
    }
}

impl Default for McpClientConfig {
    fn default() -> Self {
        Self { enabled: true, servers: Vec::new() }
    }
}

impl ServerConfig {
    /// A server with nothing but a name.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            enabled: true,
            namespace: None,
            transport: None,
            protocol: ProtocolEra::default(),
            command: None,
            args: Vec::new(),
            env: BTreeMap::new(),
            cwd: None,
            url: None,
            headers: BTreeMap::new(),
            auth: None,
            connect_timeout_seconds: None,
            tool_timeout_seconds: None,
            max_concurrent_calls: None,
            keep_alive_seconds: None,
            sampling: SamplingMode::default(),
            sampling_max_tokens: None,
        }
    }

    /// What stands before its tool names; may be empty.
    pub(super) fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or(&self.name)
    }
}

impl Default for ToolForwardingConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            namespace_strategy: NamespaceStrategy::default(),
            separator: Separator::default(),
            security: SecurityConfig::default(),
            search: SearchConfig::default(),
            aliases: BTreeMap::new(),
            rate_limit: None,
            cache: None,
        }
    }
}

impl Secret {
    /// Wraps it.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The value itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<'de> Deserialize<'de> for NotYet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

fn yes() -> bool {
    true
}
