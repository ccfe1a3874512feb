//! Sessions: the handshake of the older revisions, and everything that can happen to one.

use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::{TestServer, call, config, post, request, show};
use crate::config::HttpMcpConfig;

const PING: &str = r#"{"jsonrpc":"2.0","method":"ping","id":1}"#;
const BOTH: &str = "accept: application/json, text/event-stream";

fn initialize(version: &str) -> String {
    let client = json!({"name": "test", "version": "1"});
    let params = json!({"protocolVersion": version, "capabilities": {}, "clientInfo": client});
    json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}).to_string()
}

async fn open(server: &TestServer, version: &str, headers: &[&str]) -> String {
    let response = server.send(post(headers, &initialize(version))).await;
    assert_eq!(response.status(), StatusCode::OK);
    let id = response.headers()["mcp-session-id"].to_str().unwrap().to_owned();
    let answer = show(response).await;
    assert!(answer.contains(&format!(r#""protocolVersion":"{version}""#)), "{answer}");
    format!("mcp-session-id: {id}")
}

fn get(headers: &[&str]) -> Request<Body> {
    request("GET", "/mcp/stream", headers, "")
}

#[tokio::test]
async fn each_older_revision_shakes_hands_and_calls() {
    for version in ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"] {
        let server = TestServer::start(config()).await;
        let session = open(&server, version, &[BOTH]).await;
        let initialized = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        assert_eq!(server.post(&[&session, BOTH], initialized).await, "202");
        let called = server.post(&[&session, BOTH], &call("generate", &json!({"prompt": "a b"}))).await;
        assert!(called.starts_with("200\ncontent-type: application/json"), "{called}");
        assert!(called.contains(r#""finish_reason":"length""#), "{called}");
    }
}

/// candle-vllm's client: the oldest revision, no version header, each body read to its end, no second handshake ever.
#[tokio::test]
async fn a_client_that_never_shakes_hands_again_outlives_a_restart() {
    let server = TestServer::start(config()).await;
    let session = open(&server, "2024-11-05", &[BOTH]).await;
    let initialized = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    assert_eq!(server.post(&[&session, BOTH], initialized).await, "202");

    let restarted = TestServer::start(config()).await;
    for server in [&server, &restarted] {
        let listed = server.post(&[&session, BOTH], r#"{"jsonrpc":"2.0","method":"tools/list","id":2}"#).await;
        assert!(listed.starts_with("200\ncontent-type: application/json") && listed.contains("generate"), "{listed}");
        let streamed =
            server.post(&[&session, BOTH], &call("generate", &json!({"prompt": "a b", "stream": true}))).await;
        let data = streamed.lines().filter_map(|line| line.strip_prefix("data: ")).collect::<Vec<_>>();
        assert!(data.last().unwrap().contains(r#""finish_reason":"length""#), "the response comes last: {streamed}");
        assert!(data.iter().all(|data| data.starts_with(r#"{"jsonrpc""#)), "JSON-RPC messages only: {streamed}");
    }
    assert!(server.exchange(get(&[&session, "accept: text/event-stream"])).await.starts_with("405"));
    assert_eq!(server.exchange(request("DELETE", "/mcp", &[&session], "")).await, "204");
    for body in [PING.to_owned(), format!("[{PING}]")] {
        assert!(server.post(&[&session], &body).await.starts_with("404"), "{body}");
    }
    assert_ne!(open(&server, "2024-11-05", &[&session]).await, session);
}

#[tokio::test]
async fn an_sse_answer_ends_with_the_response_and_has_no_event_without_a_message() {
    let server = TestServer::start(config()).await;
    for version in ["2024-11-05", "2025-06-18"] {
        let opened = server.post(&["accept: text/event-stream"], &initialize(version)).await;
        assert!(opened.starts_with("200\ncontent-type: text/event-stream") && opened.contains(version), "{opened}");
        assert_eq!(opened.matches("data:").count(), 1, "{opened}");
    }
}

#[tokio::test]
async fn progress_in_a_session_rides_the_calls_own_stream() {
    let server = TestServer::start(config()).await;
    let session = open(&server, "2025-06-18", &[BOTH]).await;
    let streamed = call("generate", &json!({"prompt": "one two", "stream": true}));
    let answer = server.post(&[&session, BOTH], &streamed).await;
    assert!(answer.starts_with("200\ncontent-type: text/event-stream"), "{answer}");
    assert_eq!(answer.matches("notifications/progress").count(), 2, "{answer}");
    assert!(answer.contains(r#""finish_reason":"length""#) && !answer.contains("event: done"), "{answer}");
}

#[tokio::test]
async fn streams_can_be_resumed_only_where_the_revision_knows_how() {
    for (version, expected) in [("2025-06-18", 0), ("2025-11-25", 1)] {
        let server = TestServer::start(config()).await;
        let session = open(&server, version, &[BOTH]).await;
        let answer = server.post(&[&session, "accept: text/event-stream"], PING).await;
        assert_eq!(answer.matches("retry:").count(), expected, "{version}: {answer}");
    }
}

#[tokio::test]
async fn an_unknown_session_is_exactly_a_404() {
    let server = TestServer::start(config()).await;
    let unknown = "mcp-session-id: 0f2b";
    insta::assert_snapshot!(server.post(&[unknown], PING).await);
    assert!(server.exchange(get(&[unknown, "accept: text/event-stream"])).await.starts_with("404"));
    assert!(server.exchange(request("DELETE", "/mcp", &[unknown], "")).await.starts_with("404"));
}

#[tokio::test]
async fn a_session_belongs_to_the_key_that_opened_it() {
    let keys = vec!["sk-first".to_owned(), "sk-second".to_owned()];
    let server = TestServer::start(HttpMcpConfig { api_keys: keys, ..config() }).await;
    let session = open(&server, "2025-06-18", &["x-api-key: sk-first"]).await;
    assert!(server.post(&[&session, "x-api-key: sk-second"], PING).await.starts_with("404"));
    assert!(server.post(&[&session, "x-api-key: sk-first"], PING).await.starts_with("200"));
}

#[tokio::test]
async fn initialize_with_the_id_of_a_dead_session_opens_a_new_one() {
    let server = TestServer::start(config()).await;
    let stale = "mcp-session-id: 0f2b";
    let session = open(&server, "2025-06-18", &[stale]).await;
    assert_ne!(session, stale);
    assert!(server.post(&[&session], PING).await.starts_with("200"));
}

#[tokio::test]
async fn delete_ends_a_session() {
    let server = TestServer::start(config()).await;
    let session = open(&server, "2025-06-18", &[]).await;
    assert_eq!(server.exchange(request("DELETE", "/mcp/stream", &[&session], "")).await, "204");
    assert!(server.post(&[&session], PING).await.starts_with("404"));
}

#[tokio::test]
async fn a_cancelled_call_ends_and_has_no_response() {
    let server = TestServer::start(config()).await;
    let session = open(&server, "2025-06-18", &[]).await;
    let cancel = async {
        server.tools.began.notified().await;
        let body = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
        assert_eq!(server.post(&[&session], body).await, "202");
        server.tools.ended.notified().await;
    };
    let body = call("wait", &json!({}));
    let headers = [session.as_str()];
    let (answer, ()) = tokio::join!(server.post(&headers, &body), cancel);
    assert_eq!(answer, "202");
}

#[tokio::test]
async fn leaving_does_not_cancel_a_call_in_a_session() {
    let server = TestServer::start(config()).await;
    let session = open(&server, "2025-06-18", &[]).await;
    tokio::select! {
        _ = server.send(post(&[&session], &call("wait", &json!({})))) => panic!("`wait` answers only when cancelled"),
        () = server.tools.began.notified() => {}
    }
    assert!(server.post(&[&session], PING).await.starts_with("200"));
    let is_over = futures::FutureExt::now_or_never(server.tools.ended.notified()).is_some();
    assert!(!is_over, "the call goes on");
}

#[tokio::test]
async fn batches_work_in_sessions_of_the_one_revision_that_has_them() {
    let server = TestServer::start(config()).await;
    let session = open(&server, "2025-03-26", &[]).await;
    let body = format!("[{PING},{}]", call("generate", &json!({"prompt": "a"})).replace(r#""id":1"#, r#""id":2"#));
    let answer = server.post(&[&session], &body).await;
    let members: Vec<Value> = serde_json::from_str(answer.lines().last().unwrap()).unwrap();
    assert_eq!(members.iter().map(|member| &member["id"]).collect::<Vec<_>>(), [1, 2]);
    let later = open(&server, "2025-11-25", &[]).await;
    assert!(server.post(&[&later], &body).await.starts_with("400"));
}

#[tokio::test]
async fn the_stream_from_the_server_opens_at_once_and_ends_at_shutdown() {
    let server = TestServer::start(config()).await;
    let session = open(&server, "2025-06-18", &[]).await;
    let response = server.send(get(&[&session, "accept: text/event-stream"])).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    server.shutdown.cancel();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_only_listens_is_not_idle_and_one_that_does_not_is_closed() {
    let server = TestServer::start(config()).await;
    let listening = open(&server, "2025-06-18", &[]).await;
    let idle = open(&server, "2025-06-18", &[]).await;
    let stream = server.send(get(&[&listening, "accept: text/event-stream"])).await;

    tokio::time::sleep(config().session_idle_limit * 3).await;
    assert!(server.post(&[&listening], PING).await.starts_with("200"));
    assert!(server.post(&[&idle], PING).await.starts_with("404"));

    drop(stream);
    tokio::time::sleep(config().session_idle_limit * 3).await;
    assert!(server.post(&[&listening], PING).await.starts_with("404"));
}

#[tokio::test(start_paused = true)]
async fn a_full_table_evicts_the_session_idle_for_longest_and_none_in_use() {
    let server = TestServer::start(config()).await;
    let in_use = open(&server, "2025-06-18", &[]).await;
    let _stream = server.send(get(&[&in_use, "accept: text/event-stream"])).await;
    let oldest = open(&server, "2025-06-18", &[]).await;
    tokio::time::sleep(std::time::Duration::from_secs(61)).await;
    for _ in 2..config().max_sessions {
        open(&server, "2025-06-18", &[]).await;
    }

    open(&server, "2025-06-18", &[]).await;
    assert!(server.post(&[&oldest], PING).await.starts_with("404"));
    assert!(server.post(&[&in_use], PING).await.starts_with("200"));
    // Everybody else came within the last minute.
    let refused = server.post(&[], &initialize("2025-06-18")).await;
    assert!(refused.starts_with("503") && refused.contains("retry-after: 5"), "{refused}");
    assert!(server.post(&[], PING).await.starts_with("200"), "without a session everything goes on");
}

/// As agents do that are killed: some while they wait for an answer, some with a stream open, most between two requests.
#[tokio::test(start_paused = true)]
async fn a_thousand_sessions_whose_clients_vanish_leave_nothing_behind() {
    let server = TestServer::start(config()).await;
    let bystander = open(&server, "2025-11-25", &[BOTH]).await;
    let listening = server.send(get(&[&bystander, "accept: text/event-stream"])).await;
    for index in 0..1_000 {
        let session = open(&server, "2025-11-25", &[BOTH]).await;
        let initialized = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        assert_eq!(server.post(&[&session, BOTH], initialized).await, "202");
        match index % 100 {
            0 => drop(server.send(get(&[&session, "accept: text/event-stream"])).await),
            1 => tokio::select! {
                _ = server.send(post(&[&session], &call("wait", &json!({})))) => panic!("`wait` answers when cancelled"),
                () = server.tools.began.notified() => {}
            },
            _ => {}
        }
    }
    // The clock moves once every task is idle.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(server.metrics("http_mcp_sessions"), "http_mcp_sessions 1001");
    assert_eq!(server.gateway.num_sessions(), 1_000, "those that shook hands to the end");
    for headers in [vec![bystander.as_str()], vec![]] {
        assert!(server.post(&headers, PING).await.starts_with("200"));
    }

    tokio::time::sleep(config().session_idle_limit * 3).await;
    assert_eq!(server.metrics("http_mcp_sessions"), "http_mcp_sessions 1");
    assert_eq!(server.metrics("http_mcp_active"), "http_mcp_active_connections 1", "the bystander's stream");
    assert_eq!(server.gateway.num_sessions(), 0);
    assert_eq!(server.tools.num_running(), 0, "calls end with their session");
    assert!(server.post(&[&bystander], PING).await.starts_with("200"));
    drop(listening);
}

#[tokio::test(start_paused = true)]
async fn the_limits_of_sessions_are_the_configurations() {
    let idle = std::time::Duration::from_secs(2);
    let server = TestServer::start(HttpMcpConfig { max_sessions: 2, session_idle_limit: idle, ..config() }).await;
    for _ in 0..2 {
        open(&server, "2025-06-18", &[]).await;
    }
    let refused = server.post(&[], &initialize("2025-06-18")).await;
    assert!(refused.starts_with("503") && refused.contains("2 sessions"), "{refused}");
    tokio::time::sleep(idle * 3).await;
    assert_eq!(server.metrics("http_mcp_sessions"), "http_mcp_sessions 0");
    open(&server, "2025-06-18", &[]).await;
}
