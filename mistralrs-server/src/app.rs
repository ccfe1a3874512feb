//! The route table of the main port and what its handlers share.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use http::{Method, header};
use mistralrs_core::{Model, ModelRouter, RequestError};
use mistralrs_telemetry::registry::Registry;
use tokio::time::Instant;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{self, CorsLayer};

use crate::access_log;
use crate::anthropic;
use crate::api_keys::{ApiKeys, require_key};
use crate::config::{Cors, ServerSettings};
use crate::error::ApiError;
use crate::health::{self, Readiness, Stage};
use crate::metrics::{self, HttpMetrics};
use crate::openai::{self, ResponseStore};
use crate::openapi::{self, Access, Document, Routes};
use crate::request_id::{self, X_REQUEST_ID};

/// What handlers share. Cheap to clone.
pub type AppState = Arc<App>;

/// What handlers share.
pub struct App {
    /// Loaded models by name.
    pub models: Arc<ModelRouter>,
    /// Whether requests can be answered.
    pub readiness: Readiness,
    /// Responses that can be asked for by their id.
    pub responses: Arc<ResponseStore>,
    /// Who may call.
    pub api_keys: ApiKeys,
    /// All metrics of the process.
    pub registry: Registry,
    /// Those of the main port.
    pub http_metrics: HttpMetrics,
    /// Bytes of one request body.
    pub max_body_bytes: usize,
    /// From a request's arrival to its last byte.
    pub request_timeout: Option<Duration>,
}

impl App {
    /// State of a process that has loaded nothing yet.
    pub fn new(settings: &ServerSettings, registry: Registry) -> AppState {
        Arc::new(Self {
            models: Arc::new(ModelRouter::default()),
            readiness: Readiness::default(),
            responses: ResponseStore::new(settings.responses, &registry),
            api_keys: ApiKeys::new(&settings.api_keys),
            http_metrics: HttpMetrics::register(&registry),
            registry,
            max_body_bytes: settings.max_body_bytes,
            request_timeout: settings.request_timeout,
        })
    }

    /// The model that answers to `requested`; its name becomes the request's metric label.
    ///
    /// # Errors
    /// [`ApiError::Loading`] before there is any, [`ApiError::NoModel`] where there will be none, otherwise
    /// [`RequestError::UnknownModel`].
    pub fn route(&self, requested: Option<&str>) -> Result<Model, ApiError> {
        match self.models.route(requested.unwrap_or_default()) {
            Ok(model) => {
                access_log::found_model(&model.info().id);
                Ok(model)
            }
            Err(RequestError::UnknownModel { available, .. }) if available.is_empty() => match self.readiness.stage() {
                Stage::Loading => Err(ApiError::Loading),
                Stage::Ready => Err(ApiError::NoModel),
                Stage::Draining => Err(RequestError::ShuttingDown.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// When a request that arrives now must be complete.
    pub fn deadline(&self) -> Option<Deadline> {
        self.request_timeout.map(|limit| Deadline { at: Instant::now() + limit, limit })
    }
}

/// When a request must be complete, and the configured limit that says so.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    /// The moment.
    pub at: Instant,
    /// The limit.
    pub limit: Duration,
}

/// Whether a route of the main port has this path, so that a configured one must be beside it.
pub fn is_taken(path: &str) -> bool {
    api_routes().has_path(path) || open_routes().has_path(path)
}

/// How many routes there are whose paths are not configured.
#[cfg(test)]
pub(crate) fn num_routes() -> usize {
    api_routes().len() + open_routes().len()
}

/// All routes of the main port.
pub fn router(app: &AppState, settings: &ServerSettings) -> Router {
    let api = api_routes();
    let open = open_routes().get(&settings.metrics_endpoint, metrics::scrape, metrics::describe_scrape());
    let document = Document::new(&[&api, &open], settings.api_keys.len());
    let router = Router::new()
        .merge(api.into_router().route_layer(from_fn_with_state(Arc::clone(app), require_key)))
        .merge(open.into_router().layer(Extension(document)))
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(CatchPanicLayer::custom(|panic: Box<dyn Any + Send>| answer_panic(&*panic)))
        .layer(from_fn(anthropic::render_errors));
    // Outside of the keys: a preflight carries none.
    let router = match &settings.cors {
        Some(allowed) => router.layer(cors_layer(allowed)),
        None => router,
    };
    router
        .layer(from_fn_with_state(Arc::clone(app), metrics::measure))
        // Outermost: all others tell of a request by its id.
        .layer(from_fn(request_id::assign))
        .with_state(Arc::clone(app))
}

/// Routes that need a key.
fn api_routes() -> Routes {
    Routes::new(Access::Key)
        .post("/v1/chat/completions", openai::chat_completions, openai::describe_chat_completions())
        .post("/v1/completions", openai::completions, openai::describe_completions())
        .post("/v1/embeddings", openai::embeddings, openai::describe_embeddings())
        .post("/v1/responses", openai::create_response, openai::describe_create_response())
        .get("/v1/responses/{id}", openai::retrieve_response, openai::describe_retrieve_response())
        .delete("/v1/responses/{id}", openai::delete_response, openai::describe_delete_response())
        .post("/v1/responses/{id}/cancel", openai::cancel_response, openai::describe_cancel_response())
        .get("/v1/responses/{id}/input_items", openai::list_input_items, openai::describe_list_input_items())
        .post("/v1/messages", anthropic::create_message, anthropic::describe_create_message())
        .post("/v1/messages/count_tokens", anthropic::count_tokens, anthropic::describe_count_tokens())
        .get("/v1/models", openai::list_models, openai::describe_list_models())
        // Hub ids have a slash in them.
        .get("/v1/models/{*id}", openai::retrieve_model, openai::describe_retrieve_model())
        .post("/tokenize", openai::tokenize, openai::describe_tokenize())
        .post("/detokenize", openai::detokenize, openai::describe_detokenize())
}

/// Routes for everybody: probes have no key, and the document says nothing that the source does not.
fn open_routes() -> Routes {
    Routes::new(Access::Open)
        .get("/health", health::health, health::describe_health())
        .get("/ready", health::ready, health::describe_ready())
        .get(openapi::DOCUMENT_PATH, openapi::serve_document, openapi::describe_document())
        .get("/docs", openapi::serve_page, openapi::describe_page())
}

async fn no_route(request: Request) -> ApiError {
    ApiError::NoRoute { method: request.method().clone(), path: request.uri().path().to_owned() }
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::WrongMethod { method: request.method().clone(), path: request.uri().path().to_owned() }
}

/// A panic ends one request, never the process.
fn answer_panic(panic: &(dyn Any + Send)) -> Response {
    let message = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!(message = message.unwrap_or("no message"), "a handler panicked");
    ApiError::Panic.into_response()
}

fn cors_layer(allowed: &Cors) -> CorsLayer {
    let origins = if allowed.allow_origins.iter().any(|origin| origin == "*") {
        cors::AllowOrigin::any()
    } else {
        cors::AllowOrigin::list(allowed.allow_origins.iter().cloned())
    };
    let methods = if allowed.allow_methods.is_empty() {
        vec![Method::GET, Method::POST, Method::DELETE]
    } else {
        allowed.allow_methods.clone()
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods(methods)
        // SDKs for browsers send headers of their own; what an allowed origin sends is up to it.
        .allow_headers(cors::AllowHeaders::mirror_request())
        .expose_headers([X_REQUEST_ID, anthropic::REQUEST_ID, header::RETRY_AFTER])
}
