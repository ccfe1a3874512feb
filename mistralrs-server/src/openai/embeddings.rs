//! `POST /v1/embeddings`.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, header};
use mistralrs_core::request::MAX_CACHE_SALT_BYTES;
use mistralrs_core::{EmbedError, EmbedRequest, Embeddings, Model, Priority};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::completions::Prompts;
use super::labels::Labels;
use super::options::refuse;
use crate::app::{AppState, Deadline};
use crate::error::ApiError;
use crate::extract::{Json, RequestBody, fields};
use crate::openapi::{Operation, Tag, merged};

/// Fields of other servers that would change the answer.
const REFUSED: &[(&str, &str)] =
    &[("truncate_prompt_tokens", "inputs are not cut to fit; cut them before you send them")];

/// One vector for each text.
pub async fn embeddings(
    State(app): State<AppState>,
    Json(request): Json<EmbeddingRequest>,
) -> Result<Response, ApiError> {
    let deadline = app.deadline();
    let model = app.route(request.fields.model.as_deref())?;
    let embeddings = embed(&model, request.to_embed(), deadline).await?;
    let encoding = request.fields.encoding_format.unwrap_or_default();
    // Millions of numbers take long enough to write out to delay other clients' streams.
    let body = tokio::task::spawn_blocking(move || render(embeddings, &model.info().id, encoding));
    let body = body.await.map_err(|_panic| ApiError::Panic)?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response())
}

/// What it does, for the API's document.
pub(crate) fn describe_embeddings() -> Operation {
    Operation::new("createEmbedding", Tag::OpenAi, "One vector for each text.")
        .body::<EmbeddingRequest>(json!({ "model": "default", "input": ["Hello world", "Goodbye"] }))
        .answers::<EmbeddingList>()
        .generates()
}

async fn embed(model: &Model, request: EmbedRequest, deadline: Option<Deadline>) -> Result<Embeddings, ApiError> {
    let embeddings = model.embed(request);
    let embeddings = match deadline {
        Some(Deadline { at, limit }) => {
            tokio::time::timeout_at(at, embeddings).await.map_err(|_| ApiError::Deadline { limit })?
        }
        None => embeddings.await,
    };
    embeddings.map_err(|error| match error {
        EmbedError::Request(error) => error.into(),
        EmbedError::Failed(message) => ApiError::Failed(message),
    })
}

/// The body, checked as far as it can be without a model.
pub struct EmbeddingRequest {
    fields: EmbeddingFields,
    priority: Priority,
}

#[derive(Deserialize, JsonSchema)]
struct EmbeddingFields {
    /// A name of `GET /v1/models`, or `default`.
    model: Option<String>,
    /// One text or up to 2048.
    input: Prompts,
    encoding_format: Option<Encoding>,
    /// The first so many numbers of each vector, made a vector of length 1 again. All by default.
    #[schemars(range(min = 1))]
    dimensions: Option<usize>,
    /// Smaller numbers are served first.
    #[schemars(range(min = Priority::MIN, max = Priority::MAX))]
    priority: Option<i64>,
    /// Keeps the texts' cached blocks apart from those of requests with another salt.
    #[schemars(length(min = 1, max = MAX_CACHE_SALT_BYTES))]
    cache_salt: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// How a vector is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    /// A list of numbers.
    #[default]
    Float,
    /// Its f32 numbers as bytes, the lowest byte of each first: a third of the size.
    Base64,
}

impl RequestBody for EmbeddingRequest {
    fn from_body(body: &Value) -> Result<Self, ApiError> {
        let request: EmbeddingFields = fields(body)?;
        fields::<Labels>(body)?.check()?;
        refuse(&request.rest, REFUSED)?;
        let priority = Priority::new(request.priority.unwrap_or_default())?;
        Ok(Self { fields: request, priority })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        merged([EmbeddingFields::json_schema, Labels::json_schema].map(|part| part(generator)), REFUSED)
    }
}

impl EmbeddingRequest {
    fn to_embed(&self) -> EmbedRequest {
        EmbedRequest {
            inputs: self.fields.input.to_vec(),
            dimensions: self.fields.dimensions,
            priority: self.priority,
            cache_salt: self.fields.cache_salt.clone(),
        }
    }
}

#[derive(Serialize, JsonSchema)]
struct EmbeddingList<'a> {
    object: &'static str,
    data: Vec<EmbeddingObject>,
    model: &'a str,
    usage: EmbeddingUsage,
}

#[derive(Serialize, JsonSchema)]
struct EmbeddingObject {
    object: &'static str,
    index: usize,
    embedding: EncodedVector,
}

#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum EncodedVector {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Serialize, JsonSchema)]
struct EmbeddingUsage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl EncodedVector {
    fn new(vector: Vec<f32>, encoding: Encoding) -> Self {
        match encoding {
            Encoding::Float => Self::Float(vector),
            Encoding::Base64 => {
                let bytes: Vec<u8> = vector.into_iter().flat_map(f32::to_le_bytes).collect();
                Self::Base64(STANDARD.encode(bytes))
            }
        }
    }
}

/// The answer as JSON. Not by way of `Value`: that would widen the numbers.
fn render(embeddings: Embeddings, model: &str, encoding: Encoding) -> Vec<u8> {
    let Embeddings { vectors, num_prompt_tokens } = embeddings;
    let object = |(index, vector)| EmbeddingObject {
        object: "embedding",
        index,
        embedding: EncodedVector::new(vector, encoding),
    };
    let list = EmbeddingList {
        object: "list",
        data: vectors.into_iter().enumerate().map(object).collect(),
        model,
        usage: EmbeddingUsage { prompt_tokens: num_prompt_tokens, total_tokens: num_prompt_tokens },
    };
    serde_json::to_vec(&list).expect("numbers, names and text are plain JSON")
}

#[cfg(test)]
mod tests {
    use mistralrs_core::Prompt;

    use super::*;

    fn parse(body: &Value) -> Result<EmbedRequest, String> {
        EmbeddingRequest::from_body(body).map(|request| request.to_embed()).map_err(|error| error.message())
    }

    #[test]
    fn all_four_shapes_of_input_are_read() {
        let texts = |input: Value| {
            let request = parse(&json!({ "input": input, "model": "m", "user": "u" })).unwrap();
            let text = |prompt| match prompt {
                Prompt::Text(text) => text,
                Prompt::Tokens(token_ids) => format!("{token_ids:?}"),
                Prompt::Chat(_) => panic!("not a chat"),
            };
            request.inputs.into_iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(texts(json!("a")), ["a"]);
        assert_eq!(texts(json!(["a", "b"])), ["a", "b"]);
        assert_eq!(texts(json!([1, 2])), ["[1, 2]"]);
        assert_eq!(texts(json!([[1, 2], [3]])), ["[1, 2]", "[3]"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |body: Value| parse(&body).unwrap_err();
        assert_eq!(refused(json!({})), "missing field `input`");
        let shapes = "expected a string, a list of strings, a list of token ids, or a list of lists of token ids";
        assert_eq!(refused(json!({ "input": ["a", 1] })), format!("`input`: {shapes}"));
        assert_eq!(refused(json!({ "input": {} })), format!("`input`: {shapes}"));
        assert_eq!(
            refused(json!({ "input": "a", "encoding_format": "int8" })),
            "`encoding_format`: unknown variant `int8`, expected `float` or `base64`"
        );
        assert_eq!(
            refused(json!({ "input": "a", "dimensions": -1 })),
            "`dimensions`: invalid value: integer `-1`, expected usize"
        );
        assert_eq!(
            refused(json!({ "input": "a", "truncate_prompt_tokens": 5 })),
            "`truncate_prompt_tokens`: inputs are not cut to fit; cut them before you send them"
        );
        assert!(refused(json!({ "input": "a", "priority": 1000 })).contains("priority"));
    }

    #[test]
    fn answers_have_openais_shape_in_both_encodings() {
        let embeddings = || Embeddings { vectors: vec![vec![0.6, 0.8], vec![-1.0, 0.0]], num_prompt_tokens: 5 };
        let text = |encoding| String::from_utf8(render(embeddings(), "m", encoding)).unwrap();
        insta::assert_snapshot!(text(Encoding::Float), @r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.6,0.8]},{"object":"embedding","index":1,"embedding":[-1.0,0.0]}],"model":"m","usage":{"prompt_tokens":5,"total_tokens":5}}"#);
        insta::assert_snapshot!(text(Encoding::Base64), @r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":"mpkZP83MTD8="},{"object":"embedding","index":1,"embedding":"AACAvwAAAAA="}],"model":"m","usage":{"prompt_tokens":5,"total_tokens":5}}"#);
    }
}
