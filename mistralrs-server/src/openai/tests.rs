//! From bodies to the engine's requests, and from the engine's events to what clients read.

use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use mistralrs_core::request::{TokenLogprob, Usage};
use mistralrs_core::{FinishReason, GenerateRequest, TextEvent};
use serde_json::{Value, json};

use super::chat_completions::{ChatChunks, ChatCompletionRequest, Logprobs};
use super::completions::{Choices, CompletionRequest, TextAnswer};
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
    TextEvent::Finished { choice, reason, stop_string: None, num_completion_tokens: 2 }
}

fn token(text: &str, logprob: f32, top: Vec<TokenLogprob>) -> TokenLogprob {
    TokenLogprob { token_id: 1, text: text.to_owned(), bytes: text.as_bytes().to_vec(), logprob, top }
}

const USAGE: Usage = Usage { num_prompt_tokens: 5, num_cached_tokens: 3, num_completion_tokens: 2 };

fn answer_id() -> AnswerId {
    AnswerId { id: "answer-1".to_owned(), created: 1_700_000_000, model: "SmolLM2".to_owned(), service_tier: None }
}

/// The body as clients read it, without what is the same in every object.
async fn render(response: Response) -> String {
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap();
    let constant = r#""created":1700000000,"model":"SmolLM2","system_fingerprint":"mistralrs-VERSION","#
        .replace("VERSION", env!("CARGO_PKG_VERSION"));
    format!("{status}\n{}", text.replace("\n\n", "\n").replace(&constant, ""))
}

async fn render_chat_stream(num_choices: usize, events: Vec<TextEvent>, usage_report: UsageReport) -> String {
    let generation = Generation::from_events(num_choices, events, USAGE);
    render(sse::stream(generation, ChatChunks::new(answer_id(), Logprobs::Omit), usage_report)).await
}

#[tokio::test]
async fn a_chat_stream_begins_with_the_role_and_ends_with_a_reason_and_done() {
    let events = vec![delta(0, "Hel"), delta(0, ""), delta(0, "lo"), finished(0, FinishReason::Stop)];
    insta::assert_snapshot!(render_chat_stream(1, events, UsageReport::Omit).await, @r#"
    200 OK
    data: {"id":"answer-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}
    data: {"id":"answer-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hel"},"logprobs":null,"finish_reason":null}]}
    data: {"id":"answer-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"lo"},"logprobs":null,"finish_reason":null}]}
    data: {"id":"answer-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}
    data: [DONE]
    "#);
}

#[tokio::test]
async fn choices_interleave_and_usage_is_the_last_chunk_if_asked_for() {
    let events = vec![delta(1, "b"), delta(0, "a"), finished(0, FinishReason::Length), finished(1, FinishReason::Stop)];
    insta::assert_snapshot!(render_chat_stream(2, events, UsageReport::Include).await, @r#"
    200 OK
    data: {"id":"answer-1","object":"chat.completion.chunk","choices":[{"index":1,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}
    data: {"id":"answer-1","object":"chat.completion.chunk","choices":[{"index":1,"delta":{"content":"b"},"logprobs":null,"finish_reason":null}],"usage":null}
    data: {"id":"answer-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}
    data: {"id":"answer-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"a"},"logprobs":null,"finish_reason":null}],"usage":null}
    data: {"id":"answer-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}],"usage":null}
    data: {"id":"answer-1","object":"chat.completion.chunk","choices":[{"index":1,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}
    data: {"id":"answer-1","object":"chat.completion.chunk","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":3}}}
    data: [DONE]
    "#);
}

#[tokio::test]
async fn a_stream_that_fails_ends_in_an_error_event_and_done() {
    let failed = TextEvent::Failed { choice: 0, message: "out of memory".to_owned() };
    insta::assert_snapshot!(render_chat_stream(1, vec![delta(0, "Hel"), failed], UsageReport::Include).await, @r#"
    200 OK
    data: {"id":"answer-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}
    data: {"id":"answer-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hel"},"logprobs":null,"finish_reason":null}],"usage":null}
    data: {"error":{"message":"out of memory","type":"server_error","param":null,"code":null}}
    data: [DONE]
    "#);
    let cancelled = vec![finished(0, FinishReason::Cancelled)];
    insta::assert_snapshot!(render_chat_stream(1, cancelled, UsageReport::Omit).await, @r#"
    200 OK
    data: {"error":{"message":"the answer was cut off: the server is shutting down","type":"server_error","param":null,"code":"shutting_down"}}
    data: [DONE]
    "#);
    insta::assert_snapshot!(render_chat_stream(1, vec![delta(0, "Hel")], UsageReport::Omit).await, @r#"
    200 OK
    data: {"id":"answer-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}
    data: {"id":"answer-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hel"},"logprobs":null,"finish_reason":null}]}
    data: {"error":{"message":"the engine stopped before the answer was complete","type":"server_error","param":null,"code":null}}
    data: [DONE]
    "#);
}

#[tokio::test]
async fn a_whole_chat_answer_joins_the_pieces() {
    let events = vec![delta(0, "Hel"), delta(0, "lo"), finished(0, FinishReason::Stop)];
    let generation = Generation::from_events(1, events, USAGE);
    let response = chat_completions::collect(generation, &answer_id(), Logprobs::Omit).await.into_response();
    insta::assert_snapshot!(render(response).await, @r#"
    200 OK
    {"id":"answer-1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":3}}}
    "#);
}

#[tokio::test]
async fn logprobs_have_the_chat_shape_and_impossible_tokens_a_number() {
    let top = vec![token("Hi", -0.25, Vec::new()), token("\u{fffd}", f32::NEG_INFINITY, Vec::new())];
    let event = TextEvent::Delta { choice: 0, text: "Hi".into(), logprobs: vec![token("Hi", -0.25, top)] };
    let generation = Generation::from_events(1, vec![event, finished(0, FinishReason::Length)], USAGE);
    let response = chat_completions::collect(generation, &answer_id(), Logprobs::Include).await.into_response();
    insta::assert_snapshot!(render(response).await, @r#"
    200 OK
    {"id":"answer-1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"logprobs":{"content":[{"token":"Hi","logprob":-0.25,"bytes":[72,105],"top_logprobs":[{"token":"Hi","logprob":-0.25,"bytes":[72,105]},{"token":"�","logprob":-9999.0,"bytes":[239,191,189]}]}]},"finish_reason":"length"}],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":3}}}
    "#);
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
    insta::assert_snapshot!(render(sse::stream(generation, chunks, UsageReport::Include)).await, @r#"
    200 OK
    data: {"id":"answer-1","object":"text_completion","choices":[{"index":0,"text":"I was né","logprobs":{"tokens":["né"],"token_logprobs":[-0.5],"top_logprobs":[{"né":-0.5}],"text_offset":[0]},"finish_reason":null}],"usage":null}
    data: {"id":"answer-1","object":"text_completion","choices":[{"index":0,"text":"e","logprobs":{"tokens":["e"],"token_logprobs":[-0.5],"top_logprobs":[{"e":-0.5}],"text_offset":[2]},"finish_reason":null}],"usage":null}
    data: {"id":"answer-1","object":"text_completion","choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"stop"}],"usage":null}
    data: {"id":"answer-1","object":"text_completion","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":3}}}
    data: [DONE]
    "#);
}

#[tokio::test]
async fn a_whole_text_answer_numbers_its_choices() {
    let events = vec![delta(1, "b"), finished(1, FinishReason::Stop), delta(0, "a"), finished(0, FinishReason::Length)];
    let generation = Generation::from_events(2, events, USAGE);
    let chunks = TextAnswer::new(answer_id(), vec![String::new(), String::new()], false);
    let all = Choices { num_generated: 2, num_sent: 2 };
    insta::assert_snapshot!(render(chunks.collect(generation, all).await.into_response()).await, @r#"
    200 OK
    {"id":"answer-1","object":"text_completion","choices":[{"index":0,"text":"a","logprobs":null,"finish_reason":"length"},{"index":1,"text":"b","logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":3}}}
    "#);
}

#[tokio::test]
async fn of_best_of_choices_the_likeliest_are_sent_and_all_are_paid_for() {
    let piece = |choice: usize, text: &str, logprob: f32| TextEvent::Delta {
        choice,
        text: text.to_owned(),
        logprobs: vec![token(text, logprob, Vec::new())],
    };
    let events = vec![
        piece(0, "bad", -9.0),
        piece(1, "go", -1.0),
        piece(2, "fair", -2.0),
        finished(0, FinishReason::Stop),
        piece(1, "od", -2.0),
        finished(1, FinishReason::Length),
        finished(2, FinishReason::Stop),
    ];
    let generation = Generation::from_events(3, events, USAGE);
    let chunks = TextAnswer::new(answer_id(), vec!["I am ".to_owned(); 3], false);
    let choices = Choices { num_generated: 3, num_sent: 2 };
    insta::assert_snapshot!(render(chunks.collect(generation, choices).await.into_response()).await, @r#"
    200 OK
    {"id":"answer-1","object":"text_completion","choices":[{"index":0,"text":"I am good","logprobs":null,"finish_reason":"length"},{"index":1,"text":"I am fair","logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":3}}}
    "#);
}

fn show(body: &Value) -> String {
    let request = ChatCompletionRequest::from_body(body).and_then(|request| request.to_generate());
    match request {
        Ok(request) => format!("{request:#?}"),
        Err(error) => rejected(&error),
    }
}

fn rejected(error: &ApiError) -> String {
    let json = error.to_json();
    format!("{} {}: {}", error.status().as_u16(), json["error"]["param"], json["error"]["message"].as_str().unwrap())
}

fn chat(fields: &Value) -> Value {
    let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

#[test]
#[expect(clippy::too_many_lines, reason = "one request and its snapshot")]
fn every_field_reaches_the_engine() {
    insta::assert_snapshot!(show(&chat(&json!({
        "n": 2, "max_tokens": 9, "max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05,
        "top_n_sigma": 1.5, "typical_p": 0.95, "xtc_probability": 0.25, "xtc_threshold": 0.2, "min_tokens": 3,
        "dry_multiplier": 0.75, "dry_base": 1.5, "dry_allowed_length": 3, "dry_penalty_last_n": 500,
        "dry_sequence_breakers": ["\n"], "repetition_penalty": 1.1, "repeat_last_n": 64, "frequency_penalty": 0.5, "presence_penalty": -0.5, "logit_bias": { "5": -100, "6": 1.5 },
        "seed": -1, "stop": ["a", "b"], "stop_token_ids": [2], "ignore_eos": true, "priority": -3, "cache_salt": "ann", "logprobs": true, "top_logprobs": 3,
        "enable_thinking": false, "chat_template_kwargs": { "lang": "en" }, "user": "ann", "metadata": { "a": "b" },
        "store": false, "service_tier": "auto", "parallel_tool_calls": true, "an_unknown_field": 1
    }))), @r#"
    GenerateRequest {
        prompt: Chat(
            ChatPrompt {
                messages: [
                    Object {
                        "role": String("user"),
                        "content": String("hi"),
                    },
                ],
                tools: [],
                template_kwargs: {
                    "enable_thinking": Bool(false),
                    "lang": String("en"),
                },
            },
        ),
        num_choices: 2,
        max_tokens: Some(
            7,
        ),
        sampling: SamplingParams {
            temperature: 0.5,
            top_k: Some(
                40,
            ),
            top_p: 0.9,
            min_p: 0.05,
            top_n_sigma: Some(
                1.5,
            ),
            typical_p: 0.95,
            xtc: Some(
                XtcParams {
                    probability: 0.25,
                    threshold: 0.2,
                },
            ),
            repetition_penalty: 1.1,
            repetition_window: Some(
                64,
            ),
            frequency_penalty: 0.5,
            presence_penalty: -0.5,
            dry: Some(
                DryParams {
                    multiplier: 0.75,
                    base: 1.5,
                    allowed_length: 3,
                    window: 500,
                    sequence_breakers: [
                        "\n",
                    ],
                },
            ),
            logit_bias: {
                5: -100.0,
                6: 1.5,
            },
            seed: Some(
                18446744073709551615,
            ),
        },
        stop: StopConditions {
            strings: [
                "a",
                "b",
            ],
            token_ids: [
                2,
            ],
            ignore_eos: true,
            min_tokens: 3,
        },
        logprobs: Some(
            3,
        ),
        priority: Priority(
            -3,
        ),
        cache_salt: Some(
            "ann",
        ),
    }
    "#);
}

#[test]
fn absent_and_null_fields_are_the_defaults() {
    let absent = show(&chat(&json!({})));
    let nulls = json!({ "n": null, "temperature": null, "stop": null, "seed": null, "logprobs": null, "tools": null,
        "stream_options": null, "response_format": null, "user": null, "top_k": -1, "tool_choice": "none",
        "response_format": { "type": "text" }, "modalities": ["text"], "functions": [], "best_of": 1, "min_tokens": 0,
        "top_n_sigma": -1, "typical_p": 1, "xtc_probability": 0, "xtc_threshold": 1, "repeat_last_n": -1,
        "dry_multiplier": 0, "dry_base": 1.75, "dry_penalty_last_n": 0, "dry_sequence_breakers": ["a"] });
    assert_eq!(show(&chat(&nulls)), absent);
    insta::assert_snapshot!(absent, @r#"
    GenerateRequest {
        prompt: Chat(
            ChatPrompt {
                messages: [
                    Object {
                        "role": String("user"),
                        "content": String("hi"),
                    },
                ],
                tools: [],
                template_kwargs: {},
            },
        ),
        num_choices: 1,
        max_tokens: None,
        sampling: SamplingParams {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            top_n_sigma: None,
            typical_p: 1.0,
            xtc: None,
            repetition_penalty: 1.0,
            repetition_window: None,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            dry: None,
            logit_bias: {},
            seed: None,
        },
        stop: StopConditions {
            strings: [],
            token_ids: [],
            ignore_eos: false,
            min_tokens: 0,
        },
        logprobs: None,
        priority: Priority(
            0,
        ),
        cache_salt: None,
    }
    "#);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases and its snapshot")]
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
        json!({ "min_tokens": 9, "max_tokens": 8 }),
        json!({ "typical_p": 0 }),
        json!({ "top_n_sigma": 1e9 }),
        json!({ "xtc_probability": 1.5 }),
        json!({ "xtc_threshold": -1 }),
        json!({ "repeat_last_n": -2 }),
        json!({ "dry_multiplier": -1 }),
        json!({ "dry_multiplier": 1, "dry_base": 0.5 }),
        json!({ "dry_multiplier": 1, "dry_allowed_length": 0 }),
        json!({ "dry_multiplier": 1, "dry_penalty_last_n": 8193 }),
        json!({ "dry_multiplier": 1, "dry_sequence_breakers": "\n" }),
        json!({ "dry_multiplier": 1, "dry_sequence_breakers": [""] }),
        json!({ "tools": [{ "type": "function" }] }),
        json!({ "response_format": { "type": "json_object" } }),
        json!({ "grammar": "root ::= 'a'" }),
        json!({ "priority": 300 }),
        json!({ "messages": "hi" }),
        json!({ "messages": [{ "role": "user", "content": 5 }] }),
    ];
    let rendered: String =
        cases.into_iter().map(|fields| [fields.to_string(), show(&chat(&fields))].join("\n  ") + "\n").collect();
    insta::assert_snapshot!(rendered, @r#"
    {"temperature":"warm"}
      400 "temperature": `temperature`: invalid type: string "warm", expected f32
    {"temperature":-1}
      400 "temperature": `temperature` is -1; expected at least 0
    {"top_p":0}
      400 "top_p": `top_p` is 0; expected more than 0 and at most 1
    {"min_p":2}
      400 "min_p": `min_p` is 2; expected 0 to 1
    {"top_k":-2}
      400 "top_k": `top_k` is -2; expected at least 1, or 0 or -1 for all
    {"n":0}
      400 "n": `n` is 0; expected 1 to 64
    {"n":65}
      400 "n": `n` is 65; expected 1 to 64
    {"max_tokens":0}
      400 "max_tokens": `max_tokens` is 0; expected at least 1
    {"max_tokens":-5}
      400 "max_tokens": `max_tokens`: invalid value: integer `-5`, expected usize
    {"seed":1.5}
      400 "seed": `seed`: expected a whole number of at most 64 bits
    {"stop":5}
      400 "stop": `stop`: expected a string or a list of strings
    {"stop":[""]}
      400 "stop": `stop`: each string has 1 to 1024 bytes
    {"stop":["x","x","x","x","x","x","x","x","x","x","x","x","x","x","x","x","x"]}
      400 "stop": `stop` has 17 strings; the limit is 16
    {"logit_bias":{"hello":1}}
      400 "logit_bias": `logit_bias`: `hello` is not a token id
    {"logit_bias":{"5":101}}
      400 "logit_bias": `logit_bias.5` is 101; expected -100 to 100
    {"logprobs":true,"top_logprobs":21}
      400 "top_logprobs": `top_logprobs` is 21; expected 0 to 20
    {"top_logprobs":2}
      400 "top_logprobs": `top_logprobs` needs `"logprobs": true`
    {"stream_options":{"include_usage":true}}
      400 "stream_options": `stream_options` is for requests with `"stream": true`
    {"store":true}
      400 "store": `store`: this server keeps no answers
    {"best_of":3}
      400 "best_of": `best_of`: only /v1/completions ranks its choices
    {"min_tokens":9,"max_tokens":8}
      400 "min_tokens": `min_tokens` is 9; expected 0 to `max_tokens`, which is 8
    {"typical_p":0}
      400 "typical_p": `typical_p` is 0; expected more than 0 and at most 1
    {"top_n_sigma":1000000000.0}
      400 "top_n_sigma": `top_n_sigma` is 1000000000; expected at most 1000000
    {"xtc_probability":1.5}
      400 "xtc_probability": `xtc_probability` is 1.5; expected 0 to 1
    {"xtc_threshold":-1}
      400 "xtc_threshold": `xtc_threshold` is -1; expected 0 to 1
    {"repeat_last_n":-2}
      400 "repeat_last_n": `repeat_last_n` is -2; expected at least 0, or -1 for all tokens
    {"dry_multiplier":-1}
      400 "dry_multiplier": `dry_multiplier` is -1; expected 0 to 100
    {"dry_multiplier":1,"dry_base":0.5}
      400 "dry_base": `dry_base` is 0.5; expected 1 to 100
    {"dry_multiplier":1,"dry_allowed_length":0}
      400 "dry_allowed_length": `dry_allowed_length` is 0; expected 1 to 8192 tokens
    {"dry_multiplier":1,"dry_penalty_last_n":8193}
      400 "dry_penalty_last_n": `dry_penalty_last_n` is 8193; expected 1 to 8192 tokens
    {"dry_multiplier":1,"dry_sequence_breakers":"\n"}
      400 "dry_sequence_breakers": `dry_sequence_breakers`: invalid type: string "\n", expected a sequence
    {"dry_multiplier":1,"dry_sequence_breakers":[""]}
      400 "dry_sequence_breakers": `dry_sequence_breakers`: each string has 1 to 256 bytes
    {"tools":[{"type":"function"}]}
      400 "tools": `tools`: tool calls are not supported yet; leave `tools` out or set `tool_choice` to "none"
    {"response_format":{"type":"json_object"}}
      400 "response_format": `response_format`: `json_object` is not supported yet; only `text` is
    {"grammar":"root ::= 'a'"}
      400 "grammar": `grammar`: grammars are not supported yet
    {"priority":300}
      400 "priority": `priority` is 300; expected -100 to 100, where lower is served earlier
    {"messages":"hi"}
      400 "messages": `messages`: invalid type: string "hi", expected a sequence
    {"messages":[{"role":"user","content":5}]}
      400 "messages[0].content": `messages[0].content`: expected a string or a list of text parts
    "#);
    assert_eq!(show(&json!({ "model": "m" })), "400 null: missing field `messages`");
}

#[test]
fn prompts_come_in_four_shapes() {
    let show = |body: Value| match CompletionRequest::from_body(&body).and_then(|request| request.to_generate()) {
        Ok(requests) => {
            let show = |request: &GenerateRequest| format!("{:?} x{} ", request.prompt, request.num_choices);
            requests.iter().map(show).collect::<Vec<_>>().concat()
        }
        Err(error) => rejected(&error),
    };
    assert_eq!(show(json!({ "prompt": "a" })), r#"Text("a") x1 "#);
    assert_eq!(show(json!({ "prompt": ["a", "b"], "n": 2 })), r#"Text("a") x2 Text("b") x2 "#);
    assert_eq!(show(json!({ "prompt": [1, 2] })), "Tokens([1, 2]) x1 ");
    assert_eq!(show(json!({ "prompt": [[1], [2, 3]] })), "Tokens([1]) x1 Tokens([2, 3]) x1 ");
    assert_eq!(show(json!({ "prompt": [] })), r#"400 "prompt": 0 prompts with `n` 1 are 0 choices; expected 1 to 64"#);
    assert_eq!(show(json!({ "prompt": ["a", "b"], "n": 2, "best_of": 3 })), r#"Text("a") x3 Text("b") x3 "#);
    assert_eq!(show(json!({ "prompt": "a", "n": 2, "best_of": 2, "stream": true })), r#"Text("a") x2 "#);
    assert_eq!(
        show(json!({ "prompt": "a", "n": 2, "best_of": 1 })),
        r#"400 "best_of": `best_of` is 1; expected `n`, which is 2, to 64"#
    );
    assert_eq!(
        show(json!({ "prompt": "a", "best_of": 2, "stream": true })),
        r#"400 "best_of": `best_of` greater than `n` cannot be streamed: the best choices are known at the end only"#
    );
    assert_eq!(
        show(json!({ "prompt": ["a", "b"], "best_of": 33 })),
        r#"400 "prompt": 2 prompts with `best_of` 33 are 66 choices; expected 1 to 64"#
    );
    assert_eq!(
        show(json!({ "prompt": { "text": "a" } })),
        r#"400 "prompt": `prompt`: expected a string, a list of strings, a list of token ids, or a list of lists of token ids"#
    );
    assert_eq!(
        show(json!({ "prompt": "a", "suffix": "b" })),
        r#"400 "suffix": `suffix`: filling in the middle is not supported yet"#
    );
    assert_eq!(
        show(json!({ "prompt": "a", "echo": true, "logprobs": 1 })),
        r#"400 "echo": `echo` with `logprobs`: log-probabilities of the prompt are not supported yet"#
    );
}
