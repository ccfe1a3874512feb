//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes.

use axum::extract::State;
use mistralrs_core::model::SpecialTokens;
use mistralrs_core::request::ChatPrompt;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::messages;
use crate::app::AppState;
use crate::error::ApiError;
use crate::extract::{Json, RequestBody, fields};
use crate::openapi::{Operation, Tag};

/// Token ids of a text, or of messages after the chat template.
pub async fn tokenize(
    State(app): State<AppState>,
    Json(request): Json<TokenizeRequest>,
) -> Result<axum::Json<Tokens>, ApiError> {
    let model = app.route(request.model.as_deref())?;
    let tokens = match request.input {
        Input::Text { text, special_tokens } => model.tokenize(text, special_tokens).await?,
        Input::Chat(prompt) => model.tokenize_chat(prompt).await?,
    };
    Ok(axum::Json(Tokens { count: tokens.len(), max_model_len: model.info().max_model_len, tokens }))
}

/// What it does, for the API's document.
pub(crate) fn describe_tokenize() -> Operation {
    Operation::new("tokenize", Tag::Tokenizer, "Token ids of a text, or of messages after the chat template.")
        .body::<TokenizeRequest>(json!({ "prompt": "Hello world" }))
        .answers::<Tokens>()
        .needs_model()
}

/// Text of token ids.
pub async fn detokenize(
    State(app): State<AppState>,
    Json(request): Json<DetokenizeRequest>,
) -> Result<axum::Json<Text>, ApiError> {
    let model = app.route(request.model.as_deref())?;
    Ok(axum::Json(Text { prompt: model.detokenize(request.tokens).await? }))
}

/// What it does, for the API's document.
pub(crate) fn describe_detokenize() -> Operation {
    Operation::new("detokenize", Tag::Tokenizer, "Text of token ids, special ones included.")
        .body::<DetokenizeRequest>(json!({ "tokens": [1, 2, 3] }))
        .answers::<Text>()
        .needs_model()
}

/// The answer to `/tokenize`.
#[expect(clippy::struct_field_names, reason = "names of the wire")]
#[derive(Debug, Serialize, JsonSchema)]
pub struct Tokens {
    count: usize,
    max_model_len: usize,
    tokens: Vec<u32>,
}

/// The answer to `/detokenize`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Text {
    prompt: String,
}

/// The body of `/tokenize`.
pub struct TokenizeRequest {
    model: Option<String>,
    input: Input,
}

enum Input {
    Text { text: String, special_tokens: SpecialTokens },
    Chat(ChatPrompt),
}

#[derive(Deserialize, JsonSchema)]
struct TokenizeFields {
    /// A name of `GET /v1/models`, or `default`.
    model: Option<String>,
    /// A text; either this or `messages`.
    prompt: Option<String>,
    /// A conversation; either this or `prompt`.
    #[schemars(with = "Option<Vec<messages::ChatMessage>>", length(min = 1, max = messages::MAX_MESSAGES))]
    messages: Option<Vec<Value>>,
    /// Whether a text gets the tokens that a prompt begins with. Default true.
    add_special_tokens: Option<bool>,
    /// Whether a conversation ends in the assistant's turn; only true is supported.
    add_generation_prompt: Option<bool>,
    /// Variables of the model's chat template.
    chat_template_kwargs: Option<Map<String, Value>>,
}

impl RequestBody for TokenizeRequest {
    fn from_body(body: &Value) -> Result<Self, ApiError> {
        let fields: TokenizeFields = fields(body)?;
        let input = match (fields.prompt, fields.messages) {
            (Some(text), None) => {
                let special_tokens = match fields.add_special_tokens {
                    Some(false) => SpecialTokens::Omit,
                    _ => SpecialTokens::Add,
                };
                Input::Text { text, special_tokens }
            }
            (None, Some(_)) if fields.add_generation_prompt == Some(false) => {
                return Err(ApiError::invalid(
                    "add_generation_prompt",
                    "`add_generation_prompt`: false is not supported",
                ));
            }
            (None, Some(chat)) => Input::Chat(ChatPrompt {
                messages: messages::check(&chat)?,
                tools: Vec::new(),
                template_kwargs: messages::template_kwargs(fields.chat_template_kwargs.as_ref()),
            }),
            _ => return Err(ApiError::invalid("prompt", "expected either `prompt` or `messages`")),
        };
        Ok(Self { model: fields.model, input })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        TokenizeFields::json_schema(generator)
    }
}

/// The body of `/detokenize`.
#[derive(Deserialize, JsonSchema)]
pub struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<u32>,
}

impl RequestBody for DetokenizeRequest {
    fn from_body(body: &Value) -> Result<Self, ApiError> {
        fields(body)
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        Self::json_schema(generator)
    }
}
