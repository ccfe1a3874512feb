//! Who calls: API keys, as `Authorization: Bearer <key>` or `X-API-Key: <key>`.
//! Keys are kept as hashes, compared in constant time, and never logged.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use mistralrs_mcp::Principal;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::error::EndpointError;

/// The header for clients that cannot send `Authorization`.
pub(super) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const BEARER: &[u8] = b"bearer ";

/// The keys that may call.
pub(super) struct ApiKeys {
    /// Hashes all have one length, so that comparing them tells nothing of the keys' own.
    hashes: Vec<[u8; blake3::OUT_LEN]>,
}

impl ApiKeys {
    pub fn new(keys: &[String]) -> Self {
        Self { hashes: keys.iter().map(|key| hash(key.as_bytes())).collect() }
    }

    /// Anybody where no key is configured, otherwise who shows one.
    ///
    /// # Errors
    /// [`EndpointError::Unauthorized`] for a missing or wrong key.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Principal, EndpointError> {
        if self.hashes.is_empty() {
            return Ok(Principal::Anonymous);
        }
        let key = presented_key(headers).ok_or(EndpointError::Unauthorized(
            "an API key is needed: send `Authorization: Bearer <key>` or `X-API-Key: <key>`",
        ))?;
        self.find(key).map(Principal::ApiKey).ok_or(EndpointError::Unauthorized("the API key is not known"))
    }

    /// Looks at every hash whatever the earlier ones said: the time tells neither how much of a key was right nor
    /// which key it was.
    fn find(&self, key: &[u8]) -> Option<usize> {
        let presented = hash(key);
        let mut is_known = Choice::from(0);
        let mut found = 0_u64;
        for (index, known) in (0_u64..).zip(&self.hashes) {
            let is_this = presented.ct_eq(known);
            found = u64::conditional_select(&found, &index, is_this);
            is_known |= is_this;
        }
        bool::from(is_known).then_some(found as usize)
    }
}

fn hash(key: &[u8]) -> [u8; blake3::OUT_LEN] {
    *blake3::hash(key).as_bytes()
}

fn presented_key(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(BEARER.len())?;
        scheme.eq_ignore_ascii_case(BEARER).then_some(key)
    });
    let key = bearer.or_else(|| headers.get(API_KEY).map(HeaderValue::as_bytes))?;
    Some(key.trim_ascii()).filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: &'static str, value: &'static str, expected: &str) {
        let keys = ApiKeys::new(&["sk-first".to_owned(), "sk-second".to_owned()]);
        let mut headers = HeaderMap::new();
        headers.insert(header, HeaderValue::from_static(value));
        let answer = match keys.authenticate(&headers) {
            Ok(Principal::ApiKey(index)) => format!("key {index}"),
            Ok(other) => format!("{other:?}"),
            Err(error) => error.kind().to_owned(),
        };
        assert_eq!(answer, expected, "{header}: {value}");
    }

    #[test]
    fn each_key_is_its_own_principal_in_either_header() {
        check("authorization", "Bearer sk-first", "key 0");
        check("authorization", "bearer sk-second", "key 1");
        check("x-api-key", "sk-second", "key 1");
    }

    #[test]
    fn missing_wrong_cut_and_extended_keys_are_refused() {
        check("accept", "*/*", "unauthorized");
        check("authorization", "Bearer sk-firs", "unauthorized");
        check("authorization", "Bearer sk-first1", "unauthorized");
        check("authorization", "Bearer ", "unauthorized");
        check("authorization", "sk-first", "unauthorized");
        check("authorization", "Basic sk-first", "unauthorized");
        check("x-api-key", "", "unauthorized");
    }

    #[test]
    fn without_configured_keys_everybody_is_anonymous() {
        let answer = ApiKeys::new(&[]).authenticate(&HeaderMap::new());
        assert_eq!(answer.unwrap(), Principal::Anonymous);
    }
}
