//! Who may call the main port: API keys, as `Authorization: Bearer KEY` or, as Anthropic's clients send them,
//! `x-api-key: KEY`. They are kept as hashes, compared in constant time, never logged.

use std::convert::Infallible;

use axum::extract::{FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::request::Parts;
use http::{HeaderMap, HeaderName, header};
use subtle::ConstantTimeEq;

use crate::access_log;
use crate::app::AppState;
use crate::error::ApiError;

const BEARER: &[u8] = b"bearer ";
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Who sent a request: the owner of what it leaves behind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Principal {
    /// Whoever reaches the port: there are no keys.
    Anybody,
    /// The holder of the key with this hash.
    Key([u8; blake3::OUT_LEN]),
}

/// Digits of a hash that tell keys apart in a log.
const KEY_ID_DIGITS: usize = 8;

impl Principal {
    /// Names a key without telling it: the beginning of its BLAKE3 hash. `None` where there are no keys.
    pub fn key_id(self) -> Option<String> {
        match self {
            Self::Anybody => None,
            Self::Key(hash) => Some(blake3::Hash::from(hash).to_hex()[..KEY_ID_DIGITS].to_owned()),
        }
    }
}

impl std::fmt::Debug for Principal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Principal").field(&self.key_id()).finish()
    }
}

impl FromRequestParts<AppState> for Principal {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _app: &AppState) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().copied().unwrap_or(Self::Anybody))
    }
}

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
    fn check(&self, headers: &HeaderMap) -> Result<Principal, ApiError> {
        if self.hashes.is_empty() {
            return Ok(Principal::Anybody);
        }
        let key = presented_key(headers).ok_or(ApiError::Unauthorized("an API key is needed"))?;
        let presented = hash(key);
        // Every key is looked at, so that the time does not tell which one was nearly right.
        let is_known = self.hashes.iter().fold(subtle::Choice::from(0), |known, hash| known | presented.ct_eq(hash));
        if bool::from(is_known) {
            Ok(Principal::Key(presented))
        } else {
            Err(ApiError::Unauthorized("the API key is not known"))
        }
    }
}

/// Middleware of the routes that need a key.
pub async fn require_key(State(app): State<AppState>, mut request: Request, next: Next) -> Result<Response, ApiError> {
    let principal = app.api_keys.check(request.headers())?;
    access_log::found_principal(principal);
    request.extensions_mut().insert(principal);
    Ok(next.run(request).await)
}

fn hash(key: &[u8]) -> [u8; blake3::OUT_LEN] {
    *blake3::hash(key).as_bytes()
}

fn presented_key(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(BEARER.len())?;
        scheme.eq_ignore_ascii_case(BEARER).then_some(key)
    });
    let key = bearer.or_else(|| headers.get(API_KEY).map(http::HeaderValue::as_bytes))?.trim_ascii();
    (!key.is_empty()).then_some(key)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn answer(name: HeaderName, value: Option<&'static str>) -> Result<Principal, String> {
        let keys = ApiKeys::new(&["sk-first".to_owned(), "sk-second".to_owned()]);
        let headers: HeaderMap = value.map(|value| (name, HeaderValue::from_static(value))).into_iter().collect();
        keys.check(&headers).map_err(|error| error.to_string())
    }

    fn check(authorization: Option<&'static str>, expected: &str) {
        let answer = answer(header::AUTHORIZATION, authorization).map_or_else(|error| error, |_| "passes".to_owned());
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

    #[test]
    fn a_principal_is_its_key_whichever_header_it_came_in() {
        let principal = |name, value| answer(name, Some(value)).unwrap_or(Principal::Anybody);
        let first = principal(header::AUTHORIZATION, "Bearer sk-first");
        assert!(first == principal(API_KEY, " sk-first"));
        assert!(first != principal(API_KEY, "sk-second"));
        assert!(answer(API_KEY, Some("sk-firs")).is_err());
    }
}
