//! Requests without a session: curl, scripts, and whatever else posts JSON-RPC.

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::{TestServer, call, config, post, request};

const PING: &str = r#"{"jsonrpc":"2.0","method":"ping","id":1}"#;

async fn check(headers: &[&str], body: &str, expected: &str) {
    let server = TestServer::start(config()).await;
    assert_eq!(server.post(headers, body).await, expected.trim_start(), "{headers:?} {body}");
}

#[tokio::test]
async fn the_documented_curl_lists_tools_without_handshake_session_or_accept() {
    let server = TestServer::start(config()).await;
    insta::assert_snapshot!(server.post(&[], r#"{"jsonrpc":"2.0","method":"tools/list","id":"1"}"#).await);
}

#[tokio::test]
async fn the_answer_has_a_type_that_the_caller_names() {
    let json = "200\ncontent-type: application/json\n\n{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}";
    let events = "200\ncontent-type: text/event-stream\nx-accel-buffering: no\n\n\
                  event: message\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n\n";
    check(&[], PING, json).await;
    check(&["accept: */*"], PING, json).await;
    check(&["accept: application/json"], PING, json).await;
    check(&["accept: application/json, text/event-stream"], PING, json).await;
    check(&["accept: text/event-stream"], PING, events).await;
    let answer = TestServer::start(config()).await.post(&["accept: text/html"], PING).await;
    assert!(answer.starts_with("406\ncontent-type: application/json"), "{answer}");
}

#[tokio::test]
async fn errors_are_json_rpc_objects_with_the_code_of_what_went_wrong() {
    let server = TestServer::start(config()).await;
    let mut answers = Vec::new();
    for body in [
        "not json",
        "5",
        r#"{"jsonrpc":"2.0","method":"tools/frobnicate","id":1}"#,
        r#"{"jsonrpc":"2.0","method":"tools/call","id":1,"params":{}}"#,
        r#"{"jsonrpc":"2.0","method":"tools/call","id":1,"params":{"name":"nobody::knows"}}"#,
        r#"{"jsonrpc":"2.0","method":"tools/call","id":1,"params":{"name":"generate"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
    ] {
        answers.push(format!("{body}\n=> {}", server.post(&[], body).await));
    }
    insta::assert_snapshot!(answers.join("\n\n"));
}

#[tokio::test]
async fn a_tool_that_fails_is_a_result_and_a_tool_that_panics_an_error() {
    let server = TestServer::start(config()).await;
    let failed = server.post(&[], &call("fail", &json!({}))).await;
    assert!(failed.contains(r#""text":"it did not work""#) && failed.contains(r#""isError":true"#), "{failed}");
    let panicked = server.post(&[], &call("panic", &json!({}))).await;
    assert!(panicked.starts_with("200") && panicked.contains(r#""code":-32603"#), "{panicked}");
    assert!(server.post(&[], PING).await.starts_with("200"));
}

#[tokio::test]
async fn native_tools_answer_to_their_qualified_names_too() {
    let server = TestServer::start(config()).await;
    for name in ["generate", "mistralrs::generate", "mistralrs__generate"] {
        let answer = server.post(&[], &call(name, &json!({"prompt": "hello"}))).await;
        assert!(answer.contains(r#""finish_reason":"length""#), "{name}: {answer}");
    }
}

#[tokio::test]
async fn notifications_are_accepted_and_have_no_answer() {
    check(&[], r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#, "202").await;
    check(
        &["accept: text/event-stream"],
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#,
        "202",
    )
    .await;
}

#[tokio::test]
async fn members_of_a_batch_are_answered_in_order_and_notifications_not_at_all() {
    let server = TestServer::start(config()).await;
    let body = format!(
        r#"[{PING},{{"jsonrpc":"2.0","method":"notifications/initialized"}},{},{{"id":5}},{{"jsonrpc":"2.0","method":"nope","id":"x"}}]"#,
        call("generate", &json!({"prompt": "a b"}))
    );
    insta::assert_snapshot!(server.post(&[], &body).await);
    check(&[], r#"[{"jsonrpc":"2.0","method":"notifications/initialized"}]"#, "202").await;
}

#[tokio::test]
async fn revisions_that_removed_batches_refuse_them_by_name() {
    let server = TestServer::start(config()).await;
    let answer = server.post(&["mcp-protocol-version: 2025-06-18"], &format!("[{PING}]")).await;
    assert!(answer.starts_with("400") && answer.contains("MCP 2025-06-18 has no batches"), "{answer}");
}

#[tokio::test]
async fn bodies_over_the_limit_are_refused_before_they_are_read() {
    let server = TestServer::start(config()).await;
    let body = call("generate", &json!({"prompt": "x".repeat(70_000)}));
    let answer = server.post(&[], &body).await;
    assert!(answer.starts_with("413") && answer.contains("larger than 65536 bytes"), "{answer}");
}

#[tokio::test]
async fn a_body_that_is_not_called_json_is_refused() {
    let server = TestServer::start(config()).await;
    let form = request("POST", "/mcp/stream", &["content-type: application/x-www-form-urlencoded"], PING);
    assert!(server.exchange(form).await.starts_with("415"));
    let charset = request("POST", "/mcp", &["content-type: Application/JSON; charset=utf-8"], PING);
    assert!(server.exchange(charset).await.starts_with("200"));
    let absent = request("POST", "/mcp", &[], PING);
    assert!(server.exchange(absent).await.starts_with("200"));
}

#[tokio::test]
async fn an_unknown_protocol_version_is_refused_with_those_that_are_known() {
    let server = TestServer::start(config()).await;
    insta::assert_snapshot!(server.post(&["mcp-protocol-version: 2031-01-01"], PING).await);
}

#[tokio::test]
async fn get_without_a_session_answers_at_once_and_other_methods_say_what_is_allowed() {
    let server = TestServer::start(config()).await;
    let get = server.exchange(request("GET", "/mcp/stream", &["accept: text/event-stream"], "")).await;
    assert!(get.starts_with("405\ncontent-type: application/json\nallow: POST"), "{get}");
    let put = server.exchange(request("PUT", "/mcp/stream", &[], "")).await;
    assert!(put.starts_with("405\ncontent-type: application/json\nallow: POST, GET, DELETE, OPTIONS"), "{put}");
}

#[tokio::test]
async fn paths_that_nothing_serves_are_json_404_and_need_no_key() {
    let mut config = config();
    config.api_keys = vec!["sk-secret".to_owned()];
    let server = TestServer::start(config).await;
    for path in ["/", "/mcp/other", "/.well-known/oauth-protected-resource", "/.well-known/oauth-authorization-server"]
    {
        let answer = server.exchange(request("GET", path, &[], "")).await;
        assert!(answer.starts_with("404\ncontent-type: application/json\n\n{"), "{path}: {answer}");
    }
}

#[tokio::test]
async fn people_with_a_browser_get_a_list_of_tools() {
    let server = TestServer::start(config()).await;
    let answer = server.exchange(request("GET", "/mcp/list", &["accept: text/html"], "")).await;
    assert!(
        answer.starts_with("200\ncontent-type: application/json\n\n{\"num_tools\":4,\"tools\":[{\"name\":\"generate\""),
        "{answer}"
    );
}

/// A request of protocol 2026-07-28, which says in itself what older ones say once.
fn modern(method: &str, mut params: Value) -> Request<Body> {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
    post(&["mcp-protocol-version: 2026-07-28", &format!("mcp-method: {method}")], &body)
}

/// That revision is rmcp's to serve; what is ours is that it is reached, and that refusals are JSON.
#[tokio::test]
async fn modern_requests_are_served_without_a_session_and_refused_in_json() {
    let server = TestServer::start(config()).await;
    let listed = server.exchange(modern("tools/list", json!({}))).await;
    assert!(listed.starts_with("200\ncontent-type: application/json") && listed.contains("ttlMs"), "{listed}");
    let discovered = server.exchange(modern("server/discover", json!({}))).await;
    assert!(discovered.starts_with("200") && discovered.contains("2025-11-25"), "{discovered}");

    let mut mismatch = modern("tools/list", json!({}));
    mismatch.headers_mut().insert("mcp-method", http::HeaderValue::from_static("ping"));
    let mismatch = server.exchange(mismatch).await;
    assert!(mismatch.starts_with("400") && mismatch.contains("-32020"), "{mismatch}");
    let removed = server.exchange(modern("logging/setLevel", json!({}))).await;
    assert!(removed.starts_with("404") && removed.contains("-32601"), "{removed}");
    let without_meta = server.post(&["mcp-protocol-version: 2026-07-28", "mcp-method: ping"], PING).await;
    assert!(without_meta.starts_with("400") && without_meta.contains("-32602"), "{without_meta}");
}

#[tokio::test]
async fn modern_subscriptions_end_at_shutdown_and_calls_in_flight_do_not() {
    let server = TestServer::start(config()).await;
    let listen = modern("subscriptions/listen", json!({"notifications": {"toolsListChanged": true}}));
    let stream = server.send(listen).await;
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let mut in_flight = modern("tools/call", json!({"name": "wait", "arguments": {}}));
    in_flight.headers_mut().insert("mcp-name", http::HeaderValue::from_static("wait"));
    let in_flight = server.send(in_flight);
    tokio::select! {
        _ = in_flight => panic!("`wait` answers only when it is cancelled"),
        () = async {
            server.tools.began.notified().await;
            server.shutdown.cancel();
            stream.into_body().collect().await.unwrap();
        } => {}
    }
}

#[tokio::test]
async fn metrics_count_by_known_method_and_status() {
    let server = TestServer::start(config()).await;
    server.post(&[], PING).await;
    server.post(&[], r#"{"jsonrpc":"2.0","method":"tools/frobnicate","id":1}"#).await;
    server.post(&[], "not json").await;
    server.post(&["accept: text/event-stream"], PING).await;
    let counted = ["http_mcp_requests_total", "http_mcp_errors_total", "http_mcp_active", "http_mcp_stream_bytes"];
    insta::assert_snapshot!(counted.map(|name| server.metrics(name)).join("\n"));
}
