//! Real servers and clients that are killed, stopped and started again while calls run.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::{CHILD_PATIENCE, gateway, toml_url, wait_for_tool};
use crate::require_tools;
use crate::support::mcp::{STREAM, call, request};
use crate::support::process::{self, eventually};
use crate::support::server::Server;
use crate::support::upstreams::{self, Everything, WebSocketEverything};
use crate::support::{Http, tools};

/// A call of a server that died ends long before its deadline, which is 30 s.
const SOON: Duration = Duration::from_secs(15);
/// A call that outlives the test if nothing ends it.
const LONG_CALL: &str = "trigger-long-running-operation";

/// A child that a shell holds, as `npx` holds its own, and that therefore does not die with it.
fn wrapped_memory(node: &Path, memory: &Path, graph: &Path) -> String {
    let line = format!("{} {}; true", node.display(), memory.display());
    let env = format!("env = {{ MEMORY_FILE_PATH = {:?} }}\n", graph.display().to_string());
    upstreams::child("memory", Path::new("sh"), &["-c", &line]) + &env
}

#[tokio::test]
async fn the_first_call_after_an_http_server_restarted_works_in_the_clients_session() -> anyhow::Result<()> {
    let (node, script) = require_tools!(Node, EverythingServer);
    let everything = Everything::start(&node, &script).await?;
    let server = gateway(&toml_url("everything", &everything.url())).await?;
    wait_for_tool(&server.mcp(), "everything::echo").await?;
    let session = Session::open(&server).await?;
    let port = everything.port();
    let mut running = Some(everything);
    for word in ["before", "after", "after that"] {
        let answer = session.post(&call("everything::echo", &json!({ "message": word }))).await?;
        ensure!(answer["result"]["content"][0]["text"] == format!("Echo: {word}"), "{answer}");
        // Its sessions are gone with it; ours is not.
        drop(running.take());
        running = Some(Everything::start_on(port, &node, &script).await?);
    }
    Ok(())
}

#[tokio::test]
async fn a_call_ends_soon_after_its_server_was_killed_over_each_transport() -> anyhow::Result<()> {
    let (node, script, supergateway) = require_tools!(Node, EverythingServer, Supergateway);
    let http = Everything::start(&node, &script).await?;
    let events = Everything::start_sse(&node, &script).await?;
    let frames = WebSocketEverything::start(&node, &supergateway, &script).await?;
    let config = toml_url("http", &http.url())
        + &toml_url("events", &events.sse_url())
        + "transport = \"sse\"\n"
        + &toml_url("frames", &frames.url())
        + &upstreams::child("child", &node, &[&script.display().to_string(), "stdio"]);
    let server = gateway(&config).await?;
    let mcp = server.mcp();
    for name in ["http", "events", "frames", "child"] {
        wait_for_tool(&mcp, &format!("{name}::{LONG_CALL}")).await?;
    }
    let started = Instant::now();
    let mut calls = Vec::new();
    for name in ["http", "events", "frames"] {
        let mut watched = call(&format!("{name}::{LONG_CALL}"), &json!({ "duration": 120, "steps": 1200 }));
        watched["params"]["_meta"] = json!({ "progressToken": name });
        let mut stream = mcp.open(STREAM, &watched).await?;
        // Progress says that it runs.
        ensure!(stream.chunk().await?.is_some(), "{name}: the stream ended at once");
        calls.push((name, stream));
    }
    drop((http, events, frames));
    for (name, stream) in calls {
        let rest = stream.text().await?;
        ensure!(rest.contains("\"isError\":true") && rest.contains(&format!("`{name}`")), "{name}: {rest}");
    }
    ensure!(started.elapsed() < SOON, "the calls ended after {:?}", started.elapsed());
    ensure!(mcp.call_tool_text("child::echo", &json!({ "message": "still" })).await?.contains("still"));
    Ok(())
}

#[tokio::test]
async fn a_killed_child_fails_the_call_it_had_and_leaves_nothing_behind() -> anyhow::Result<()> {
    let (node, memory, script) = require_tools!(Node, MemoryServer, EverythingServer);
    let directory = tempfile::tempdir()?;
    let config = wrapped_memory(&node, &memory, &directory.path().join("graph.jsonl"))
        + &upstreams::child("other", &node, &[&script.display().to_string(), "stdio"]);
    let mut server = gateway(&config).await?;
    let mcp = server.mcp();
    wait_for_tool(&mcp, "memory::create_entities").await?;
    wait_for_tool(&mcp, "other::echo").await?;
    let leaders = process::children(server.pid())?;
    let is_shell = |pid: &&u32| process::group(**pid).is_ok_and(|group| group.len() > 1);
    let shell = *leaders.iter().find(is_shell).context("no shell with a child of its own")?;
    for pid in process::group(shell)? {
        process::send_signal(pid, libc::SIGSTOP)?;
    }
    let entities = json!({ "entities": [{ "name": "Ada", "entityType": "person", "observations": [] }] });
    let lost = mcp.call_tool("memory::create_entities", &entities);
    let kill = async {
        // It has been written and is not read: the tool may have run, as far as anyone can tell.
        eventually(CHILD_PATIENCE, || async {
            ensure!(process::unread_input(shell)? > 0, "the call is not on its way");
            Ok(())
        })
        .await?;
        let echoed = mcp.call_tool_text("other::echo", &json!({ "message": "meanwhile" })).await?;
        ensure!(echoed.contains("meanwhile"), "{echoed}");
        process::send_signal(shell, libc::SIGKILL)
    };
    let (lost, killed) = tokio::join!(lost, kill);
    killed?;
    let lost = lost?;
    ensure!(lost["isError"] == true && lost.to_string().contains("the tool may have run"), "{lost}");
    mcp.call_tool_text("memory::create_entities", &entities).await?;
    ensure!(mcp.call_tool("memory::read_graph", &json!({})).await?.to_string().contains("Ada"));

    let mut groups = process::children(server.pid())?;
    groups.push(shell);
    server.terminate()?;
    ensure!(server.wait_for_exit(CHILD_PATIENCE).await?.success());
    check_groups_are_empty(&groups).await
}

#[tokio::test]
async fn sigterm_ends_children_of_every_kind_while_a_call_runs() -> anyhow::Result<()> {
    let (python, node, memory, script) = require_tools!(Python, Node, MemoryServer, EverythingServer);
    let directory = tempfile::tempdir()?;
    let config = wrapped_memory(&node, &memory, &directory.path().join("graph.jsonl"))
        + &upstreams::child("everything", &node, &[&script.display().to_string(), "stdio"])
        + &upstreams::child("time", &python, &["-m", "mcp_server_time"])
        + "[server]\ndrain_timeout_secs = 0\n";
    let mut server = gateway(&config).await?;
    let mcp = server.mcp();
    for name in ["memory::read_graph", "everything::echo", "time::convert_time"] {
        wait_for_tool(&mcp, name).await?;
    }
    let mut watched = call(&format!("everything::{LONG_CALL}"), &json!({ "duration": 120, "steps": 1200 }));
    watched["params"]["_meta"] = json!({ "progressToken": 1 });
    let mut stream = mcp.open(STREAM, &watched).await?;
    ensure!(stream.chunk().await?.is_some(), "the stream ended at once");
    let groups = process::children(server.pid())?;
    ensure!(groups.len() == 3, "{groups:?}");
    server.terminate()?;
    ensure!(server.wait_for_exit(CHILD_PATIENCE).await?.success());
    check_groups_are_empty(&groups).await
}

#[tokio::test]
async fn a_client_killed_in_the_middle_of_a_call_leaves_nothing_in_flight() -> anyhow::Result<()> {
    let (python, node, script) = require_tools!(Python, Node, EverythingServer);
    let everything = Everything::start(&node, &script).await?;
    let server = gateway(&toml_url("everything", &everything.url())).await?;
    let mcp = server.mcp();
    wait_for_tool(&mcp, "everything::echo").await?;
    for mode in ["legacy", "2026-07-28"] {
        let arguments = [&mcp.url(STREAM), mode, "a_long_call_reports_progress"];
        let client = tools::python_command(&python, "mcp_client.py", &arguments);
        kill_in_the_middle(client).await.with_context(|| format!("in mode {mode}"))?;
        eventually(CHILD_PATIENCE, || async {
            let num_open = server.http().scrape().await?.require("http_mcp_active_connections", &[])?;
            ensure!(num_open == 0.0, "in mode {mode} {num_open} requests and streams are open");
            Ok(())
        })
        .await?;
        let echoed = mcp.call_tool_text("everything::echo", &json!({ "message": mode })).await?;
        ensure!(echoed.contains(mode), "{echoed}");
    }
    // In the newer revision the end of the stream is a cancel; in the older ones the call runs on for who comes back.
    let labels = [("error", "cancelled"), ("tool", "everything::trigger-long-running-operation")];
    ensure!(server.http().scrape().await?.count("mistralrs_tool_errors_total", &labels)? == 1);
    Ok(())
}

/// Kills `client` once it has said that its call makes progress.
async fn kill_in_the_middle(mut client: Command) -> anyhow::Result<()> {
    let mut child = client.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    while let Some(line) = lines.next_line().await? {
        if line.starts_with("progress ") {
            return Ok(child.kill().await?);
        }
    }
    anyhow::bail!("the client ended by itself: {:?}", child.wait().await?)
}

async fn check_groups_are_empty(leaders: &[u32]) -> anyhow::Result<()> {
    eventually(CHILD_PATIENCE, || async {
        for leader in leaders {
            let left = process::group(*leader)?;
            ensure!(left.is_empty(), "of the group of {leader} there are still {left:?}");
        }
        Ok(())
    })
    .await
}

/// A session at the endpoint, of a client that keeps it.
struct Session {
    mcp: Http,
    id: String,
}

impl Session {
    async fn open(server: &Server) -> anyhow::Result<Self> {
        let client = json!({ "name": "t", "version": "1" });
        let hello = json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client });
        let answer = server.mcp().post(STREAM, &request("initialize", &hello)).await?;
        ensure!(answer.status == StatusCode::OK, "{answer:?}");
        let session = Self { mcp: server.mcp(), id: answer.header("mcp-session-id").to_owned() };
        ensure!(!session.id.is_empty(), "no session: {answer:?}");
        Ok(session)
    }

    async fn post(&self, message: &Value) -> anyhow::Result<Value> {
        let post = self.mcp.request(reqwest::Method::POST, STREAM).header("mcp-session-id", &self.id);
        Ok(post.json(message).send().await?.error_for_status()?.json().await?)
    }
}
