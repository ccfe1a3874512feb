//! What a client of the main port is told when something goes wrong: the only place that knows HTTP status codes and
//! the shape of OpenAI's errors. (`anthropic/error.rs` renders the same errors in the other shape.)

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, Method, StatusCode, header};
use mistralrs_core::RequestError;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The model's side refused it; nothing was started.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A field is missing, of the wrong type, out of range, or asks for what this version cannot do.
    #[error("{message}")]
    Invalid {
        /// The field's path in the body, if it is about one.
        param: Option<String>,
        /// What is wrong and what would be right.
        message: String,
    },
    /// The body is not JSON.
    #[error("the body is not valid JSON: {0}")]
    Json(String),
    /// The body is longer than the limit.
    #[error("the body is larger than {limit} bytes, which is the limit of this server")]
    BodyTooLarge {
        /// In bytes.
        limit: usize,
    },
    /// The body did not arrive in time, or broke off.
    #[error("the body did not arrive completely within {limit:?}")]
    BodyTimeout {
        /// How long it was waited for.
        limit: Duration,
    },
    /// The body says that it is something else than JSON.
    #[error("the body must be JSON with `Content-Type: application/json`, not `{0}`")]
    MediaType(String),
    /// No key, or not one of the configured ones.
    #[error("{0}; send `Authorization: Bearer KEY` or `x-api-key: KEY`")]
    Unauthorized(&'static str),
    /// No such route.
    #[error("there is no `{method} {path}` here")]
    NoRoute {
        /// As asked.
        method: Method,
        /// As asked.
        path: String,
    },
    /// The route exists for other methods.
    #[error("`{path}` does not answer to {method}")]
    WrongMethod {
        /// As asked.
        method: Method,
        /// As asked.
        path: String,
    },
    /// The model is not loaded yet.
    #[error("the model is still loading; `GET /ready` tells when it can answer")]
    Loading,
    /// There is no model and there will be none.
    #[error("no model is loaded: this server was started as an MCP gateway alone")]
    NoModel,
    /// No such response is kept, or it belongs to another key.
    #[error(
        "there is no response with the id `{id}`; responses are kept for a time and a number that the server limits"
    )]
    UnknownResponse {
        /// As asked.
        id: String,
    },
    /// The response to continue is not kept, or it belongs to another key.
    #[error("there is no response with the id `{id}` to continue; send the conversation in `input` instead")]
    UnknownPreviousResponse {
        /// As asked.
        id: String,
    },
    /// As many responses run in the background as the server allows.
    #[error("{limit} responses run in the background, which is the limit; try again later")]
    BackgroundFull {
        /// The configured limit.
        limit: usize,
    },
    /// The generation was ended by the server, not by the client or the model.
    #[error("the answer was cut off: the server is shutting down")]
    Interrupted,
    /// The request took longer than the server allows.
    #[error("the answer was not complete within {limit:?}, which is the limit of this server")]
    Deadline {
        /// The configured limit.
        limit: Duration,
    },
    /// The engine failed on this request; the message is fit for the client.
    #[error("{0}")]
    Failed(String),
    /// A handler panicked; the log has the details.
    #[error("internal error; the server's log has the details")]
    Panic,
}

/// The body of an error, in OpenAI's shape.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub struct ErrorBody<'a> {
    error: ErrorObject<'a>,
}

/// What went wrong.
#[derive(Debug, Serialize, JsonSchema)]
struct ErrorObject<'a> {
    message: String,
    r#type: ErrorKind,
    /// The field's path in the body, if it is about one.
    param: Option<&'a str>,
    /// A word for programs.
    code: Option<&'static str>,
}

/// Whose fault it is.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::enum_variant_names, reason = "names of the wire")]
enum ErrorKind {
    InvalidRequestError,
    AuthenticationError,
    ServerError,
}

/// Seconds a client is asked to wait where nothing better is known.
const RETRY_AFTER_SECONDS: u64 = 1;

impl ApiError {
    /// A field that is missing or wrong.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { param: Some(param.into()), message: message.into() }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Request(error) => request_status(error),
            Self::Invalid { .. } | Self::Json(_) | Self::UnknownPreviousResponse { .. } => StatusCode::BAD_REQUEST,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::NoRoute { .. } | Self::NoModel | Self::UnknownResponse { .. } => StatusCode::NOT_FOUND,
            Self::WrongMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::MediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Loading | Self::Interrupted | Self::BackgroundFull { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Deadline { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Failed(_) | Self::Panic => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The body: `{"error": {"message", "type", "param", "code"}}`.
    pub fn to_json(&self) -> Value {
        let error =
            ErrorObject { message: self.message(), r#type: self.kind(), param: self.param(), code: self.code() };
        serde_json::to_value(ErrorBody { error }).expect("strings are plain JSON")
    }

    /// The engine's messages do not always name the field, which only the API knows.
    pub(crate) fn message(&self) -> String {
        let message = self.to_string();
        match self {
            Self::Request(RequestError::Invalid { param, .. }) if !message.contains(param) => {
                format!("`{param}`: {message}")
            }
            _ => message,
        }
    }

    fn kind(&self) -> ErrorKind {
        match self.status() {
            StatusCode::UNAUTHORIZED => ErrorKind::AuthenticationError,
            status if status.is_server_error() => ErrorKind::ServerError,
            _ => ErrorKind::InvalidRequestError,
        }
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid { param, .. } => param.as_deref(),
            Self::Request(RequestError::Invalid { param, .. }) => Some(param),
            Self::Request(RequestError::UnknownModel { .. } | RequestError::UnsupportedPooling { .. })
            | Self::NoModel => Some("model"),
            Self::Request(RequestError::InputTooLong { .. }) => Some("input"),
            Self::Request(RequestError::Template(_) | RequestError::NoChatTemplate) => Some("messages"),
            Self::UnknownPreviousResponse { .. } => Some("previous_response_id"),
            _ => None,
        }
    }

    /// A word for programs, where OpenAI has one or a caller may want to tell this case apart.
    fn code(&self) -> Option<&'static str> {
        match self {
            Self::Request(RequestError::UnknownModel { .. }) | Self::NoModel => Some("model_not_found"),
            Self::Request(
                RequestError::TooLong { .. } | RequestError::TextTooLong { .. } | RequestError::InputTooLong { .. },
            ) => Some("context_length_exceeded"),
            Self::Request(RequestError::QueueFull { .. }) | Self::BackgroundFull { .. } => Some("queue_full"),
            Self::Request(RequestError::QueueTimeout { .. }) => Some("queue_timeout"),
            Self::UnknownResponse { .. } => Some("response_not_found"),
            Self::UnknownPreviousResponse { .. } => Some("previous_response_not_found"),
            Self::Request(RequestError::ShuttingDown) | Self::Interrupted => Some("shutting_down"),
            Self::Loading => Some("model_loading"),
            Self::Unauthorized(_) => Some("invalid_api_key"),
            Self::NoRoute { .. } => Some("unknown_url"),
            Self::WrongMethod { .. } => Some("method_not_supported"),
            Self::Deadline { .. } => Some("timeout"),
            Self::BodyTooLarge { .. } => Some("request_too_large"),
            _ => None,
        }
    }

    /// When trying again may help.
    fn retry_after_seconds(&self) -> Option<u64> {
        match self {
            Self::Request(
                RequestError::QueueFull { retry_after_seconds, .. }
                | RequestError::QueueTimeout { retry_after_seconds, .. },
            ) => Some((*retry_after_seconds).max(1)),
            _ if self.status() == StatusCode::SERVICE_UNAVAILABLE => Some(RETRY_AFTER_SECONDS),
            _ => None,
        }
    }
}

fn request_status(error: &RequestError) -> StatusCode {
    match error {
        RequestError::Invalid { .. }
        | RequestError::TooLong { .. }
        | RequestError::InputTooLong { .. }
        | RequestError::UnsupportedPooling { .. }
        | RequestError::TextTooLong { .. }
        | RequestError::Template(_)
        | RequestError::NoChatTemplate => StatusCode::BAD_REQUEST,
        RequestError::UnknownModel { .. } => StatusCode::NOT_FOUND,
        RequestError::QueueFull { .. } | RequestError::QueueTimeout { .. } | RequestError::ShuttingDown => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(self.to_json())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_seconds() {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if matches!(self, Self::Unauthorized(_)) {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"mistralrs-server\""));
        }
        // For routes whose clients know another shape: they render it again.
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(error: &ApiError) -> String {
        let retry = error.retry_after_seconds().map_or_else(String::new, |seconds| format!(" Retry-After: {seconds}"));
        format!("{}{retry}\n{}\n", error.status(), error.to_json())
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let errors: [ApiError; 4] = [
            RequestError::TooLong {
                num_prompt_tokens: 9,
                num_new_tokens: 5,
                limit_name: "the context length",
                limit: 8,
            }
            .into(),
            RequestError::InputTooLong { index: 3, num_tokens: 9, limit_name: "the context length", limit: 8 }.into(),
            RequestError::UnsupportedPooling { pooling: "rank".into() }.into(),
            RequestError::TextTooLong { num_bytes: 4000, min_tokens: 40, limit_name: "the context length", limit: 8 }
                .into(),
        ];
        let rendered: String = errors.iter().map(render).collect();
        insta::assert_snapshot!(rendered, @r#"
        400 Bad Request
        {"error":{"message":"the prompt has 9 tokens and 5 more were asked for, but the context length is 8 tokens","type":"invalid_request_error","param":null,"code":"context_length_exceeded"}}
        400 Bad Request
        {"error":{"message":"`input[3]` has 9 tokens, but the context length is 8 tokens","type":"invalid_request_error","param":"input","code":"context_length_exceeded"}}
        400 Bad Request
        {"error":{"message":"this model's embeddings are made by `rank` pooling, which is not supported; start with --pooling to use another one","type":"invalid_request_error","param":"model","code":null}}
        400 Bad Request
        {"error":{"message":"the prompt has 4000 bytes of text, which are at least 40 tokens, but the context length is 8 tokens","type":"invalid_request_error","param":null,"code":"context_length_exceeded"}}
        "#);
    }

    #[test]
    fn errors_have_openais_shape_and_the_right_status() {
        let errors = [
            RequestError::UnknownModel { requested: "gpt-4".into(), available: "SmolLM2".into() }.into(),
            RequestError::Invalid { param: "top_p", message: "top_p must be above 0".into() }.into(),
            RequestError::QueueFull { num_waiting: 256, retry_after_seconds: 3 }.into(),
            RequestError::QueueTimeout { waited_seconds: 300, retry_after_seconds: 4 }.into(),
            RequestError::ShuttingDown.into(),
            ApiError::invalid("messages[0].content", "expected a string"),
            ApiError::Json("EOF while parsing a value at line 1 column 0".into()),
            ApiError::BodyTooLarge { limit: 1024 },
            ApiError::Unauthorized("an API key is needed"),
            ApiError::NoRoute { method: Method::GET, path: "/v2".into() },
            ApiError::UnknownResponse { id: "resp_1".into() },
            ApiError::UnknownPreviousResponse { id: "resp_1".into() },
            ApiError::BackgroundFull { limit: 8 },
            ApiError::Loading,
            ApiError::Panic,
        ];
        let rendered: String = errors.iter().map(render).collect();
        insta::assert_snapshot!(rendered, @r#"
        404 Not Found
        {"error":{"message":"the model `gpt-4` does not exist; loaded: SmolLM2","type":"invalid_request_error","param":"model","code":"model_not_found"}}
        400 Bad Request
        {"error":{"message":"top_p must be above 0","type":"invalid_request_error","param":"top_p","code":null}}
        503 Service Unavailable Retry-After: 3
        {"error":{"message":"256 requests are waiting, which is the limit; try again in 3 s","type":"server_error","param":null,"code":"queue_full"}}
        503 Service Unavailable Retry-After: 4
        {"error":{"message":"the request waited 300 s for its turn, which is the limit; try again in 4 s","type":"server_error","param":null,"code":"queue_timeout"}}
        503 Service Unavailable Retry-After: 1
        {"error":{"message":"the server is shutting down","type":"server_error","param":null,"code":"shutting_down"}}
        400 Bad Request
        {"error":{"message":"expected a string","type":"invalid_request_error","param":"messages[0].content","code":null}}
        400 Bad Request
        {"error":{"message":"the body is not valid JSON: EOF while parsing a value at line 1 column 0","type":"invalid_request_error","param":null,"code":null}}
        413 Payload Too Large
        {"error":{"message":"the body is larger than 1024 bytes, which is the limit of this server","type":"invalid_request_error","param":null,"code":"request_too_large"}}
        401 Unauthorized
        {"error":{"message":"an API key is needed; send `Authorization: Bearer KEY` or `x-api-key: KEY`","type":"authentication_error","param":null,"code":"invalid_api_key"}}
        404 Not Found
        {"error":{"message":"there is no `GET /v2` here","type":"invalid_request_error","param":null,"code":"unknown_url"}}
        404 Not Found
        {"error":{"message":"there is no response with the id `resp_1`; responses are kept for a time and a number that the server limits","type":"invalid_request_error","param":null,"code":"response_not_found"}}
        400 Bad Request
        {"error":{"message":"there is no response with the id `resp_1` to continue; send the conversation in `input` instead","type":"invalid_request_error","param":"previous_response_id","code":"previous_response_not_found"}}
        503 Service Unavailable Retry-After: 1
        {"error":{"message":"8 responses run in the background, which is the limit; try again later","type":"server_error","param":null,"code":"queue_full"}}
        503 Service Unavailable Retry-After: 1
        {"error":{"message":"the model is still loading; `GET /ready` tells when it can answer","type":"server_error","param":null,"code":"model_loading"}}
        500 Internal Server Error
        {"error":{"message":"internal error; the server's log has the details","type":"server_error","param":null,"code":null}}
        "#);
    }
}
