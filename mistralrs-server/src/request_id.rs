//! The id of a request: a client's own, if it is fit for a log, or a fresh one. Every answer has it as `x-request-id`.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderName, HeaderValue};
use uuid::Uuid;

/// Where clients say it and read it.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longer than any id that is made to be unique; a log line is no place for more.
const MAX_BYTES: usize = 128;

/// Middleware around everything else: what is inside finds the id in the request's headers.
pub async fn assign(mut request: Request, next: Next) -> Response {
    let id = request.headers().get(X_REQUEST_ID).filter(|id| is_sane(id)).cloned().unwrap_or_else(fresh);
    request.headers_mut().insert(X_REQUEST_ID, id.clone());
    let mut response = next.run(request).await;
    response.headers_mut().insert(X_REQUEST_ID, id);
    response
}

/// Printable ASCII without spaces: nothing that could break a line, end a field or be mistaken for one.
fn is_sane(id: &HeaderValue) -> bool {
    let id = id.as_bytes();
    (1..=MAX_BYTES).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

fn fresh() -> HeaderValue {
    HeaderValue::from_str(&Uuid::new_v4().to_string()).expect("digits and dashes are a header's value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_a_client_is_kept_if_it_is_fit_for_a_log() {
        let check =
            |id: &[u8], expected| assert_eq!(is_sane(&HeaderValue::from_bytes(id).unwrap()), expected, "{id:?}");
        check(b"req_01-AB.c:7", true);
        check(&[b'x'; MAX_BYTES], true);
        check(&[b'x'; MAX_BYTES + 1], false);
        check(b"", false);
        check(b"two words", false);
        check("caf\u{e9}".as_bytes(), false);
        check(b"tab\tinside", false);
    }
}
