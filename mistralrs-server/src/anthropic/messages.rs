//! `POST /v1/messages` and `POST /v1/messages/count_tokens`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::events::{EventSchema, MessageEvents};
use super::message::{Message, TokenCount};
use super::request::{CountTokensRequest, MessageRequest};
use crate::app::AppState;
use crate::error::ApiError;
use crate::extract;
use crate::openai::generation::Generation;
use crate::openai::sse;
use crate::openapi::{Operation, Tag};

/// Continues a conversation.
pub async fn create_message(
    State(app): State<AppState>,
    extract::Json(request): extract::Json<MessageRequest>,
) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let model = app.route(request.model())?;
    let generation = Generation::start(&model, vec![request.to_generate()?], deadline).await?;
    let message = Message::new(&model.info().id, generation.num_prompt_tokens());
    if request.wants_stream() {
        return Ok(sse::respond(generation, MessageEvents::new(message)));
    }
    collect(generation, message).await
}

/// What it does, for the API's document.
pub(crate) fn describe_create_message() -> Operation {
    Operation::new("createMessage", Tag::Anthropic, "Continues a conversation.")
        .body::<MessageRequest>(json!({
            "model": "default", "max_tokens": 32, "messages": [{ "role": "user", "content": "Hello" }],
        }))
        .answers::<Message>()
        .streams::<EventSchema>("events by the names of their types, from `message_start` to `message_stop` or `error`")
        .generates()
}

/// Tokens that the same conversation would have as a prompt.
pub async fn count_tokens(
    State(app): State<AppState>,
    extract::Json(request): extract::Json<CountTokensRequest>,
) -> Result<Response, ApiError> {
    let model = app.route(request.model.as_deref())?;
    let token_ids = model.tokenize_chat(request.to_prompt()?).await?;
    Ok(Json(TokenCount { input_tokens: token_ids.len() }).into_response())
}

/// What it does, for the API's document.
pub(crate) fn describe_count_tokens() -> Operation {
    Operation::new("countMessageTokens", Tag::Anthropic, "Tokens that a conversation has as a prompt.")
        .body::<CountTokensRequest>(json!({
            "model": "default", "messages": [{ "role": "user", "content": "Hello" }],
        }))
        .answers::<TokenCount>()
        .needs_model()
}

pub(super) async fn collect(mut generation: Generation, mut message: Message) -> Result<Response, ApiError> {
    while let Some(piece) = generation.next().await {
        message.accept(piece?);
    }
    Ok(Json(message.end(generation.usage())).into_response())
}
