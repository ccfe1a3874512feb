//! Who answers an upstream that asks for a completion: the client, the local model in its place, or nobody.

use mistralrs_mcp::config::{SamplingConfig, SamplingMode};
use serde_json::{Value, json};

use super::passing_through::{is_request, meta};
use super::support::downstream::Downstream;
use super::support::natives::Parrot;
use super::support::{Setup, TestGateway, everything};

fn ask() -> Value {
    json!({"name": "docs::test_sampling", "arguments": {"prompt": "why?"}})
}

fn setup(era: &str, mode: SamplingMode) -> Setup {
    let mut upstream = everything("docs", era);
    upstream.sampling = SamplingConfig { mode, max_tokens: 7 };
    Setup::new().with(upstream)
}

async fn with_model(era: &str, mode: SamplingMode) -> TestGateway {
    setup(era, mode).sampled_by(Parrot).start().await
}

fn text(answer: &Value) -> &str {
    answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("no text: {answer}"))
}

#[tokio::test]
async fn the_model_answers_for_a_client_that_cannot_within_the_upstreams_limit() {
    let gateway = with_model("legacy", SamplingMode::Local).await;
    let mut client = Downstream::connect(&gateway).await;
    let (before, answer) = client.request_with_reports("tools/call", ask()).await;
    // It asked for 100 tokens.
    assert_eq!((text(&answer), before.len()), ("LLM response: why? in 7", 0));
    // Nor can this one be asked during its call: its revision has no such thing.
    let mut params = ask();
    params["_meta"] = meta(&json!({}));
    let answer = Downstream::open(&gateway).request("tools/call", params).await;
    assert_eq!(text(&answer), "LLM response: why? in 7");
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_client_that_can_is_asked_itself() {
    let gateway = with_model("legacy", SamplingMode::Local).await;
    let mut client = Downstream::connect_able(&gateway, json!({"sampling": {}})).await;
    let call = client.send("tools/call", ask()).await;
    let question = client.expect(is_request).await;
    assert_eq!(question["params"]["maxTokens"], 100, "{question}");
    let said = json!({"role": "assistant", "content": {"type": "text", "text": "because"}, "model": "m"});
    client.answer(&question, said).await;
    let answer = client.expect(|message| message["id"] == call).await;
    assert_eq!(text(&answer), "LLM response: because");
    gateway.shutdown().await;
}

#[tokio::test]
async fn nobody_answers_unless_the_configuration_says_so_and_there_is_a_model() {
    let able = json!({"sampling": {}});
    for (gateway, capabilities, expected) in [
        (with_model("legacy", SamplingMode::Client).await, json!({}), "cannot answer"),
        (with_model("legacy", SamplingMode::Off).await, able, "sampling = \"off\""),
        (setup("legacy", SamplingMode::Local).start().await, json!({}), "cannot answer"),
    ] {
        let mut client = Downstream::connect_able(&gateway, capabilities).await;
        let (before, refused) = client.request_with_reports("tools/call", ask()).await;
        assert!(before.is_empty(), "{before:?}");
        assert!(refused["error"]["message"].as_str().unwrap().contains(expected), "{refused}");
        gateway.shutdown().await;
    }
}

#[tokio::test]
async fn a_newer_upstream_gets_the_models_answer_and_its_client_sees_one_call() {
    let gateway = with_model("modern", SamplingMode::Local).await;
    let name = "docs::test_input_required_result_sampling";
    let older = Downstream::connect(&gateway).await.request("tools/call", json!({"name": name})).await;
    assert_eq!(text(&older), "What is the capital of France? in 7");
    let params = json!({"name": name, "arguments": {}, "_meta": meta(&json!({}))});
    let newer = Downstream::open(&gateway).request("tools/call", params).await;
    assert_eq!(text(&newer), "What is the capital of France? in 7", "{newer}");
    // Who can answer is asked, as ever.
    let params = json!({"name": name, "arguments": {}, "_meta": meta(&json!({"sampling": {}}))});
    let asked = Downstream::open(&gateway).request("tools/call", params).await;
    assert_eq!(asked["result"]["resultType"], "input_required", "{asked}");
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_newer_upstream_is_told_who_can_sample() {
    let name = "docs::test_input_required_result_capabilities";
    for (mode, capabilities, expected) in [
        (SamplingMode::Off, json!({"sampling": {}, "roots": {}}), json!(["ask_roots"])),
        (SamplingMode::Client, json!({"roots": {}}), json!(["ask_roots"])),
        (SamplingMode::Local, json!({"roots": {}}), json!(["ask_model", "ask_roots"])),
    ] {
        let gateway = with_model("modern", mode).await;
        let params = json!({"name": name, "_meta": meta(&capabilities)});
        let needed = Downstream::open(&gateway).request("tools/call", params).await;
        let asked: Vec<_> = needed["result"]["inputRequests"].as_object().unwrap().keys().collect();
        assert_eq!(json!(asked), expected, "{mode:?}: {needed}");
        gateway.shutdown().await;
    }
}
