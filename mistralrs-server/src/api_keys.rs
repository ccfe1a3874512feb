//! Who may call the main port: bearer tokens, kept as hashes, compared in constant time, never logged.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderMap, header};
use subtle::ConstantTimeEq;

use crate::app::AppState;
use crate::error::ApiError;

const BEARER: &[u8] = b"bearer ";

/// The keys that may call; none: anybody may.
pub struct ApiKeys {
    /// Hashes all have one length, so that comparing them tells nothing of the keys' own.
    hashes: Vec<[u8; blake3::OUT_LEN]>,
}

impl ApiKeys {
    /// Keeps the hashes of `keys`.
    pub fn new(keys: &[String]) -> Self {
        Self { hashes: keys.iter().map(|key| hash(key.as_bytes())).collect() }
    }

    /// # Errors
    /// [`ApiError::Unauthorized`] for a missing or wrong key, where there are keys.
    fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        if self.hashes.is_empty() {
            return Ok(());
        }
        let key = bearer_token(headers).ok_or(ApiError::Unauthorized("an API key is needed"))?;
        let presented = hash(key);
        // Every key is looked at, so that the time does not tell which one was nearly right.
        let is_known = self.hashes.iter().fold(subtle::Choice::from(0), |known, hash| known | presented.ct_eq(hash));
        if bool::from(is_known) { Ok(()) } else { Err(ApiError::Unauthorized("the API key is not known")) }
    }
}

/// Middleware of the routes that need a key.
pub async fn require_key(State(app): State<AppState>, request: Request, next: Next) -> Result<Response, ApiError> {
    app.api_keys.check(request.headers())?;
    Ok(next.run(request).await)
}

fn hash(key: &[u8]) -> [u8; blake3::OUT_LEN] {
    *blake3::hash(key).as_bytes()
}

fn bearer_token(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked(BEARER.len())?;
    scheme.eq_ignore_ascii_case(BEARER).then(|| key.trim_ascii()).filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn check(authorization: Option<&'static str>, expected: &str) {
        let keys = ApiKeys::new(&["sk-first".to_owned(), "sk-second".to_owned()]);
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        let answer = keys.check(&headers).map_or_else(|error| error.to_string(), |()| "passes".to_owned());
        assert_eq!(answer.split(';').next().unwrap(), expected, "{authorization:?}");
    }

    #[test]
    fn only_a_configured_key_passes_and_in_full() {
        check(Some("Bearer sk-first"), "passes");
        check(Some("bearer  sk-second "), "passes");
        check(Some("Bearer sk-firs"), "the API key is not known");
        check(Some("Bearer sk-first1"), "the API key is not known");
        check(Some("Basic sk-first"), "an API key is needed");
        check(Some("Bearer "), "an API key is needed");
        check(None, "an API key is needed");
        assert!(ApiKeys::new(&[]).check(&HeaderMap::new()).is_ok());
    }
}
