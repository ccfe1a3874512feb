//! Access tokens by client credentials (RFC 6749, 4.4). rmcp finds the authorization server and speaks with it; here is
//! when that happens, how long it may take, and where our secret may go.

use std::sync::Arc;
use std::time::Duration;

use oauth2::TokenResponse;
use reqwest::{Url, header};
use rmcp::transport::auth::{
    AuthError, AuthorizationManager, AuthorizationMetadata, ClientCredentialsConfig, OAuthHttpClient,
    OAuthHttpClientError, OAuthHttpClientFuture, OAuthHttpRequest,
};
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::connection::root_cause;
use super::http_client::{builder, is_loopback};
use crate::config::{AuthorizationServer, ClientAuthentication, OAuthConfig, Secret, UpstreamConfig, UpstreamId};

/// A token is replaced this long before it expires, so that no call sets out with one that will not arrive.
const RENEW_BEFORE: Duration = Duration::from_secs(30);
/// Calls that come this soon after a failure share it: an authorization server that is down is not asked by each.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// An upstream that refuses each new token costs the authorization server one request in this time.
const REFUSAL_PAUSE: Duration = Duration::from_secs(10);
/// Of metadata and tokens.
const MAX_BODY_BYTES: usize = 256 * 1024;
/// A document that says how the server wants to be asked.
const METHODS_SUPPORTED: &str = "token_endpoint_auth_methods_supported";

/// One upstream's tokens: fetched when a call needs one, and then shared by all.
pub(super) struct TokenSource {
    upstream: UpstreamConfig,
    /// Of the upstream, in its `http` form: what tokens are for (RFC 8707).
    resource: String,
    config: OAuthConfig,
    /// A lock and no message: who waits for a token wants the one that is being fetched.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Once the authorization server is known. It stays the same: another one would be given our secret.
    server: Option<Server>,
    token: Option<Token>,
    failure: Option<(Instant, String)>,
    refused: Option<Instant>,
}

struct Server {
    manager: AuthorizationManager,
    credentials: ClientCredentialsConfig,
}

struct Token {
    value: Secret,
    /// From then on a new one is asked for; absent, when it is refused.
    renew_at: Option<Instant>,
    expires_at: Option<Instant>,
}

impl TokenSource {
    /// Nothing is fetched yet.
    pub fn new(upstream: &UpstreamConfig, url: &str, config: &OAuthConfig) -> Self {
        let resource = if url.starts_with("ws") { url.replacen("ws", "http", 1) } else { url.to_owned() };
        Self { upstream: upstream.clone(), resource, config: config.clone(), state: Mutex::default() }
    }

    /// The token to send now.
    ///
    /// # Errors
    /// [`AuthError::AuthorizationFailed`], with what went wrong.
    pub async fn token(&self) -> Result<Secret, AuthError> {
        let asked = Instant::now();
        let mut state = self.state.lock().await;
        if let Some(token) = state.token_until(asked, |token| token.renew_at) {
            return Ok(token);
        }
        let has_just_failed = state.failure.as_ref().is_some_and(|(at, _)| *at + FAILURE_PAUSE > asked);
        if !has_just_failed {
            // Boxed: it is large, seldom, and part of every request.
            match Box::pin(self.fetch(&mut state)).await {
                Ok(token) => {
                    tracing::debug!(upstream = %self.upstream.id, "got an access token");
                    (state.failure, state.token) = (None, Some(token));
                }
                Err(reason) => {
                    tracing::warn!(upstream = %self.upstream.id, reason, "could not get an access token");
                    state.failure = Some((Instant::now(), reason));
                }
            }
        }
        // A new one could not be had, but the old one may still be good.
        state.token_until(asked, |token| token.expires_at).ok_or_else(|| {
            let reason = state.failure.as_ref().map_or("there is no token", |(_, reason)| reason);
            AuthError::AuthorizationFailed(reason.to_owned())
        })
    }

    /// The upstream refused `token`; true if it is worth trying another one.
    pub async fn renew(&self, token: &Secret) -> bool {
        let mut state = self.state.lock().await;
        if state.token.as_ref().is_none_or(|current| current.value != *token) {
            return true;
        }
        let now = Instant::now();
        if state.refused.is_some_and(|at| at + REFUSAL_PAUSE > now) {
            return false;
        }
        (state.refused, state.token) = (Some(now), None);
        true
    }

    async fn fetch(&self, state: &mut State) -> Result<Token, String> {
        // Over before the attempt to connect is, so that this is what is told.
        let limit = self.upstream.connect_timeout * 4 / 5;
        let fetching = async {
            let server = match state.server.take() {
                Some(server) => state.server.insert(server),
                None => state.server.insert(self.find_server().await?),
            };
            let granted = server.manager.exchange_client_credentials(&server.credentials).await?;
            Ok(Token::new(granted.access_token().secret(), granted.expires_in()))
        };
        match timeout(limit, fetching).await {
            Ok(fetched) => fetched.map_err(|error: AuthError| error.to_string()),
            Err(_) => Err(format!("the authorization server did not answer within {limit:?}")),
        }
    }

    async fn find_server(&self) -> Result<Server, AuthError> {
        let base = match &self.config.server {
            AuthorizationServer::Issuer(issuer) => issuer,
            AuthorizationServer::OfUpstream | AuthorizationServer::TokenUrl(_) => &self.resource,
        };
        let client = Arc::new(BoundedClient(self.upstream.clone()));
        let mut manager = AuthorizationManager::new_with_oauth_http_client(base.as_str(), client).await?;
        let mut metadata = match &self.config.server {
            AuthorizationServer::TokenUrl(url) => metadata_of(url),
            AuthorizationServer::Issuer(_) | AuthorizationServer::OfUpstream => self.discover(base, &manager).await?,
        };
        if let Some(method) = self.config.authentication {
            metadata.additional_fields.insert(METHODS_SUPPORTED.to_owned(), json!([name_of(method)]));
        }
        let mut scopes = self.config.scopes.clone();
        if scopes.is_empty() && self.config.server == AuthorizationServer::OfUpstream {
            scopes = manager.select_initial_scopes(&[]).await;
            // It asks for a refresh token, which client credentials stand in for.
            scopes.retain(|scope| scope != "offline_access");
        }
        let credentials = ClientCredentialsConfig::ClientSecret {
            client_id: self.config.client_id.clone(),
            client_secret: self.config.client_secret.expose().to_owned(),
            scopes,
            resource: Some(self.resource.clone()),
        };
        manager.set_metadata(metadata);
        manager.validate_client_credentials_metadata(&credentials)?;
        manager.configure_client_credentials(&credentials)?;
        Ok(Server { manager, credentials })
    }

    async fn discover(&self, base: &str, manager: &AuthorizationManager) -> Result<AuthorizationMetadata, AuthError> {
        let found = manager.resolve_metadata().await?;
        if !found.source.is_discovered() {
            let reason = format!("`{base}` names no authorization server; give `issuer` or `token_url`");
            return Err(AuthError::MetadataError(reason));
        }
        let metadata = found.metadata;
        if let AuthorizationServer::Issuer(expected) = &self.config.server {
            let received = metadata.issuer.as_deref().unwrap_or_default();
            if received.trim_end_matches('/') != expected.trim_end_matches('/') {
                let reason = format!("the metadata of `{expected}` are those of `{received}`");
                return Err(AuthError::MetadataError(reason));
            }
        }
        if !may_have_our_secret(base, &metadata.token_endpoint) {
            let reason = format!("tokens come from `{}`, where a secret is not safe", metadata.token_endpoint);
            return Err(AuthError::MetadataError(reason));
        }
        tracing::info!(upstream = %self.upstream.id, token_endpoint = metadata.token_endpoint, "found its authorization server");
        Ok(metadata)
    }
}

impl State {
    /// The token, unless `end` of its life is over at `now`.
    fn token_until(&self, now: Instant, end: impl Fn(&Token) -> Option<Instant>) -> Option<Secret> {
        let token = self.token.as_ref()?;
        end(token).is_none_or(|end| now < end).then(|| token.value.clone())
    }
}

impl Token {
    fn new(value: &str, lifetime: Option<Duration>) -> Self {
        let now = Instant::now();
        Self {
            value: Secret::new(value),
            renew_at: lifetime.map(|lifetime| now + renew_after(lifetime)),
            expires_at: lifetime.map(|lifetime| now + lifetime),
        }
    }
}

/// The most of its life, and of a short one at least half.
fn renew_after(lifetime: Duration) -> Duration {
    lifetime.saturating_sub(RENEW_BEFORE).max(lifetime / 2)
}

/// Of a server whose metadata nobody asks for. RFC 6749, 2.3.1: each one must take HTTP Basic.
fn metadata_of(token_url: &str) -> AuthorizationMetadata {
    let mut metadata = AuthorizationMetadata::default();
    token_url.clone_into(&mut metadata.token_endpoint);
    // rmcp wants one, which this grant never uses.
    token_url.clone_into(&mut metadata.authorization_endpoint);
    let methods = json!([name_of(ClientAuthentication::ClientSecretBasic)]);
    metadata.additional_fields.insert(METHODS_SUPPORTED.to_owned(), methods);
    metadata
}

fn name_of(method: ClientAuthentication) -> &'static str {
    match method {
        ClientAuthentication::ClientSecretBasic => "client_secret_basic",
        ClientAuthentication::ClientSecretPost => "client_secret_post",
    }
}

/// Whether an endpoint that metadata name may be sent our secret: an encrypted one, or one where the configuration lets us
/// speak plainly already.
fn may_have_our_secret(configured: &str, endpoint: &str) -> bool {
    let (Ok(base), Ok(url)) = (Url::parse(configured), Url::parse(endpoint)) else { return false };
    let is_here = is_loopback(configured) && is_loopback(endpoint);
    url.scheme() == "https"
        || (url.scheme() == "http" && base.scheme() == "http" && (is_here || base.host() == url.host()))
}

/// Makes rmcp's requests within our limits. Redirects are left to rmcp.
struct BoundedClient(UpstreamConfig);

impl OAuthHttpClient for BoundedClient {
    fn execute(&self, request: OAuthHttpRequest) -> OAuthHttpClientFuture<'_> {
        Box::pin(async move {
            let request = reqwest::Request::try_from(request.request)?;
            let mut url = request.url().clone();
            // It may have a key in it.
            url.set_query(None);
            let response = self.answer(request).await;
            if let Err(error) = &response {
                let error = root_cause(&**error);
                tracing::warn!(upstream = %self.id(), %url, error, "a request for authorization failed");
            }
            response
        })
    }
}

impl BoundedClient {
    /// Made anew each time, since whether there is a proxy depends on the host; it is asked seldom.
    async fn answer(&self, request: reqwest::Request) -> Result<http::Response<Vec<u8>>, OAuthHttpClientError> {
        let limit = self.0.connect_timeout;
        let client = builder(&self.0, request.url().as_str()).timeout(limit);
        let client = client.redirect(reqwest::redirect::Policy::none()).build()?;
        let mut response = client.execute(request).await?;
        let mut answer = http::Response::builder().status(response.status());
        for (name, value) in response.headers() {
            answer = answer.header(name, value);
        }
        let mut body = Vec::new();
        // A stream of events is what an upstream without authorization answers a GET with; it need not end.
        let is_stream = response
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
        while !is_stream && let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > MAX_BODY_BYTES {
                return Err(format!("the answer is longer than {MAX_BODY_BYTES} bytes").into());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(answer.body(body)?)
    }

    fn id(&self) -> &UpstreamId {
        &self.0.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_before_it_expires_and_a_short_one_is_used_for_half_its_life() {
        for (lifetime, expected) in [(3600, 3570), (60, 30), (40, 20), (10, 5), (0, 0)] {
            assert_eq!(renew_after(Duration::from_secs(lifetime)), Duration::from_secs(expected), "{lifetime}");
        }
    }

    #[test]
    fn a_secret_goes_nowhere_in_the_clear_that_was_not_configured_so() {
        for (configured, endpoint, expected) in [
            ("https://mcp.example/mcp", "https://login.example/token", true),
            ("http://mcp.internal:8080/mcp", "https://login.example/token", true),
            ("http://mcp.internal:8080/mcp", "http://mcp.internal:9000/token", true),
            ("http://127.0.0.1:1/mcp", "http://localhost:2/token", true),
            ("https://mcp.example/mcp", "http://mcp.example/token", false),
            ("http://mcp.internal/mcp", "http://login.internal/token", false),
            ("https://mcp.example/mcp", "http://localhost/token", false),
            ("http://localhost/mcp", "file:///etc/passwd", false),
            ("http://localhost/mcp", "no url", false),
        ] {
            assert_eq!(may_have_our_secret(configured, endpoint), expected, "{configured} {endpoint}");
        }
    }
}
