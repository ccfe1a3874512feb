//! Where a file holds its servers, and in whose words: the same question that reading it asks.

use mistralrs_mcp::config::FileFormat;
use serde_json::Value;

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileRole {
    /// `--mcp-config`: servers and nothing else.
    Servers,
    /// `--config`: servers among everything else.
    Everything,
}

/// A format that can be edited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    /// A list of servers in our own words, at this place.
    List {
        /// Keys from the root.
        path: &'static [&'static str],
    },
    /// mistral.rs's list: `servers[].source`.
    MistralRs,
    /// Desktop clients' and editors' table of servers by name.
    ByName {
        /// Its key.
        key: &'static str,
    },
}

const SECTION: Shape = Shape::List { path: &["mcp_client", "servers"] };

impl Shape {
    /// Of a file with this content.
    ///
    /// # Errors
    /// A sentence, for a format that is read but not edited.
    pub fn of(root: &Value, role: FileRole, format: FileFormat) -> Result<Self, String> {
        if role == FileRole::Everything || root.get("mcp_client").is_some() {
            return Ok(SECTION);
        }
        if root.get("mcpServers").is_some() {
            return Ok(Self::ByName { key: "mcpServers" });
        }
        match root.get("servers") {
            Some(Value::Object(_)) => Ok(Self::ByName { key: "servers" }),
            Some(Value::Array(servers)) if has(servers, "source") => Ok(Self::MistralRs),
            Some(Value::Array(servers))
                if has(servers, "id") || root.get("roles").is_some() || root.get("proxy").is_some() =>
            {
                Err("the aggregator's format is read, but not edited".to_owned())
            }
            None if format == FileFormat::Json => Ok(Self::ByName { key: "mcpServers" }),
            Some(_) | None => Ok(Self::List { path: &["servers"] }),
        }
    }

    /// Keys from the root to the servers.
    pub fn path(&self) -> &[&'static str] {
        match self {
            Self::List { path } => path,
            Self::MistralRs => &["servers"],
            Self::ByName { key } => std::slice::from_ref(key),
        }
    }

    /// The names of all servers in `root`.
    pub fn names(&self, root: &Value) -> Vec<String> {
        let servers = self.path().iter().try_fold(root, |value, key| value.get(key));
        match servers {
            Some(Value::Object(servers)) => servers.keys().cloned().collect(),
            Some(Value::Array(servers)) => servers.iter().filter_map(name_of).map(str::to_owned).collect(),
            _ => Vec::new(),
        }
    }
}

/// Of an entry of a list: mistral.rs's `id` wins over its `name`.
pub(super) fn name_of(server: &Value) -> Option<&str> {
    server.get("id").or_else(|| server.get("name")).and_then(Value::as_str)
}

fn has(servers: &[Value], key: &str) -> bool {
    servers.iter().any(|server| server.get(key).is_some())
}
