//! An upstream that is a URL: streamable HTTP through rmcp's worker, which keeps the session, opens it again when it
//! expired, and repeats the request that found out (the server refused it, so that it cannot have run).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use rmcp::model::{ClientJsonRpcMessage, ErrorData, ServerJsonRpcMessage};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::common::client_side_sse::{BoxedSseResponse, ExponentialBackoff};
use rmcp::transport::streamable_http_client::{
    StreamableHttpClient, StreamableHttpClientTransportConfig, StreamableHttpError, StreamableHttpPostResponse,
};

use super::credentials::{Credentials, HttpError};
use super::http_client::{MAX_MESSAGE_BYTES, builder};
use crate::config::{HttpConfig, UpstreamConfig};

/// A lost event stream is opened again at this pace at most; calls do not wait for it.
const MAX_STREAM_RETRY_DELAY: Duration = Duration::from_secs(30);
/// Codes that servers answer an unknown session with.
const SESSION_ERROR_CODES: [i32; 3] = [-32000, -32001, -32600];

/// The transport, before anything is sent.
///
/// # Errors
/// [`reqwest::Error`] if no HTTP client can be made.
pub(super) fn transport(
    upstream: &UpstreamConfig,
    config: &HttpConfig,
    credentials: Credentials,
) -> Result<StreamableHttpClientTransport<SessionAwareClient>, reqwest::Error> {
    let client = builder(upstream, &config.url).build()?;
    let mut retry = ExponentialBackoff::default();
    retry.max_delay = Some(MAX_STREAM_RETRY_DELAY);

    let mut settings = StreamableHttpClientTransportConfig::with_uri(config.url.as_str())
        .max_concurrent_requests(upstream.max_concurrent_calls)
        .max_sse_event_size(MAX_MESSAGE_BYTES)
        .reinit_on_expired_session(true)
        .custom_headers(headers(config));
    settings.channel_buffer_capacity = upstream.max_concurrent_calls;
    settings.retry_config = Arc::new(retry);
    Ok(StreamableHttpClientTransport::with_client(SessionAwareClient { client, credentials }, settings))
}

/// The upstream's own headers, as rmcp takes them.
pub(super) fn headers(config: &HttpConfig) -> HashMap<HeaderName, HeaderValue> {
    config.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The error without the URL, which may have a key in it: rmcp logs the errors of its client.
fn without_url(error: HttpError) -> HttpError {
    match error {
        StreamableHttpError::Client(error) => StreamableHttpError::Client(error.without_url()),
        error => error,
    }
}

/// reqwest with our credentials, and the knowledge that many servers say "unknown session" with 400 where the
/// specification has 404.
#[derive(Clone)]
pub(super) struct SessionAwareClient {
    client: reqwest::Client,
    credentials: Credentials,
}

impl StreamableHttpClient for SessionAwareClient {
    type Error = reqwest::Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, HttpError> {
        self.post_message_with_max_sse_event_size(
            uri,
            message,
            session_id,
            auth_header,
            custom_headers,
            MAX_MESSAGE_BYTES,
        )
        .await
    }

    async fn post_message_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
        max_sse_event_size: usize,
    ) -> Result<StreamableHttpPostResponse, HttpError> {
        let has_session = session_id.is_some();
        let post = |token| {
            let (uri, message, session_id) = (Arc::clone(&uri), message.clone(), session_id.clone());
            let headers = custom_headers.clone();
            self.client.post_message_with_max_sse_event_size(
                uri,
                message,
                session_id,
                token,
                headers,
                max_sse_event_size,
            )
        };
        let answer = self.credentials.apply(post).await;
        match answer {
            Ok(StreamableHttpPostResponse::Json(ServerJsonRpcMessage::Error(answer), _))
                if has_session && is_unknown_session(&answer.error) =>
            {
                Err(StreamableHttpError::SessionExpired)
            }
            Err(StreamableHttpError::UnexpectedServerResponse(text))
                if has_session && text.starts_with("HTTP 400") && speaks_of_session(&text) =>
            {
                Err(StreamableHttpError::SessionExpired)
            }
            answer => answer.map_err(without_url),
        }
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), HttpError> {
        let delete = |token| {
            self.client.delete_session(Arc::clone(&uri), Arc::clone(&session_id), token, custom_headers.clone())
        };
        self.credentials.apply(delete).await.map_err(without_url)
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxedSseResponse, HttpError> {
        self.get_stream_with_max_sse_event_size(
            uri,
            session_id,
            last_event_id,
            auth_header,
            custom_headers,
            MAX_MESSAGE_BYTES,
        )
        .await
    }

    async fn get_stream_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
        max_sse_event_size: usize,
    ) -> Result<BoxedSseResponse, HttpError> {
        let is_resumption = last_event_id.is_some();
        let get = |token| {
            let (uri, session_id, last_event_id) = (Arc::clone(&uri), session_id.clone(), last_event_id.clone());
            let headers = custom_headers.clone();
            self.client.get_stream_with_max_sse_event_size(
                uri,
                session_id,
                last_event_id,
                token,
                headers,
                max_sse_event_size,
            )
        };
        let answer = self.credentials.apply(get).await;
        match answer {
            Err(StreamableHttpError::Client(error)) if is_resumption && cannot_resume(&error) => {
                tracing::debug!(error = %error.without_url(), "a stream that broke off cannot be resumed");
                // Of the errors that rmcp does not try again after, the one that asks for no credentials.
                Err(StreamableHttpError::ServerDoesNotSupportSse)
            }
            answer => answer.map_err(without_url),
        }
    }
}

/// Nobody is there, or somebody who does not know the stream, as after a restart. rmcp would ask for it on and on, and the
/// call whose answer it carries would wait for its deadline.
fn cannot_resume(error: &reqwest::Error) -> bool {
    error.is_connect() || error.status().is_some_and(|status| status.is_client_error())
}

fn is_unknown_session(error: &ErrorData) -> bool {
    SESSION_ERROR_CODES.contains(&error.code.0) && speaks_of_session(&error.message)
}

/// "No valid session ID provided", "Invalid or missing session ID", "Session not found", "Unknown session".
fn speaks_of_session(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["session id", "session not found", "unknown session", "session expired"].iter().any(|phrase| text.contains(phrase))
}

#[cfg(test)]
mod tests {
    use rmcp::model::ErrorCode;

    use super::*;

    #[test]
    fn an_unknown_session_is_understood_in_the_words_of_real_servers() {
        let error = |code, message: &'static str| ErrorData::new(ErrorCode(code), message, None);
        assert!(is_unknown_session(&error(-32000, "Bad Request: No valid session ID provided")));
        assert!(is_unknown_session(&error(-32001, "Session not found")));
        assert!(is_unknown_session(&error(-32600, "Invalid or missing session ID")));
        assert!(!is_unknown_session(&error(-32602, "unknown session id in argument `chat`")));
        assert!(!is_unknown_session(&error(-32000, "Connection closed")));
    }
}
