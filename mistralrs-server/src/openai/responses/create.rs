//! `POST /v1/responses`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::answer::Answer;
use super::background;
use super::events::{EventSchema, ResponseEvents};
use super::item::Item;
use super::object::{ResponseObject, ResponseStatus};
use super::request::{Delivery, ResponseRequest, Storing};
use super::store::{Keeping, ResponseStore};
use crate::api_keys::Principal;
use crate::app::AppState;
use crate::error::ApiError;
use crate::extract::Json;
use crate::openai::generation::Generation;
use crate::openai::sse;
use crate::openapi::{Operation, Tag};

/// Answers, and keeps the answer unless it is told not to.
pub async fn create_response(
    State(app): State<AppState>,
    owner: Principal,
    Json(request): Json<ResponseRequest>,
) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let model = app.route(request.options.model.as_deref())?;
    let store = place(&request, &app.responses)?;
    let mut input = earlier(&request, owner, &app.responses)?;
    input.extend(request.input_items()?);
    let generation = Generation::start(&model, vec![request.to_generate(&input)?], deadline).await?;
    let object = ResponseObject { store: store.is_some(), ..request.to_object(&model.info().id) };
    let (answer, keeping) = (Answer::new(object), Keeping { store, owner, input });
    match request.delivery() {
        Delivery::Whole => collect(generation, answer, &keeping).await,
        Delivery::Stream => Ok(sse::respond(generation, ResponseEvents::new(answer, keeping))),
        Delivery::Background => Ok(axum::Json(background::start(generation, answer, keeping)?).into_response()),
    }
}

/// What it does, for the API's document.
pub(crate) fn describe_create_response() -> Operation {
    Operation::new("createResponse", Tag::OpenAi, "Answers, and keeps the answer unless it is told not to.")
        .body::<ResponseRequest>(json!({ "model": "default", "input": "Hello", "max_output_tokens": 32 }))
        .answers::<ResponseObject>()
        .streams::<EventSchema>(
            "events by the names of their types, the last of which has the whole response; then `[DONE]`",
        )
        .generates()
        .leads_to(&["retrieveResponse", "listInputItems", "cancelResponse", "deleteResponse"])
}

/// Where the response is to be kept, if it is.
fn place(request: &ResponseRequest, store: &Arc<ResponseStore>) -> Result<Option<Arc<ResponseStore>>, ApiError> {
    match request.storing() {
        Storing::Declined => Ok(None),
        _ if store.is_enabled() => Ok(Some(Arc::clone(store))),
        Storing::Default => Ok(None),
        Storing::Demanded => Err(ApiError::invalid(
            "store",
            "`store`: this server keeps no responses (`server.responses.max_stored` is 0)",
        )),
    }
}

/// The conversation that the request continues.
fn earlier(request: &ResponseRequest, owner: Principal, store: &ResponseStore) -> Result<Vec<Arc<Item>>, ApiError> {
    let Some(id) = request.previous_response_id() else { return Ok(Vec::new()) };
    let previous = store.get(owner, id).map_err(|_| ApiError::UnknownPreviousResponse { id: id.to_owned() })?;
    match previous.object.status {
        ResponseStatus::Completed | ResponseStatus::Incomplete => Ok(previous.conversation()),
        status => Err(ApiError::invalid(
            "previous_response_id",
            format!("`previous_response_id`: `{id}` is {}; only an answer can be continued", status.as_str()),
        )),
    }
}

async fn collect(mut generation: Generation, mut answer: Answer, keeping: &Keeping) -> Result<Response, ApiError> {
    while let Some(piece) = generation.next().await {
        answer.accept(piece?);
    }
    let object = answer.end(generation.usage());
    keeping.keep(object);
    Ok(axum::Json(object).into_response())
}
