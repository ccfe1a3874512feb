//! How we authenticate to an upstream, as people write it.

use serde::Deserialize;

use super::sections::Secret;

/// `auth = { type = "bearer", token = "…" }`, or `{ type = "oauth", client_id = "…", client_secret = "…" }`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "AuthSection")]
pub enum AuthConfig {
    /// `Authorization: Bearer <token>`.
    Bearer {
        /// The token.
        token: Secret,
    },
    /// A token that an authorization server gives this program for its own name and secret (client credentials).
    OAuth {
        /// Our name at the authorization server.
        client_id: String,
        /// Our secret there.
        client_secret: Secret,
        /// Whose metadata say where tokens come from. Default: the authorization server that the upstream names.
        issuer: Option<String>,
        /// Where tokens come from, if nothing needs to be found out.
        token_url: Option<String>,
        /// What the token is for. Default: what the upstream says that it needs.
        scopes: Vec<String>,
        /// How the secret is sent: `client_secret_basic` or `client_secret_post`. Default: as the server's metadata
        /// say; with `token_url`, `client_secret_basic`.
        token_endpoint_auth_method: Option<ClientAuthentication>,
    },
}

/// How a client proves its name to an authorization server, as RFC 7591 calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuthentication {
    /// HTTP Basic.
    ClientSecretBasic,
    /// Fields of the form.
    ClientSecretPost,
}

/// All keys of all types: serde names the key of a wrong value only in a plain struct.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthSection {
    #[serde(rename = "type")]
    kind: AuthType,
    token: Option<Secret>,
    client_id: Option<String>,
    client_secret: Option<Secret>,
    issuer: Option<String>,
    token_url: Option<String>,
    scopes: Option<Vec<String>>,
    token_endpoint_auth_method: Option<ClientAuthentication>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum AuthType {
    Bearer,
    #[serde(alias = "oauth2")]
    OAuth,
}

impl TryFrom<AuthSection> for AuthConfig {
    type Error = String;

    fn try_from(section: AuthSection) -> Result<Self, Self::Error> {
        let needed = |key: &str| format!("`{key}` is missing");
        match section.kind {
            AuthType::Bearer => {
                section.refuse_oauth()?;
                Ok(Self::Bearer { token: section.token.ok_or_else(|| needed("token"))? })
            }
            AuthType::OAuth if section.token.is_some() => {
                Err("`token` belongs to the type `bearer`; with `oauth` it comes from a server".to_owned())
            }
            AuthType::OAuth => Ok(Self::OAuth {
                client_id: section.client_id.ok_or_else(|| needed("client_id"))?,
                client_secret: section.client_secret.ok_or_else(|| needed("client_secret"))?,
                issuer: section.issuer,
                token_url: section.token_url,
                scopes: section.scopes.unwrap_or_default(),
                token_endpoint_auth_method: section.token_endpoint_auth_method,
            }),
        }
    }
}

impl AuthSection {
    fn refuse_oauth(&self) -> Result<(), String> {
        let keys = [
            ("client_id", self.client_id.is_some()),
            ("client_secret", self.client_secret.is_some()),
            ("issuer", self.issuer.is_some()),
            ("token_url", self.token_url.is_some()),
            ("scopes", self.scopes.is_some()),
            ("token_endpoint_auth_method", self.token_endpoint_auth_method.is_some()),
        ];
        match keys.into_iter().find(|(_, is_present)| *is_present) {
            Some((key, _)) => Err(format!("`{key}` belongs to the type `oauth`")),
            None => Ok(()),
        }
    }
}
