//! What an upstream is shown of who we are: nothing, a token of the configuration, or one of an authorization server.

use std::sync::Arc;

use http::{StatusCode, header};
use rmcp::transport::auth::AuthError;
use rmcp::transport::streamable_http_client::{AuthRequiredError, StreamableHttpError};

use super::oauth::TokenSource;
use crate::config::{HttpAuth, HttpConfig, Secret, TransportConfig, UpstreamConfig};

/// What a request to a URL fails with, whatever transport it belongs to.
pub(super) type HttpError = StreamableHttpError<reqwest::Error>;

/// One upstream's, over all its connections.
#[derive(Clone)]
pub(super) enum Credentials {
    Nothing,
    Token(Secret),
    OAuth(Arc<TokenSource>),
}

impl Credentials {
    /// Nothing is asked for yet.
    pub fn new(upstream: &UpstreamConfig) -> Self {
        match &upstream.transport {
            TransportConfig::Stdio(_) => Self::Nothing,
            TransportConfig::StreamableHttp(http)
            | TransportConfig::LegacySse(http)
            | TransportConfig::WebSocket(http) => Self::of_url(upstream, http),
        }
    }

    fn of_url(upstream: &UpstreamConfig, http: &HttpConfig) -> Self {
        match &http.auth {
            None => Self::Nothing,
            Some(HttpAuth::Bearer(token)) => Self::Token(token.clone()),
            Some(HttpAuth::OAuth(config)) => Self::OAuth(Arc::new(TokenSource::new(upstream, &http.url, config))),
        }
    }

    /// Makes a request with the token to send, and once more with a new one if the upstream refuses the first: it may
    /// have been revoked. A refused request has not been read, so that it cannot have done anything.
    ///
    /// # Errors
    /// [`StreamableHttpError::Auth`] if there is no token, otherwise as `request`.
    pub async fn apply<T, Request>(
        &self,
        request: impl Fn(Option<String>) -> Request + Send + Sync,
    ) -> Result<T, HttpError>
    where
        Request: Future<Output = Result<T, HttpError>> + Send,
    {
        let token = self.token().await?;
        let answer = request(exposed(token.as_ref())).await;
        match (self, answer, &token) {
            (Self::OAuth(source), Err(error), Some(token)) if is_refusal(&error) => {
                if !source.renew(token).await {
                    return Err(error);
                }
                let token = self.token().await?;
                request(exposed(token.as_ref())).await
            }
            (_, answer, _) => answer,
        }
    }

    async fn token(&self) -> Result<Option<Secret>, AuthError> {
        match self {
            Self::Nothing => Ok(None),
            Self::Token(token) => Ok(Some(token.clone())),
            Self::OAuth(source) => source.token().await.map(Some),
        }
    }
}

fn exposed(token: Option<&Secret>) -> Option<String> {
    token.map(|token| token.expose().to_owned())
}

/// With a challenge in the header that the specification asks for, or without.
fn is_refusal(error: &HttpError) -> bool {
    match error {
        StreamableHttpError::AuthRequired(_) => true,
        StreamableHttpError::UnexpectedServerResponse(answer) => answer.starts_with("HTTP 401"),
        _ => false,
    }
}

/// Sends `request` with the upstream's own headers and `token`; any status but a success is an error.
///
/// # Errors
/// [`StreamableHttpError::AuthRequired`] for 401, else what reqwest says.
pub(super) async fn send(
    request: reqwest::RequestBuilder,
    config: &HttpConfig,
    token: Option<String>,
) -> Result<reqwest::Response, HttpError> {
    let request = request.headers(config.headers.clone());
    let request = if let Some(token) = token { request.bearer_auth(token) } else { request };
    let response = request.send().await.map_err(StreamableHttpError::Client)?;
    if response.status() == StatusCode::UNAUTHORIZED {
        let challenge = response.headers().get(header::WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
        let challenge = challenge.unwrap_or("401 Unauthorized").to_owned();
        return Err(StreamableHttpError::AuthRequired(AuthRequiredError::new(challenge)));
    }
    response.error_for_status().map_err(StreamableHttpError::Client)
}
