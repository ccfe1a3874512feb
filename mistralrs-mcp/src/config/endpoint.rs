//! Upstreams that are URLs: where they are, what is sent with each request, and how we authenticate.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};

use super::ConfigError;
use super::auth::{AuthConfig, ClientAuthentication};
use super::sections::{Secret, ServerConfig};

/// The protocol's own headers and those of the HTTP message itself.
const RESERVED_HEADERS: [&str; 10] = [
    "accept",
    "connection",
    "content-length",
    "content-type",
    "host",
    "last-event-id",
    "mcp-method",
    "mcp-name",
    "mcp-protocol-version",
    "mcp-session-id",
];

/// An endpoint with a URL.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpConfig {
    /// The endpoint.
    pub url: String,
    /// Sent with each request; values are marked sensitive.
    pub headers: HeaderMap,
    /// How we authenticate, if we do.
    pub auth: Option<HttpAuth>,
}

/// How we authenticate to an endpoint: by a token in `Authorization: Bearer`.
#[derive(Debug, Clone, PartialEq)]
pub enum HttpAuth {
    /// This one.
    Bearer(Secret),
    /// One that an authorization server gives us.
    OAuth(Box<OAuthConfig>),
}

/// Who we are to an authorization server, and which one that is.
#[derive(Debug, Clone, PartialEq)]
pub struct OAuthConfig {
    /// Our name there.
    pub client_id: String,
    /// How we prove it.
    pub client_secret: Secret,
    /// Where tokens come from.
    pub server: AuthorizationServer,
    /// What the token is for; empty: what the upstream says that it needs.
    pub scopes: Vec<String>,
    /// How the secret is sent, if not as the server's metadata say.
    pub authentication: Option<ClientAuthentication>,
}

/// How the authorization server is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthorizationServer {
    /// By what the upstream says of itself (RFC 9728).
    OfUpstream,
    /// By its own metadata (RFC 8414), whatever the upstream says.
    Issuer(String),
    /// It needs not to be found: tokens come from this URL.
    TokenUrl(String),
}

/// Checks what belongs to an endpoint whose URL has one of `schemes`.
///
/// # Errors
/// [`ConfigError`], with the key in the server's table.
pub(super) fn check(server: ServerConfig, schemes: [&str; 2]) -> Result<HttpConfig, ConfigError> {
    for (key, is_present) in
        [("args", !server.args.is_empty()), ("env", !server.env.is_empty()), ("cwd", server.cwd.is_some())]
    {
        if is_present {
            return Err(ConfigError::invalid(key, "belongs to `command`; this server has a `url`"));
        }
    }
    let url = server.url.unwrap_or_default();
    check_url("url", &url, schemes)?;
    let headers = check_headers(&server.headers)?;
    if server.auth.is_some() && headers.contains_key(header::AUTHORIZATION) {
        return Err(ConfigError::invalid("auth", "`headers` already holds Authorization"));
    }
    let auth = server.auth.map(check_auth).transpose().map_err(|error| error.within("auth"))?;
    Ok(HttpConfig { url, headers, auth })
}

fn check_url(key: &str, url: &str, schemes: [&str; 2]) -> Result<(), ConfigError> {
    let uri: Uri = url.parse().map_err(|error| ConfigError::invalid(key, format!("`{url}` is not a URL: {error}")))?;
    let is_one = uri.scheme_str().is_some_and(|scheme| schemes.contains(&scheme));
    if !is_one || uri.host().is_none_or(str::is_empty) {
        let [plain, secure] = schemes;
        let message = format!("`{url}` must begin with {plain}:// or {secure}:// and a host");
        return Err(ConfigError::invalid(key, message));
    }
    Ok(())
}

fn check_headers(headers: &BTreeMap<String, Secret>) -> Result<HeaderMap, ConfigError> {
    let mut checked = HeaderMap::new();
    for (name, value) in headers {
        let at = format!("headers.{name}");
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| ConfigError::invalid(&at, "is not the name of a header"))?;
        if RESERVED_HEADERS.contains(&name.as_str()) {
            return Err(ConfigError::invalid(&at, "is set by the protocol"));
        }
        let mut value = HeaderValue::from_str(value.expose())
            .map_err(|_| ConfigError::invalid(&at, "holds characters that no header can"))?;
        value.set_sensitive(true);
        checked.insert(name, value);
    }
    Ok(checked)
}

fn check_auth(auth: AuthConfig) -> Result<HttpAuth, ConfigError> {
    match auth {
        AuthConfig::Bearer { token } => {
            if token.expose().is_empty() || HeaderValue::from_str(token.expose()).is_err() {
                return Err(ConfigError::invalid("token", "is empty or holds characters that no header can"));
            }
            Ok(HttpAuth::Bearer(token))
        }
        AuthConfig::OAuth { client_id, client_secret, issuer, token_url, scopes, token_endpoint_auth_method } => {
            for (key, value) in [("client_id", client_id.as_str()), ("client_secret", client_secret.expose())] {
                if value.is_empty() {
                    return Err(ConfigError::invalid(key, "is empty"));
                }
            }
            let server = check_authorization_server(issuer, token_url)?;
            // RFC 6749, 3.3: they are sent as one text, with spaces between them.
            if let Some(scope) = scopes.iter().find(|scope| scope.is_empty() || scope.contains(char::is_whitespace)) {
                return Err(ConfigError::invalid("scopes", format!("`{scope}` is not one scope")));
            }
            let authentication = token_endpoint_auth_method;
            Ok(HttpAuth::OAuth(Box::new(OAuthConfig { client_id, client_secret, server, scopes, authentication })))
        }
    }
}

fn check_authorization_server(
    issuer: Option<String>,
    token_url: Option<String>,
) -> Result<AuthorizationServer, ConfigError> {
    const SCHEMES: [&str; 2] = ["http", "https"];
    match (issuer, token_url) {
        (Some(_), Some(_)) => {
            Err(ConfigError::invalid("issuer", "`token_url` says already where tokens come from: give one of both"))
        }
        (Some(issuer), None) => {
            check_url("issuer", &issuer, SCHEMES)?;
            Ok(AuthorizationServer::Issuer(issuer))
        }
        (None, Some(url)) => {
            check_url("token_url", &url, SCHEMES)?;
            Ok(AuthorizationServer::TokenUrl(url))
        }
        (None, None) => Ok(AuthorizationServer::OfUpstream),
    }
}
