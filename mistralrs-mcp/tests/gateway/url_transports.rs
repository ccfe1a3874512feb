//! Upstreams that speak the transport of 2024-11-05, or WebSocket.

use std::time::Duration;

use mistralrs_mcp::config::{HttpAuth, HttpConfig, Secret, TransportConfig, UpstreamConfig};
use serde_json::json;

use super::support::url_upstreams::{Relay, UrlUpstream};
use super::support::{self, Setup, eventually};

fn sse(upstream: &UrlUpstream, token: &str) -> UpstreamConfig {
    let mut config = url(format!("http://{}/sse", upstream.address()), TransportConfig::LegacySse);
    if let TransportConfig::LegacySse(http) = &mut config.transport {
        http.auth = Some(HttpAuth::Bearer(Secret::new(token)));
    }
    config
}

fn web_socket(upstream: &UrlUpstream) -> UpstreamConfig {
    url(format!("ws://{}/", upstream.address()), TransportConfig::WebSocket)
}

fn url(url: String, transport: fn(HttpConfig) -> TransportConfig) -> UpstreamConfig {
    UpstreamConfig::new("web", transport(HttpConfig { url, headers: http::HeaderMap::new(), auth: None }))
}

#[tokio::test]
async fn calls_go_through_both() {
    let (events, frames) = (UrlUpstream::start_sse().await, UrlUpstream::start_web_socket().await);
    for config in [sse(&events, "s3cret"), web_socket(&frames)] {
        let gateway = Setup::new().with(config).start().await;
        let calls = (0..16).map(|n| {
            let gateway = &gateway;
            async move {
                let greeting = gateway.call_text("web::hello", json!({"name": n.to_string()})).await;
                assert_eq!(greeting, format!("hello {n}"));
            }
        });
        futures::future::join_all(calls).await;
        gateway.shutdown().await;
    }
}

#[tokio::test]
async fn a_connection_that_the_server_ended_is_opened_again_by_the_next_call() {
    let (events, frames) = (UrlUpstream::start_sse().await, UrlUpstream::start_web_socket().await);
    for (upstream, config) in [(&events, sse(&events, "s3cret")), (&frames, web_socket(&frames))] {
        let gateway = Setup::new().with(config).start().await;
        assert_eq!(gateway.call_text("web::hello", json!({"name": "ada"})).await, "hello ada");
        upstream.hang_up();
        let is_down = || gateway.metrics().contains("mistralrs_upstream_up{upstream=\"web\"} 0");
        eventually("the gateway noticed", is_down).await;
        assert_eq!(gateway.call_text("web::hello", json!({"name": "ada"})).await, "hello ada");
        assert!(gateway.metrics().contains("mistralrs_upstream_restarts_total{upstream=\"web\"} 1"));
        gateway.shutdown().await;
    }
}

#[tokio::test]
async fn what_answers_is_not_taken_for_what_it_is_not() {
    let (events, frames) = (UrlUpstream::start_sse().await, UrlUpstream::start_web_socket().await);
    let wrong_way_round = [
        url(format!("ws://{}/sse", events.address()), TransportConfig::WebSocket),
        url(format!("http://{}/", frames.address()), TransportConfig::LegacySse),
        sse(&events, "guessed"),
    ];
    for config in wrong_way_round {
        let gateway = Setup::new().with(config).with(support::child("works", &[])).start().await;
        assert!(!gateway.names().contains(&"web::hello".to_owned()));
        assert_eq!(gateway.call("web::hello", json!({})).await.unwrap_err().kind(), "unknown_tool");
        assert_eq!(gateway.call_text("works::echo", json!({"a": 1})).await, r#"{"a": 1}"#);
        gateway.shutdown().await;
    }
}

#[tokio::test]
async fn a_web_socket_that_fell_silent_is_noticed_and_opened_again() {
    let frames = UrlUpstream::start_web_socket().await;
    let relay = Relay::start(frames.address()).await;
    let mut config = url(format!("ws://{}/", relay.address()), TransportConfig::WebSocket);
    config.keep_alive = Duration::from_millis(200);
    let gateway = Setup::new().with(config).start().await;
    assert_eq!(gateway.call_text("web::hello", json!({"name": "ada"})).await, "hello ada");
    // Idle for long, and answering pings.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(gateway.metrics().contains("mistralrs_upstream_up{upstream=\"web\"} 1"));
    assert!(!gateway.metrics().contains("mistralrs_upstream_restarts_total{upstream=\"web\"} 1"));
    // Nothing passes any more, and neither side hears of it.
    relay.freeze();
    eventually("the gateway noticed", || gateway.metrics().contains("mistralrs_upstream_up{upstream=\"web\"} 0")).await;
    assert_eq!(gateway.call_text("web::hello", json!({"name": "ada"})).await, "hello ada");
    assert!(gateway.metrics().contains("mistralrs_upstream_restarts_total{upstream=\"web\"} 1"));
    gateway.shutdown().await;
}
