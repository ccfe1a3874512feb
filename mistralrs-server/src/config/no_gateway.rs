//! In a build without the gateway its keys are refused: a configuration that is silently half served is worse than none.

use serde_json::{Map, Value};

use super::{ConfigError, Configuration, HttpMcpConfig};

impl Configuration {
    /// Refuses what would need the Cargo feature `http-mcp-stream`.
    pub(super) fn refuse_mcp(&self, http: Option<&HttpMcpConfig>) -> Result<(), ConfigError> {
        let is_wanted = |section: &Option<Map<String, Value>>| {
            section.as_ref().is_some_and(|section| section.get("enabled") != Some(&Value::Bool(false)))
        };
        let sections = [
            ("http_mcp", http.is_some()),
            ("mcp_client", is_wanted(&self.file.mcp_client)),
            ("tool_forwarding", is_wanted(&self.file.tool_forwarding)),
        ];
        match sections.into_iter().find(|(_, is_wanted)| *is_wanted) {
            Some((section, _)) => Err(ConfigError::Invalid(format!(
                "this build has no MCP gateway (Cargo feature `http-mcp-stream`); set `{section}.enabled = false`"
            ))),
            None => Ok(()),
        }
    }
}
