//! `GET /api-doc/openapi.json`, and `GET /docs`: one page without anything from elsewhere, so that it works offline.

use axum::Extension;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};

use super::document::Document;
use super::operation::{Operation, Tag};

/// Where the document is; the page reads it from there.
pub const DOCUMENT_PATH: &str = "/api-doc/openapi.json";

const PAGE: &str = include_str!("page.html");

/// The page has scripts and styles of its own and talks to this server only, whatever it shows.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'",
);

/// The document.
pub async fn serve_document(Extension(document): Extension<Document>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document.json()).into_response()
}

/// What it does, for the document itself.
pub fn describe_document() -> Operation {
    Operation::new("getDocument", Tag::Operation, "This document.")
        .answers_with::<serde_json::Map<String, serde_json::Value>>(200, "OpenAPI 3.2.")
}

/// The page.
pub async fn serve_page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, POLICY),
    ];
    (headers, PAGE).into_response()
}

/// What it does, for the API's document.
pub fn describe_page() -> Operation {
    Operation::new("getPage", Tag::Operation, "This API as a page to read and try; it works offline.")
        .answers_text("text/html")
}
