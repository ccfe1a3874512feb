//! Reading a file of upstream servers (`--mcp-config`), whoever's format it is in.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::ConfigError;
use super::foreign;
use super::interpolate::{Environment, interpolate};
use super::sections::{McpClientConfig, ToolForwardingConfig};

/// A key further than this from every known one is not worth a suggestion (Jaro-Winkler, 1 is equal).
const MIN_SIMILARITY: f64 = 0.75;

/// The syntax of a configuration file. Which program's keys it holds is found out from the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// `.toml`
    Toml,
    /// `.json`
    Json,
    /// `.yaml`, `.yml`
    Yaml,
}

impl FileFormat {
    /// By the file's extension.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] for any other.
    pub fn from_path(path: &Path) -> Result<Self, ConfigError> {
        match path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("toml") => Ok(Self::Toml),
            Some("json") => Ok(Self::Json),
            Some("yaml" | "yml") => Ok(Self::Yaml),
            _ => Err(ConfigError::invalid(
                path.display().to_string(),
                "the name must end in .toml, .json, .yaml or .yml",
            )),
        }
    }

    fn parse(self, text: &str) -> Result<Value, ConfigError> {
        let syntax = |format, message| ConfigError::Syntax { format, message };
        match self {
            Self::Toml => toml::from_str(text).map_err(|error| syntax("TOML", error.to_string())),
            Self::Json => serde_json::from_str(text).map_err(|error| syntax("JSON", error.to_string())),
            Self::Yaml => serde_saphyr::from_str(text).map_err(|error| syntax("YAML", error.to_string())),
        }
    }
}

/// Reads upstream servers from `text`, in one of four shapes, each in any of the three syntaxes:
/// ours (`[[mcp_client.servers]]` or `[[servers]]`), mistral.rs's (`servers[].source`), desktop clients'
/// (`mcpServers`), and the aggregator's (`servers[].id` with `transport`).
///
/// # Errors
/// [`ConfigError`], with the dotted path of the key.
pub fn parse_mcp_config(
    text: &str,
    format: FileFormat,
    environment: &Environment<'_>,
) -> Result<McpClientConfig, ConfigError> {
    let mut value = format.parse(text)?;
    interpolate(&mut value, environment)?;
    mcp_config_from_value(value, environment)
}

/// The same for a value that is parsed and interpolated already. `environment` answers keys that hold the name of a
/// variable (`token_env`).
///
/// # Errors
/// [`ConfigError`], with the dotted path of the key.
pub fn mcp_config_from_value(value: Value, environment: &Environment<'_>) -> Result<McpClientConfig, ConfigError> {
    let Value::Object(mut root) = value else {
        return Err(ConfigError::invalid("servers", "the file must be a table of servers"));
    };
    if let Some(section) = root.remove("mcp_client") {
        refuse_others(&root, "mcp_client")?;
        return McpClientConfig::from_value(section);
    }
    match root.get("servers") {
        _ if root.contains_key("mcpServers") => foreign::desktop(root, "mcpServers"),
        Some(Value::Object(_)) => foreign::desktop(root, "servers"),
        Some(Value::Array(servers)) if has(servers, "source") => foreign::mistral_rs(Value::Object(root)),
        Some(Value::Array(servers))
            if has(servers, "id") || root.contains_key("roles") || root.contains_key("proxy") =>
        {
            foreign::aggregator(Value::Object(root), environment)
        }
        Some(_) => typed(Value::Object(root), ""),
        None => Err(ConfigError::invalid(
            "servers",
            "missing; the file needs `[[servers]]`, `[[mcp_client.servers]]` or `mcpServers`",
        )),
    }
}

impl McpClientConfig {
    /// The section `[mcp_client]`.
    ///
    /// # Errors
    /// [`ConfigError`], with a path that begins with `mcp_client`.
    pub fn from_value(section: Value) -> Result<Self, ConfigError> {
        typed(section, "mcp_client")
    }
}

impl ToolForwardingConfig {
    /// The section `[tool_forwarding]`.
    ///
    /// # Errors
    /// [`ConfigError`], with a path that begins with `tool_forwarding`.
    pub fn from_value(section: Value) -> Result<Self, ConfigError> {
        typed(section, "tool_forwarding")
    }
}

fn has(servers: &[Value], key: &str) -> bool {
    servers.iter().any(|server| server.get(key).is_some())
}

fn refuse_others(root: &Map<String, Value>, known: &str) -> Result<(), ConfigError> {
    match root.keys().next() {
        Some(key) if key == "tool_forwarding" => Err(ConfigError::invalid(
            key,
            "belongs into the server's configuration (--config), beside `mcp_client`; this file holds servers only",
        )),
        Some(key) => Err(ConfigError::UnknownKey { path: key.clone(), nearest: nearest(key, &[known]) }),
        None => Ok(()),
    }
}

/// Reads `value` as a `T`; errors name the key below `prefix` and, for an unknown one, its nearest neighbour.
pub(super) fn typed<T: DeserializeOwned>(value: Value, prefix: &str) -> Result<T, ConfigError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let message = error.inner().to_string();
        let path = match error.path().to_string() {
            path if path == "." => String::new(),
            path => path,
        };
        explain(&path, &message).within(prefix)
    })
}

/// serde tells an unknown key, and those that it knows, only in the text of its message.
fn explain(path: &str, message: &str) -> ConfigError {
    let mut quoted = message.split('`').skip(1).step_by(2);
    match (message.starts_with("unknown field"), quoted.next()) {
        (true, Some(key)) => {
            let known: Vec<&str> = quoted.collect();
            let path = match path {
                "" => key.to_owned(),
                path if path == key || path.ends_with(&format!(".{key}")) => path.to_owned(),
                path => format!("{path}.{key}"),
            };
            ConfigError::UnknownKey { path, nearest: nearest(key, &known) }
        }
        _ => ConfigError::invalid(path, message),
    }
}

pub(super) fn nearest(key: &str, known: &[&str]) -> Option<String> {
    let likeness = |candidate: &str| strsim::jaro_winkler(&key.to_ascii_lowercase(), &candidate.to_ascii_lowercase());
    known
        .iter()
        .map(|candidate| (likeness(candidate), *candidate))
        .filter(|(likeness, _)| *likeness >= MIN_SIMILARITY)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, candidate)| candidate.to_owned())
}
