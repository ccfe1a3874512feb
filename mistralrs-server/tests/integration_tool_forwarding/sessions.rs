//! Clients that open sessions and vanish, by the thousand.

use futures::future::try_join_all;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use support::mcp::{STREAM, request};

use super::*;

const NUM_SESSIONS: usize = 1_000;
/// Allocators keep what was freed, in pieces that fit less and less often: what they hold grows for some rounds, and each time
/// by less. What leaks grows by the same each time.
const NUM_ROUNDS: usize = 4;

fn initialize() -> Value {
    let client = json!({ "name": "gone", "version": "0" });
    request("initialize", &json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client }))
}

/// Shakes hands; every tenth client opens its stream too. Then it is gone.
async fn come_and_vanish(mcp: &Http, index: usize) -> anyhow::Result<()> {
    let post = |body: &Value| {
        mcp.request(Method::POST, STREAM).header("accept", "application/json, text/event-stream").json(body)
    };
    let opened = post(&initialize()).send().await?;
    ensure!(opened.status() == StatusCode::OK, "session {index}: {opened:?}");
    let session = opened.headers().get("mcp-session-id").context("no session")?.clone();
    let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    post(&initialized).header("mcp-session-id", &session).send().await?;
    if index.is_multiple_of(10) {
        let get = mcp.request(Method::GET, STREAM).header("mcp-session-id", &session);
        drop(get.header("accept", "text/event-stream").send().await?);
    }
    Ok(())
}

async fn num_sessions(server: &Server) -> anyhow::Result<u64> {
    server.http().scrape().await?.count("http_mcp_sessions", &[])
}

#[tokio::test]
async fn a_thousand_sessions_whose_clients_vanish_cost_nothing_in_the_end() -> anyhow::Result<()> {
    let (node, script) = require_tools!(Node, FilesystemServer);
    let filesystem = Filesystem::new(node, script)?;
    let config =
        format!("[http_mcp]\nsession_idle_secs = 10\nmax_sessions = {NUM_SESSIONS}\n{}", filesystem.toml("filesystem"));
    let server = gateway(&config).await?;
    let mcp = server.mcp();
    wait_for_tool(&mcp, "filesystem::read_file").await?;
    let child = only_child(&server)?;

    let resident_kib = || Ok::<_, anyhow::Error>(process::read(server.pid())?.resident_kib);
    let mut after_each = vec![resident_kib()?];
    for _ in 0..NUM_ROUNDS {
        for first in (0..NUM_SESSIONS).step_by(50) {
            try_join_all((first..first + 50).map(|index| come_and_vanish(&mcp, index))).await?;
        }
        let num_open = num_sessions(&server).await?;
        ensure!(
            num_open > NUM_SESSIONS as u64 / 2,
            "only {num_open} sessions are open: the machine is too slow for this test"
        );
        // Everybody else goes on as before, and there is one child for all.
        ensure!(read_greeting(&mcp, &filesystem).await? == GREETING);
        ensure!(only_child(&server)? == child);
        eventually(Duration::from_mins(1), || async {
            let num_open = num_sessions(&server).await?;
            ensure!(num_open == 0, "{num_open} sessions are open");
            Ok(())
        })
        .await?;
        ensure!(only_child(&server)? == child);
        after_each.push(resident_kib()?);
    }
    println!("resident before and after each round: {after_each:?} KiB");
    let growth: Vec<u64> = after_each.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect();
    ensure!(growth[NUM_ROUNDS - 1] <= growth[0] / 3, "a thousand more sessions cost as much again: {after_each:?} KiB");
    Ok(())
}

#[tokio::test]
async fn a_session_too_many_is_refused_with_a_time_to_come_back() -> anyhow::Result<()> {
    let server = gateway("[http_mcp]\nmax_sessions = 3\n").await?;
    let mcp = server.mcp();
    try_join_all((0..3).map(|index| come_and_vanish(&mcp, index))).await?;
    let refused = mcp.post(STREAM, &initialize()).await?;
    ensure!(refused.status == StatusCode::SERVICE_UNAVAILABLE && refused.header("retry-after") == "5", "{refused:?}");
    ensure!(refused.body.contains("all 3 sessions are in use"), "{refused:?}");
    ensure!(mcp.tool_names().await.is_ok(), "without a session everything goes on");
    Ok(())
}
