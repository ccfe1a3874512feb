//! From bodies to the engine's requests, from the engine's events to what clients read, and errors in Anthropic's shape.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::from_fn;
use axum::response::Response;
use axum::routing::post;
use http_body_util::BodyExt;
use mistralrs_core::request::Usage;
use mistralrs_core::{FinishReason, Prompt, RequestError, TextEvent};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::events::MessageEvents;
use super::message::Message;
use super::messages::collect;
use super::render_errors;
use super::request::{CountTokensRequest, MessageRequest};
use crate::error::ApiError;
use crate::extract::RequestBody;
use crate::openai::generation::Generation;
use crate::openai::sse;

const USAGE: Usage = Usage { num_prompt_tokens: 5, num_cached_tokens: 3, num_completion_tokens: 2 };

fn delta(text: &str) -> TextEvent {
    TextEvent::Delta { choice: 0, text: text.to_owned(), logprobs: Vec::new() }
}

fn finished(reason: FinishReason, stop_string: Option<&str>) -> TextEvent {
    let stop_string = stop_string.map(str::to_owned);
    TextEvent::Finished { choice: 0, reason, stop_string, num_completion_tokens: 2 }
}

/// The request for the engine, or the refusal.
fn show(fields: &Value) -> String {
    let mut body = json!({ "model": "m", "max_tokens": 9, "messages": [{ "role": "user", "content": "hi" }] });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    match MessageRequest::from_body(&body).and_then(|request| request.to_generate()) {
        Ok(request) => {
            let Prompt::Chat(prompt) = request.prompt else { panic!("{:?}", request.prompt) };
            let (sampling, stop) = (request.sampling, request.stop.strings);
            let sampling = format!("t={} p={} k={:?}", sampling.temperature, sampling.top_p, sampling.top_k);
            format!("{} {:?} {sampling} stop={stop:?}", Value::Array(prompt.messages), request.max_tokens)
        }
        Err(error) => format!("{}: {}", error.status().as_u16(), error.message()),
    }
}

async fn text_of(response: Response) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let mut text = String::from_utf8(body.to_vec()).unwrap().replace("\n\n", "\n");
    while let Some(at) = text.find("msg_") {
        text.replace_range(at..at + "msg_".len() + 32, "MSG");
    }
    text
}

async fn stream(events: Vec<TextEvent>) -> String {
    let generation = Generation::from_events(1, events, USAGE);
    let message = Message::new("SmolLM2", generation.num_prompt_tokens());
    text_of(sse::respond(generation, MessageEvents::new(message))).await
}

async fn whole(events: Vec<TextEvent>) -> String {
    let generation = Generation::from_events(1, events, USAGE);
    let message = Message::new("SmolLM2", generation.num_prompt_tokens());
    text_of(collect(generation, message).await.unwrap()).await
}

#[tokio::test]
async fn a_message_says_why_it_ended_and_at_which_stop_sequence() {
    let events = |reason, stop| vec![delta("Hel"), delta("lo"), finished(reason, stop)];
    insta::assert_snapshot!(whole(events(FinishReason::Stop, None)).await, @r#"{"id":"MSG","type":"message","role":"assistant","model":"SmolLM2","content":[{"type":"text","text":"Hello"}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":2,"cache_creation_input_tokens":0,"cache_read_input_tokens":3,"output_tokens":2}}"#);
    let ending =
        |text: String| text[text.find("\"stop_reason\"").unwrap()..text.find(",\"usage\"").unwrap()].to_owned();
    assert_eq!(
        ending(whole(events(FinishReason::Stop, Some("##"))).await),
        r###""stop_reason":"stop_sequence","stop_sequence":"##""###
    );
    assert_eq!(
        ending(whole(events(FinishReason::Length, None)).await),
        r#""stop_reason":"max_tokens","stop_sequence":null"#
    );
}

#[tokio::test]
async fn a_stream_has_one_block_between_the_start_and_the_stop_of_its_message() {
    let events = vec![delta("Hel"), delta(""), delta("lo"), finished(FinishReason::Stop, Some("##"))];
    insta::assert_snapshot!(stream(events).await, @r###"
    event: message_start
    data: {"type":"message_start","message":{"id":"MSG","type":"message","role":"assistant","model":"SmolLM2","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":5,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":0}}}
    event: ping
    data: {"type":"ping"}
    event: content_block_start
    data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}
    event: content_block_delta
    data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hel"}}
    event: content_block_delta
    data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"lo"}}
    event: content_block_stop
    data: {"type":"content_block_stop","index":0}
    event: message_delta
    data: {"type":"message_delta","delta":{"stop_reason":"stop_sequence","stop_sequence":"##"},"usage":{"input_tokens":2,"cache_creation_input_tokens":0,"cache_read_input_tokens":3,"output_tokens":2}}
    event: message_stop
    data: {"type":"message_stop"}
    "###);
}

#[tokio::test]
async fn a_stream_without_text_has_no_block_and_one_that_fails_ends_with_an_error_event() {
    let text = stream(vec![finished(FinishReason::Stop, None)]).await;
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(names, ["message_start", "ping", "message_delta", "message_stop"]);

    let failed = TextEvent::Failed { choice: 0, message: "no more blocks".to_owned() };
    let text = stream(vec![delta("Hel"), failed]).await;
    insta::assert_snapshot!(&text[text.find("event: error").unwrap()..], @r#"
    event: error
    data: {"type":"error","error":{"type":"api_error","message":"no more blocks"}}
    "#);
}

#[test]
fn messages_reach_the_engine_with_the_system_first_and_neighbours_joined() {
    let fields = json!({
        "system": [{ "type": "text", "text": "Be", "cache_control": { "type": "ephemeral" } }, { "type": "text", "text": "brief." }],
        "messages": [
            { "role": "user", "content": "one" },
            { "role": "user", "content": [{ "type": "text", "text": "two" }, { "type": "text", "text": "three" }] },
            { "role": "assistant", "content": "four" },
            { "role": "user", "content": "five" },
        ],
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "stop_sequences": ["##"], "metadata": { "user_id": "ann" },
        "service_tier": "auto", "thinking": { "type": "disabled" }, "tools": [], "stream": false, "an_unknown_field": 1,
    });
    insta::assert_snapshot!(show(&fields), @r###"[{"role":"system","content":"Be\nbrief."},{"role":"user","content":"one\ntwo\nthree"},{"role":"assistant","content":"four"},{"role":"user","content":"five"}] Some(9) t=0.5 p=0.9 k=Some(40) stop=["##"]"###);
    assert!(CountTokensRequest::from_body(&json!({ "messages": [{ "role": "user", "content": "hi" }] })).is_ok());
}

#[test]
fn what_is_wrong_or_not_supported_is_refused_by_name() {
    let cases = [
        json!({ "max_tokens": null }),
        json!({ "max_tokens": 0 }),
        json!({ "messages": [] }),
        json!({ "messages": [{ "role": "robot", "content": "hi" }] }),
        json!({ "messages": [{ "role": "user", "content": 7 }] }),
        json!({ "messages": [{ "role": "user", "content": [{ "type": "image", "source": {} }] }] }),
        json!({ "messages": [{ "role": "user", "content": [{ "type": "text" }] }] }),
        json!({ "messages": [{ "role": "user", "content": "hi" }, { "role": "assistant", "content": "He" }] }),
        json!({ "system": 7 }),
        json!({ "tools": [{ "name": "get_weather", "input_schema": {} }] }),
        json!({ "thinking": { "type": "enabled", "budget_tokens": 1024 } }),
        json!({ "mcp_servers": [{ "url": "http://x" }] }),
        json!({ "stop_sequences": [""] }),
        json!({ "stop": "x" }),
        json!({ "temperature": -1 }),
        json!({ "metadata": "ann" }),
    ];
    let rendered: Vec<String> = cases.iter().map(|fields| format!("{fields}\n  {}\n", show(fields))).collect();
    insta::assert_snapshot!(rendered.concat(), @r#"
    {"max_tokens":null}
      400: `max_tokens`: invalid type: null, expected usize
    {"max_tokens":0}
      400: `max_tokens` is 0; expected at least 1
    {"messages":[]}
      400: `messages` has 0 messages; expected 1 to 10000
    {"messages":[{"role":"robot","content":"hi"}]}
      400: `messages[0].role`: unknown variant `robot`, expected one of `system`, `user`, `assistant`
    {"messages":[{"role":"user","content":7}]}
      400: `messages[0].content`: expected a string or a list of text blocks
    {"messages":[{"role":"user","content":[{"type":"image","source":{}}]}]}
      400: `messages[0].content[0]`: `image` blocks are not supported; this model takes text only
    {"messages":[{"role":"user","content":[{"type":"text"}]}]}
      400: `messages[0].content[0].text`: expected a string
    {"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"He"}]}
      400: `messages`: the last one must be the user's; continuing a message of the assistant is not supported yet
    {"system":7}
      400: `system`: expected a string or a list of text blocks
    {"tools":[{"name":"get_weather","input_schema":{}}]}
      400: `tools`: tool use is not supported yet; leave `tools` out or set `tool_choice` to {"type": "none"}
    {"thinking":{"type":"enabled","budget_tokens":1024}}
      400: `thinking`: `enabled` is not supported yet; leave it out or disable it
    {"mcp_servers":[{"url":"http://x"}]}
      400: `mcp_servers`: servers are configured, not sent; see `mcp_client`
    {"stop_sequences":[""]}
      400: `stop_sequences`: each string has 1 to 1024 bytes
    {"stop":"x"}
      400: `stop`: this endpoint's stop strings are `stop_sequences`
    {"temperature":-1}
      400: `temperature` is -1; expected at least 0
    {"metadata":"ann"}
      400: `metadata`: invalid type: string "ann", expected an object
    "#);
}

#[tokio::test]
async fn every_error_of_these_routes_has_anthropics_shape_and_keeps_its_headers() {
    let full = || async { ApiError::from(RequestError::QueueFull { num_waiting: 256, retry_after_seconds: 3 }) };
    let app = Router::new()
        .route("/v1/messages", post(full))
        .route("/v1/completions", post(full))
        .method_not_allowed_fallback(|| async { ApiError::Unauthorized("an API key is needed") })
        .layer(from_fn(render_errors));
    let send = async |method: &str, path: &str| {
        let request = Request::builder().method(method).uri(path).header("x-request-id", "7").body(Body::empty());
        let response = app.clone().oneshot(request.unwrap()).await.unwrap();
        let header = |name| response.headers().get(name).map_or("none", |value| value.to_str().unwrap()).to_owned();
        let headers =
            format!("{} retry-after {} request-id {}", response.status(), header("retry-after"), header("request-id"));
        format!("{headers}\n{}", text_of(response).await)
    };
    insta::assert_snapshot!(send("POST", "/v1/messages").await, @r#"
    503 Service Unavailable retry-after 3 request-id 7
    {"type":"error","error":{"type":"overloaded_error","message":"256 requests are waiting, which is the limit; try again in 3 s"},"request_id":"7"}
    "#);
    insta::assert_snapshot!(send("GET", "/v1/messages").await, @r#"
    401 Unauthorized retry-after none request-id 7
    {"type":"error","error":{"type":"authentication_error","message":"an API key is needed; send `Authorization: Bearer KEY` or `x-api-key: KEY`"},"request_id":"7"}
    "#);
    assert!(send("POST", "/v1/completions").await.contains(r#""code":"queue_full""#));
}
