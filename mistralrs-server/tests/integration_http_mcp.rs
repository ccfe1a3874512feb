//! The MCP endpoint as clients of the field use it: curl, the mcp package, the Inspector, candle-vllm.
#![cfg(feature = "http-mcp-stream")]

#[path = "integration_http_mcp/leaving.rs"]
mod leaving;
mod support;

use std::time::Duration;

use anyhow::{Context, ensure};
use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use tokio::process::Command;

use support::http::{self, Answer};
use support::mcp::{STREAM, call, request, text};
use support::process::eventually;
use support::server::Shared;
use support::{Http, Launch, sse, tools};

const KEY: &str = "sk-abc123";

static SHARED: Shared = Shared::new(|| Launch::model().mcp().option("--http-mcp-auth-key", KEY));

/// What `generate` is asked for where the text matters.
fn counting() -> Value {
    json!({ "prompt": "1, 2, 3, 4, 5, 6,", "temperature": 0, "max_tokens": 12 })
}

#[tokio::test]
async fn the_documented_curl_line_lists_tools() -> anyhow::Result<()> {
    let curl = require_tools!(Curl);
    let server = SHARED.get().await?;
    let mut command = Command::new(curl);
    command.args(["-sS", "--fail", "--noproxy", "*", "-X", "POST", &server.mcp().url(STREAM)]);
    command.args(["-H", "Authorization: Bearer sk-abc123", "-H", "Content-Type: application/json"]);
    command.args(["-d", r#"{"jsonrpc":"2.0","method":"tools/list","id":"1"}"#]);
    let reply: Value = serde_json::from_str(&tools::run(command).await?)?;
    ensure!(reply["jsonrpc"] == "2.0" && reply["id"] == "1", "{reply}");
    let names: Vec<&str> = reply["result"]["tools"]
        .as_array()
        .context("no tools")?
        .iter()
        .filter_map(|tool| tool["name"].as_str())
        .collect();
    for name in ["generate", "chat", "embed", "tokenize", "list_models"] {
        ensure!(names.contains(&name), "`{name}` is not among {names:?}");
    }
    Ok(())
}

#[tokio::test]
async fn any_accept_header_gets_a_type_that_it_names() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let list = request("tools/list", &json!({}));
    for (accept, content_type) in [
        (None, "application/json"),
        (Some("*/*"), "application/json"),
        (Some("application/json"), "application/json"),
        (Some("text/event-stream"), "text/event-stream"),
        (Some("application/json, text/event-stream"), ""),
    ] {
        let mut post = keyed(&server.mcp()).request(Method::POST, STREAM).json(&list);
        if let Some(accept) = accept {
            post = post.header("accept", accept);
        }
        let answer = http::read(post.send().await?).await?;
        let found = answer.header("content-type");
        ensure!(
            answer.status == StatusCode::OK && found.starts_with(content_type),
            "{accept:?}: {} {found:?}",
            answer.status
        );
        let reply = if found.starts_with("text/event-stream") {
            sse::parse(&answer.body)?.iter().find_map(|event| event.json().ok()).context("no event")?
        } else {
            answer.json()?
        };
        ensure!(reply["result"]["tools"].is_array(), "{accept:?}: {reply}");
    }
    Ok(())
}

#[tokio::test]
async fn the_older_path_and_the_prefixed_name_work_too() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let mcp = keyed(&server.mcp());
    let at_root = mcp.post("/mcp", &call("mistralrs::generate", &counting())).await?.ok()?;
    ensure!(text(&at_root["result"])?.contains('7'), "{at_root}");
    let listed = mcp.get("/mcp/list").await?;
    ensure!(listed.status == StatusCode::OK && listed.body.contains("generate"), "{listed:?}");
    Ok(())
}

#[tokio::test]
async fn the_older_port_flag_opens_the_same_endpoint() -> anyhow::Result<()> {
    let server = Launch::model().option("--mcp-port", "0").start().await?;
    let port =
        eventually(Duration::from_secs(10), || async { server.announced_port("/mcp/stream").context("no MCP port") })
            .await?;
    let reply = Http::new(port).post("/mcp", &request("tools/list", &json!({}))).await?.ok()?;
    ensure!(reply["result"]["tools"].is_array(), "{reply}");
    Ok(())
}

#[tokio::test]
async fn generate_streams_pieces_then_the_whole_then_done() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let mut arguments = counting();
    arguments["stream"] = json!(true);
    let events = keyed(&server.mcp()).stream_events(&call("generate", &arguments)).await?;
    check_progress_then_result(&events)?;
    let done = events.last().context("no events")?;
    ensure!(done.name == "done" && done.json()?["finish_reason"] == "length", "{done:?}");
    Ok(())
}

#[tokio::test]
async fn a_progress_token_makes_generate_stream_under_that_token() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let mut body = call("generate", &counting());
    body["params"]["_meta"] = json!({ "progressToken": "mine" });
    let events = keyed(&server.mcp()).stream_events(&body).await?;
    check_progress_then_result(&events)?;
    for event in &events {
        let message = event.json()?;
        ensure!(
            message["method"] != "notifications/progress" || message["params"]["progressToken"] == "mine",
            "{message}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn pieces_arrive_while_the_call_runs() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let arguments = json!({ "prompt": "Once upon a time", "temperature": 0, "max_tokens": 48, "stream": true });
    let events = keyed(&server.mcp()).stream_events(&call("generate", &arguments)).await?;
    let arrivals: std::collections::BTreeSet<_> = events.iter().filter_map(|event| event.at).collect();
    ensure!(arrivals.len() > 8, "{} events came in {} reads: they were held back", events.len(), arrivals.len());
    Ok(())
}

#[tokio::test]
async fn mistakes_have_their_json_rpc_codes() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let mcp = keyed(&server.mcp());
    for (body, code) in [
        ("{\"jsonrpc\": \"2.0\", \"id\": 1, ", -32700),
        ("not json", -32700),
        ("[]", -32600),
        ("{\"jsonrpc\": \"2.0\", \"id\": 1}", -32600),
        ("{\"jsonrpc\": \"2.0\", \"id\": 1, \"method\": \"tools/destroy\"}", -32601),
        ("{\"jsonrpc\": \"2.0\", \"id\": 1, \"method\": \"tools/call\"}", -32602),
    ] {
        let answer = mcp.post_bytes(STREAM, body).await?;
        ensure!(answer.json()?["error"]["code"] == code, "{body}: {answer:?}");
        ensure!(!answer.json()?["error"]["message"].as_str().unwrap_or_default().is_empty(), "{body}: no message");
    }
    let (code, message) = mcp.rpc_error("tools/call", &json!({ "name": "no_such_tool", "arguments": {} })).await?;
    ensure!(code == -32602 && message.contains("no_such_tool"), "{code} {message}");
    let (code, message) =
        mcp.rpc_error("tools/call", &json!({ "name": "generate", "arguments": { "prompt": 7 } })).await?;
    ensure!(code == -32602 && message.contains("prompt"), "{code} {message}");
    ensure!(mcp.call_tool_text("generate", &counting()).await?.contains('7'));
    Ok(())
}

#[tokio::test]
async fn a_legacy_session_opens_answers_and_ends() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let mcp = keyed(&server.mcp());
    for version in ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"] {
        let (session, result) = open_session(&mcp, version).await?;
        ensure!(result["protocolVersion"] == version, "asked for {version}: {result}");
        ensure!(result["serverInfo"]["name"].is_string() && result["capabilities"]["tools"].is_object(), "{result}");
        let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        let accepted = in_session(&mcp, &session, &initialized).await?;
        ensure!(accepted.status == StatusCode::ACCEPTED, "{accepted:?}");
        let pinged = reply_of(&in_session(&mcp, &session, &request("ping", &json!({}))).await?)?;
        ensure!(pinged["result"].is_object(), "{pinged}");
        let called = reply_of(&in_session(&mcp, &session, &call("generate", &counting())).await?)?;
        ensure!(text(&called["result"])?.contains('7'), "{called}");
        if session.is_empty() {
            continue;
        }
        let end = mcp.request(Method::DELETE, STREAM).header("mcp-session-id", &session).send().await?;
        ensure!(end.status().is_success(), "DELETE: {}", end.status());
        let late = in_session(&mcp, &session, &request("tools/list", &json!({}))).await?;
        ensure!(late.status == StatusCode::NOT_FOUND, "an ended session answered {late:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_unknown_session_is_404_and_initialize_with_it_opens_a_new_one() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let mcp = keyed(&server.mcp());
    let stale = "00000000-0000-4000-8000-000000000000";
    let answer = in_session(&mcp, stale, &request("tools/list", &json!({}))).await?;
    ensure!(answer.status == StatusCode::NOT_FOUND, "{answer:?}");
    let opened = in_session(&mcp, stale, &request("initialize", &initialize_params("2025-06-18"))).await?;
    ensure!(opened.status == StatusCode::OK && opened.header("mcp-session-id") != stale, "{opened:?}");
    Ok(())
}

#[tokio::test]
async fn a_browser_page_of_a_stranger_is_refused() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let list = request("tools/list", &json!({}));
    let stranger =
        keyed(&server.mcp()).request(Method::POST, STREAM).header("origin", "https://evil.example").json(&list);
    let answer = http::read(stranger.send().await?).await?;
    ensure!(answer.status == StatusCode::FORBIDDEN, "{answer:?}");
    let rebound = keyed(&server.mcp()).request(Method::POST, STREAM).header("host", "evil.example").json(&list);
    let answer = http::read(rebound.send().await?).await?;
    ensure!(answer.status == StatusCode::FORBIDDEN, "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn the_mcp_package_drives_it_in_every_mode() -> anyhow::Result<()> {
    let python = require_tools!(Python);
    let server = SHARED.get().await?;
    let url = server.mcp().url(STREAM);
    let scenarios = [
        "native_tools_are_listed_with_schemas",
        "native_tools_answer",
        "generate_reports_progress",
        "native_resources_and_prompts_are_read",
        "mistakes_are_refused_with_a_code",
    ];
    for mode in ["legacy", "auto", "2026-07-28"] {
        for scenario in scenarios {
            tools::python(&python, "mcp_client.py", &[&url, mode, scenario, KEY])
                .await
                .with_context(|| format!("{scenario} in mode {mode}"))?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_inspector_lists_and_calls() -> anyhow::Result<()> {
    let (node, inspector) = require_tools!(Node, Inspector);
    let server = SHARED.get().await?;
    let inspect = async |arguments: &[&str]| -> anyhow::Result<Value> {
        let mut command = Command::new(&node);
        command.arg(&inspector).args(["--cli", &server.mcp().url(STREAM), "--transport", "http"]);
        command.args(["--header", &format!("Authorization: Bearer {KEY}")]).args(arguments);
        Ok(serde_json::from_str(&tools::run(command).await?)?)
    };
    let listed = inspect(&["--method", "tools/list"]).await?;
    let names: Vec<&str> =
        listed["tools"].as_array().context("no tools")?.iter().filter_map(|tool| tool["name"].as_str()).collect();
    ensure!(names.contains(&"generate") && names.contains(&"list_models"), "{names:?}");
    let called = inspect(&["--method", "tools/call", "--tool-name", "list_models"]).await?;
    ensure!(text(&called)?.to_lowercase().contains("smollm2"), "{called}");
    Ok(())
}

#[tokio::test]
async fn candle_vllms_client_lists_and_calls() -> anyhow::Result<()> {
    let python = require_tools!(Python);
    let server = SHARED.get().await?;
    let arguments = [&server.mcp().url(STREAM), KEY, "generate", &counting().to_string()];
    let printed = tools::python(&python, "candle_vllm_client.py", &arguments).await?;
    ensure!(printed.contains('7'), "{printed}");
    // After a refusal it tries one GET, which must be answered at once: an open stream would hang it.
    let refused = server.mcp().get(STREAM).await?;
    ensure!(refused.status == StatusCode::UNAUTHORIZED, "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn requests_are_counted_by_known_method_and_status() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let mcp = keyed(&server.mcp());
    mcp.rpc("tools/list", &json!({})).await?;
    mcp.rpc_error("no/such/method/of/anybody", &json!({})).await?;
    let scrape = server.http().scrape().await?;
    ensure!(scrape.count("http_mcp_requests_total", &[("method", "tools/list")])? > 0);
    let methods = scrape.label_values("http_mcp_requests_total", "method");
    ensure!(methods.contains("other") && !methods.iter().any(|method| method.contains("anybody")), "{methods:?}");
    ensure!(scrape.count("http_mcp_request_duration_seconds_count", &[("method", "tools/list")])? > 0);
    ensure!(scrape.count("http_mcp_stream_bytes_sent", &[])? > 0);
    ensure!(scrape.count("http_mcp_errors_total", &[])? > 0);
    ensure!(scrape.require("http_mcp_active_connections", &[])? >= 0.0);
    Ok(())
}

/// Progress numbers grow, their pieces joined are the result's text, and nothing but `done` follows the result.
fn check_progress_then_result(events: &[sse::Event]) -> anyhow::Result<()> {
    let messages: Vec<Value> = events
        .iter()
        .filter(|event| event.name != "done" && !event.data.is_empty())
        .map(sse::Event::json)
        .collect::<anyhow::Result<_>>()?;
    let (result, pieces) = messages.split_last().context("no events")?;
    ensure!(pieces.len() > 3, "only {} pieces", pieces.len());
    let mut joined = String::new();
    let mut last_progress = f64::NEG_INFINITY;
    for piece in pieces {
        ensure!(piece["method"] == "notifications/progress", "{piece}");
        let progress = piece["params"]["progress"].as_f64().context("no progress number")?;
        ensure!(progress > last_progress, "progress {progress} after {last_progress}");
        last_progress = progress;
        joined += piece["params"]["message"].as_str().unwrap_or_default();
    }
    ensure!(result["id"] == "1" && text(&result["result"])? == joined, "{joined:?} is not {result}");
    Ok(())
}

fn keyed(mcp: &Http) -> Http {
    mcp.with_key(KEY)
}

fn initialize_params(version: &str) -> Value {
    json!({ "protocolVersion": version, "capabilities": {}, "clientInfo": { "name": "test", "version": "0" } })
}

/// Opens a session; an empty id means that the server keeps none.
async fn open_session(mcp: &Http, version: &str) -> anyhow::Result<(String, Value)> {
    let post = mcp.request(Method::POST, STREAM).header("accept", "application/json, text/event-stream");
    let answer = http::read(post.json(&request("initialize", &initialize_params(version))).send().await?).await?;
    let reply = reply_of(&answer)?;
    Ok((answer.header("mcp-session-id").to_owned(), reply["result"].clone()))
}

async fn in_session(mcp: &Http, session: &str, body: &Value) -> anyhow::Result<Answer> {
    let mut headers = HeaderMap::new();
    headers.insert("accept", "application/json, text/event-stream".parse()?);
    if !session.is_empty() {
        headers.insert("mcp-session-id", session.parse()?);
    }
    http::read(mcp.request(Method::POST, STREAM).headers(headers).json(body).send().await?).await
}

/// The one JSON-RPC reply in an answer, whichever type it came as.
fn reply_of(answer: &Answer) -> anyhow::Result<Value> {
    ensure!(answer.status == StatusCode::OK, "{answer:?}");
    if !answer.header("content-type").starts_with("text/event-stream") {
        return answer.json();
    }
    let events = sse::parse(&answer.body)?;
    let mut replies = events.iter().filter(|event| !event.data.is_empty()).filter_map(|event| event.json().ok());
    replies.rfind(|message| message.get("id").is_some()).with_context(|| format!("no reply: {answer:?}"))
}
