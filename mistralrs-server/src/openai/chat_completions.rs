//! `POST /v1/chat/completions`.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use mistralrs_core::request::{ChatPrompt, TokenLogprob};
use mistralrs_core::{FinishReason, GenerateRequest, Prompt};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::generation::{Generation, Piece};
use super::labels::Labels;
use super::logprobs::ChatLogprobs;
use super::messages;
use super::options::{GenerateOptions, MAX_TOP_LOGPROBS};
use super::sse::{self, Chunks};
use super::types::{AnswerId, AnswerObject, UsageField};
use crate::app::AppState;
use crate::error::ApiError;
use crate::extract::{Json, Object, RequestBody, fields};
use crate::openapi::{Operation, Tag, merged};

/// Continues a conversation.
pub async fn chat_completions(
    State(app): State<AppState>,
    Json(request): Json<ChatCompletionRequest>,
) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let model = app.route(request.options.model.as_deref())?;
    let answer = request.answer_id(&model.info().id);
    let generation = Generation::start(&model, vec![request.to_generate()?], deadline).await?;
    if request.options.wants_stream() {
        return Ok(sse::stream(
            generation,
            ChatChunks::new(answer, request.wants_logprobs()),
            request.options.usage_report(),
        ));
    }
    collect(generation, &answer, request.wants_logprobs()).await
}

/// What it does, for the API's document.
pub(crate) fn describe_chat_completions() -> Operation {
    Operation::new("createChatCompletion", Tag::OpenAi, "Continues a conversation.")
        .body::<ChatCompletionRequest>(json!({
            "model": "default", "messages": [{ "role": "user", "content": "Hello" }], "max_tokens": 32,
        }))
        .answers::<AnswerObject<ChatChoice>>()
        .streams::<AnswerObject<ChatChunkChoice>>("chunks, then `[DONE]`; a failure is an error object before it")
        .generates()
}

/// The body, checked as far as it can be without a model.
pub struct ChatCompletionRequest {
    options: GenerateOptions,
    labels: Labels,
    chat: ChatFields,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct ChatFields {
    /// The conversation, oldest first.
    #[schemars(with = "Vec<messages::ChatMessage>", length(min = 1, max = messages::MAX_MESSAGES))]
    messages: Vec<Value>,
    /// Whether tokens come with their log-probabilities.
    logprobs: Option<bool>,
    /// With `logprobs`: the likeliest tokens at each position.
    #[schemars(range(max = MAX_TOP_LOGPROBS))]
    top_logprobs: Option<usize>,
    /// Refused for now, unless `tool_choice` is `none`.
    tools: Option<Vec<Value>>,
    /// See `tools`.
    tool_choice: Option<Value>,
    /// Whether the model may call several tools at once; it calls none for now.
    #[expect(dead_code, reason = "its type is checked; it has an effect once tools can be called")]
    parallel_tool_calls: Option<bool>,
    /// Only `text` for now.
    response_format: Option<Object<ResponseFormat>>,
    /// For templates that know it.
    enable_thinking: Option<bool>,
    /// Variables of the model's chat template.
    chat_template_kwargs: Option<Map<String, Value>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct ResponseFormat {
    #[schemars(extend("const" = "text"))]
    r#type: String,
}

/// Whether tokens come with their log-probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Logprobs {
    Omit,
    Include,
}

impl RequestBody for ChatCompletionRequest {
    fn from_body(body: &Value) -> Result<Self, ApiError> {
        let request = Self { options: fields(body)?, labels: fields(body)?, chat: fields(body)? };
        request.options.check(&request.chat.rest)?;
        request.labels.check()?;
        request.chat.check()?;
        Ok(request)
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        let parts = [ChatFields::json_schema, GenerateOptions::json_schema, Labels::json_schema];
        merged(parts.map(|part| part(generator)), &[])
    }
}

impl ChatFields {
    /// Refuses what would change the answer and cannot be honoured yet.
    fn check(&self) -> Result<(), ApiError> {
        let has_tools = self.tools.as_ref().is_some_and(|tools| !tools.is_empty());
        let may_call = self.tool_choice.as_ref().is_none_or(|choice| choice != "none");
        if has_tools && may_call {
            return Err(ApiError::invalid(
                "tools",
                "`tools`: tool calls are not supported yet; leave `tools` out or set `tool_choice` to \"none\"",
            ));
        }
        match &self.response_format {
            Some(Object(format)) if format.r#type != "text" => Err(ApiError::invalid(
                "response_format",
                format!("`response_format`: `{}` is not supported yet; only `text` is", format.r#type),
            )),
            _ => Ok(()),
        }
    }

    fn num_logprobs(&self) -> Result<Option<usize>, ApiError> {
        match (self.logprobs, self.top_logprobs) {
            (Some(true), top) if top.unwrap_or(0) <= MAX_TOP_LOGPROBS => Ok(Some(top.unwrap_or(0))),
            (Some(true), Some(top)) => Err(ApiError::invalid(
                "top_logprobs",
                format!("`top_logprobs` is {top}; expected 0 to {MAX_TOP_LOGPROBS}"),
            )),
            (_, Some(top)) if top > 0 => {
                Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `\"logprobs\": true`"))
            }
            _ => Ok(None),
        }
    }

    fn prompt(&self) -> Result<ChatPrompt, ApiError> {
        let mut template_kwargs = messages::template_kwargs(self.chat_template_kwargs.as_ref());
        if let Some(enable_thinking) = self.enable_thinking {
            template_kwargs.insert("enable_thinking".to_owned(), enable_thinking.into());
        }
        Ok(ChatPrompt { messages: messages::check(&self.messages)?, tools: Vec::new(), template_kwargs })
    }
}

impl ChatCompletionRequest {
    pub(super) fn to_generate(&self) -> Result<GenerateRequest, ApiError> {
        Ok(GenerateRequest {
            prompt: Prompt::Chat(self.chat.prompt()?),
            num_choices: self.options.num_choices()?,
            max_tokens: self.options.max_tokens()?,
            sampling: self.options.sampling()?,
            stop: self.options.stop()?,
            logprobs: self.chat.num_logprobs()?,
            priority: self.options.priority()?,
            cache_salt: self.options.cache_salt.clone(),
        })
    }

    fn answer_id(&self, model: &str) -> AnswerId {
        AnswerId { service_tier: self.labels.served_tier(), ..AnswerId::new("chatcmpl", model) }
    }

    fn wants_logprobs(&self) -> Logprobs {
        if self.chat.logprobs == Some(true) { Logprobs::Include } else { Logprobs::Omit }
    }
}

/// One choice of a whole answer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ChatCompletion")]
struct ChatChoice {
    index: usize,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AssistantMessage")]
struct Message {
    role: &'static str,
    content: String,
}

pub(super) async fn collect(
    mut generation: Generation,
    answer: &AnswerId,
    logprobs: Logprobs,
) -> Result<Response, ApiError> {
    let mut choices: Vec<ChatChoice> = (0..generation.num_choices())
        .map(|index| ChatChoice {
            index,
            message: Message { role: "assistant", content: String::new() },
            logprobs: (logprobs == Logprobs::Include).then(ChatLogprobs::default),
            finish_reason: None,
        })
        .collect();
    while let Some(piece) = generation.next().await {
        match piece? {
            Piece::Text { choice, text, logprobs } => {
                let choice = &mut choices[choice];
                choice.message.content.push_str(&text);
                if let Some(all) = &mut choice.logprobs {
                    all.extend(&logprobs);
                }
            }
            Piece::End { choice, reason, .. } => choices[choice].finish_reason = Some(reason.as_str()),
        }
    }
    let usage = UsageField::Known(generation.usage().into());
    Ok(axum::Json(answer.object("chat.completion", choices, usage)).into_response())
}

/// The object that a stream is made of.
const CHUNK: &str = "chat.completion.chunk";

/// Renders pieces as chunks; the first of each choice is its role.
pub(super) struct ChatChunks {
    answer: AnswerId,
    logprobs: Logprobs,
    /// Choices that have sent their role.
    begun: Vec<usize>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ChatCompletionChunk")]
struct ChatChunkChoice {
    index: usize,
    /// `role` and `content`, where they are new.
    #[schemars(with = "Map<String, Value>")]
    delta: Value,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

impl ChatChunks {
    pub fn new(answer: AnswerId, logprobs: Logprobs) -> Self {
        Self { answer, logprobs, begun: Vec::new() }
    }

    fn chunk(&self, choice: ChatChunkChoice, usage: UsageField) -> String {
        self.answer.object(CHUNK, vec![choice], usage).to_json()
    }

    fn text(&self, index: usize, text: &str, tokens: &[TokenLogprob]) -> Option<ChatChunkChoice> {
        if text.is_empty() && tokens.is_empty() {
            return None;
        }
        let logprobs = (self.logprobs == Logprobs::Include).then(|| {
            let mut all = ChatLogprobs::default();
            all.extend(tokens);
            all
        });
        Some(ChatChunkChoice { index, delta: json!({ "content": text }), logprobs, finish_reason: None })
    }

    fn role(&mut self, index: usize) -> Option<ChatChunkChoice> {
        if self.begun.contains(&index) {
            return None;
        }
        self.begun.push(index);
        let delta = json!({ "role": "assistant", "content": "" });
        Some(ChatChunkChoice { index, delta, logprobs: None, finish_reason: None })
    }
}

impl Chunks for ChatChunks {
    fn render(&mut self, piece: Piece, usage: UsageField) -> Vec<String> {
        let (index, choice) = match piece {
            Piece::Text { choice, text, logprobs } => (choice, self.text(choice, &text, &logprobs)),
            Piece::End { choice, reason, .. } => (choice, Some(last(choice, reason))),
        };
        let choices = self.role(index).into_iter().chain(choice).collect::<Vec<_>>();
        choices.into_iter().map(|choice| self.chunk(choice, usage)).collect()
    }

    fn render_usage(&mut self, usage: UsageField) -> String {
        self.answer.object(CHUNK, Vec::<ChatChunkChoice>::new(), usage).to_json()
    }
}

fn last(index: usize, reason: FinishReason) -> ChatChunkChoice {
    ChatChunkChoice { index, delta: json!({}), logprobs: None, finish_reason: Some(reason.as_str()) }
}
