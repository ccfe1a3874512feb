//! From bodies to the engine's requests, and from the engine's events to what clients read.

use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use mistralrs_core::request::{TokenLogprob, Usage};
use mistralrs_core::{FinishReason, TextEvent};
use serde_json::{Value, json};

use super::chat_completions::{ChatChunks, ChatCompletionRequest, Logprobs};
use super::completions::{CompletionRequest, TextAnswer};
use super::generation::Generation;
use super::options::UsageReport;
use super::types::AnswerId;
use super::{chat_completions, sse};
use crate::error::ApiError;
use crate::extract::RequestBody;

fn delta(choice: usize, text: &str) -> TextEvent {
    TextEvent::Delta { choice, text: text.to_owned(), logprobs: Vec::new() }
}

fn finished(choice: usize, reason: FinishReason) -> TextEvent {
    TextEvent::Finished { choice, reason, num_completion_tokens: 2 }
}

fn token(text: &str, logprob: f32, top: Vec<TokenLogprob>) -> TokenLogprob {
    TokenLogprob { token_id: 1, text: text.to_owned(), bytes: text.as_bytes().to_vec(), logprob, top }
}

const USAGE: Usage = Usage { num_prompt_tokens: 5, num_cached_tokens: 3, num_completion_tokens: 2 };

fn answer_id() -> AnswerId {
    AnswerId { id: "answer-1".to_owned(), created: 1_700_000_000, model: "SmolLM2".to_owned() }
}

/// The body as clients read it, without what is the same in every object.
async fn render(response: Response) -> String {
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap();
    let constant =
        r#""created":1700000000,"model":"SmolLM2","system_fingerprint":"mistralrs-VERSION","#.replace("VERSION", env!("CARGO_PKG_VERSION"));
    format!("{status}\n{}", text.replace("\n\n", "\n").replace(&constant, ""))
}

async fn render_chat_stream(num_choices: usize, events: Vec<TextEvent>, usage_report: UsageReport) -> String {
    let generation = Generation::from_events(num_choices, events, USAGE);
    render(sse::stream(generation, ChatChunks::new(answer_id(), Logprobs::Omit), usage_report)).await
}

#[tokio::test]
async fn a_chat_stream_begins_with_the_role_and_ends_with_a_reason_and_done() {
    let events = vec![delta(0, "Hel"), delta(0, ""), delta(0, "lo"), finished(0, FinishReason::Stop)];
    insta::assert_snapshot!(render_chat_stream(1, events, UsageReport::Omit).await, @"");
}

#[tokio::test]
async fn choices_interleave_and_usage_is_the_last_chunk_if_asked_for() {
    let events =
        vec![delta(1, "b"), delta(0, "a"), finished(0, FinishReason::Length), finished(1, FinishReason::Stop)];
    insta::assert_snapshot!(render_chat_stream(2, events, UsageReport::Include).await, @"");
}

#[tokio::test]
async fn a_stream_that_fails_ends_in_an_error_event_and_done() {
    let failed = TextEvent::Failed { choice: 0, message: "out of memory".to_owned() };
    insta::assert_snapshot!(render_chat_stream(1, vec![delta(0, "Hel"), failed], UsageReport::Include).await, @"");
    let cancelled = vec![finished(0, FinishReason::Cancelled)];
    insta::assert_snapshot!(render_chat_stream(1, cancelled, UsageReport::Omit).await, @"");
    insta::assert_snapshot!(render_chat_stream(1, vec![delta(0, "Hel")], UsageReport::Omit).await, @"");
}

#[tokio::test]
async fn a_whole_chat_answer_joins_the_pieces() {
    let events = vec![delta(0, "Hel"), delta(0, "lo"), finished(0, FinishReason::Stop)];
    let generation = Generation::from_events(1, events, USAGE);
    let response = chat_completions::collect(generation, &answer_id(), Logprobs::Omit).await.into_response();
    insta::assert_snapshot!(render(response).await, @"");
}

#[tokio::test]
async fn logprobs_have_the_chat_shape_and_impossible_tokens_a_number() {
    let top = vec![token("Hi", -0.25, Vec::new()), token("\u{fffd}", f32::NEG_INFINITY, Vec::new())];
    let event = TextEvent::Delta { choice: 0, text: "Hi".into(), logprobs: vec![token("Hi", -0.25, top)] };
    let generation = Generation::from_events(1, vec![event, finished(0, FinishReason::Length)], USAGE);
    let response = chat_completions::collect(generation, &answer_id(), Logprobs::Include).await.into_response();
    insta::assert_snapshot!(render(response).await, @"");
}

#[tokio::test]
async fn a_text_stream_echoes_and_counts_offsets_in_characters() {
    let piece = |text: &str| TextEvent::Delta {
        choice: 0,
        text: text.to_owned(),
        logprobs: vec![token(text, -0.5, vec![token(text, -0.5, Vec::new())])],
    };
    let generation = Generation::from_events(1, vec![piece("né"), piece("e"), finished(0, FinishReason::Stop)], USAGE);
    let chunks = TextAnswer::new(answer_id(), vec!["I was ".to_owned()], true);
    insta::assert_snapshot!(render(sse::stream(generation, chunks, UsageReport::Include)).await, @"");
}

#[tokio::test]
async fn a_whole_text_answer_numbers_its_choices() {
    let events = vec![delta(1, "b"), finished(1, FinishReason::Stop), delta(0, "a"), finished(0, FinishReason::Length)];
    let generation = Generation::from_events(2, events, USAGE);
    let chunks = TextAnswer::new(answer_id(), vec![String::new(), String::new()], false);
    insta::assert_snapshot!(render(chunks.collect(generation).await.into_response()).await, @"");
}

fn show(body: Value) -> String {
    let request = ChatCompletionRequest::from_body(&body).and_then(|request| request.to_generate());
    match request {
        Ok(request) => format!("{request:#?}"),
        Err(error) => rejected(&error),
    }
}

fn rejected(error: &ApiError) -> String {
    let json = error.to_json();
    format!("{} {}: {}", error.status().as_u16(), json["error"]["param"], json["error"]["message"].as_str().unwrap())
}

fn chat(fields: Value) -> Value {
    let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

#[test]
fn every_field_reaches_the_engine() {
    insta::assert_snapshot!(show(chat(json!({
        "n": 2, "max_tokens": 9, "max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05,
        "repetition_penalty": 1.1, "frequency_penalty": 0.5, "presence_penalty": -0.5, "logit_bias": { "5": -100, "6": 1.5 },
        "seed": -1, "stop": ["a", "b"], "stop_token_ids": [2], "ignore_eos": true, "logprobs": true, "top_logprobs": 3,
        "enable_thinking": false, "chat_template_kwargs": { "lang": "en" }, "user": "ann", "metadata": { "a": 1 },
        "store": false, "service_tier": "auto", "parallel_tool_calls": true, "an_unknown_field": 1
    }))), @"");
}

#[test]
fn absent_and_null_fields_are_the_defaults() {
    let absent = show(chat(json!({})));
    let nulls = json!({ "n": null, "temperature": null, "stop": null, "seed": null, "logprobs": null, "tools": null,
        "stream_options": null, "response_format": null, "user": null, "top_k": -1, "tool_choice": "none",
        "response_format": { "type": "text" }, "modalities": ["text"], "functions": [], "best_of": 1 });
    assert_eq!(show(chat(nulls)), absent);
    insta::assert_snapshot!(absent, @"");
}

#[test]
fn what_is_wrong_or_not_supported_is_refused_by_name() {
    let cases = [
        json!({ "temperature": "warm" }),
        json!({ "temperature": -1 }),
        json!({ "top_p": 0 }),
        json!({ "min_p": 2 }),
        json!({ "top_k": -2 }),
        json!({ "n": 0 }),
        json!({ "n": 65 }),
        json!({ "max_tokens": 0 }),
        json!({ "max_tokens": -5 }),
        json!({ "seed": 1.5 }),
        json!({ "stop": 5 }),
        json!({ "stop": [""] }),
        json!({ "stop": vec!["x"; 17] }),
        json!({ "logit_bias": { "hello": 1 } }),
        json!({ "logit_bias": { "5": 101 } }),
        json!({ "logprobs": true, "top_logprobs": 21 }),
        json!({ "top_logprobs": 2 }),
        json!({ "stream_options": { "include_usage": true } }),
        json!({ "store": true }),
        json!({ "best_of": 3 }),
        json!({ "tools": [{ "type": "function" }] }),
        json!({ "response_format": { "type": "json_object" } }),
        json!({ "grammar": "root ::= 'a'" }),
        json!({ "priority": 3 }),
        json!({ "messages": "hi" }),
        json!({ "messages": [{ "role": "user", "content": 5 }] }),
    ];
    let rendered: String = cases.into_iter().map(|fields| format!("{fields}\n  {}\n", show(chat(fields.clone())))).collect();
    insta::assert_snapshot!(rendered, @"");
    assert_eq!(show(json!({ "model": "m" })), "400 null: missing field `messages`");
}

#[test]
fn prompts_come_in_four_shapes() {
    let show = |body: Value| match CompletionRequest::from_body(&body).and_then(|request| request.to_generate()) {
        Ok(requests) => requests.iter().map(|request| format!("{:?} x{} ", request.prompt, request.num_choices)).collect(),
        Err(error) => rejected(&error),
    };
    assert_eq!(show(json!({ "prompt": "a" })), r#"Text("a") x1 "#);
    assert_eq!(show(json!({ "prompt": ["a", "b"], "n": 2 })), r#"Text("a") x2 Text("b") x2 "#);
    assert_eq!(show(json!({ "prompt": [1, 2] })), "Tokens([1, 2]) x1 ");
    assert_eq!(show(json!({ "prompt": [[1], [2, 3]] })), "Tokens([1]) x1 Tokens([2, 3]) x1 ");
    assert_eq!(show(json!({ "prompt": [] })), r#"400 "prompt": 0 prompts with `n` 1 are 0 choices; expected 1 to 64"#);
    assert_eq!(
        show(json!({ "prompt": { "text": "a" } })),
        r#"400 "prompt": `prompt`: expected a string, a list of strings, a list of token ids, or a list of lists of token ids"#
    );
    assert_eq!(show(json!({ "prompt": "a", "suffix": "b" })), r#"400 "suffix": `suffix`: filling in the middle is not supported yet"#);
    assert_eq!(
        show(json!({ "prompt": "a", "echo": true, "logprobs": 1 })),
        r#"400 "echo": `echo` with `logprobs`: log-probabilities of the prompt are not supported yet"#
    );
}
