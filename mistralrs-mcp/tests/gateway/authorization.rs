//! Upstreams that want a token of an authorization server.

use std::time::{Duration, Instant};

use mistralrs_mcp::config::{
    AuthorizationServer as Found, ClientAuthentication, HttpAuth, TransportConfig, UpstreamConfig,
};
use serde_json::json;

use super::support::authorization_server::{AuthorizationServer, CLIENT_SECRET, Fault, oauth};
use super::support::http_upstream::HttpUpstream;
use super::support::url_upstreams::UrlUpstream;
use super::support::{self, Setup, TestGateway, child, eventually};

fn upstream(url: &str, auth: HttpAuth) -> UpstreamConfig {
    let mut config = support::url("web", url);
    if let TransportConfig::StreamableHttp(http) = &mut config.transport {
        http.auth = Some(auth);
    }
    config
}

/// Both servers, and a gateway that finds the one through the other.
async fn guarded() -> (AuthorizationServer, HttpUpstream, TestGateway) {
    let server = AuthorizationServer::start().await;
    let guarded = HttpUpstream::start_guarded(&server).await;
    let gateway = Setup::new().with(upstream(&guarded.url(), oauth(Found::OfUpstream))).start().await;
    (server, guarded, gateway)
}

async fn greet(gateway: &TestGateway) {
    assert_eq!(gateway.call_text("web::hello", json!({"name": "ada"})).await, "hello ada");
}

/// Why `web` has no connection, once it was tried.
async fn failure(gateway: &TestGateway) -> String {
    let told = || gateway.gateway.upstreams()[0].failure.clone();
    eventually("the first attempt ends", || told().as_deref() != Some("it is still connecting")).await;
    told().expect("it is connected")
}

#[tokio::test]
async fn the_authorization_server_that_the_upstream_names_is_asked_once_for_all_calls() {
    let (server, guarded, gateway) = guarded().await;
    futures::future::join_all((0..16).map(|_| greet(&gateway))).await;
    assert_eq!(server.num_issued(), 1);
    let (authorization, form) = server.last_request();
    // `gateway:hunter2-and-more`
    assert_eq!(authorization, "Basic Z2F0ZXdheTpodW50ZXIyLWFuZC1tb3Jl");
    let resource = format!("resource=http%3A%2F%2F{}%2Fmcp", guarded.address().to_string().replace(':', "%3A"));
    for part in ["grant_type=client_credentials", "scope=tools", &resource] {
        assert!(form.split('&').any(|field| field == part), "{part} is not in {form}");
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_configured_token_url_is_asked_as_configured() {
    let server = AuthorizationServer::start().await;
    let guarded = HttpUpstream::start_guarded(&server).await;
    let HttpAuth::OAuth(mut config) = oauth(Found::TokenUrl(server.token_url())) else { unreachable!() };
    config.scopes = vec!["a".to_owned(), "b".to_owned()];
    config.authentication = Some(ClientAuthentication::ClientSecretPost);
    let gateway = Setup::new().with(upstream(&guarded.url(), HttpAuth::OAuth(config))).start().await;
    greet(&gateway).await;
    let (authorization, form) = server.last_request();
    assert_eq!(authorization, "");
    for part in ["client_id=gateway", "client_secret=hunter2-and-more", "scope=a+b"] {
        assert!(form.split('&').any(|field| field == part), "{part} is not in {form}");
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_configured_issuer_is_asked_whatever_the_upstream_says() {
    let (server, other) = (AuthorizationServer::start().await, AuthorizationServer::start_giving("other").await);
    // Its own metadata name `server`, whose tokens it takes.
    let guarded = HttpUpstream::start_guarded(&server).await;
    let gateway = Setup::new().with(upstream(&guarded.url(), oauth(Found::Issuer(other.url())))).start().await;
    assert!(failure(&gateway).await.contains("authorization required"), "{}", failure(&gateway).await);
    assert_eq!((server.num_issued(), other.num_issued() > 0), (0, true));
    gateway.shutdown().await;
    let gateway = Setup::new().with(upstream(&guarded.url(), oauth(Found::Issuer(server.url())))).start().await;
    greet(&gateway).await;
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_revoked_token_is_replaced_within_the_call_and_not_again_and_again() {
    let (server, _guarded, gateway) = guarded().await;
    greet(&gateway).await;
    server.revoke_all();
    futures::future::join_all((0..16).map(|_| greet(&gateway))).await;
    assert_eq!(server.num_issued(), 2);
    server.revoke_all();
    for _ in 0..4 {
        let error = gateway.call("web::hello", json!({})).await.unwrap_err();
        assert_eq!(error.kind(), "unavailable", "{error}");
    }
    assert_eq!(server.num_issued(), 2);
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_token_is_replaced_before_it_expires() {
    let server = AuthorizationServer::start().await;
    server.set_expires_in(2);
    let guarded = HttpUpstream::start_guarded(&server).await;
    let gateway = Setup::new().with(upstream(&guarded.url(), oauth(Found::OfUpstream))).start().await;
    greet(&gateway).await;
    let before = server.num_issued();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    greet(&gateway).await;
    assert!(server.num_issued() > before, "the old token was sent after half of its life");
    // As long as it has not expired, it serves where a new one is not to be had.
    server.set_expires_in(600);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    server.set_fault(Fault::RefusesClient);
    greet(&gateway).await;
    gateway.shutdown().await;
}

#[tokio::test]
async fn what_is_wrong_with_the_authorization_server_is_told_without_our_secret() {
    for (fault, expected) in [
        (Fault::RefusesClient, "invalid_client: nobody knows you"),
        (Fault::Hangs, "the authorization server did not answer within 320ms"),
        (Fault::SaysNothingReadable, "unexpected response Content-Type"),
        (Fault::SaysItIsAnother, "issuer mismatch"),
        (Fault::TakesTokensElsewhere, "`http://login.example/token`, where a secret is not safe"),
    ] {
        let server = AuthorizationServer::start().await;
        server.set_fault(fault);
        let guarded = HttpUpstream::start_guarded(&server).await;
        let mut config = upstream(&guarded.url(), oauth(Found::OfUpstream));
        config.connect_timeout = Duration::from_millis(400);
        let started = Instant::now();
        let gateway = Setup::new().with(config).with(child("works", &[])).start().await;
        assert!(started.elapsed() < Duration::from_secs(20), "{fault:?}");
        let told = failure(&gateway).await;
        assert!(told.contains(expected), "{fault:?}: {told}");
        assert!(!told.contains(CLIENT_SECRET), "{told}");
        assert_eq!(gateway.call_text("works::echo", json!({"a": 1})).await, r#"{"a": 1}"#);
        // It is connected as soon as it can be.
        server.set_fault(Fault::None);
        let mended = async {
            while !gateway.names().contains(&"web::hello".to_owned()) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(1), mended).await.expect("it is connected at last");
        greet(&gateway).await;
        gateway.shutdown().await;
    }
}

#[tokio::test]
async fn an_upstream_that_names_no_authorization_server_is_not_guessed_about() {
    let plain = HttpUpstream::start("Bearer nobody has it").await;
    let gateway = Setup::new().with(upstream(&plain.url(), oauth(Found::OfUpstream))).start().await;
    let told = failure(&gateway).await;
    assert!(told.contains("names no authorization server; give `issuer` or `token_url`"), "{told}");
    gateway.shutdown().await;
}

#[tokio::test]
async fn the_older_transport_shows_a_token_too() {
    let (server, events) = (AuthorizationServer::start_giving("s3cret").await, UrlUpstream::start_sse().await);
    let mut config = upstream(&format!("http://{}/sse", events.address()), oauth(Found::TokenUrl(server.token_url())));
    if let TransportConfig::StreamableHttp(http) = config.transport {
        config.transport = TransportConfig::LegacySse(http);
    }
    let gateway = Setup::new().with(config).start().await;
    greet(&gateway).await;
    assert_eq!(server.num_issued(), 1);
    gateway.shutdown().await;
}
