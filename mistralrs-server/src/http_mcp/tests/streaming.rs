//! Calls that are watched while they run, and callers who leave.

use serde_json::json;

use super::{TestServer, call, config, post};

fn with_token(name: &str) -> String {
    json!({
        "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": name, "arguments": {"prompt": "one two three"}, "_meta": {"progressToken": "t"}},
    })
    .to_string()
}

#[tokio::test]
async fn a_streamed_call_is_progress_then_the_response_then_done() {
    let server = TestServer::start(config()).await;
    let body = call("generate", &json!({"prompt": "one two three", "stream": true}));
    insta::assert_snapshot!(server.post(&[], &body).await);
}

#[tokio::test]
async fn a_progress_token_asks_for_the_same_and_is_used_as_given() {
    let server = TestServer::start(config()).await;
    let answer = server.post(&["accept: application/json, text/event-stream"], &with_token("generate")).await;
    assert!(answer.starts_with("200\ncontent-type: text/event-stream"), "{answer}");
    assert_eq!(answer.matches(r#""method":"notifications/progress","params":{"progressToken":"t""#).count(), 3);
    assert!(answer.ends_with("event: done\ndata: {\"finish_reason\":\"length\"}\n\n"), "{answer}");
}

#[tokio::test]
async fn who_reads_json_only_gets_the_whole_text_as_json() {
    let server = TestServer::start(config()).await;
    let body = call("generate", &json!({"prompt": "one two three", "stream": true}));
    let answer = server.post(&["accept: application/json"], &body).await;
    assert!(answer.starts_with("200\ncontent-type: application/json"), "{answer}");
    assert!(answer.contains(r#""text":"one two three""#) && !answer.contains("progress"), "{answer}");
}

#[tokio::test]
async fn stream_in_the_arguments_of_another_tool_is_that_tools_own() {
    let server = TestServer::start(config()).await;
    let answer = server.post(&[], &call("fail", &json!({"stream": true}))).await;
    assert!(answer.starts_with("200\ncontent-type: application/json"), "{answer}");
}

#[tokio::test]
async fn a_streamed_call_that_fails_says_so_and_is_done() {
    let server = TestServer::start(config()).await;
    let failed = server.post(&[], &with_token("fail")).await;
    assert!(
        failed.contains(r#""isError":true"#) && failed.ends_with("data: {\"finish_reason\":\"error\"}\n\n"),
        "{failed}"
    );
    let unknown = server.post(&[], &with_token("nobody::knows")).await;
    assert!(unknown.contains("-32602") && unknown.ends_with("data: {\"finish_reason\":\"error\"}\n\n"), "{unknown}");
    let counted = server.metrics("http_mcp_errors_total");
    assert_eq!(counted, r#"http_mcp_errors_total{method="tools/call",type="invalid_params"} 1"#);
}

#[tokio::test]
async fn dropping_the_stream_cancels_the_call() {
    let server = TestServer::start(config()).await;
    let response = server.send(post(&["accept: text/event-stream"], &call("wait", &json!({})))).await;
    server.tools.began.notified().await;
    assert_eq!(server.metrics("http_mcp_active"), "http_mcp_active_connections 1");
    drop(response);
    server.tools.ended.notified().await;
    assert_eq!(server.metrics("http_mcp_active"), "http_mcp_active_connections 0");
}

#[tokio::test]
async fn leaving_before_the_json_answer_cancels_the_call_and_is_counted() {
    let server = TestServer::start(config()).await;
    tokio::select! {
        _ = server.send(post(&[], &call("wait", &json!({})))) => panic!("`wait` answers only when it is cancelled"),
        () = server.tools.began.notified() => {}
    }
    server.tools.ended.notified().await;
    let counted = server.metrics("http_mcp_requests_total");
    assert_eq!(counted, r#"http_mcp_requests_total{method="tools/call",status="499"} 1"#);
}

/// Silence would make proxies close the stream; a caller that reads both types gets one as soon as there is silence.
#[tokio::test(start_paused = true)]
async fn a_slow_call_opens_a_stream_for_who_named_it_and_keeps_it_alive() {
    let server = TestServer::start(config()).await;
    let both = post(&["accept: application/json, text/event-stream"], &call("wait", &json!({})));
    let response = server.send(both).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    let frame = http_body_util::BodyExt::frame(&mut body).await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), ":\n\n");
}
