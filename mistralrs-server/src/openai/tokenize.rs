//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes.

use axum::extract::State;
use mistralrs_core::model::SpecialTokens;
use mistralrs_core::request::ChatPrompt;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::messages;
use crate::app::AppState;
use crate::error::ApiError;
use crate::extract::{Json, RequestBody, fields};

/// Token ids of a text, or of messages after the chat template.
pub async fn tokenize(
    State(app): State<AppState>,
    Json(request): Json<TokenizeRequest>,
) -> Result<axum::Json<Value>, ApiError> {
    let model = app.route(request.model.as_deref())?;
    let tokens = match request.input {
        Input::Text { text, special_tokens } => model.tokenize(text, special_tokens).await?,
        Input::Chat(prompt) => model.tokenize_chat(prompt).await?,
    };
    Ok(axum::Json(json!({ "count": tokens.len(), "max_model_len": model.info().max_model_len, "tokens": tokens })))
}

/// Text of token ids.
pub async fn detokenize(
    State(app): State<AppState>,
    Json(request): Json<DetokenizeRequest>,
) -> Result<axum::Json<Value>, ApiError> {
    let model = app.route(request.model.as_deref())?;
    Ok(axum::Json(json!({ "prompt": model.detokenize(request.tokens).await? })))
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

#[derive(Deserialize)]
struct TokenizeFields {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<Value>>,
    add_special_tokens: Option<bool>,
    add_generation_prompt: Option<bool>,
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
}

/// The body of `/detokenize`.
#[derive(Deserialize)]
pub struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<u32>,
}

impl RequestBody for DetokenizeRequest {
    fn from_body(body: &Value) -> Result<Self, ApiError> {
        fields(body)
    }
}
