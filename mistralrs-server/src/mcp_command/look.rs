//! `mcp list`, `mcp search`, `mcp test` and `mcp logs`: the gateway for one look, without a port.

use std::fmt::Write;

use mistralrs_mcp::config::{GatewayConfig, ToolListing};
use mistralrs_mcp::{Detail, Gateway, GatewayError, GatewayMetrics, Principal, ToolQuery};
use prometheus::Registry;

use super::edit::among;
use crate::cli::McpCommand;
use crate::process::next_signal;

/// Tools that a search prints.
const MAX_FOUND: usize = 20;

/// What a command found.
#[derive(Debug)]
pub struct Report {
    /// For standard output.
    pub text: String,
    /// Servers that could not be connected, if that is what was asked.
    pub num_failed: usize,
}

/// No server has the name that was asked for.
#[derive(Debug, thiserror::Error)]
#[error("there is no server `{name}`{}", among(name, known))]
pub struct UnknownServer {
    name: String,
    known: Vec<String>,
}

/// Leaves out what `command` does not ask for.
///
/// # Errors
/// [`UnknownServer`].
pub fn select(command: &McpCommand, config: &mut GatewayConfig) -> Result<(), UnknownServer> {
    let McpCommand::Logs { names } = command else { return Ok(()) };
    let known: Vec<String> = config.upstreams.iter().map(|upstream| upstream.id.to_string()).collect();
    if let Some(name) = names.iter().find(|name| !known.contains(name)) {
        return Err(UnknownServer { name: name.clone(), known });
    }
    config.upstreams.retain(|upstream| names.is_empty() || names.iter().any(|name| name == upstream.id.as_str()));
    Ok(())
}

/// Connects the servers, looks, and disconnects them: children have ended when it returns.
///
/// # Errors
/// [`GatewayError`], if there can be no gateway. A server that cannot be connected is part of the report.
pub async fn run(command: &McpCommand, mut config: GatewayConfig) -> Result<Report, GatewayError> {
    // People read all of a list.
    config.listing = ToolListing::Whole;
    let gateway = Gateway::start(config, None, GatewayMetrics::register(&Registry::new())).await?;
    let report = match command {
        McpCommand::Logs { .. } => {
            // What they say from now on is in the log.
            eprint!("{}", test(&gateway).text);
            next_signal().await;
            Report { text: String::new(), num_failed: 0 }
        }
        // The others do not come here.
        McpCommand::Test | McpCommand::Serve { .. } | McpCommand::Add(_) | McpCommand::Remove { .. } => test(&gateway),
        McpCommand::List => Report { text: list(&gateway), num_failed: 0 },
        McpCommand::Search { words, full } => {
            let detail = if *full { Detail::Full } else { Detail::Summary };
            let query = ToolQuery { query: words.join(" "), detail, limit: MAX_FOUND };
            Report { text: search(&gateway, &query), num_failed: 0 }
        }
    };
    gateway.shutdown().await;
    Ok(report)
}

/// A line for each server.
fn test(gateway: &Gateway) -> Report {
    let upstreams = gateway.upstreams();
    let mut text = String::new();
    for upstream in &upstreams {
        let outcome = upstream.failure.as_deref().unwrap_or("connected");
        let _ = writeln!(text, "{}: {outcome}", upstream.id);
    }
    if upstreams.is_empty() {
        text.push_str(
            "no MCP servers are configured; give --mcp-config FILE, or [[mcp_client.servers]] in --config FILE\n",
        );
    }
    let num_failed = upstreams.iter().filter(|upstream| upstream.failure.is_some()).count();
    Report { text, num_failed }
}

/// A line for each tool, and then for each server that has none because it is not there.
fn list(gateway: &Gateway) -> String {
    let mut text = String::new();
    for tool in gateway.list_tools(&Principal::Anonymous) {
        let description = tool.description.as_deref().unwrap_or_default();
        let _ = writeln!(text, "{}\t{}", tool.name, description.lines().next().unwrap_or_default());
    }
    for upstream in gateway.upstreams() {
        if let Some(failure) = upstream.failure {
            let _ = writeln!(text, "# {}: {failure}", upstream.id);
        }
    }
    text
}

/// The best ones, as lines or as JSON.
fn search(gateway: &Gateway, query: &ToolQuery) -> String {
    let found = gateway.search_tools(query, &Principal::Anonymous);
    if query.detail == Detail::Full {
        return serde_json::to_string_pretty(&found).unwrap_or_default();
    }
    let line = |tool: serde_json::Value| {
        let text = |key: &str| tool[key].as_str().unwrap_or_default().to_owned();
        format!("{}\t{}\n", text("name"), text("description"))
    };
    found.into_iter().map(line).collect()
}
