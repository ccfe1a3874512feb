//! Is the process alive, and can it answer: two questions, two routes.

use std::sync::atomic::{AtomicU8, Ordering};

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use schemars::JsonSchema;
use serde::Serialize;

use crate::app::AppState;
use crate::openapi::{Operation, Tag};

/// How far the process is. Written by the start and the end of [`crate::process::run`], read by handlers.
#[derive(Debug, Default)]
pub struct Readiness(AtomicU8);

/// The stages, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The model is being fetched or loaded, or upstreams are being connected.
    Loading,
    /// Requests are answered.
    Ready,
    /// Running requests finish, new ones are refused.
    Draining,
}

impl Readiness {
    /// The stage at this moment.
    pub fn stage(&self) -> Stage {
        match self.0.load(Ordering::Acquire) {
            0 => Stage::Loading,
            1 => Stage::Ready,
            _ => Stage::Draining,
        }
    }

    /// Goes on to `stage`; a later stage is never left for an earlier one.
    pub fn advance(&self, stage: Stage) {
        let number = match stage {
            Stage::Loading => 0,
            Stage::Ready => 1,
            Stage::Draining => 2,
        };
        self.0.fetch_max(number, Ordering::AcqRel);
    }
}

/// `GET /health`: 200 as long as the process can answer anything.
pub async fn health() -> Response {
    Json(Alive { status: "ok" }).into_response()
}

/// What it does, for the API's document.
pub(crate) fn describe_health() -> Operation {
    Operation::new("getHealth", Tag::Operation, "Is the process alive?").answers::<Alive>()
}

/// The answer to `/health`.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Alive {
    #[schemars(extend("const" = "ok"))]
    status: &'static str,
}

/// The answer to `/ready`.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Ready {
    status: Stage,
}

/// `GET /ready`: 200 if a model can answer (without a model: if the gateway can), otherwise 503.
pub async fn ready(State(app): State<AppState>) -> Response {
    let stage = app.readiness.stage();
    let status = match stage {
        Stage::Loading | Stage::Draining => StatusCode::SERVICE_UNAVAILABLE,
        Stage::Ready => StatusCode::OK,
    };
    let mut response = (status, Json(Ready { status: stage })).into_response();
    if status != StatusCode::OK {
        response.headers_mut().insert(header::RETRY_AFTER, 1.into());
    }
    response
}

/// What it does, for the API's document.
pub(crate) fn describe_ready() -> Operation {
    Operation::new("getReady", Tag::Operation, "Can a model answer? Without a model: can the gateway?")
        .answers::<Ready>()
        .answers_with::<Ready>(503, "Not yet, or not any more.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_becomes_ready_while_the_server_drains_does_not_open_it_again() {
        let readiness = Readiness::default();
        assert_eq!(readiness.stage(), Stage::Loading);
        readiness.advance(Stage::Draining);
        readiness.advance(Stage::Ready);
        assert_eq!(readiness.stage(), Stage::Draining);
    }
}
