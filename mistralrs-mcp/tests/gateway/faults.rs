//! Upstreams that do what no server should, each beside one that must not notice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::{StreamExt, stream};
use http::{HeaderMap, StatusCode};
use mistralrs_mcp::config::{HttpConfig, TransportConfig};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::support::http_upstream::HttpUpstream;
use super::support::{self, Setup, child, eventually};

#[tokio::test]
async fn answers_that_nobody_waits_for_disturb_nobody() {
    let gateway = Setup::new().with(child("u", &[])).start().await;
    // Twice, under an id that was never given, and with lines in between that are no messages at all.
    for name in ["u::answer_twice", "u::answer_a_stranger", "u::talk_garbage"] {
        for _ in 0..3 {
            assert_eq!(gateway.call_text(name, json!({"text": name})).await, name);
            assert_eq!(gateway.call_text("u::echo", json!({"n": 1})).await, r#"{"n": 1}"#);
        }
    }
    assert!(!gateway.metrics().contains("restarts_total{upstream=\"u\"} 1"), "the connection was given up");
    gateway.shutdown().await;
}

#[tokio::test]
async fn ten_megabytes_in_one_line_arrive() {
    let gateway = Setup::new().with(child("u", &[])).start().await;
    let text = gateway.call_text("u::big", json!({"bytes": 10_000_000})).await;
    assert_eq!(text.len(), 10_000_000);
    assert_eq!(gateway.call_text("u::echo", json!({"n": 1})).await, r#"{"n": 1}"#);
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_server_that_never_answers_holds_up_nobody_else() {
    let mut silent = child("silent", &[]);
    silent.tool_timeout = Duration::from_millis(300);
    silent.max_concurrent_calls = 2;
    let gateway = Setup::new().with(silent).with(child("works", &[])).start().await;
    let stuck = futures::future::join_all((0..4).map(|_| gateway.call("silent::sleep", json!({"seconds": 600}))));
    let others = async {
        for n in 0..20 {
            assert_eq!(gateway.call_text("works::echo", json!({"n": n})).await, format!("{{\"n\": {n}}}"));
        }
    };
    let (stuck, ()) = tokio::join!(stuck, others);
    let kinds: Vec<_> = stuck.into_iter().map(|outcome| outcome.unwrap_err().kind()).collect();
    assert!(kinds.iter().all(|kind| ["timeout", "busy"].contains(kind)), "{kinds:?}");
    gateway.shutdown().await;
}

#[tokio::test]
async fn half_of_twenty_upstreams_may_be_down() {
    let mut setup = Setup::new();
    for n in 0..10 {
        setup.upstream(child(&format!("up{n}"), &[]));
        setup.upstream(child(&format!("down{n}"), &["--exit-at-start"]));
    }
    let gateway = setup.start().await;
    for n in 0..10 {
        assert_eq!(gateway.call_text(&format!("up{n}::echo"), json!({"n": n})).await, format!("{{\"n\": {n}}}"));
        assert_eq!(gateway.call(&format!("down{n}::echo"), json!({})).await.unwrap_err().kind(), "unknown_tool");
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_child_killed_in_the_middle_of_calls_fails_those_and_no_others() {
    let gateway = Setup::new().with(child("dies", &[])).with(child("works", &[])).start().await;
    let pid = gateway.call_text("dies::pid", json!({})).await;
    let lost = futures::future::join_all((0..8).map(|_| gateway.call("dies::sleep", json!({"seconds": 600}))));
    let kill = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        support::kill(&pid);
        assert_eq!(gateway.call_text("works::echo", json!({"n": 1})).await, r#"{"n": 1}"#);
    };
    let (lost, ()) = tokio::join!(lost, kill);
    for outcome in lost {
        assert_eq!(outcome.unwrap_err().kind(), "connection_lost");
    }
    assert_eq!(gateway.call_text("dies::echo", json!({"n": 2})).await, r#"{"n": 2}"#);
    eventually("the killed child is reaped", || !support::is_running(&pid)).await;
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_stream_that_broke_off_and_is_not_resumed_fails_its_call_alone() {
    let address = breaking_upstream().await;
    let gateway = Setup::new().with(support::url("web", &format!("http://{address}/mcp"))).start().await;
    // The second is answered after the first has been given up, over the same connection.
    let (lost, answered) =
        tokio::join!(gateway.call("web::breaks", json!({})), gateway.call_text("web::waits", json!({})));
    assert_eq!(lost.unwrap_err().kind(), "connection_lost");
    assert_eq!(answered, "still here");
    assert!(!gateway.metrics().contains("restarts_total{upstream=\"web\"} 1"), "the connection was given up");
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_key_in_a_url_is_told_to_nobody() {
    let upstream = HttpUpstream::start("").await;
    let mut setup = Setup::new().with(support::url("web", &format!("{}?key=s3cret", upstream.url())));
    for (name, scheme, transport) in [
        ("gone", "http", TransportConfig::StreamableHttp as fn(HttpConfig) -> TransportConfig),
        ("events", "http", TransportConfig::LegacySse),
        ("frames", "ws", TransportConfig::WebSocket),
    ] {
        let mut config = support::url(name, &format!("{scheme}://127.0.0.1:1/mcp?key=s3cret"));
        if let TransportConfig::StreamableHttp(http) = config.transport {
            config.transport = transport(http);
        }
        setup.upstream(config);
    }
    let gateway = setup.start().await;
    assert_eq!(gateway.call_text("web::hello", json!({"name": "ada"})).await, "hello ada");
    upstream.stop().await;
    let mut told = Vec::new();
    for _ in 0..2 {
        told.push(gateway.call("web::hello", json!({"name": "ada"})).await.unwrap_err().to_string());
    }
    told.extend(gateway.gateway.upstreams().into_iter().filter_map(|status| status.failure));
    assert_eq!(told.len(), 2 + 4, "{told:?}");
    assert!(!told.iter().any(|words| words.contains("s3cret")), "{told:?}");
    assert!(told[1..].iter().all(|words| words.contains("refused")), "{told:?}");
    gateway.shutdown().await;
}

/// Answers calls of `breaks` with a stream that can be resumed, breaks it off and then knows nothing of it; and calls of
/// `waits` once it has been asked for the rest.
async fn breaking_upstream() -> SocketAddr {
    let asked = Arc::new(Notify::new());
    let told = Arc::clone(&asked);
    let resume = move |headers: HeaderMap| async move {
        if !headers.contains_key("last-event-id") {
            return StatusCode::METHOD_NOT_ALLOWED;
        }
        told.notify_one();
        StatusCode::NOT_FOUND
    };
    let take = move |Json(message): Json<Value>| answer_or_break(message, Arc::clone(&asked));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = Router::new().route("/mcp", get(resume).post(take));
    tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    address
}

async fn answer_or_break(message: Value, asked: Arc<Notify>) -> Response {
    let tool = |name: &str| json!({"name": name, "inputSchema": {"type": "object"}});
    let result = match (message["method"].as_str(), message["params"]["name"].as_str()) {
        (Some("initialize"), _) => json!({
            "protocolVersion": message["params"]["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "breaking", "version": "0"},
        }),
        (Some("tools/list"), _) => json!({"tools": [tool("breaks"), tool("waits")]}),
        (Some("tools/call"), Some("breaks")) => {
            let first = stream::once(async { Ok("id: 1\ndata:\n\n") });
            let end = stream::once(async {
                // Without a pause the first event would be lost in a buffer, and with it what makes the stream resumable.
                tokio::time::sleep(Duration::from_millis(50)).await;
                Err(std::io::Error::other("the cable was pulled"))
            });
            return ([("content-type", "text/event-stream")], Body::from_stream(first.chain(end))).into_response();
        }
        (Some("tools/call"), _) => {
            asked.notified().await;
            json!({"content": [{"type": "text", "text": "still here"}]})
        }
        _ => return StatusCode::ACCEPTED.into_response(),
    };
    let answer = json!({"jsonrpc": "2.0", "id": message["id"], "result": result});
    ([("mcp-session-id", "one")], Json(answer)).into_response()
}
