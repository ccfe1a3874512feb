//! Files that people have from other programs, read as they are. What such a file asks for and this version does not
//! do is refused by name; only keys that mean nothing outside their own program are passed over.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::ConfigError;
use super::auth::AuthConfig;
use super::checked::MAX_NAME_LENGTH;
use super::file::typed;
use super::interpolate::Environment;
use super::sections::{McpClientConfig, Secret, ServerConfig, TransportName};

/// mistral.rs's MCP client file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MistralRsFile {
    servers: Vec<MistralRsServer>,
    auto_register_tools: Option<bool>,
    tool_timeout_secs: Option<f64>,
    /// There over all servers together; here it is each server's limit.
    max_concurrent_calls: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MistralRsServer {
    id: Option<String>,
    name: String,
    source: MistralRsSource,
    #[serde(default = "yes")]
    enabled: bool,
    tool_prefix: Option<String>,
    resources: Option<Vec<String>>,
    bearer_token: Option<Secret>,
}

/// All keys of all types: serde names the key of a wrong value only in a plain struct.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MistralRsSource {
    #[serde(rename = "type")]
    kind: MistralRsTransport,
    url: Option<String>,
    timeout_secs: Option<f64>,
    headers: Option<BTreeMap<String, Secret>>,
    command: Option<String>,
    args: Option<Vec<String>>,
    work_dir: Option<PathBuf>,
    env: Option<BTreeMap<String, Secret>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
enum MistralRsTransport {
    Http,
    Process,
    WebSocket,
}

/// One entry of a desktop client's `mcpServers` (or an editor's `servers`) object.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DesktopServer {
    #[serde(rename = "type", alias = "transport")]
    transport: Option<TransportName>,
    command: Option<String>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, Secret>,
    cwd: Option<PathBuf>,
    #[serde(alias = "serverUrl", alias = "httpUrl")]
    url: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, Secret>,
    #[serde(default)]
    disabled: bool,
    /// What the client's own user interface asks or shows: nobody is asked here, so these change nothing.
    #[serde(rename = "autoApprove", alias = "alwaysAllow", alias = "description", alias = "icon")]
    _shown_to_people: Option<Value>,
}

/// The aggregator's file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AggregatorFile {
    servers: Vec<AggregatorServer>,
    proxy: Option<Value>,
    roles: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AggregatorServer {
    id: String,
    /// For people; the id names its tools.
    #[serde(rename = "name")]
    _name: Option<String>,
    transport: Option<TransportName>,
    command: Option<String>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, Secret>,
    url: Option<String>,
    auth: Option<AggregatorAuth>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum AggregatorAuth {
    None,
    Bearer { token_env: String },
}

/// `servers[]` with `source: {type: Process|Http|WebSocket}`. Their `tool_prefix` becomes the namespace.
pub(super) fn mistral_rs(file: Value) -> Result<McpClientConfig, ConfigError> {
    let file: MistralRsFile = typed(file, "")?;
    if file.auto_register_tools == Some(false) {
        return Err(ConfigError::not_supported(
            "auto_register_tools",
            "connecting servers without listing their tools",
        ));
    }
    let defaults = ServerConfig {
        tool_timeout_seconds: file.tool_timeout_secs,
        max_concurrent_calls: file.max_concurrent_calls,
        ..ServerConfig::named("")
    };
    let servers = file.servers.into_iter().enumerate();
    let servers = servers.map(|(index, server)| {
        mistral_rs_server(server, &defaults).map_err(|error| error.within(&format!("servers[{index}]")))
    });
    Ok(McpClientConfig { enabled: true, servers: servers.collect::<Result<_, _>>()? })
}

fn mistral_rs_server(server: MistralRsServer, defaults: &ServerConfig) -> Result<ServerConfig, ConfigError> {
    if server.resources.is_some_and(|resources| !resources.is_empty()) {
        return Err(ConfigError::not_supported("resources", "forwarding of resources"));
    }
    let source = server.source;
    let is_process = source.kind == MistralRsTransport::Process;
    let misplaced =
        if is_process { source.url.as_ref().map(|_| "url") } else { source.command.as_ref().map(|_| "command") };
    if let Some(key) = misplaced {
        return Err(ConfigError::invalid(format!("source.{key}"), "belongs to another `type` of source"));
    }
    Ok(ServerConfig {
        name: name_from(server.id.as_deref().unwrap_or(&server.name)),
        enabled: server.enabled,
        namespace: server.tool_prefix,
        // A WebSocket is told by its URL, `ws://` or `wss://`.
        transport: Some(if is_process { TransportName::Stdio } else { TransportName::Http }),
        command: source.command,
        args: source.args.unwrap_or_default(),
        cwd: source.work_dir,
        env: source.env.unwrap_or_default(),
        url: source.url,
        headers: source.headers.unwrap_or_default(),
        // A process has none; theirs passes it over.
        auth: server.bearer_token.filter(|_| !is_process).map(|token| AuthConfig::Bearer { token }),
        tool_timeout_seconds: defaults.tool_timeout_seconds.or(source.timeout_secs),
        ..defaults.clone()
    })
}

/// An object of servers by name, under `key`.
pub(super) fn desktop(mut root: Map<String, Value>, key: &str) -> Result<McpClientConfig, ConfigError> {
    let entries: Map<String, Value> = typed(root.remove(key).unwrap_or_default(), key)?;
    if let Some(other) = root.keys().next() {
        return Err(ConfigError::invalid(other, format!("this key is not known beside `{key}`")));
    }
    let servers = entries.into_iter().map(|(name, entry)| {
        let server: DesktopServer = typed(entry, &format!("{key}.{name}"))?;
        Ok(ServerConfig {
            enabled: !server.disabled,
            transport: server.transport,
            command: server.command,
            args: server.args,
            env: server.env,
            cwd: server.cwd,
            url: server.url,
            headers: server.headers,
            ..ServerConfig::named(name_from(&name))
        })
    });
    Ok(McpClientConfig { enabled: true, servers: servers.collect::<Result<_, _>>()? })
}

/// `servers[]` with `id` and `transport`.
pub(super) fn aggregator(file: Value, environment: &Environment<'_>) -> Result<McpClientConfig, ConfigError> {
    let file: AggregatorFile = typed(file, "")?;
    if file.roles.is_some() {
        return Err(ConfigError::not_supported("roles", "access by role"));
    }
    if file.proxy.is_some() {
        return Err(ConfigError::not_supported("proxy", "the listener's address in this file (use --http-mcp-port)"));
    }
    let servers = file.servers.into_iter().enumerate().map(|(index, server)| {
        let auth = match server.auth {
            Some(AggregatorAuth::Bearer { token_env }) => {
                let path = format!("servers[{index}].auth.token_env");
                let token = environment(&token_env).ok_or(ConfigError::UnsetVariable { path, variable: token_env })?;
                Some(AuthConfig::Bearer { token: Secret::new(token) })
            }
            Some(AggregatorAuth::None) | None => None,
        };
        Ok(ServerConfig {
            transport: server.transport,
            command: server.command,
            args: server.args,
            env: server.env,
            url: server.url,
            auth,
            ..ServerConfig::named(name_from(&server.id))
        })
    });
    Ok(McpClientConfig { enabled: true, servers: servers.collect::<Result<_, _>>()? })
}

/// Other programs allow any text as a name ("Web Search"); ours goes into tool names.
fn name_from(text: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    text.trim().chars().take(MAX_NAME_LENGTH).map(allowed).collect()
}

fn yes() -> bool {
    true
}
