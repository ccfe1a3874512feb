//! Servers that no one here wrote, behind the gateway: what they say arrives as they said it.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use super::{gateway, toml_url, wait_for_tool};
use crate::require_tools;
use crate::support::mcp::{STREAM, call, request};
use crate::support::server::Server;
use crate::support::upstreams::{self, Everything};
use crate::support::{Http, http, sse, tools};

const ACCEPT: &str = "application/json, text/event-stream";

#[tokio::test]
async fn node_servers_answer_with_text_and_structure() -> anyhow::Result<()> {
    let (node, memory, thinking) = require_tools!(Node, MemoryServer, ThinkingServer);
    let graph = tempfile::tempdir()?;
    let graph = graph.path().join("graph.jsonl").display().to_string();
    let config = upstreams::child("memory", &node, &[&memory.display().to_string()])
        + &format!("env = {{ MEMORY_FILE_PATH = {graph:?} }}\n")
        + &upstreams::child("thinking", &node, &[&thinking.display().to_string()]);
    let server = gateway(&config).await?;
    let mcp = server.mcp();
    wait_for_tool(&mcp, "memory::create_entities").await?;
    wait_for_tool(&mcp, "thinking::sequentialthinking").await?;

    let entities = json!([{ "name": "Ada", "entityType": "person", "observations": ["wrote notes"] }]);
    mcp.call_tool_text("memory::create_entities", &json!({ "entities": entities })).await?;
    let read = mcp.call_tool("memory::read_graph", &json!({})).await?;
    ensure!(read["structuredContent"] == json!({ "entities": entities, "relations": [] }), "{read}");
    let refused = mcp.call_tool("memory::create_entities", &json!({ "entities": 7 })).await?;
    ensure!(refused["isError"] == true && refused.to_string().contains("entities"), "{refused}");

    let thought = json!({ "thought": "first", "thoughtNumber": 1, "totalThoughts": 2, "nextThoughtNeeded": true });
    let thinking = mcp.call_tool("thinking::sequentialthinking", &thought).await?;
    ensure!(thinking["structuredContent"]["thoughtHistoryLength"] == 1, "{thinking}");
    Ok(())
}

#[tokio::test]
async fn python_servers_answer_and_refuse() -> anyhow::Result<()> {
    let (python, git) = require_tools!(Python, Git);
    let repository = tempfile::tempdir()?;
    let repository_path = repository.path().display().to_string();
    for arguments in [
        &["init", "--quiet"][..],
        &["-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--allow-empty", "-m", "the first"],
    ] {
        let mut command = Command::new(&git);
        command.args(["-C", &repository_path]).args(arguments);
        tools::run(command).await?;
    }
    let config = upstreams::child("time", &python, &["-m", "mcp_server_time"])
        + &upstreams::child("git", &python, &["-m", "mcp_server_git", "--repository", &repository_path]);
    let server = gateway(&config).await?;
    let mcp = server.mcp();
    wait_for_tool(&mcp, "time::convert_time").await?;
    wait_for_tool(&mcp, "git::git_log").await?;

    let noon = json!({ "source_timezone": "Etc/UTC", "time": "12:00", "target_timezone": "Asia/Tokyo" });
    let converted = mcp.call_tool("time::convert_time", &noon).await?;
    let there = converted["structuredContent"]["target"]["datetime"].as_str().context("no time")?;
    ensure!(there.ends_with("T21:00:00+09:00"), "{converted}");
    let log = mcp.call_tool_text("git::git_log", &json!({ "repo_path": repository_path })).await?;
    ensure!(log.contains("the first"), "{log:?}");
    let outside = mcp.call_tool("git::git_log", &json!({ "repo_path": "/" })).await?;
    ensure!(outside["isError"] == true && outside.to_string().contains("outside"), "{outside}");
    Ok(())
}

#[tokio::test]
async fn what_a_server_offers_is_listed_as_it_says_it() -> anyhow::Result<()> {
    let (node, script) = require_tools!(Node, EverythingServer);
    let (everything, server) = everything_behind_a_gateway(&node, &script).await?;
    let (mcp, direct) = (server.mcp(), Direct::open(&everything).await?);

    for (method, list, key, prefix) in [
        ("tools/list", "tools", "name", "everything::"),
        ("prompts/list", "prompts", "name", "everything::"),
        ("resources/list", "resources", "uri", "mcp://everything/"),
        ("resources/templates/list", "resourceTemplates", "uriTemplate", "mcp://everything/"),
    ] {
        let said = direct.rpc(method, &json!({})).await?;
        let listed = mcp.rpc(method, &json!({})).await?;
        let said = said[list].as_array().with_context(|| format!("no {list}"))?;
        ensure!(!said.is_empty(), "{method}: nothing to compare");
        for entry in said {
            let name = format!("{prefix}{}", entry[key].as_str().context("no name")?);
            let found = listed[list].as_array().into_iter().flatten().find(|found| found[key] == *name);
            let found = found.with_context(|| format!("{name} is not listed"))?;
            let mut expected = entry.clone();
            expected[key] = json!(name);
            // Of tasks, which this endpoint does not say it has.
            expected.as_object_mut().context("no object")?.remove("execution");
            ensure!(*found == expected, "{method}\nsaid   {expected}\nlisted {found}");
            // Equal above is what has the same keys; here in the same order too.
            let schemas = |tool: &Value| format!("{} {}", tool["inputSchema"], tool["outputSchema"]);
            ensure!(schemas(found) == schemas(entry), "{name}: its schemas were written anew");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_a_server_answers_arrives_as_it_says_it() -> anyhow::Result<()> {
    let (node, script) = require_tools!(Node, EverythingServer);
    let (everything, server) = everything_behind_a_gateway(&node, &script).await?;
    let (mcp, direct) = (server.mcp(), Direct::open(&everything).await?);

    let document = "demo://resource/static/document/startup.md";
    for (method, params, name) in [
        ("tools/call", json!({ "arguments": { "location": "New York" } }), "get-structured-content"),
        (
            "tools/call",
            json!({ "arguments": { "messageType": "success", "includeImage": true } }),
            "get-annotated-message",
        ),
        ("tools/call", json!({ "arguments": {} }), "get-tiny-image"),
        ("tools/call", json!({ "arguments": { "count": 4 } }), "get-resource-links"),
        ("tools/call", json!({ "arguments": { "message": 7 } }), "echo"),
        ("prompts/get", json!({}), "simple-prompt"),
        ("prompts/get", json!({ "arguments": { "city": "Paris" } }), "args-prompt"),
    ] {
        let named = |name: &str| {
            let mut params = params.clone();
            params["name"] = json!(name);
            params
        };
        let said = direct.rpc(method, &named(name)).await?;
        let arrived = mcp.rpc(method, &named(&format!("everything::{name}"))).await?;
        ensure!(arrived == said, "{name}\nsaid    {said}\narrived {arrived}");
    }
    let said = direct.rpc("resources/read", &json!({ "uri": document })).await?;
    let arrived = mcp.rpc("resources/read", &json!({ "uri": format!("mcp://everything/{document}") })).await?;
    ensure!(arrived == said && said["contents"][0]["text"].is_string(), "{arrived}");
    let argument = json!({ "name": "department", "value": "E" });
    let reference = |name: &str| json!({ "ref": { "type": "ref/prompt", "name": name }, "argument": argument });
    let said = direct.rpc("completion/complete", &reference("completable-prompt")).await?;
    let arrived = mcp.rpc("completion/complete", &reference("everything::completable-prompt")).await?;
    ensure!(arrived == said && said["completion"]["values"][0] == "Engineering", "{arrived}");

    // In a batch too a number stays what it was: 0.7 is not 0.699999988079071.
    let annotated = call("everything::get-annotated-message", &json!({ "messageType": "success" }));
    let batch = mcp.post(STREAM, &json!([annotated])).await?.ok()?;
    ensure!(batch[0]["result"]["content"][0]["annotations"]["priority"] == 0.7, "{batch}");
    Ok(())
}

#[tokio::test]
async fn references_inside_a_schema_are_not_resolved() -> anyhow::Result<()> {
    let python = require_tools!(Python);
    let server = gateway(&upstreams::fixture("fixture")).await?;
    wait_for_tool(&server.mcp(), "fixture::json_schema_2020_12_tool").await?;
    let said = fixtures_own_tools(&python).await?;
    let listed = server.mcp().rpc("tools/list", &json!({})).await?;
    let schema = |tools: &Value, name: &str| {
        let tool = tools["tools"].as_array().into_iter().flatten().find(|tool| tool["name"] == name);
        anyhow::Ok(tool.with_context(|| format!("no {name}"))?["inputSchema"].to_string())
    };
    let own = schema(&said, "json_schema_2020_12_tool")?;
    ensure!(own.contains("$defs") && own.contains("$schema") && own.contains("$ref"), "{own}");
    ensure!(schema(&listed, "fixture::json_schema_2020_12_tool")? == own);
    Ok(())
}

async fn everything_behind_a_gateway(node: &Path, script: &Path) -> anyhow::Result<(Everything, Server)> {
    let everything = Everything::start(node, script).await?;
    let server = gateway(&toml_url("everything", &everything.url())).await?;
    wait_for_tool(&server.mcp(), "everything::echo").await?;
    Ok((everything, server))
}

/// What the fixture lists over its own stdio.
async fn fixtures_own_tools(python: &Path) -> anyhow::Result<Value> {
    let fixture = tools::workspace().join("scripts/conformance/fixture.py");
    let mut command = Command::new(python);
    command.arg(fixture).arg("legacy").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    for message in [initialize(), request("tools/list", &json!({}))] {
        stdin.write_all(format!("{message}\n").as_bytes()).await?;
    }
    // It answers in threads, in no order, and those end with its input: that stays open.
    let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    while let Some(line) = lines.next_line().await? {
        let reply: Value = serde_json::from_str(&line)?;
        if reply["result"]["tools"].is_array() {
            return Ok(reply["result"].clone());
        }
    }
    anyhow::bail!("it ended without a list")
}

fn initialize() -> Value {
    let client = json!({ "name": "direct", "version": "1" });
    request("initialize", &json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client }))
}

/// A session with a server, without the gateway between.
struct Direct {
    http: Http,
    session: String,
}

impl Direct {
    async fn open(everything: &Everything) -> anyhow::Result<Self> {
        let http = Http::new(everything.port());
        let opened = http.request(Method::POST, "/mcp").header("accept", ACCEPT).json(&initialize()).send().await?;
        let session = http::read(opened).await?.header("mcp-session-id").to_owned();
        ensure!(!session.is_empty(), "it opened no session");
        Ok(Self { http, session })
    }

    async fn rpc(&self, method: &str, params: &Value) -> anyhow::Result<Value> {
        let post = self.http.request(Method::POST, "/mcp").header("accept", ACCEPT);
        let answer = post.header("mcp-session-id", &self.session).json(&request(method, params)).send().await?;
        let events = sse::parse(&http::read(answer).await?.body)?;
        let mut messages = events.iter().filter_map(|event| event.json().ok());
        let reply = messages.find(|message| message["id"] == "1").context("no reply")?;
        Ok(reply["result"].clone())
    }
}
