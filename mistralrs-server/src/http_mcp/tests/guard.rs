//! What a request must pass before anybody reads its body, in order: CORS, host and origin, key, rate.

use std::num::NonZeroU32;

use super::{TestServer, config, request};
use crate::config::{HttpMcpConfig, RateLimitConfig};

const PING: &str = r#"{"jsonrpc":"2.0","method":"ping","id":1}"#;

fn with_keys() -> HttpMcpConfig {
    HttpMcpConfig { api_keys: vec!["sk-first".to_owned(), "sk-second".to_owned()], ..config() }
}

#[tokio::test]
async fn a_missing_or_wrong_key_is_a_401_that_says_what_to_send() {
    let server = TestServer::start(with_keys()).await;
    let missing = server.post(&[], PING).await;
    let wrong = server.post(&["authorization: Bearer sk-third"], PING).await;
    insta::assert_snapshot!(format!("{missing}\n\n{wrong}"));
}

#[tokio::test]
async fn each_configured_key_passes_in_either_header() {
    let server = TestServer::start(with_keys()).await;
    for header in ["authorization: Bearer sk-first", "authorization: bearer sk-second", "x-api-key: sk-first"] {
        assert!(server.post(&[header], PING).await.starts_with("200"), "{header}");
    }
}

#[tokio::test]
async fn every_mcp_route_and_method_asks_for_the_key() {
    let server = TestServer::start(with_keys()).await;
    for (method, path) in [("GET", "/mcp/stream"), ("DELETE", "/mcp"), ("GET", "/mcp/list"), ("PUT", "/mcp/stream")] {
        let answer = server.exchange(request(method, path, &[], "")).await;
        assert!(answer.starts_with("401"), "{method} {path}: {answer}");
    }
}

#[tokio::test]
async fn keys_are_in_no_answer_and_no_metric() {
    let server = TestServer::start(with_keys()).await;
    let refused = server.post(&["authorization: Bearer sk-wrong-but-secret"], PING).await;
    assert!(!refused.contains("sk-"), "{refused}");
    assert!(!server.metrics("").contains("sk-"));
}

#[tokio::test]
async fn a_preflight_passes_before_the_key_is_asked_for() {
    let server = TestServer::start(with_keys()).await;
    let headers = [
        "origin: http://localhost:6274",
        "access-control-request-method: POST",
        "access-control-request-headers: authorization,mcp-session-id",
    ];
    insta::assert_snapshot!(server.exchange(request("OPTIONS", "/mcp/stream", &headers, "")).await);
    let stranger = ["origin: https://evil.example", "access-control-request-method: POST"];
    let answer = server.exchange(request("OPTIONS", "/mcp/stream", &stranger, "")).await;
    assert!(!answer.contains("access-control-allow-origin"), "{answer}");
}

#[tokio::test]
async fn pages_read_answers_and_refusals_only_where_their_origin_is_allowed() {
    let server = TestServer::start(with_keys()).await;
    let own = server.post(&["origin: http://localhost:6274"], PING).await;
    assert!(own.starts_with("401") && own.contains("access-control-allow-origin: http://localhost:6274"), "{own}");
    assert!(own.contains("access-control-expose-headers: mcp-session-id,www-authenticate"), "{own}");
    let evil = server.post(&["origin: https://evil.example", "authorization: Bearer sk-first"], PING).await;
    assert!(evil.starts_with("403") && evil.contains("Origin `https://evil.example` is not allowed"), "{evil}");
    assert!(!evil.contains("access-control-allow-origin"), "{evil}");
}

#[tokio::test]
async fn a_name_that_is_not_this_servers_is_refused() {
    let server = TestServer::start(config()).await;
    let mut rebound = super::post(&[], PING);
    rebound.headers_mut().insert("host", http::HeaderValue::from_static("rebound.example"));
    let answer = server.exchange(rebound).await;
    assert!(answer.starts_with("403") && answer.contains("Host `rebound.example` is not allowed"), "{answer}");
}

#[tokio::test]
async fn who_calls_too_often_is_told_when_to_come_back_and_the_other_key_is_not() {
    let two = NonZeroU32::new(2);
    let limits = RateLimitConfig { global: NonZeroU32::new(100), per_key: two, per_ip: two };
    let server = TestServer::start(HttpMcpConfig { rate_limit: Some(limits), ..with_keys() }).await;
    let (first, second) = ("authorization: Bearer sk-first", "authorization: Bearer sk-second");
    let mut answers = Vec::new();
    for header in [first, first, first, second] {
        answers.push(server.post(&[header], PING).await);
    }
    insta::assert_snapshot!(answers.join("\n\n"));
}

#[tokio::test]
async fn guessing_keys_is_limited_by_address_and_leaves_callers_with_a_key_alone() {
    let limits = RateLimitConfig { per_ip: NonZeroU32::new(2), global: NonZeroU32::new(3), per_key: None };
    let server = TestServer::start(HttpMcpConfig { rate_limit: Some(limits), ..with_keys() }).await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(server.post(&["x-api-key: sk-guess"], PING).await[..3].to_owned());
    }
    assert_eq!(statuses, ["401", "401", "429", "429"]);
    assert!(server.post(&["x-api-key: sk-first"], PING).await.starts_with("200"));
}

#[tokio::test]
async fn a_batch_costs_as_much_as_its_members() {
    let limits = RateLimitConfig { global: NonZeroU32::new(5), ..RateLimitConfig::default() };
    let server = TestServer::start(HttpMcpConfig { rate_limit: Some(limits), ..config() }).await;
    let batch = format!("[{}]", [PING; 4].join(","));
    assert!(server.post(&[], &batch).await.starts_with("200"));
    assert!(server.post(&[], &batch).await.starts_with("429"));
}

#[tokio::test]
async fn a_server_that_shuts_down_refuses_new_requests() {
    let server = TestServer::start(config()).await;
    server.shutdown.cancel();
    let answer = server.post(&[], PING).await;
    assert!(answer.starts_with("503\ncontent-type: application/json\nretry-after: 5"), "{answer}");
}
