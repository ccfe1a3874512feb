//! Clients that no one here wrote, at the endpoint of a gateway with real servers behind it: what they list, call, hear and
//! are refused, and that nothing of them stays.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::require_tools;
use crate::support::mcp::{STREAM, call, request, text};
use crate::support::process::eventually;
use crate::support::server::Server;
use crate::support::{Launch, sse, tools, upstreams};

const KEY: &str = "sk-abc123";
/// The script of tests/support/python that knows the clients written in Python.
const PYTHON_CLIENTS: &str = "gateway_clients.py";
/// How long the server may take to see that a connection was closed.
const SETTLING: Duration = Duration::from_secs(10);
/// What the Inspector ends with when a call, or its result, is an error; and when it is not let in.
const INSPECTOR_CALL_FAILED: i32 = 5;
const INSPECTOR_NOT_LET_IN: i32 = 3;

#[tokio::test]
async fn the_mcp_package_finds_what_is_behind_the_gateway_in_every_mode() -> anyhow::Result<()> {
    let (python, node, everything) = require_tools!(Python, Node, EverythingServer);
    let server = gateway(&node, &everything).await?;
    let printed = tools::python(&python, PYTHON_CLIENTS, &["legacy,auto,2026-07-28", &url(&server), KEY]).await?;
    ensure!(
        printed.lines().eq(["2025-11-25", "2026-07-28", "2026-07-28"].map(|version| format!("protocol {version}"))),
        "{printed}"
    );
    check_nothing_is_open(&server).await
}

#[tokio::test]
async fn the_mcp_package_before_version_2_finds_it_too() -> anyhow::Result<()> {
    let (python, node, everything) = require_tools!(PythonMcp1, Node, EverythingServer);
    let server = gateway(&node, &everything).await?;
    tools::python(&python, PYTHON_CLIENTS, &["mcp1", &url(&server), KEY]).await?;
    check_nothing_is_open(&server).await
}

#[tokio::test]
async fn fastmcp_finds_it_too() -> anyhow::Result<()> {
    let (python, node, everything) = require_tools!(Python, Node, EverythingServer);
    let server = gateway(&node, &everything).await?;
    tools::python(&python, PYTHON_CLIENTS, &["fastmcp", &url(&server), KEY]).await?;
    check_nothing_is_open(&server).await
}

#[tokio::test]
async fn mcp_remote_bridges_to_it_with_a_key() -> anyhow::Result<()> {
    let (python, node, everything, remote) = require_tools!(Python, Node, EverythingServer, McpRemote);
    let server = gateway(&node, &everything).await?;
    let (url, header) = (url(&server), format!("Authorization: Bearer {KEY}"));
    let bridge = [&node.display().to_string(), &remote.display().to_string(), &*url, "--header", &header];
    let arguments = [&["bridge", &*url, KEY][..], &bridge].concat();
    let mut command = tools::python_command(&python, PYTHON_CLIENTS, &arguments);
    command.env("MCP_REMOTE_CONFIG_DIR", server.directory().join("mcp-remote"));
    tools::run(command).await?;
    check_nothing_is_open(&server).await
}

#[tokio::test]
async fn the_inspector_shows_results_and_errors() -> anyhow::Result<()> {
    let (node, everything, inspector) = require_tools!(Node, EverythingServer, Inspector);
    let server = gateway(&node, &everything).await?;
    let inspect = async |key: &str, arguments: &[&str]| {
        let mut command = Command::new(&node);
        command.arg(&inspector).args(["--cli", &url(&server), "--transport", "http"]);
        command.args(["--header", &format!("Authorization: Bearer {key}")]).args(arguments);
        let (status, stdout, stderr) = tools::run_to_any_end(&mut command).await?;
        let shown = serde_json::from_str::<Value>(&stdout).unwrap_or_default();
        anyhow::Ok((status.code().context("it was killed")?, shown, stderr))
    };
    let call = async |tool: &str, arguments: &[&str]| {
        inspect(KEY, &[&["--method", "tools/call", "--tool-name", tool], arguments].concat()).await
    };
    let (code, listed, _) = inspect(KEY, &["--method", "tools/list"]).await?;
    let names: Vec<&str> =
        listed["tools"].as_array().into_iter().flatten().filter_map(|tool| tool["name"].as_str()).collect();
    ensure!(
        code == 0 && names.contains(&"everything::echo") && names.contains(&"fixture::test_error_handling"),
        "{names:?}"
    );
    let (code, result, _) = call("everything::get-structured-content", &["--tool-arg", "location=Chicago"]).await?;
    ensure!(code == 0 && result["structuredContent"] == weather_of_chicago(), "{code} {result}");
    let (code, result, stderr) = call("fixture::test_error_handling", &[]).await?;
    ensure!(
        code == INSPECTOR_CALL_FAILED && result["isError"] == true && stderr.contains("tool_is_error"),
        "{code} {result}"
    );
    let uri = "mcp://everything/demo://resource/nowhere";
    let (code, result, stderr) = inspect(KEY, &["--method", "resources/read", "--uri", uri]).await?;
    ensure!(code != 0 && result.is_null() && stderr.contains("not found"), "{code} {result} {stderr}");
    let (code, _, stderr) = inspect("sk-wrong", &["--method", "tools/list"]).await?;
    ensure!(code == INSPECTOR_NOT_LET_IN && stderr.contains("auth_required"), "{code} {stderr}");
    check_nothing_is_open(&server).await
}

#[tokio::test]
async fn curl_calls_without_a_session() -> anyhow::Result<()> {
    let (curl, node, everything) = require_tools!(Curl, Node, EverythingServer);
    let server = gateway(&node, &everything).await?;
    let post = async |arguments: &[&str], body: &Value| {
        let mut command = Command::new(&curl);
        command.args(["-sS", "--fail", "--noproxy", "*", "-X", "POST", &url(&server)]).args(arguments);
        command.args(["-H", "Authorization: Bearer sk-abc123", "-H", "Content-Type: application/json"]);
        command.args(["-d", &body.to_string()]);
        tools::run(command).await
    };
    let reply = async |body: &Value| anyhow::Ok(serde_json::from_str::<Value>(&post(&[], body).await?)?);

    let listed = reply(&request("tools/list", &json!({}))).await?;
    ensure!(listed["id"] == "1" && listed.to_string().contains("everything::get-structured-content"), "{listed}");
    let answer = reply(&call("everything::get-structured-content", &json!({ "location": "Chicago" }))).await?;
    ensure!(answer["result"]["structuredContent"] == weather_of_chicago(), "{answer}");
    let failed = reply(&call("fixture::test_error_handling", &json!({}))).await?;
    ensure!(failed["result"]["isError"] == true && text(&failed["result"])?.contains("intentionally"), "{failed}");
    let refused = reply(&call("everything::no_such_tool", &json!({}))).await?;
    ensure!(refused["error"]["code"] == -32602, "{refused}");

    let mut watched = call("everything::trigger-long-running-operation", &json!({ "duration": 0.3, "steps": 3 }));
    watched["params"]["_meta"] = json!({ "progressToken": "mine" });
    let events = sse::parse(&post(&["-N", "-H", "Accept: text/event-stream"], &watched).await?)?;
    let messages = events.iter().map(sse::Event::json).collect::<anyhow::Result<Vec<_>>>()?;
    let progress = |step: u32| json!({ "progressToken": "mine", "progress": f64::from(step), "total": 3.0 });
    let told: Vec<_> = messages.iter().map(|message| &message["params"]).filter(|params| params.is_object()).collect();
    ensure!(told == [&progress(1), &progress(2), &progress(3)], "{messages:?}");
    ensure!(text(&messages[3]["result"])?.contains("completed") && events[4].name == "done", "{events:?}");
    check_nothing_is_open(&server).await
}

#[tokio::test]
async fn candle_vllms_client_calls_what_is_behind_the_gateway() -> anyhow::Result<()> {
    let (python, node, everything) = require_tools!(Python, Node, EverythingServer);
    let server = gateway(&node, &everything).await?;
    let calls = [
        ("everything::echo", r#"{"message": "hi"}"#),
        ("everything::trigger-long-running-operation", r#"{"duration": 0.3, "steps": 3}"#),
        ("fixture::test_tool_with_logging", "{}"),
        ("fixture::test_error_handling", "{}"),
        ("everything::no_such_tool", "{}"),
    ];
    let url = url(&server);
    let mut arguments = vec![&*url, KEY];
    arguments.extend(calls.iter().flat_map(|(tool, arguments)| [*tool, *arguments]));
    let printed = tools::python(&python, "candle_vllm_client.py", &arguments).await?;
    let expected = [
        "Echo: hi",
        "Long running operation completed. Duration: 0.3 seconds, Steps: 3.",
        "logged",
        "isError: This tool intentionally returns an error for testing",
        "not listed: everything::no_such_tool",
        "error -32602: unknown tool `everything::no_such_tool`; `tools/list` names those there are",
    ];
    ensure!(printed.lines().eq(expected), "{printed}");

    // Refused, it looks for the older transport by a GET, which must be answered at once.
    let mut wrong_key = tools::python_command(&python, "candle_vllm_client.py", &[&url, "sk-wrong"]);
    let (status, _, stderr) = tools::run_to_any_end(&mut wrong_key).await?;
    ensure!(status.code() == Some(1) && stderr.trim() == "HTTP error: 401", "{status} {stderr}");
    check_nothing_is_open(&server).await
}

/// A gateway with `everything` and `fixture` behind it.
async fn gateway(node: &Path, everything: &Path) -> anyhow::Result<Server> {
    let script = everything.display().to_string();
    let config = upstreams::child("everything", node, &[&script, "stdio"]) + &upstreams::fixture("fixture");
    let launch = Launch::gateway().option("--http-mcp-auth-key", KEY);
    let server = launch.file("--config", "mistralrs.toml", &config).start().await?;
    let mcp = server.mcp().with_key(KEY);
    for name in ["everything::echo", "fixture::test_error_handling"] {
        super::wait_for_tool(&mcp, name).await?;
    }
    Ok(server)
}

fn url(server: &Server) -> String {
    server.mcp().url(STREAM)
}

/// What `everything` always says of it.
fn weather_of_chicago() -> Value {
    json!({ "temperature": 36, "conditions": "Light rain / drizzle", "humidity": 82 })
}

/// No request is being answered and no stream is open.
async fn check_nothing_is_open(server: &Server) -> anyhow::Result<()> {
    eventually(SETTLING, || async {
        let num_open = server.http().scrape().await?.require("http_mcp_active_connections", &[])?;
        ensure!(num_open == 0.0, "{num_open} requests and streams are open");
        Ok(())
    })
    .await
}
