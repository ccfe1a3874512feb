//! Resources and prompts of the process itself, beside the upstreams' and in nobody's way.

use mistralrs_mcp::config::{Namespace, SecurityConfig};
use serde_json::json;

use super::passing_through::{listed, meta};
use super::support::downstream::Downstream;
use super::support::natives::FakeOffers;
use super::support::{Setup, TestGateway, eventually, everything};

const STATUS: &str = "mistralrs://status";

async fn gateway(security: &SecurityConfig) -> TestGateway {
    let mut nameless = everything("flat", "legacy");
    nameless.namespace = Namespace::new("");
    let setup = Setup::new().with(everything("docs", "legacy")).with(nameless).offering(FakeOffers::default());
    setup.security(security).start().await
}

#[tokio::test]
async fn native_ones_are_listed_first_and_an_upstream_takes_no_name_of_theirs() {
    let gateway = gateway(&SecurityConfig::default()).await;
    let mut client = Downstream::connect(&gateway).await;
    let resources = client.request("resources/list", json!({})).await;
    let uris = listed(&resources, "resources", "uri");
    assert_eq!((uris[0], uris.len()), (STATUS, 7), "{uris:?}");
    let templates = client.request("resources/templates/list", json!({})).await;
    assert_eq!(listed(&templates, "resourceTemplates", "uriTemplate")[0], "mistralrs://models/{id}");
    // The upstream without a namespace has a prompt of this name too, which is not listed twice.
    let prompts = client.request("prompts/list", json!({})).await;
    let names = listed(&prompts, "prompts", "name");
    assert_eq!(names[..2], ["test_simple_prompt", "docs::test_simple_prompt"]);
    assert_eq!(names.iter().filter(|name| **name == "test_simple_prompt").count(), 1);
    let asked = json!({"name": "mistralrs::test_simple_prompt", "arguments": {"name": "Ada"}});
    let got = client.request("prompts/get", asked).await;
    assert_eq!(got["result"]["messages"][0]["content"]["text"], "Hello Ada", "{got}");
    let of_upstream = client.request("prompts/get", json!({"name": "docs::test_simple_prompt"})).await;
    assert!(of_upstream["result"]["messages"][0]["content"]["text"].as_str().unwrap().starts_with("This is"));
    gateway.shutdown().await;
}

#[tokio::test]
async fn they_are_read_completed_and_refused_like_an_upstreams() {
    let gateway = gateway(&SecurityConfig::default()).await;
    let mut client = Downstream::connect(&gateway).await;
    let read = client.request("resources/read", json!({"uri": STATUS})).await;
    let text = read["result"]["contents"][0]["text"].as_str().unwrap();
    assert_eq!(text, r#"[("docs", true), ("flat", true)], 1 sessions"#);
    for (method, params, code) in [
        ("resources/read", json!({"uri": "mistralrs://models/none"}), -32002),
        ("resources/read", json!({"uri": "mistralrs://other"}), -32002),
        ("resources/subscribe", json!({"uri": STATUS}), -32602),
        ("prompts/get", json!({"name": "test_simple_prompt"}), -32602),
    ] {
        let refused = client.request(method, params.clone()).await;
        assert_eq!(refused["error"]["code"], code, "{method} {params}: {refused}");
    }
    for reference in [
        json!({"type": "ref/resource", "uri": "mistralrs://models/{id}"}),
        json!({"type": "ref/prompt", "name": "test_simple_prompt"}),
    ] {
        let params = json!({"ref": reference, "argument": {"name": "id", "value": "t"}});
        let completed = client.request("completion/complete", params).await;
        assert_eq!(completed["result"]["completion"]["values"], json!(["tiny", "tall"]), "{completed}");
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn how_long_a_resource_is_fresh_is_said_in_the_revision_that_knows_the_word() {
    let gateway = gateway(&SecurityConfig::default()).await;
    let older = Downstream::connect(&gateway).await.request("resources/read", json!({"uri": STATUS})).await;
    assert!(older["result"]["contents"].is_array() && older["result"]["ttlMs"].is_null(), "{older}");
    let params = json!({"uri": STATUS, "_meta": meta(&json!({}))});
    let newer = Downstream::open(&gateway).request("resources/read", params).await;
    assert_eq!((&newer["result"]["ttlMs"], &newer["result"]["resultType"]), (&json!(7), &json!("complete")), "{newer}");
    gateway.shutdown().await;
}

#[tokio::test]
async fn the_policy_hides_native_ones_by_name_and_upstreams_from_the_status() {
    let security = SecurityConfig {
        allowed_namespaces: Some(vec!["docs".into()]),
        blocked_tools: vec!["mistralrs::model".into(), "test_simple_prompt".into()],
        ..SecurityConfig::default()
    };
    let gateway = gateway(&security).await;
    let mut client = Downstream::connect(&gateway).await;
    let templates = client.request("resources/templates/list", json!({})).await;
    assert_eq!(listed(&templates, "resourceTemplates", "uriTemplate"), ["mcp://docs/test://template/{id}/data"]);
    let hidden = client.request("resources/read", json!({"uri": "mistralrs://models/tiny"})).await;
    assert_eq!(hidden["error"]["code"], -32002, "{hidden}");
    let hidden = client.request("prompts/get", json!({"name": "test_simple_prompt", "arguments": {"name": "x"}})).await;
    assert_eq!(hidden["error"]["code"], -32602, "{hidden}");
    let reference = json!({"type": "ref/resource", "uri": "mistralrs://models/{id}"});
    let params = json!({"ref": reference, "argument": {"name": "id", "value": "t"}});
    let hidden = client.request("completion/complete", params).await;
    assert_eq!(hidden["error"]["code"], -32002, "{hidden}");
    let read = client.request("resources/read", json!({"uri": STATUS})).await;
    assert_eq!(read["result"]["contents"][0]["text"], r#"[("docs", true)], 1 sessions"#);
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_change_of_native_resources_reaches_every_session() {
    let offers = FakeOffers::default();
    let changed = offers.changed.clone();
    let gateway = Setup::new().offering(offers).start().await;
    let mut client = Downstream::connect(&gateway).await;
    changed.send_replace(());
    client.expect(|message| message["method"] == "notifications/resources/list_changed").await;
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_session_that_ends_is_not_kept_nor_what_it_subscribed_to() {
    let gateway = Setup::new().with(everything("docs", "legacy")).start().await;
    let mut clients = futures::future::join_all((0..50).map(|_| Downstream::connect(&gateway))).await;
    for client in &mut clients[..10] {
        let subscribed =
            client.request("resources/subscribe", json!({"uri": "mcp://docs/test://watched-resource"})).await;
        assert!(subscribed["result"].is_object(), "{subscribed}");
    }
    assert_eq!((gateway.gateway.num_sessions(), gateway.gateway.num_subscriptions()), (50, 10));
    drop(clients);
    let is_gone = || gateway.gateway.num_sessions() + gateway.gateway.num_subscriptions() == 0;
    eventually("all sessions are forgotten", is_gone).await;
    gateway.shutdown().await;
}
