//! The gateway's part of the configuration: its own crate knows the keys, this file finds them.

use mistralrs_mcp::config::{self as mcp, GatewayConfig, McpClientConfig, ToolForwardingConfig, mcp_config_from_value};
use serde_json::Value;

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
        let in_file = |error: mcp::ConfigError| {
            let origin = self.path.as_ref().map_or_else(String::new, |path| format!("{}: ", path.display()));
            ConfigError::Invalid(format!("{origin}{error}"))
        };
        let section = self.file.mcp_client.clone().map(|section| McpClientConfig::from_value(Value::Object(section)));
        let section = section.transpose().map_err(in_file)?;
        let servers = match &self.mcp_config {
            Some((path, servers)) => {
                let environment = |name: &str| self.environment.get(name).map(str::to_owned);
                let servers = mcp_config_from_value(servers.clone(), &environment);
                Some(servers.map_err(|error| ConfigError::Invalid(format!("{}: {error}", path.display())))?)
            }
            None => None,
        };
        let client = match (section, servers) {
            (Some(section), Some(servers)) => Some(section.merge(servers)),
            (section, servers) => section.or(servers),
        };
        let forwarding =
            self.file.tool_forwarding.clone().map(|section| ToolForwardingConfig::from_value(Value::Object(section)));
        GatewayConfig::from_sections(client, forwarding.transpose().map_err(in_file)?).map_err(in_file)
    }
}
