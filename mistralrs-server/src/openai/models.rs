//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::Json;
use axum::extract::{Path, State};
use mistralrs_core::RequestError;
use mistralrs_core::model::ModelInfo;
use serde_json::{Value, json};

use crate::app::AppState;
use crate::error::ApiError;

/// All loaded models; empty while the first one is loading.
pub async fn list_models(State(app): State<AppState>) -> Json<Value> {
    let models: Vec<Value> = app.models.models().iter().map(|model| describe(model.info())).collect();
    Json(json!({ "object": "list", "data": models }))
}

/// One model by its exact name.
pub async fn retrieve_model(State(app): State<AppState>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let models = app.models.models();
    match models.iter().map(mistralrs_core::Model::info).find(|info| info.id == id) {
        Some(info) => Ok(Json(describe(info))),
        None => Err(RequestError::UnknownModel {
            requested: id,
            available: models.iter().map(|model| model.info().id.as_str()).collect::<Vec<_>>().join(", "),
        }
        .into()),
    }
}

/// OpenAI's keys, then what people who run their own models want to know.
fn describe(info: &ModelInfo) -> Value {
    json!({
        "id": info.id,
        "object": "model",
        "created": info.created,
        "owned_by": "mistralrs",
        "max_model_len": info.max_model_len,
        "architecture": info.description.architecture,
        "quantization": info.description.quantization,
        "num_parameters": info.description.num_parameters,
    })
}
