//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::Json;
use axum::extract::State;
use mistralrs_core::RequestError;
use mistralrs_core::model::ModelInfo;
use schemars::JsonSchema;
use serde::Serialize;

use crate::app::AppState;
use crate::error::ApiError;
use crate::extract::Path;
use crate::openapi::{Operation, Tag};

/// All loaded models; empty while the first one is loading.
pub async fn list_models(State(app): State<AppState>) -> Json<ModelList> {
    let data = app.models.models().iter().map(|model| ModelObject::new(model.info())).collect();
    Json(ModelList { object: "list", data })
}

/// What it does, for the API's document.
pub(crate) fn describe_list_models() -> Operation {
    Operation::new("listModels", Tag::OpenAi, "All loaded models; none while the first one is loading.")
        .answers::<ModelList>()
}

/// One model by its exact name.
pub async fn retrieve_model(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<ModelObject>, ApiError> {
    let models = app.models.models();
    match models.iter().map(mistralrs_core::Model::info).find(|info| info.id == id) {
        Some(info) => Ok(Json(ModelObject::new(info))),
        None => Err(RequestError::UnknownModel {
            requested: id,
            available: models.iter().map(|model| model.info().id.as_str()).collect::<Vec<_>>().join(", "),
        }
        .into()),
    }
}

/// What it does, for the API's document.
pub(crate) fn describe_retrieve_model() -> Operation {
    Operation::new("retrieveModel", Tag::OpenAi, "One model by its exact name.")
        .path_parameter("id", "The model's name; it may have slashes in it.")
        .answers::<ModelObject>()
        .may_be_unknown()
}

/// All loaded models.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ModelList {
    object: &'static str,
    data: Vec<ModelObject>,
}

/// OpenAI's keys, then what people who run their own models want to know.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Model")]
pub struct ModelObject {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    max_model_len: usize,
    architecture: String,
    quantization: String,
    num_parameters: u64,
}

impl ModelObject {
    fn new(info: &ModelInfo) -> Self {
        Self {
            id: info.id.clone(),
            object: "model",
            created: info.created,
            owned_by: "mistralrs",
            max_model_len: info.max_model_len,
            architecture: info.description.architecture.clone(),
            quantization: info.description.quantization.clone(),
            num_parameters: info.description.num_parameters,
        }
    }
}
