//! The body of `POST /v1/responses`, checked as far as it can be without a model.

use std::sync::Arc;

use mistralrs_core::request::ChatPrompt;
use mistralrs_core::{GenerateRequest, Prompt};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::item::{ChatMessage, Input, Item};
use super::object::{ReasoningObject, ResponseObject, ResponseStatus, TextConfig};
use crate::error::ApiError;
use crate::extract::{Object, RequestBody, fields};
use crate::openai::labels::{Labels, ServiceTier};
use crate::openai::messages;
use crate::openai::options::{GenerateOptions, MAX_TOP_LOGPROBS, refuse};
use crate::openai::types::{fresh_id, unix_seconds};
use crate::openapi::merged;

/// Fields of this endpoint that would change the answer and that this version does not serve.
const REFUSED: &[(&str, &str)] = &[
    ("max_tokens", "this endpoint's limit is `max_output_tokens`"),
    ("max_completion_tokens", "this endpoint's limit is `max_output_tokens`"),
    ("response_format", "this endpoint's format is `text.format`"),
    ("messages", "this endpoint's messages are `input`"),
    ("conversation", "conversations are not supported; continue with `previous_response_id`"),
    ("prompt", "stored prompts are not supported; send `instructions` and `input`"),
    ("context_management", "compaction is not supported"),
    ("moderation", "moderation is not supported"),
];

/// Parts of an answer that can be asked for. Most belong to tools and reasoning, which add nothing to answers yet, so that
/// asking for them changes nothing.
const INCLUDABLE: &[&str] = &[
    INCLUDE_LOGPROBS,
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
];
const INCLUDE_LOGPROBS: &str = "message.output_text.logprobs";

/// The body.
pub struct ResponseRequest {
    pub(super) options: GenerateOptions,
    pub(super) response: ResponseFields,
    labels: Labels,
}

/// What this endpoint takes beside the options that all share.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct ResponseFields {
    /// What the user says, or the conversation, oldest item first.
    input: Input,
    /// What comes before the conversation; not carried over to the next response.
    instructions: Option<String>,
    /// The response that this one continues.
    previous_response_id: Option<String>,
    /// Tokens of the answer at most.
    #[schemars(range(min = 1))]
    max_output_tokens: Option<usize>,
    /// Without effect: no tool is called for now.
    max_tool_calls: Option<usize>,
    /// Parts of the answer to send besides its text.
    #[serde(default)]
    #[schemars(schema_with = "includable")]
    include: Option<Vec<String>>,
    /// With `message.output_text.logprobs` included: the likeliest tokens at each position.
    #[schemars(range(max = MAX_TOP_LOGPROBS))]
    top_logprobs: Option<usize>,
    /// Whether the answer is asked for later, by its id.
    background: Option<bool>,
    /// Only plain text of medium verbosity for now.
    text: Option<Object<TextFields>>,
    /// Refused for now, unless `tool_choice` is `none`.
    tools: Option<Vec<Value>>,
    /// See `tools`.
    tool_choice: Option<Value>,
    /// Whether the model may call several tools at once; it calls none for now.
    parallel_tool_calls: Option<bool>,
    /// Only `disabled`: what does not fit the context is refused.
    #[schemars(extend("enum" = ["disabled", null]))]
    truncation: Option<String>,
    /// Only the effort `none` for now.
    reasoning: Option<Object<ReasoningFields>>,
    /// For templates that know it.
    enable_thinking: Option<bool>,
    /// Variables of the model's chat template.
    chat_template_kwargs: Option<Map<String, Value>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(expecting = "an object")]
#[schemars(rename = "TextParam")]
struct TextFields {
    format: Option<Object<FormatFields>>,
    #[schemars(extend("enum" = ["medium", null]))]
    verbosity: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(expecting = "an object with `type`")]
#[schemars(rename = "TextFormatParam")]
struct FormatFields {
    #[schemars(extend("const" = "text"))]
    r#type: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(expecting = "an object")]
#[schemars(rename = "ReasoningParam")]
struct ReasoningFields {
    #[schemars(extend("enum" = ["none", null]))]
    effort: Option<String>,
    #[schemars(extend("type" = "null"))]
    summary: Option<String>,
    #[schemars(extend("type" = "null"))]
    generate_summary: Option<String>,
}

fn includable(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["array", "null"], "items": { "type": "string", "enum": INCLUDABLE } })
}

/// How the answer is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// In one piece, when it is complete.
    Whole,
    /// As events, while it grows.
    Stream,
    /// Later, to whoever asks for its id.
    Background,
}

/// Whether the response can be asked for afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Storing {
    /// As the client wants it, who says nothing.
    Default,
    /// The client insists.
    Demanded,
    /// The client does not want it.
    Declined,
}

impl RequestBody for ResponseRequest {
    fn from_body(body: &Value) -> Result<Self, ApiError> {
        let request = Self { options: fields(body)?, response: fields(body)?, labels: fields(body)? };
        refuse(&request.response.rest, REFUSED)?;
        request.options.check_rest(&request.response.rest)?;
        request.check_options()?;
        request.labels.check()?;
        request.response.check()?;
        Ok(request)
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        let parts = [ResponseFields::json_schema, GenerateOptions::json_schema, Labels::json_schema];
        merged(parts.map(|part| part(generator)), REFUSED)
    }
}

impl ResponseRequest {
    fn check_options(&self) -> Result<(), ApiError> {
        if self.options.n.unwrap_or(1) != 1 {
            return Err(ApiError::invalid("n", "`n`: a response is one answer; send the request several times"));
        }
        if self.delivery() != Delivery::Background {
            return Ok(());
        }
        let is_streamed = self.options.wants_stream();
        match self.storing() {
            Storing::Declined => {
                Err(ApiError::invalid("background", "`background` needs `store`: nobody could ask for the answer"))
            }
            _ if is_streamed => Err(ApiError::invalid(
                "stream",
                "`stream` with `background` is not supported yet; ask for the response until it has ended",
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn delivery(&self) -> Delivery {
        match (self.response.background, self.options.wants_stream()) {
            (Some(true), _) => Delivery::Background,
            (_, true) => Delivery::Stream,
            (_, false) => Delivery::Whole,
        }
    }

    pub(super) fn storing(&self) -> Storing {
        match self.options.store {
            None => Storing::Default,
            Some(true) => Storing::Demanded,
            Some(false) => Storing::Declined,
        }
    }

    /// The response to continue.
    pub(super) fn previous_response_id(&self) -> Option<&str> {
        self.response.previous_response_id.as_deref()
    }

    /// What the user says now.
    pub(super) fn input_items(&self) -> Result<Vec<Arc<Item>>, ApiError> {
        self.response.input.items()
    }

    /// Continues `conversation`, the input included.
    pub(super) fn to_generate(&self, conversation: &[Arc<Item>]) -> Result<GenerateRequest, ApiError> {
        Ok(GenerateRequest {
            prompt: Prompt::Chat(self.response.prompt(conversation)),
            num_choices: 1,
            max_tokens: self.response.max_output_tokens,
            sampling: self.options.sampling()?,
            stop: self.options.stop()?,
            logprobs: self.response.num_logprobs(),
            priority: self.options.priority()?,
            cache_salt: self.options.cache_salt.clone(),
        })
    }

    /// The response as it begins.
    pub(super) fn to_object(&self, model: &str) -> ResponseObject {
        let response = &self.response;
        ResponseObject {
            id: fresh_id("resp"),
            object: "response",
            created_at: unix_seconds(),
            status: ResponseStatus::InProgress,
            background: self.delivery() == Delivery::Background,
            completed_at: None,
            error: None,
            incomplete_details: None,
            instructions: response.instructions.clone(),
            max_output_tokens: response.max_output_tokens,
            max_tool_calls: response.max_tool_calls,
            metadata: self.labels.metadata.clone().unwrap_or_default(),
            model: model.to_owned(),
            output: Vec::new(),
            parallel_tool_calls: response.parallel_tool_calls.unwrap_or(true),
            previous_response_id: response.previous_response_id.clone(),
            prompt_cache_key: self.labels.prompt_cache_key.clone(),
            reasoning: response.reasoning_object(),
            safety_identifier: self.labels.safety_identifier.clone(),
            service_tier: ServiceTier::Default,
            store: self.storing() != Storing::Declined,
            temperature: self.options.temperature.unwrap_or(1.0),
            text: TextConfig::default(),
            tool_choice: response.tool_choice.clone().unwrap_or_else(|| "auto".into()),
            tools: response.tools.clone().unwrap_or_default(),
            top_logprobs: response.top_logprobs.unwrap_or(0),
            top_p: self.options.top_p.unwrap_or(1.0),
            truncation: "disabled",
            usage: None,
            user: self.labels.user.clone(),
        }
    }
}

impl ResponseFields {
    /// Refuses what is out of range, would change the answer and cannot be honoured yet.
    fn check(&self) -> Result<(), ApiError> {
        if self.max_output_tokens == Some(0) {
            return Err(ApiError::invalid("max_output_tokens", "`max_output_tokens` is 0; expected at least 1"));
        }
        if let Some(top) = self.top_logprobs.filter(|&top| top > MAX_TOP_LOGPROBS) {
            let message = format!("`top_logprobs` is {top}; expected 0 to {MAX_TOP_LOGPROBS}");
            return Err(ApiError::invalid("top_logprobs", message));
        }
        if let Some(unknown) = self.include.iter().flatten().find(|name| !INCLUDABLE.contains(&name.as_str())) {
            return Err(ApiError::invalid("include", format!("`include`: `{unknown}` is not known")));
        }
        if self.truncation.as_deref().is_some_and(|truncation| truncation != "disabled") {
            return Err(ApiError::invalid(
                "truncation",
                "`truncation`: only \"disabled\" is supported; what does not fit the context is refused",
            ));
        }
        self.check_tools()?;
        self.check_text()?;
        self.check_reasoning()
    }

    fn check_tools(&self) -> Result<(), ApiError> {
        let has_tools = self.tools.as_ref().is_some_and(|tools| !tools.is_empty());
        let may_call = self.tool_choice.as_ref().is_none_or(|choice| choice != "none");
        if has_tools && may_call {
            return Err(ApiError::invalid(
                "tools",
                "`tools`: tool calls are not supported yet; leave `tools` out or set `tool_choice` to \"none\"",
            ));
        }
        Ok(())
    }

    fn check_text(&self) -> Result<(), ApiError> {
        let Some(Object(TextFields { format, verbosity })) = &self.text else { return Ok(()) };
        if let Some(Object(FormatFields { r#type })) = format.as_ref().filter(|format| format.0.r#type != "text") {
            let message = format!("`text.format`: `{type}` is not supported yet; only `text` is");
            return Err(ApiError::invalid("text.format", message));
        }
        match verbosity.as_deref() {
            None | Some("medium") => Ok(()),
            Some(other) => Err(ApiError::invalid(
                "text.verbosity",
                format!("`text.verbosity`: `{other}` is not supported; ask for it in `instructions`"),
            )),
        }
    }

    fn check_reasoning(&self) -> Result<(), ApiError> {
        let Some(Object(ReasoningFields { effort, summary, generate_summary })) = &self.reasoning else {
            return Ok(());
        };
        if effort.as_deref().is_some_and(|effort| effort != "none") {
            return Err(ApiError::invalid(
                "reasoning.effort",
                "`reasoning.effort`: reasoning is not supported yet; only \"none\" is",
            ));
        }
        if summary.is_some() || generate_summary.is_some() {
            let message = "`reasoning.summary`: reasoning is not supported yet";
            return Err(ApiError::invalid("reasoning.summary", message));
        }
        Ok(())
    }

    fn num_logprobs(&self) -> Option<usize> {
        let is_included = self.include.iter().flatten().any(|name| name == INCLUDE_LOGPROBS);
        is_included.then(|| self.top_logprobs.unwrap_or(0))
    }

    fn reasoning_object(&self) -> ReasoningObject {
        let is_off = self.reasoning.as_ref().is_some_and(|reasoning| reasoning.0.effort.is_some());
        ReasoningObject { effort: is_off.then_some("none"), summary: None }
    }

    /// `instructions` come first, and are not carried over to the next response: OpenAI's rule.
    fn prompt(&self, conversation: &[Arc<Item>]) -> ChatPrompt {
        let instructions =
            self.instructions.as_deref().map(|content| ChatMessage { role: "system", content }.to_value());
        let messages = instructions.into_iter().chain(conversation.iter().map(|item| item.to_chat())).collect();
        let mut template_kwargs = messages::template_kwargs(self.chat_template_kwargs.as_ref());
        let is_off = self.reasoning.as_ref().is_some_and(|reasoning| reasoning.0.effort.is_some());
        if let Some(enable_thinking) = self.enable_thinking.or(is_off.then_some(false)) {
            template_kwargs.insert("enable_thinking".to_owned(), enable_thinking.into());
        }
        ChatPrompt { messages, tools: Vec::new(), template_kwargs }
    }
}
