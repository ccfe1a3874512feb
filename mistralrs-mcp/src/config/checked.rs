//! The configuration after all checks: what the gateway runs on.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::ConfigError;
use super::aliases::Aliases;
use super::endpoint::{self, HttpConfig};
use super::sections::{
    McpClientConfig, NamespaceStrategy, ProtocolEra, SamplingMode, Secret, Separator, ServerConfig,
    ToolForwardingConfig, TransportName,
};
use crate::mcp_server::namespace::NATIVE_NAMESPACE;
use crate::mcp_server::security::AccessPolicy;

/// Room is left for the tool's own name in the 64 characters that clients allow.
pub(super) const MAX_NAME_LENGTH: usize = 32;
/// Each may be a child process; one is shared by all downstreams, so that this is also the limit of children.
const MAX_SERVERS: usize = 256;
const DEFAULT_CONNECT_TIMEOUT_STDIO: Duration = Duration::from_secs(30);
const DEFAULT_CONNECT_TIMEOUT_HTTP: Duration = Duration::from_secs(5);
const DEFAULT_TOOL_TIMEOUT: Duration = Duration::from_secs(30);
/// Proxies commonly end connections that are idle for a minute.
const DEFAULT_KEEP_ALIVE: Duration = Duration::from_secs(20);
const DEFAULT_MAX_CONCURRENT_CALLS: usize = 64;
/// More would only queue inside the upstream.
const MAX_CONCURRENT_CALLS: usize = 4096;
/// A longer timeout is a mistake in the unit.
const MAX_TIMEOUT_SECONDS: f64 = 86_400.0;
/// A page of text: what an upstream gets of the model unless its configuration says otherwise.
const DEFAULT_SAMPLING_MAX_TOKENS: u32 = 512;
/// Everything the gateway is configured with, checked.
#[derive(Debug, Clone, Default)]
pub struct GatewayConfig {
    /// In configuration order, which is the order in which their tools are listed.
    pub upstreams: Vec<UpstreamConfig>,
    /// How upstream tools are named.
    pub naming: NamingConfig,
    /// Which tools may be listed and called.
    pub access: AccessPolicy,
    /// Whether upstream tools are listed, or found by a search.
    pub listing: ToolListing,
}

/// How clients learn of upstream tools.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ToolListing {
    /// `tools/list` has all of them.
    #[default]
    Whole,
    /// `tools/list` has `search_tools` in their place.
    Searched,
}

/// How upstream tools are named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamingConfig {
    /// With or without their namespace.
    pub strategy: NamespaceStrategy,
    /// What stands between the two.
    pub separator: Separator,
    /// Names that stand above the strategy.
    pub aliases: Aliases,
}

/// An upstream's name from the configuration, never from what it says of itself.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamId(Arc<str>);

/// What stands before an upstream's tool names; may be empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Namespace(Arc<str>);

/// One upstream.
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamConfig {
    /// Its name.
    pub id: UpstreamId,
    /// What stands before its tool names.
    pub namespace: Namespace,
    /// How it is reached.
    pub transport: TransportConfig,
    /// Which of the protocol's eras it speaks, or that this is to be found out.
    pub protocol: ProtocolEra,
    /// For connecting, handshake and first listing together.
    pub connect_timeout: Duration,
    /// For one call.
    pub tool_timeout: Duration,
    /// Calls that run at once; more wait, until their deadline.
    pub max_concurrent_calls: usize,
    /// Of a WebSocket: after such a silence the server is asked whether it is there, and after two it is given up.
    pub keep_alive: Duration,
    /// Who answers when it asks for a completion.
    pub sampling: SamplingConfig,
}

/// Who answers an upstream that asks for a completion, and how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SamplingConfig {
    /// Who.
    pub mode: SamplingMode,
    /// Tokens of an answer of the local model.
    pub max_tokens: u32,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self { mode: SamplingMode::default(), max_tokens: DEFAULT_SAMPLING_MAX_TOKENS }
    }
}

/// How an upstream is reached.
#[derive(Debug, Clone, PartialEq)]
pub enum TransportConfig {
    /// A child process.
    Stdio(StdioConfig),
    /// A URL.
    StreamableHttp(HttpConfig),
    /// A URL of the transport of 2024-11-05.
    LegacySse(HttpConfig),
    /// A `ws://` or `wss://` URL.
    WebSocket(HttpConfig),
}

/// A child process that speaks one JSON-RPC message a line.
#[derive(Debug, Clone, PartialEq)]
pub struct StdioConfig {
    /// Program, found in `PATH`.
    pub command: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Added to its environment.
    pub env: BTreeMap<String, Secret>,
    /// Its working directory.
    pub cwd: Option<PathBuf>,
}

impl GatewayConfig {
    /// Checks both sections. An absent one has its defaults; with `enabled = false` in either, everything is still
    /// checked and no upstream is connected.
    ///
    /// # Errors
    /// [`ConfigError`], with the dotted path of the key.
    pub fn from_sections(
        mcp_client: Option<McpClientConfig>,
        tool_forwarding: Option<ToolForwardingConfig>,
    ) -> Result<Self, ConfigError> {
        let mcp_client = mcp_client.unwrap_or_default();
        let mut forwarding = tool_forwarding.unwrap_or_default();
        refuse_unsupported(&forwarding)?;
        let naming = check_naming(&mut forwarding, &mcp_client.servers)?;
        let access =
            AccessPolicy::new(&forwarding.security).map_err(|error| error.within("tool_forwarding.security"))?;
        let mut upstreams = check_servers(mcp_client.servers)?;
        if !(mcp_client.enabled && forwarding.enabled) {
            upstreams.clear();
        }
        if !upstreams.is_empty() && !cfg!(feature = "tool-forwarding") {
            return Err(ConfigError::not_supported(
                "mcp_client.servers",
                "connecting upstream servers (this program was built without the feature `tool-forwarding`)",
            ));
        }
        let listing = if forwarding.search.as_tool { ToolListing::Searched } else { ToolListing::Whole };
        Ok(Self { upstreams, naming, access, listing })
    }
}

impl UpstreamId {
    /// As the configuration has it.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// For labels and messages.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UpstreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for UpstreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl Namespace {
    /// As the configuration has it.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// For names.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl UpstreamConfig {
    /// With all defaults.
    pub fn new(name: &str, transport: TransportConfig) -> Self {
        let connect_timeout = match transport {
            TransportConfig::Stdio(_) => DEFAULT_CONNECT_TIMEOUT_STDIO,
            TransportConfig::StreamableHttp(_) | TransportConfig::LegacySse(_) | TransportConfig::WebSocket(_) => {
                DEFAULT_CONNECT_TIMEOUT_HTTP
            }
        };
        Self {
            id: UpstreamId::new(name),
            namespace: Namespace::new(name),
            transport,
            protocol: ProtocolEra::default(),
            connect_timeout,
            tool_timeout: DEFAULT_TOOL_TIMEOUT,
            max_concurrent_calls: DEFAULT_MAX_CONCURRENT_CALLS,
            keep_alive: DEFAULT_KEEP_ALIVE,
            sampling: SamplingConfig::default(),
        }
    }
}

fn refuse_unsupported(forwarding: &ToolForwardingConfig) -> Result<(), ConfigError> {
    let refuse = |key: &str, feature| Err(ConfigError::not_supported(format!("tool_forwarding.{key}"), feature));
    if forwarding.rate_limit.is_some() {
        return refuse("rate_limit", "a rate limit per tool");
    }
    if forwarding.cache.is_some() {
        return refuse("cache", "caching of tool results");
    }
    Ok(())
}

fn check_naming(forwarding: &mut ToolForwardingConfig, servers: &[ServerConfig]) -> Result<NamingConfig, ConfigError> {
    let aliases = Aliases::check(std::mem::take(&mut forwarding.aliases), servers);
    let aliases = aliases.map_err(|error| error.within("tool_forwarding.aliases"))?;
    let (strategy, separator) = (forwarding.namespace_strategy, forwarding.separator);
    if strategy == NamespaceStrategy::Custom && aliases.is_empty() {
        let reason = "`custom` takes names from `[tool_forwarding.aliases]`, which has none";
        return Err(ConfigError::invalid("tool_forwarding.namespace_strategy", reason));
    }
    Ok(NamingConfig { strategy, separator, aliases })
}

fn check_servers(servers: Vec<ServerConfig>) -> Result<Vec<UpstreamConfig>, ConfigError> {
    if servers.len() > MAX_SERVERS {
        return Err(ConfigError::invalid("mcp_client.servers", format!("more than {MAX_SERVERS} servers")));
    }
    let mut seen = HashMap::new();
    let mut upstreams = Vec::new();
    for (index, server) in servers.into_iter().enumerate() {
        let at = format!("mcp_client.servers[{index}] ({})", server.name);
        let is_enabled = server.enabled;
        let upstream = check_server(server).map_err(|error| error.within(&at))?;
        check_unique(&upstream, &mut seen).map_err(|error| error.within(&at))?;
        if is_enabled {
            upstreams.push(upstream);
        }
    }
    Ok(upstreams)
}

/// `seen` holds names and namespaces alike: a name that is another's namespace would make tool names ambiguous.
fn check_unique(upstream: &UpstreamConfig, seen: &mut HashMap<String, UpstreamId>) -> Result<(), ConfigError> {
    let (name, namespace) = (upstream.id.as_str(), upstream.namespace.as_str());
    for (key, value) in [("name", name), ("namespace", namespace)] {
        if value.is_empty() || (key == "namespace" && value == name) {
            continue;
        }
        if let Some(other) = seen.insert(value.to_owned(), upstream.id.clone()) {
            return Err(ConfigError::invalid(key, format!("`{value}` is taken by server `{other}`")));
        }
    }
    Ok(())
}

fn check_server(server: ServerConfig) -> Result<UpstreamConfig, ConfigError> {
    check_name("name", &server.name)?;
    let namespace = server.namespace();
    if !namespace.is_empty() {
        check_name("namespace", namespace)?;
    }
    let namespace = Namespace::new(namespace);
    let connect_timeout = check_timeout("connect_timeout_seconds", server.connect_timeout_seconds)?;
    let tool_timeout = check_timeout("tool_timeout_seconds", server.tool_timeout_seconds)?;
    let keep_alive = check_timeout("keep_alive_seconds", server.keep_alive_seconds)?;
    let max_concurrent_calls = server.max_concurrent_calls.unwrap_or(DEFAULT_MAX_CONCURRENT_CALLS);
    if !(1..=MAX_CONCURRENT_CALLS).contains(&max_concurrent_calls) {
        return Err(ConfigError::invalid("max_concurrent_calls", format!("must be 1 to {MAX_CONCURRENT_CALLS}")));
    }
    let sampling = check_sampling(&server)?;
    let (name, protocol) = (server.name.clone(), server.protocol);
    let defaults = UpstreamConfig::new(&name, check_transport(server)?);
    if keep_alive.is_some() && !matches!(defaults.transport, TransportConfig::WebSocket(_)) {
        return Err(ConfigError::invalid("keep_alive_seconds", "is for the transport `websocket` only"));
    }
    Ok(UpstreamConfig {
        namespace,
        protocol,
        connect_timeout: connect_timeout.unwrap_or(defaults.connect_timeout),
        tool_timeout: tool_timeout.unwrap_or(defaults.tool_timeout),
        max_concurrent_calls,
        keep_alive: keep_alive.unwrap_or(defaults.keep_alive),
        sampling,
        ..defaults
    })
}

fn check_sampling(server: &ServerConfig) -> Result<SamplingConfig, ConfigError> {
    let defaults = SamplingConfig::default();
    match (server.sampling_max_tokens, server.sampling) {
        (Some(0), _) => Err(ConfigError::invalid("sampling_max_tokens", "must be at least 1")),
        (Some(_), mode) if mode != SamplingMode::Local => {
            Err(ConfigError::invalid("sampling_max_tokens", "is of use with `sampling = \"local\"` only"))
        }
        (max_tokens, mode) => Ok(SamplingConfig { mode, max_tokens: max_tokens.unwrap_or(defaults.max_tokens) }),
    }
}

fn check_name(key: &str, name: &str) -> Result<(), ConfigError> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > MAX_NAME_LENGTH || !name.chars().all(is_allowed) {
        return Err(ConfigError::invalid(
            key,
            format!("must be 1 to {MAX_NAME_LENGTH} of A-Z a-z 0-9 _ -, got `{name}`"),
        ));
    }
    if name == NATIVE_NAMESPACE {
        return Err(ConfigError::invalid(key, format!("`{NATIVE_NAMESPACE}` is the namespace of the native tools")));
    }
    Ok(())
}

fn check_timeout(key: &str, seconds: Option<f64>) -> Result<Option<Duration>, ConfigError> {
    match seconds {
        None => Ok(None),
        Some(seconds) if seconds > 0.0 && seconds <= MAX_TIMEOUT_SECONDS => Ok(Some(Duration::from_secs_f64(seconds))),
        Some(_) => {
            Err(ConfigError::invalid(key, format!("must be more than 0 and at most {MAX_TIMEOUT_SECONDS} seconds")))
        }
    }
}

fn check_transport(server: ServerConfig) -> Result<TransportConfig, ConfigError> {
    let transport = match (server.transport, &server.command, &server.url) {
        (_, Some(_), Some(_)) => return Err(ConfigError::invalid("url", "a server has `command` or `url`, not both")),
        (None, None, None) => return Err(ConfigError::invalid("command", "a server needs `command` or `url`")),
        (Some(TransportName::Stdio) | None, Some(_), None) => TransportName::Stdio,
        // mistral.rs's files and many others tell by the URL alone.
        (None | Some(TransportName::Http), None, Some(url)) if is_web_socket(url) => TransportName::WebSocket,
        (None, None, Some(_)) => TransportName::Http,
        (Some(transport), None, Some(_)) if transport != TransportName::Stdio => transport,
        (Some(TransportName::Stdio), ..) => {
            return Err(ConfigError::invalid("command", "the transport `stdio` needs it"));
        }
        (Some(_), ..) => return Err(ConfigError::invalid("url", "this transport needs it")),
    };
    match transport {
        TransportName::Stdio => check_stdio(server),
        TransportName::Http => endpoint::check(server, ["http", "https"]).map(TransportConfig::StreamableHttp),
        TransportName::Sse => endpoint::check(server, ["http", "https"]).map(TransportConfig::LegacySse),
        TransportName::WebSocket => endpoint::check(server, ["ws", "wss"]).map(TransportConfig::WebSocket),
    }
}

fn check_stdio(server: ServerConfig) -> Result<TransportConfig, ConfigError> {
    if !server.headers.is_empty() || server.auth.is_some() {
        let key = if server.auth.is_some() { "auth" } else { "headers" };
        return Err(ConfigError::invalid(key, "a child process has none; give it what it needs in `env`"));
    }
    let command = server.command.unwrap_or_default();
    if command.trim().is_empty() {
        return Err(ConfigError::invalid("command", "must name a program"));
    }
    let strings = server.args.iter().chain(server.env.keys()).chain([&command]);
    if strings.into_iter().any(|text| text.contains('\0')) {
        return Err(ConfigError::invalid("command", "contains a zero byte"));
    }
    if let Some(key) = server.env.keys().find(|key| key.is_empty() || key.contains('=')) {
        return Err(ConfigError::invalid("env", format!("`{key}` cannot be the name of a variable")));
    }
    Ok(TransportConfig::Stdio(StdioConfig { command, args: server.args, env: server.env, cwd: server.cwd }))
}

fn is_web_socket(url: &str) -> bool {
    url.starts_with("ws://") || url.starts_with("wss://")
}

#[cfg(test)]
#[cfg(not(feature = "tool-forwarding"))]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_forwarding_refuses_servers_and_says_why() {
        let server = ServerConfig { command: Some("x".into()), ..ServerConfig::named("a") };
        let section = McpClientConfig { servers: vec![server], ..McpClientConfig::default() };
        let error = GatewayConfig::from_sections(Some(section.clone()), None).unwrap_err();
        assert!(error.to_string().contains("built without the feature `tool-forwarding`"), "{error}");
        let disabled = McpClientConfig { enabled: false, ..section };
        GatewayConfig::from_sections(Some(disabled), None).unwrap();
        GatewayConfig::from_sections(None, None).unwrap();
    }
}
