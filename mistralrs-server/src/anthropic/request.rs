//! The bodies of `/v1/messages` and `/v1/messages/count_tokens`, checked as far as they can be without a model.

use mistralrs_core::request::ChatPrompt;
use mistralrs_core::{GenerateRequest, Prompt, StopConditions};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::extract::{Object, RequestBody, fields, fields_at};
use crate::openai::messages::{self, MAX_MESSAGES};
use crate::openai::options::{GenerateOptions, MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS, check_stop_strings, refuse};
use crate::openapi::merged;

/// Fields that would change the answer and that this version does not serve.
const REFUSED: &[(&str, &str)] = &[
    ("mcp_servers", "servers are configured, not sent; see `mcp_client`"),
    ("container", "code execution is not supported"),
    ("context_management", "context management is not supported"),
    ("output_format", "structured outputs are not supported yet"),
    ("output_config", "output configuration is not supported yet"),
    ("stop", "this endpoint's stop strings are `stop_sequences`"),
    ("max_completion_tokens", "this endpoint's limit is `max_tokens`"),
    ("n", "a message is one answer"),
];

/// The body of `/v1/messages`.
pub struct MessageRequest {
    options: GenerateOptions,
    conversation: Conversation,
    max_tokens: usize,
    stop_sequences: Vec<String>,
}

/// The body of `/v1/messages/count_tokens`.
pub struct CountTokensRequest {
    pub(super) model: Option<String>,
    conversation: Conversation,
}

/// What both are about.
#[derive(Debug, Deserialize, JsonSchema)]
struct Conversation {
    /// The conversation, oldest first; the last message is the user's.
    #[schemars(length(min = 1, max = MAX_MESSAGES))]
    messages: Vec<Object<MessageFields>>,
    /// What comes before the conversation.
    system: Option<Content>,
    /// Refused for now, unless `tool_choice` is of type `none`.
    tools: Option<Vec<Value>>,
    /// See `tools`.
    tool_choice: Option<Object<ChoiceFields>>,
    /// Only `disabled` for now.
    thinking: Option<Object<ThinkingFields>>,
    /// For templates that know it.
    enable_thinking: Option<bool>,
    /// Variables of the model's chat template.
    chat_template_kwargs: Option<Map<String, Value>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// What counting needs besides.
#[derive(Debug, Deserialize, JsonSchema)]
struct CountOptions {
    /// A name of `GET /v1/models`, or `default`.
    model: Option<String>,
}

/// What only an answer needs.
#[derive(Debug, Deserialize, JsonSchema)]
struct AnswerFields {
    /// Tokens of the answer at most.
    #[schemars(range(min = 1))]
    max_tokens: usize,
    /// Texts that end the answer, themselves left out.
    #[schemars(length(max = MAX_STOP_STRINGS), inner(length(min = 1, max = MAX_STOP_STRING_BYTES)))]
    stop_sequences: Option<Vec<String>>,
    #[expect(dead_code, reason = "its shape is checked; it is a label for Anthropic's own use, without effect")]
    metadata: Option<Object<MetadataFields>>,
    #[expect(dead_code, reason = "its values are checked; there is one tier")]
    service_tier: Option<ServiceTier>,
}

/// The tiers that can be asked for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "AnthropicServiceTier")]
enum ServiceTier {
    Auto,
    StandardOnly,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(expecting = "an object")]
#[schemars(rename = "AnthropicMetadata")]
struct MetadataFields {
    #[expect(dead_code, reason = "see `metadata`")]
    user_id: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(expecting = "an object with `role` and `content`")]
#[schemars(rename = "MessageParam")]
struct MessageFields {
    role: Role,
    content: Content,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Role {
    System,
    User,
    Assistant,
}

/// A text, or blocks; each is checked for itself, so that an error names its place.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or a list of text blocks")]
enum Content {
    Text(String),
    Blocks(#[schemars(with = "Vec<BlockFields>")] Vec<Value>),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(expecting = "an object with `type` and `text`")]
#[schemars(rename = "TextBlockParam")]
struct BlockFields {
    #[schemars(extend("const" = "text"))]
    r#type: String,
    #[schemars(required)]
    text: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(expecting = "an object with `type`")]
#[schemars(rename = "ToolChoice")]
struct ChoiceFields {
    r#type: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(expecting = "an object with `type`")]
#[schemars(rename = "Thinking")]
struct ThinkingFields {
    #[schemars(extend("const" = "disabled"))]
    r#type: String,
}

/// A message as chat templates know it.
#[derive(Debug, Serialize)]
struct ChatMessage {
    role: Role,
    content: String,
}

impl RequestBody for MessageRequest {
    fn from_body(body: &Value) -> Result<Self, ApiError> {
        let AnswerFields { max_tokens, stop_sequences, .. } = fields(body)?;
        let request = Self {
            options: fields(body)?,
            conversation: Conversation::from_body(body)?,
            max_tokens,
            stop_sequences: stop_sequences.unwrap_or_default(),
        };
        if max_tokens == 0 {
            return Err(ApiError::invalid("max_tokens", "`max_tokens` is 0; expected at least 1"));
        }
        request.options.check_rest(&request.conversation.rest)?;
        check_stop_strings("stop_sequences", &request.stop_sequences)?;
        Ok(request)
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        let parts = [AnswerFields::json_schema, Conversation::json_schema, GenerateOptions::json_schema];
        merged(parts.map(|part| part(generator)), REFUSED)
    }
}

impl RequestBody for CountTokensRequest {
    fn from_body(body: &Value) -> Result<Self, ApiError> {
        let CountOptions { model } = fields(body)?;
        Ok(Self { model, conversation: Conversation::from_body(body)? })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        let parts = [Conversation::json_schema, CountOptions::json_schema];
        merged(parts.map(|part| part(generator)), REFUSED)
    }
}

impl CountTokensRequest {
    pub fn to_prompt(&self) -> Result<ChatPrompt, ApiError> {
        self.conversation.to_prompt()
    }
}

impl MessageRequest {
    pub fn model(&self) -> Option<&str> {
        self.options.model.as_deref()
    }

    pub fn wants_stream(&self) -> bool {
        self.options.wants_stream()
    }

    pub fn to_generate(&self) -> Result<GenerateRequest, ApiError> {
        Ok(GenerateRequest {
            prompt: Prompt::Chat(self.conversation.to_prompt()?),
            num_choices: 1,
            max_tokens: Some(self.max_tokens),
            sampling: self.options.sampling()?,
            stop: StopConditions { strings: self.stop_sequences.clone(), ..self.options.stop()? },
            logprobs: None,
            priority: self.options.priority()?,
            cache_salt: self.options.cache_salt.clone(),
        })
    }
}

impl Conversation {
    fn from_body(body: &Value) -> Result<Self, ApiError> {
        let conversation: Self = fields(body)?;
        refuse(&conversation.rest, REFUSED)?;
        conversation.check()?;
        Ok(conversation)
    }

    /// Refuses what would change the answer and cannot be honoured yet.
    fn check(&self) -> Result<(), ApiError> {
        let has_tools = self.tools.as_ref().is_some_and(|tools| !tools.is_empty());
        let may_call = self.tool_choice.as_ref().is_none_or(|choice| choice.0.r#type != "none");
        if has_tools && may_call {
            return Err(ApiError::invalid(
                "tools",
                "`tools`: tool use is not supported yet; leave `tools` out or set `tool_choice` to {\"type\": \"none\"}",
            ));
        }
        if let Some(Object(ThinkingFields { r#type })) =
            self.thinking.as_ref().filter(|thinking| thinking.0.r#type != "disabled")
        {
            let message = format!("`thinking`: `{type}` is not supported yet; leave it out or disable it");
            return Err(ApiError::invalid("thinking", message));
        }
        if self.messages.is_empty() || self.messages.len() > MAX_MESSAGES {
            let message = format!("`messages` has {} messages; expected 1 to {MAX_MESSAGES}", self.messages.len());
            return Err(ApiError::invalid("messages", message));
        }
        if self.messages.last().is_some_and(|message| message.0.role == Role::Assistant) {
            return Err(ApiError::invalid(
                "messages",
                "`messages`: the last one must be the user's; continuing a message of the assistant is not supported yet",
            ));
        }
        Ok(())
    }

    fn to_prompt(&self) -> Result<ChatPrompt, ApiError> {
        let mut turns: Vec<ChatMessage> = Vec::new();
        if let Some(system) = &self.system {
            turns.push(ChatMessage { role: Role::System, content: system.text("system")? });
        }
        for (index, Object(message)) in self.messages.iter().enumerate() {
            let content = message.content.text(&format!("messages[{index}].content"))?;
            match turns.last_mut() {
                // Neighbours of one role are one turn: Anthropic's rule, and templates want roles to alternate.
                Some(last) if last.role == message.role => {
                    last.content.push('\n');
                    last.content.push_str(&content);
                }
                _ => turns.push(ChatMessage { role: message.role, content }),
            }
        }
        let to_value = |turn| serde_json::to_value(turn).expect("two strings are plain JSON");
        let mut template_kwargs = messages::template_kwargs(self.chat_template_kwargs.as_ref());
        if let Some(enable_thinking) = self.enable_thinking.or(self.thinking.as_ref().map(|_| false)) {
            template_kwargs.insert("enable_thinking".to_owned(), enable_thinking.into());
        }
        Ok(ChatPrompt { messages: turns.iter().map(to_value).collect(), tools: Vec::new(), template_kwargs })
    }
}

impl Content {
    /// Blocks become lines of one text: most templates take strings only.
    fn text(&self, path: &str) -> Result<String, ApiError> {
        let blocks = match self {
            Self::Text(text) => return Ok(text.clone()),
            Self::Blocks(blocks) => blocks,
        };
        let texts = blocks.iter().enumerate().map(|(index, block)| {
            let path = format!("{path}[{index}]");
            let BlockFields { r#type, text } = fields_at(&path, block)?;
            match (r#type.as_str(), text) {
                ("text", Some(text)) => Ok(text),
                ("text", None) => {
                    let path = format!("{path}.text");
                    Err(ApiError::invalid(path.clone(), format!("`{path}`: expected a string")))
                }
                (other, _) => {
                    let message = format!("`{path}`: `{other}` blocks are not supported; this model takes text only");
                    Err(ApiError::invalid(path, message))
                }
            }
        });
        Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
    }
}
