//! The model, for upstreams that may ask it: `sampling/createMessage` as a chat.
#![expect(deprecated, reason = "sampling is what every server before 2026-07-28 asks for")]

use std::sync::Arc;

use async_trait::async_trait;
use mistralrs_core::request::ChatPrompt;
use mistralrs_core::{GenerateRequest, Model, ModelRouter, Priority, Prompt, SamplingParams, StopConditions};
use mistralrs_mcp::LocalSampler;
use mistralrs_mcp::rmcp::model::{
    CreateMessageRequestParams, CreateMessageResult, ErrorData, Role, SamplingMessage, SamplingMessageContentBlock,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::generation::{GeneratedText, collect};
use super::{Failure, generate_within_context, route};

/// Answers with the loaded models.
pub struct ModelSampler {
    models: Arc<ModelRouter>,
}

impl ModelSampler {
    /// Of `models`, the one that the upstream hints at; the first one loaded otherwise.
    pub fn new(models: Arc<ModelRouter>) -> Self {
        Self { models }
    }

    /// A hint is part of a name, of any vendor's; the first that fits anything counts.
    fn pick(&self, request: &CreateMessageRequestParams) -> Result<Model, Failure> {
        let hints = request.model_preferences.iter().flat_map(|preferences| preferences.hints.iter().flatten());
        let models = self.models.models();
        let hinted = hints.filter_map(|hint| hint.name.as_deref()).find_map(|name| {
            let name = name.to_lowercase();
            models.iter().find(|model| !name.is_empty() && model.info().id.to_lowercase().contains(&name))
        });
        hinted.map_or_else(|| route(Some(&self.models), None), |model| Ok(model.clone()))
    }

    async fn answer(&self, request: CreateMessageRequestParams) -> Result<CreateMessageResult, Failure> {
        let model = self.pick(&request)?;
        let mut events = generate_within_context(&model, to_request(request)?).await?;
        // Whoever drops this future drops the events, which ends the sequence.
        let text = collect(&mut events, None, CancellationToken::new()).await.map_err(Failure::Refused)?;
        Ok(to_result(text, model.info().id.clone()))
    }
}

#[async_trait]
impl LocalSampler for ModelSampler {
    async fn create_message(&self, request: CreateMessageRequestParams) -> Result<CreateMessageResult, ErrorData> {
        self.answer(request).await.map_err(|failure| match failure {
            Failure::Arguments(reason) => ErrorData::invalid_params(reason, None),
            Failure::Refused(reason) => ErrorData::internal_error(reason, None),
        })
    }
}

fn to_request(request: CreateMessageRequestParams) -> Result<GenerateRequest, Failure> {
    if request.tools.is_some_and(|tools| !tools.is_empty()) {
        return Err(Failure::Arguments("`tools`: the local model calls no tools of whoever asks it".to_owned()));
    }
    let system = request.system_prompt.map(|system| json!({ "role": "system", "content": system }));
    let mut messages: Vec<Value> = system.into_iter().collect();
    for (index, message) in request.messages.into_iter().enumerate() {
        messages.push(to_message(index, message)?);
    }
    let plain = SamplingParams::default();
    Ok(GenerateRequest {
        prompt: Prompt::Chat(ChatPrompt { messages, ..ChatPrompt::default() }),
        num_choices: 1,
        max_tokens: Some(request.max_tokens as usize),
        sampling: SamplingParams { temperature: request.temperature.unwrap_or(plain.temperature), ..plain },
        stop: StopConditions { strings: request.stop_sequences.unwrap_or_default(), ..StopConditions::default() },
        logprobs: None,
        priority: Priority::default(),
        cache_salt: None,
    })
}

fn to_message(index: usize, message: SamplingMessage) -> Result<Value, Failure> {
    let role = match message.role {
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    let mut content = String::new();
    for block in message.content.into_vec() {
        let SamplingMessageContentBlock::Text(text) = block else {
            return Err(Failure::Arguments(format!("`messages[{index}].content`: the local model reads text only")));
        };
        content.push_str(&text.text);
    }
    Ok(json!({ "role": role, "content": content }))
}

fn to_result(text: GeneratedText, model: String) -> CreateMessageResult {
    let reason = match (text.finish_reason, &text.stop_string) {
        ("length", _) => CreateMessageResult::STOP_REASON_END_MAX_TOKEN,
        (_, Some(_)) => CreateMessageResult::STOP_REASON_END_SEQUENCE,
        (_, None) => CreateMessageResult::STOP_REASON_END_TURN,
    };
    CreateMessageResult::new(SamplingMessage::assistant_text(text.text), model).with_stop_reason(reason)
}

#[cfg(test)]
mod tests {
    use super::super::generation::TokenUsage;
    use super::*;

    fn request(params: Value) -> Result<GenerateRequest, String> {
        let params = serde_json::from_value(params).unwrap();
        to_request(params).map_err(|failure| match failure {
            Failure::Arguments(reason) | Failure::Refused(reason) => reason,
        })
    }

    #[test]
    fn a_question_becomes_a_chat_with_its_limits() {
        let request = request(json!({
            "messages": [
                {"role": "user", "content": {"type": "text", "text": "why?"}},
                {"role": "assistant", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "cause"}]},
            ],
            "systemPrompt": "Be brief.", "maxTokens": 9, "temperature": 0.5, "stopSequences": ["\n"],
        }))
        .unwrap();
        let Prompt::Chat(chat) = request.prompt else { panic!("not a chat") };
        let expected = json!([
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "why?"},
            {"role": "assistant", "content": "because"},
        ]);
        assert_eq!(json!(chat.messages), expected);
        assert_eq!((request.max_tokens, request.sampling.temperature), (Some(9), 0.5));
        assert_eq!(request.stop.strings, ["\n"]);
    }

    #[test]
    fn what_is_no_text_is_refused_by_place() {
        let image = json!({"type": "image", "data": "", "mimeType": "image/png"});
        let asked = json!({"messages": [{"role": "user", "content": image}], "maxTokens": 9});
        assert_eq!(request(asked).unwrap_err(), "`messages[0].content`: the local model reads text only");
        let tools = json!([{"name": "t", "inputSchema": {"type": "object"}}]);
        let asked = json!({"messages": [], "maxTokens": 9, "tools": tools});
        assert!(request(asked).unwrap_err().starts_with("`tools`: "));
    }

    #[test]
    fn why_an_answer_ended_is_said_in_the_protocols_words() {
        for (finish_reason, stop_string, expected) in
            [("stop", None, "endTurn"), ("stop", Some("\n"), "stopSequence"), ("length", None, "maxTokens")]
        {
            let usage = TokenUsage { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 };
            let text = "yes".to_owned();
            let text = GeneratedText { text, finish_reason, usage, stop_string: stop_string.map(str::to_owned) };
            let result = serde_json::to_value(to_result(text, "m".to_owned())).unwrap();
            let content = json!({"type": "text", "text": "yes"});
            assert_eq!(result, json!({"model": "m", "stopReason": expected, "role": "assistant", "content": content}));
        }
    }
}
