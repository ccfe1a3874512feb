//! What can be done with a response by its id: `GET`, `DELETE`, `POST …/cancel`, `GET …/input_items`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::item::Item;
use super::object::{DeletedResponse, ResponseObject};
use crate::api_keys::Principal;
use crate::app::AppState;
use crate::error::ApiError;
use crate::extract::{Path, Query};
use crate::openapi::{Operation, Tag};

/// Items of one page, and what a client gets who names no number: OpenAI's.
const MAX_PAGE_ITEMS: usize = 100;
const DEFAULT_PAGE_ITEMS: usize = 20;

/// The query of a retrieval.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct RetrieveQuery {
    /// Only false: a stored response is not streamed yet.
    stream: Option<bool>,
}

/// The response as it is now.
pub async fn retrieve_response(
    State(app): State<AppState>,
    owner: Principal,
    Path(id): Path<String>,
    Query(query): Query<RetrieveQuery>,
) -> Result<Response, ApiError> {
    if query.stream == Some(true) {
        return Err(ApiError::invalid("stream", "`stream`: a stored response is not streamed yet; leave it out"));
    }
    Ok(Json(&app.responses.get(owner, &id)?.object).into_response())
}

/// What it does, for the API's document.
pub(crate) fn describe_retrieve_response() -> Operation {
    described("retrieveResponse", "The response as it is now.").query::<RetrieveQuery>().answers::<ResponseObject>()
}

fn described(id: &'static str, summary: &'static str) -> Operation {
    Operation::new(id, Tag::OpenAi, summary).path_parameter("id", "The response's id: `resp_…`.").may_be_unknown()
}

/// Forgets the response; one that runs in the background is ended.
pub async fn delete_response(
    State(app): State<AppState>,
    owner: Principal,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    app.responses.delete(owner, &id)?;
    Ok(Json(DeletedResponse { id, object: "response", deleted: true }).into_response())
}

/// What it does, for the API's document.
pub(crate) fn describe_delete_response() -> Operation {
    described("deleteResponse", "Forgets the response; one that runs in the background is ended.")
        .answers::<DeletedResponse>()
}

/// Ends a response that runs in the background; one that has ended stays as it is.
pub async fn cancel_response(
    State(app): State<AppState>,
    owner: Principal,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    if !app.responses.get(owner, &id)?.object.background {
        let message = "only a response that was created with `background` can be cancelled".to_owned();
        return Err(ApiError::Invalid { param: None, message });
    }
    Ok(Json(&app.responses.cancel(owner, &id)?.object).into_response())
}

/// What it does, for the API's document.
pub(crate) fn describe_cancel_response() -> Operation {
    let summary = "Ends a response that runs in the background; one that has ended stays as it is.";
    described("cancelResponse", summary).answers::<ResponseObject>()
}

/// Which items are wanted.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct InputItemsQuery {
    /// The id of the item before the first of this page.
    after: Option<String>,
    /// Items of one page. Default 20.
    #[schemars(range(min = 1, max = MAX_PAGE_ITEMS))]
    limit: Option<usize>,
    /// Default: the newest first.
    #[serde(default)]
    order: ItemOrder,
}

/// The newest or the oldest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum ItemOrder {
    Asc,
    #[default]
    Desc,
}

/// One page of items.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ItemList {
    object: &'static str,
    pub data: Vec<Arc<Item>>,
    first_id: Option<String>,
    last_id: Option<String>,
    pub has_more: bool,
}

/// All that the response is an answer to, earlier responses included, in pages.
pub async fn list_input_items(
    State(app): State<AppState>,
    owner: Principal,
    Path(id): Path<String>,
    Query(query): Query<InputItemsQuery>,
) -> Result<Response, ApiError> {
    let response = app.responses.get(owner, &id)?;
    Ok(Json(page(response.input.clone(), &query)?).into_response())
}

/// What it does, for the API's document.
pub(crate) fn describe_list_input_items() -> Operation {
    let summary = "All that the response is an answer to, earlier responses included, in pages.";
    described("listInputItems", summary).query::<InputItemsQuery>().answers::<ItemList>()
}

pub(super) fn page(mut items: Vec<Arc<Item>>, query: &InputItemsQuery) -> Result<ItemList, ApiError> {
    let limit = query.limit.unwrap_or(DEFAULT_PAGE_ITEMS);
    if !(1..=MAX_PAGE_ITEMS).contains(&limit) {
        return Err(ApiError::invalid("limit", format!("`limit` is {limit}; expected 1 to {MAX_PAGE_ITEMS}")));
    }
    if query.order == ItemOrder::Desc {
        items.reverse();
    }
    if let Some(after) = &query.after {
        let Some(index) = items.iter().position(|item| item.id() == after) else {
            return Err(ApiError::invalid("after", format!("`after`: there is no item `{after}` here")));
        };
        items.drain(..=index);
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    let id = |item: Option<&Arc<Item>>| item.map(|item| item.id().to_owned());
    Ok(ItemList { object: "list", first_id: id(items.first()), last_id: id(items.last()), has_more, data: items })
}
