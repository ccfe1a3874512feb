//! The gateway's part of the configuration: its own crate knows the keys, this file finds them.

use mistralrs_mcp::config::{self as mcp, GatewayConfig, McpClientConfig, ToolForwardingConfig, mcp_config_from_value};
use serde_json::Value;

use super::source::SourceFile;
use super::{ConfigError, Configuration, HttpMcpConfig, McpSettings};

impl Configuration {
    /// The endpoint with its gateway. Both sections are checked even if nothing is served.
    pub(super) fn mcp(&self, http: Option<HttpMcpConfig>) -> Result<Option<McpSettings>, ConfigError> {
        let gateway = self.gateway()?;
        match http {
            Some(http) => Ok(Some(McpSettings { http, gateway })),
            None if gateway.upstreams.is_empty() => Ok(None),
            None => Err(ConfigError::Invalid(
                "upstream MCP servers are configured, but nothing would serve their tools: give --http-mcp-port PORT, \
                 set `http_mcp.enabled = true`, or set `mcp_client.enabled = false`"
                    .to_owned(),
            )),
        }
    }

    /// The upstream servers alone, for commands that serve nothing: `[mcp_client]` first, then those of `--mcp-config`.
    ///
    /// # Errors
    /// A key that is unknown or wrong, with its file.
    pub fn gateway(&self) -> Result<GatewayConfig, ConfigError> {
        let in_file = |error: mcp::ConfigError| in_source(self.source.as_ref(), &error);
        let section = self.file.mcp_client.clone().map(|section| McpClientConfig::from_value(Value::Object(section)));
        let section = section.transpose().map_err(in_file)?;
        let servers = self.servers_of_mcp_config()?;
        let client = match (section, servers) {
            (Some(section), Some(servers)) => Some(section.merge(servers)),
            (section, servers) => section.or(servers),
        };
        let forwarding =
            self.file.tool_forwarding.clone().map(|section| ToolForwardingConfig::from_value(Value::Object(section)));
        GatewayConfig::from_sections(client, forwarding.transpose().map_err(in_file)?).map_err(in_file)
    }

    /// Those of `--mcp-config`. Checked on their own, so that a complaint is about that file.
    fn servers_of_mcp_config(&self) -> Result<Option<McpClientConfig>, ConfigError> {
        let Some((source, servers)) = &self.mcp_config else { return Ok(None) };
        let environment = |name: &str| self.environment.get(name).map(str::to_owned);
        let servers = mcp_config_from_value(servers.clone(), &environment);
        let checked = servers.and_then(|servers| {
            GatewayConfig::from_sections(Some(servers.clone()), None)?;
            Ok(Some(servers))
        });
        checked.map_err(|error| in_source(Some(source), &error))
    }
}

fn in_source(source: Option<&SourceFile>, error: &mcp::ConfigError) -> ConfigError {
    let origin = source.map(|source| source.place(error.path().unwrap_or_default()));
    ConfigError::Invalid(origin.map_or_else(|| error.to_string(), |origin| format!("{origin}: {error}")))
}
