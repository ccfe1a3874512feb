//! What comes with a request, refused in our error shapes: bodies, read with a limit of bytes and time and parsed once;
//! paths; queries.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, header};
use http_body_util::BodyExt;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::app::AppState;
use crate::error::ApiError;

/// A client that takes longer to send its body holds a connection for nothing.
const BODY_TIMEOUT: Duration = Duration::from_mins(1);

/// What of a body over the limit is read and thrown away, so that the client is done sending and reads the answer.
/// Beyond it the connection is closed in its face.
const MAX_DISCARDED_BYTES: usize = 64 << 20;

/// A JSON request body.
pub struct Json<T>(pub T);

/// What a JSON body can be read as.
pub trait RequestBody: Sized {
    /// Reads `body`, which is a JSON object.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] with the path of the field.
    fn from_body(body: &Value) -> Result<Self, ApiError>;

    /// What [`Self::from_body`] takes, for the API's document.
    fn schema(generator: &mut SchemaGenerator) -> Schema;
}

impl<T: RequestBody> FromRequest<AppState> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &AppState) -> Result<Self, ApiError> {
        check_media_type(request.headers())?;
        let body = read_body(request, app.max_body_bytes).await?;
        let body: Value = serde_json::from_slice(&body).map_err(|error| ApiError::Json(error.to_string()))?;
        if !body.is_object() {
            return Err(ApiError::Invalid { param: None, message: "the body must be a JSON object".to_owned() });
        }
        T::from_body(&body).map(Self)
    }
}

/// What the route's pattern took out of the path.
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<AppState> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &AppState) -> Result<Self, ApiError> {
        match axum::extract::Path::from_request_parts(parts, app).await {
            Ok(axum::extract::Path(path)) => Ok(Self(path)),
            Err(rejection) => Err(ApiError::Invalid { param: None, message: rejection.body_text() }),
        }
    }
}

/// A query string.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<AppState> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _app: &AppState) -> Result<Self, ApiError> {
        match axum::extract::Query::try_from_uri(&parts.uri) {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(rejection) => Err(ApiError::Invalid { param: None, message: rejection.body_text() }),
        }
    }
}

/// A `T` with the names of its fields: serde would take a list of their values as well.
#[derive(Debug, Clone)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(entries)).map(Object)
    }
}

impl<T: JsonSchema> JsonSchema for Object<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// Reads the fields of `T` out of `body`, naming the field that does not fit.
pub fn fields<T: DeserializeOwned>(body: &Value) -> Result<T, ApiError> {
    fields_at("", body)
}

/// The same for a part of the body, which is at `path`.
pub fn fields_at<T: DeserializeOwned>(path: &str, part: &Value) -> Result<T, ApiError> {
    let read = if part.is_array() {
        serde_path_to_error::deserialize(part).map(|Object(fields)| fields)
    } else {
        // The type's own words for what was expected.
        serde_path_to_error::deserialize(part)
    };
    read.map_err(|error| {
        let path = match (path, error.path().to_string().as_str()) {
            ("", ".") => None,
            (path, ".") => Some(path.to_owned()),
            ("", inner) => Some(inner.to_owned()),
            (path, inner) => Some(format!("{path}.{inner}")),
        };
        let problem = error.into_inner().to_string();
        match path {
            None => ApiError::Invalid { param: None, message: problem },
            Some(path) => ApiError::invalid(path.clone(), format!("`{path}`: {problem}")),
        }
    })
}

/// JSON, or nothing said. A page of another origin can send text and forms without asking first, but not JSON.
fn check_media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        return Ok(());
    }
    Err(ApiError::MediaType(essence))
}

async fn read_body(request: Request, limit: usize) -> Result<Bytes, ApiError> {
    let waits_for_consent = request.headers().get(header::EXPECT).map(HeaderValue::as_bytes) == Some(b"100-continue");
    let announced =
        request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if waits_for_consent && announced.is_some_and(|length| length > limit) {
        return Err(ApiError::BodyTooLarge { limit });
    }
    tokio::time::timeout(BODY_TIMEOUT, collect(request.into_body(), limit))
        .await
        .unwrap_or(Err(ApiError::BodyTimeout { limit: BODY_TIMEOUT }))
}

async fn collect(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    match collect_limited(body, limit).await {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(ApiError::BodyTooLarge { limit }),
        Err(_client_left) => Err(ApiError::BodyTimeout { limit: BODY_TIMEOUT }),
    }
}

/// The whole of `body`; `None` if it is larger than `limit` bytes, read to its end within [`MAX_DISCARDED_BYTES`].
///
/// # Errors
/// The client's connection broke.
pub(crate) async fn collect_limited(mut body: Body, limit: usize) -> Result<Option<Bytes>, axum::Error> {
    let mut collected = BytesMut::new();
    let mut num_discarded = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if num_discarded == 0 && collected.len() + data.len() <= limit {
            collected.extend_from_slice(&data);
            continue;
        }
        num_discarded += data.len();
        if num_discarded > MAX_DISCARDED_BYTES {
            break;
        }
    }
    Ok((num_discarded == 0).then(|| collected.freeze()))
}
