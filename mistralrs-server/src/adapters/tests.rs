//! The native tools without a model: what they accept, what they refuse, and how a stream of text becomes a result.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use mistralrs_core::request::Usage;
use mistralrs_core::{Embeddings, FinishReason, GenerateRequest, ModelRouter, TextEvent};
use mistralrs_mcp::{LocalToolError, LocalTools, ProgressSink};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::ModelTools;
use super::arguments::{ChatArguments, GenerateArguments};
use super::generation::{GeneratedText, TextSource, collect};

fn tools() -> ModelTools {
    ModelTools::new(Arc::new(ModelRouter::default()))
}

async fn call(name: &str, arguments: Value) -> String {
    let arguments = arguments.as_object().cloned().unwrap();
    match tools().call(name, arguments, None, CancellationToken::new()).await {
        Ok(result) => serde_json::to_string(&result).unwrap(),
        Err(LocalToolError::InvalidArguments(message)) => format!("invalid arguments: {message}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn schemas_are_what_clients_and_models_see() {
    for tool in tools().tools() {
        let schemas = json!({"input": tool.input_schema, "output": tool.output_schema});
        insta::assert_snapshot!(tool.name, serde_json::to_string_pretty(&schemas).unwrap());
    }
}

#[tokio::test]
async fn wrong_arguments_are_refused_with_their_name() {
    let mut refusals = Vec::new();
    for (name, arguments) in [
        ("generate", json!({})),
        ("generate", json!({"prompt": 5})),
        ("generate", json!({"prompt": "a", "temprature": 1})),
        ("generate", json!({"prompt": "a", "temperature": "hot"})),
        ("generate", json!({"prompt": "a", "max_tokens": -1})),
        ("generate", json!({"prompt": "a", "stop": [1]})),
        ("chat", json!({"messages": "hello"})),
        ("chat", json!({"messages": [{"role": "oracle", "content": "a"}]})),
        ("chat", json!({"messages": [{"role": "user"}]})),
        ("embed", json!({})),
        ("embed", json!({"input": [1, 2]})),
        ("embed", json!({"input": "a", "dimensions": "few"})),
        ("tokenize", json!({"text": "a", "add_special_tokens": "no"})),
        ("list_models", json!({"all": true})),
    ] {
        refusals.push(format!("{name} {arguments}\n  {}", call(name, arguments.clone()).await));
    }
    insta::assert_snapshot!(refusals.join("\n"));
}

#[tokio::test]
async fn a_model_that_is_not_there_yet_is_an_answer_and_an_unknown_tool_is_none() {
    let answer = call("tokenize", json!({"text": "a"})).await;
    assert!(answer.contains("no model is loaded yet") && answer.contains(r#""isError":true"#), "{answer}");
    assert_eq!(call("divine", json!({})).await, "no native tool named `divine`");
}

#[tokio::test]
async fn models_are_listed_as_text_and_as_data() {
    let answer = call("list_models", json!({})).await;
    assert!(answer.contains(r#""structuredContent":{"models":[]}"#), "{answer}");
}

#[test]
fn vectors_are_the_same_json_as_text_and_as_data() {
    let embeddings = Embeddings { vectors: vec![vec![0.6, 0.8], vec![1.0, 0.0]], num_prompt_tokens: 5 };
    let result = serde_json::to_value(super::embedding::render(embeddings)).unwrap();
    let expected = json!({
        "embeddings": [[0.6, 0.8], [1.0, 0.0]], "dimensions": 2,
        "usage": {"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5},
    });
    assert_eq!(result["structuredContent"], expected);
    let text: Value = serde_json::from_str(result["content"][0]["text"].as_str().unwrap()).unwrap();
    assert_eq!(text, expected);
}

#[test]
fn arguments_become_the_engines_request() {
    let generate: GenerateArguments = serde_json::from_value(json!({
        "prompt": "once", "max_tokens": 7, "temperature": 0, "top_p": 0.5, "top_k": 3, "stop": "\n", "seed": 42,
        "stream": true,
    }))
    .unwrap();
    let chat: ChatArguments = serde_json::from_value(json!({
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}], "stop": ["a", "b"],
    }))
    .unwrap();
    insta::assert_debug_snapshot!((GenerateRequest::from(generate), GenerateRequest::from(chat)));
}

/// A stream that says what it was told to, and then waits for ever.
struct Script {
    events: VecDeque<TextEvent>,
    ends: bool,
}

impl Script {
    fn new(pieces: &[&str], last: Option<TextEvent>) -> Self {
        let ends = last.is_some();
        let delta = |text: &&str| TextEvent::Delta { choice: 0, text: (*text).to_owned(), logprobs: Vec::new() };
        Self { events: pieces.iter().map(delta).chain(last).collect(), ends }
    }

    fn finished(pieces: &[&str]) -> Self {
        let last = TextEvent::Finished {
            choice: 0,
            reason: FinishReason::Length,
            stop_string: None,
            num_completion_tokens: 3,
        };
        Self::new(pieces, Some(last))
    }
}

impl TextSource for Script {
    async fn next(&mut self) -> Option<TextEvent> {
        match self.events.pop_front() {
            Some(event) => Some(event),
            None if self.ends => None,
            None => std::future::pending().await,
        }
    }

    fn usage(&self) -> Usage {
        Usage { num_prompt_tokens: 4, num_cached_tokens: 0, num_completion_tokens: 3 }
    }
}

/// Keeps what it is told; takes a report only when there is a permit, and leaves after some.
struct Reader {
    reports: mistralrs_telemetry::Mutex<Vec<String>>,
    permits: Semaphore,
    leaves_after: usize,
}

impl Reader {
    fn new(num_permits: usize, leaves_after: usize) -> Self {
        let reports = mistralrs_telemetry::Mutex::new("test_reports", Vec::new());
        Self { reports, permits: Semaphore::new(num_permits), leaves_after }
    }
}

#[async_trait]
impl ProgressSink for Reader {
    async fn send(&self, progress: f64, message: String) -> bool {
        self.permits.acquire().await.unwrap().forget();
        let mut reports = self.reports.lock();
        reports.push(format!("{progress} {message}"));
        reports.len() < self.leaves_after
    }
}

async fn collect_from(mut script: Script, reader: Option<&Reader>) -> Result<GeneratedText, String> {
    let progress = reader.map(|reader| -> &dyn ProgressSink { reader });
    collect(&mut script, progress, CancellationToken::new()).await
}

#[tokio::test]
async fn a_result_has_the_whole_text_its_end_and_its_cost() {
    let result = collect_from(Script::finished(&["Hello", ", ", "world"]), None).await.unwrap();
    let expected = json!({
        "text": "Hello, world", "finish_reason": "length",
        "usage": {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7},
    });
    assert_eq!(serde_json::to_value(&result).unwrap(), expected);
}

#[tokio::test]
async fn pieces_that_are_there_together_are_reported_together() {
    let reader = Reader::new(10, 10);
    collect_from(Script::finished(&["Hello", ", ", "world"]), Some(&reader)).await.unwrap();
    assert_eq!(*reader.reports.lock(), ["1 Hello, world"]);
}

#[tokio::test]
async fn a_reader_that_left_does_not_end_the_call() {
    let reader = Reader::new(10, 1);
    let text = collect_from(Script::finished(&["a", "b"]), Some(&reader)).await.unwrap().text;
    assert_eq!((text.as_str(), reader.reports.lock().len()), ("ab", 1));
}

#[tokio::test]
async fn a_generation_that_fails_says_why() {
    let failed = TextEvent::Failed { choice: 0, message: "out of luck".to_owned() };
    assert_eq!(collect_from(Script::new(&["a"], Some(failed)), None).await.unwrap_err(), "out of luck");
}

#[tokio::test]
async fn cancelling_ends_the_wait_for_text_and_for_a_slow_reader() {
    for (script, num_permits) in [(Script::new(&["a"], None), 10), (Script::finished(&["a"]), 0)] {
        let (mut script, reader) = (script, Reader::new(num_permits, 10));
        let cancellation = CancellationToken::new();
        let (outcome, ()) = tokio::join!(collect(&mut script, Some(&reader), cancellation.clone()), async {
            tokio::task::yield_now().await;
            cancellation.cancel();
        });
        assert_eq!(outcome.unwrap_err(), "the call was cancelled");
    }
}
