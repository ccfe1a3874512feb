//! From bodies to the engine's requests, and from the engine's events to what clients read.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use http_body_util::BodyExt;
use mistralrs_core::request::{TokenLogprob, Usage};
use mistralrs_core::{FinishReason, Prompt, TextEvent};
use mistralrs_telemetry::registry::Registry;
use serde_json::{Value, json};

use super::answer::Answer;
use super::events::ResponseEvents;
use super::item::Item;
use super::object::ResponseObject;
use super::request::ResponseRequest;
use super::store::{Keeping, ResponseStore};
use super::{background, stored};
use crate::api_keys::Principal;
use crate::config::StoreLimits;
use crate::error::ApiError;
use crate::extract::RequestBody;
use crate::openai::generation::Generation;
use crate::openai::sse;

const USAGE: Usage = Usage { num_prompt_tokens: 5, num_cached_tokens: 3, num_completion_tokens: 2 };
const LIMITS: StoreLimits =
    StoreLimits { max_stored: 10, max_stored_bytes: 1 << 20, ttl: Duration::from_mins(1), max_background: 2 };

fn delta(text: &str) -> TextEvent {
    TextEvent::Delta { choice: 0, text: text.to_owned(), logprobs: Vec::new() }
}

fn finished(reason: FinishReason) -> TextEvent {
    TextEvent::Finished { choice: 0, reason, stop_string: None, num_completion_tokens: 2 }
}

fn parse(fields: &Value) -> Result<ResponseRequest, ApiError> {
    let mut body = json!({ "model": "m", "input": "hi" });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    ResponseRequest::from_body(&body)
}

/// The messages that the template is given, or the refusal.
fn show(fields: &Value) -> String {
    let request = parse(fields).and_then(|request| request.to_generate(&request.input_items()?));
    match request.map(|request| request.prompt) {
        Ok(Prompt::Chat(prompt)) => Value::Array(prompt.messages).to_string(),
        Ok(other) => format!("{other:?}"),
        Err(error) => {
            let json = error.to_json();
            format!("{} {}: {}", error.status().as_u16(), json["error"]["param"], error.message())
        }
    }
}

/// An object with ids and times that do not change.
fn object(fields: &Value) -> ResponseObject {
    ResponseObject { id: "resp_1".to_owned(), created_at: 1_700_000_000, ..parse(fields).unwrap().to_object("SmolLM2") }
}

fn keeping(store: &Arc<ResponseStore>, input: &str) -> Keeping {
    let input = parse(&json!({ "input": input })).unwrap().input_items().unwrap();
    Keeping { store: Some(Arc::clone(store)), owner: Principal::Anybody, input }
}

/// The body without ids and times, and without what every object has in common.
async fn render(response: Response, answer_object: &ResponseObject) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let mut text = String::from_utf8(body.to_vec()).unwrap().replace("\n\n", "\n");
    while let Some(at) = text.find("msg_") {
        text.replace_range(at..at + "msg_".len() + 32, "MSG");
    }
    while let Some(at) = text.find("\"completed_at\":1") {
        text.replace_range(at..at + "\"completed_at\":1700000000".len(), "\"completed_at\":NOW");
    }
    let json = serde_json::to_string(answer_object).unwrap();
    let settings = &json[json.find("\"instructions\"").unwrap()..json.find("\"output\"").unwrap()];
    let rest = &json[json.find("\"parallel_tool_calls\"").unwrap()..json.find("\"usage\"").unwrap()];
    text.replace(settings, "").replace(rest, "").replace("\"created_at\":1700000000,", "")
}

async fn stream(events: Vec<TextEvent>) -> String {
    let object = object(&json!({}));
    let store = ResponseStore::new(LIMITS, &Registry::new());
    let renderer = ResponseEvents::new(Answer::new(object.clone()), keeping(&store, "hi"));
    let generation = Generation::from_events(1, events, USAGE);
    let rendered = render(sse::respond(generation, renderer), &object).await;
    let status = store.get(Principal::Anybody, "resp_1").map_or("unknown", |kept| kept.object.status.as_str());
    format!("{rendered}kept: {status}")
}

#[tokio::test]
async fn a_stream_names_every_stage_and_ends_with_the_whole_response() {
    let events = vec![delta("Hel"), delta(""), delta("lo"), finished(FinishReason::Stop)];
    insta::assert_snapshot!(stream(events).await, @r#"
    event: response.created
    data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_1","object":"response","status":"in_progress","background":false,"completed_at":null,"error":null,"incomplete_details":null,"output":[],"usage":null,"user":null}}
    event: response.in_progress
    data: {"type":"response.in_progress","sequence_number":1,"response":{"id":"resp_1","object":"response","status":"in_progress","background":false,"completed_at":null,"error":null,"incomplete_details":null,"output":[],"usage":null,"user":null}}
    event: response.output_item.added
    data: {"type":"response.output_item.added","sequence_number":2,"output_index":0,"item":{"id":"MSG","type":"message","status":"in_progress","role":"assistant","content":[]}}
    event: response.content_part.added
    data: {"type":"response.content_part.added","sequence_number":3,"item_id":"MSG","output_index":0,"content_index":0,"part":{"type":"output_text","annotations":[],"logprobs":[],"text":""}}
    event: response.output_text.delta
    data: {"type":"response.output_text.delta","sequence_number":4,"item_id":"MSG","output_index":0,"content_index":0,"delta":"Hel","logprobs":[]}
    event: response.output_text.delta
    data: {"type":"response.output_text.delta","sequence_number":5,"item_id":"MSG","output_index":0,"content_index":0,"delta":"lo","logprobs":[]}
    event: response.output_text.done
    data: {"type":"response.output_text.done","sequence_number":6,"item_id":"MSG","output_index":0,"content_index":0,"text":"Hello","logprobs":[]}
    event: response.content_part.done
    data: {"type":"response.content_part.done","sequence_number":7,"item_id":"MSG","output_index":0,"content_index":0,"part":{"type":"output_text","annotations":[],"logprobs":[],"text":"Hello"}}
    event: response.output_item.done
    data: {"type":"response.output_item.done","sequence_number":8,"output_index":0,"item":{"id":"MSG","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","annotations":[],"logprobs":[],"text":"Hello"}]}}
    event: response.completed
    data: {"type":"response.completed","sequence_number":9,"response":{"id":"resp_1","object":"response","status":"completed","background":false,"completed_at":NOW,"error":null,"incomplete_details":null,"output":[{"id":"MSG","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","annotations":[],"logprobs":[],"text":"Hello"}]}],"usage":{"input_tokens":5,"input_tokens_details":{"cached_tokens":3,"cache_write_tokens":0},"output_tokens":2,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":7},"user":null}}
    data: [DONE]
    kept: completed
    "#);
}

#[tokio::test]
async fn a_stream_that_reaches_its_limit_is_incomplete() {
    let text = stream(vec![delta("Hel"), finished(FinishReason::Length)]).await;
    insta::assert_snapshot!(&text[text.find("event: response.incomplete").unwrap()..], @r#"
    event: response.incomplete
    data: {"type":"response.incomplete","sequence_number":8,"response":{"id":"resp_1","object":"response","status":"incomplete","background":false,"completed_at":null,"error":null,"incomplete_details":{"reason":"max_output_tokens"},"output":[{"id":"MSG","type":"message","status":"incomplete","role":"assistant","content":[{"type":"output_text","annotations":[],"logprobs":[],"text":"Hel"}]}],"usage":{"input_tokens":5,"input_tokens_details":{"cached_tokens":3,"cache_write_tokens":0},"output_tokens":2,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":7},"user":null}}
    data: [DONE]
    kept: incomplete
    "#);
}

#[tokio::test]
async fn a_stream_that_fails_ends_with_what_came_and_the_reason() {
    let failed = TextEvent::Failed { choice: 0, message: "the server is shutting down".to_owned() };
    let text = stream(vec![delta("Hel"), failed]).await;
    insta::assert_snapshot!(&text[text.find("event: response.failed").unwrap()..], @r#"
    event: response.failed
    data: {"type":"response.failed","sequence_number":5,"response":{"id":"resp_1","object":"response","status":"failed","background":false,"completed_at":null,"error":{"code":"server_error","message":"the server is shutting down"},"incomplete_details":null,"output":[{"id":"MSG","type":"message","status":"incomplete","role":"assistant","content":[{"type":"output_text","annotations":[],"logprobs":[],"text":"Hel"}]}],"usage":null,"user":null}}
    data: [DONE]
    kept: failed
    "#);
}

#[tokio::test]
async fn a_stream_of_an_empty_answer_is_complete_too() {
    let text = stream(vec![finished(FinishReason::Stop)]).await;
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: response.")).collect();
    assert_eq!(
        names.join(" "),
        "created in_progress output_item.added content_part.added output_text.done content_part.done output_item.done completed"
    );
}

#[tokio::test]
async fn logprobs_come_with_the_text_if_they_are_included() {
    let token = |text: &str| TokenLogprob {
        token_id: 1,
        text: text.to_owned(),
        bytes: text.as_bytes().to_vec(),
        logprob: -0.5,
        top: Vec::new(),
    };
    let fields = json!({ "include": ["message.output_text.logprobs"], "top_logprobs": 2 });
    let request = parse(&fields).unwrap();
    assert_eq!(request.to_generate(&[]).unwrap().logprobs, Some(2));
    assert_eq!(parse(&json!({ "top_logprobs": 2 })).unwrap().to_generate(&[]).unwrap().logprobs, None);
    let mut answer = Answer::new(object(&fields));
    let event = TextEvent::Delta { choice: 0, text: "a".to_owned(), logprobs: vec![token("a")] };
    let mut generation = Generation::from_events(1, vec![event, finished(FinishReason::Stop)], USAGE);
    while let Some(piece) = generation.next().await {
        answer.accept(piece.unwrap());
    }
    let output = serde_json::to_string(&answer.end(USAGE).output[0].content).unwrap();
    insta::assert_snapshot!(output, @r#"[{"type":"output_text","annotations":[],"logprobs":[{"token":"a","logprob":-0.5,"bytes":[97],"top_logprobs":[]}],"text":"a"}]"#);
}

#[tokio::test(start_paused = true)]
async fn a_background_response_is_queued_runs_and_can_be_read_when_it_has_ended() {
    let store = ResponseStore::new(LIMITS, &Registry::new());
    let generation = Generation::from_events(1, vec![delta("Hello"), finished(FinishReason::Stop)], USAGE);
    let answer = Answer::new(object(&json!({ "background": true })));
    let queued = background::start(generation, answer, keeping(&store, "hi")).unwrap();
    assert_eq!((queued.status.as_str(), queued.output.len()), ("queued", 0));
    let response = loop {
        let response = store.get(Principal::Anybody, "resp_1").unwrap();
        if !response.object.status.is_running() {
            break response;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(response.object.status.as_str(), "completed");
    let texts: Vec<Value> = response.conversation().iter().map(|item| item.to_chat()).collect();
    assert_eq!(
        Value::Array(texts).to_string(),
        r#"[{"role":"user","content":"hi"},{"role":"assistant","content":"Hello"}]"#
    );
}

#[test]
fn input_becomes_messages_with_the_instructions_first() {
    assert_eq!(show(&json!({})), r#"[{"role":"user","content":"hi"}]"#);
    let items = json!([
        { "role": "developer", "content": "Be brief." },
        { "type": "message", "role": "user", "content": [
            { "type": "input_text", "text": "one" }, { "type": "input_text", "text": "two" }] },
        { "type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
          "content": [{ "type": "output_text", "text": "three", "annotations": [] }] },
        { "role": "user", "content": "four" },
    ]);
    insta::assert_snapshot!(show(&json!({ "input": items, "instructions": "Count." })), @r#"[{"role":"system","content":"Count."},{"role":"system","content":"Be brief."},{"role":"user","content":"one\ntwo"},{"role":"assistant","content":"three"},{"role":"user","content":"four"}]"#);
}

#[test]
fn fields_that_ask_for_nothing_or_are_labels_are_accepted() {
    let neutral = json!({
        "tools": [], "tool_choice": "auto", "parallel_tool_calls": false, "truncation": "disabled",
        "text": { "format": { "type": "text" }, "verbosity": "medium" }, "reasoning": { "effort": null, "summary": null },
        "include": ["reasoning.encrypted_content"], "metadata": { "a": "b" }, "user": "ann", "service_tier": "auto",
        "store": true, "safety_identifier": "x", "prompt_cache_key": "y", "prompt_cache_retention": "24h",
        "stream_options": null, "conversation": null, "prompt": null, "max_tool_calls": 3, "n": 1, "context_management": [],
        "previous_response_id": null, "background": false,
    });
    assert_eq!(show(&neutral), show(&json!({})));
    let object = parse(&neutral).unwrap().to_object("m");
    assert_eq!((object.user.as_deref(), object.metadata["a"].as_str()), (Some("ann"), "b"));
    assert_eq!(show(&json!({ "tools": [{ "type": "function" }], "tool_choice": "none" })), show(&json!({})));
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases and its snapshot")]
fn what_is_wrong_or_not_supported_is_refused_by_name() {
    let cases = [
        json!({ "input": [] }),
        json!({ "input": 7 }),
        json!({ "input": ["hi"] }),
        json!({ "input": [{ "role": "user" }] }),
        json!({ "input": [{ "role": "robot", "content": "hi" }] }),
        json!({ "input": [{ "role": "user", "content": [{ "type": "input_image", "image_url": "http://x" }] }] }),
        json!({ "input": [{ "role": "user", "content": [{ "type": "input_text" }] }] }),
        json!({ "input": [{ "type": "function_call_output", "call_id": "c", "output": "x" }] }),
        json!({ "max_output_tokens": 0 }),
        json!({ "max_tokens": 5 }),
        json!({ "temperature": -1 }),
        json!({ "n": 2 }),
        json!({ "tools": [{ "type": "function" }] }),
        json!({ "text": { "format": { "type": "json_schema" } } }),
        json!({ "text": { "verbosity": "low" } }),
        json!({ "reasoning": { "effort": "high" } }),
        json!({ "reasoning": { "summary": "auto" } }),
        json!({ "truncation": "auto" }),
        json!({ "include": ["everything"] }),
        json!({ "top_logprobs": 21 }),
        json!({ "metadata": { "a": 1 } }),
        json!({ "metadata": { "a": "x".repeat(513) } }),
        json!({ "background": true, "store": false }),
        json!({ "background": true, "stream": true }),
        json!({ "conversation": "conv_1" }),
        json!({ "prompt": { "id": "pmpt_1" } }),
    ];
    let rendered: Vec<String> =
        cases.iter().map(|fields| format!("{:.90}\n  {}\n", fields.to_string(), show(fields))).collect();
    insta::assert_snapshot!(rendered.concat(), @r#"
    {"input":[]}
      400 "input": `input` has 0 items; expected 1 to 10000
    {"input":7}
      400 "input": `input`: expected a string or a list of input items
    {"input":["hi"]}
      400 "input[0]": `input[0]`: invalid type: string "hi", expected an object with `role` and `content`
    {"input":[{"role":"user"}]}
      400 "input[0]": `input[0]`: missing field `content`
    {"input":[{"role":"robot","content":"hi"}]}
      400 "input[0].role": `input[0].role` is `robot`; expected "user", "assistant", "system" or "developer"
    {"input":[{"role":"user","content":[{"type":"input_image","image_url":"http://x"}]}]}
      400 "input[0].content[0]": `input[0].content[0]`: `input_image` parts are not supported; this model takes `input_text` and `output_text`
    {"input":[{"role":"user","content":[{"type":"input_text"}]}]}
      400 "input[0].content[0].text": `input[0].content[0].text`: expected a string
    {"input":[{"type":"function_call_output","call_id":"c","output":"x"}]}
      400 "input[0]": `input[0]`: `function_call_output` items are not supported yet; only messages are
    {"max_output_tokens":0}
      400 "max_output_tokens": `max_output_tokens` is 0; expected at least 1
    {"max_tokens":5}
      400 "max_tokens": `max_tokens`: this endpoint's limit is `max_output_tokens`
    {"temperature":-1}
      400 "temperature": `temperature` is -1; expected at least 0
    {"n":2}
      400 "n": `n`: a response is one answer; send the request several times
    {"tools":[{"type":"function"}]}
      400 "tools": `tools`: tool calls are not supported yet; leave `tools` out or set `tool_choice` to "none"
    {"text":{"format":{"type":"json_schema"}}}
      400 "text.format": `text.format`: `json_schema` is not supported yet; only `text` is
    {"text":{"verbosity":"low"}}
      400 "text.verbosity": `text.verbosity`: `low` is not supported; ask for it in `instructions`
    {"reasoning":{"effort":"high"}}
      400 "reasoning.effort": `reasoning.effort`: reasoning is not supported yet; only "none" is
    {"reasoning":{"summary":"auto"}}
      400 "reasoning.summary": `reasoning.summary`: reasoning is not supported yet
    {"truncation":"auto"}
      400 "truncation": `truncation`: only "disabled" is supported; what does not fit the context is refused
    {"include":["everything"]}
      400 "include": `include`: `everything` is not known
    {"top_logprobs":21}
      400 "top_logprobs": `top_logprobs` is 21; expected 0 to 20
    {"metadata":{"a":1}}
      400 "metadata.a": `metadata.a`: invalid type: integer `1`, expected a string
    {"metadata":{"a":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
      400 "metadata": `metadata`: keys have at most 64 characters and values 512
    {"background":true,"store":false}
      400 "background": `background` needs `store`: nobody could ask for the answer
    {"background":true,"stream":true}
      400 "stream": `stream` with `background` is not supported yet; ask for the response until it has ended
    {"conversation":"conv_1"}
      400 "conversation": `conversation`: conversations are not supported; continue with `previous_response_id`
    {"prompt":{"id":"pmpt_1"}}
      400 "prompt": `prompt`: stored prompts are not supported; send `instructions` and `input`
    "#);
}

#[test]
fn input_items_are_listed_in_pages() {
    let items = json!([{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b" },
        { "role": "user", "content": "c" }]);
    let items = parse(&json!({ "input": items })).unwrap().input_items().unwrap();
    let page = |query: &str| {
        let uri = format!("http://x/?{query}").parse().unwrap();
        let axum::extract::Query(query) = axum::extract::Query::try_from_uri(&uri).unwrap();
        let page = stored::page(items.clone(), &query)?;
        let texts: Vec<Value> = page.data.iter().map(|item| item.to_chat()["content"].clone()).collect();
        Ok::<_, ApiError>(format!("{} more {}", Value::Array(texts), page.has_more))
    };
    assert_eq!(page("").unwrap(), r#"["c","b","a"] more false"#);
    assert_eq!(page("order=asc&limit=2").unwrap(), r#"["a","b"] more true"#);
    assert_eq!(page(&format!("order=asc&after={}", items[1].id())).unwrap(), r#"["c"] more false"#);
    assert_eq!(page("after=msg_0").unwrap_err().to_string(), "`after`: there is no item `msg_0` here");
    assert_eq!(page("limit=0").unwrap_err().to_string(), "`limit` is 0; expected 1 to 100");
    let kinds: Vec<Value> = items.iter().map(|item: &Arc<Item>| serde_json::to_value(item).unwrap()).collect();
    assert_eq!(
        (&kinds[0]["content"][0]["type"], &kinds[1]["content"][0]["type"]),
        (&json!("input_text"), &json!("output_text"))
    );
    assert!(kinds.iter().all(|item| item["id"].as_str().unwrap().starts_with("msg_") && item["status"] == "completed"));
}
