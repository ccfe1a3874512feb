//! What people write about upstream servers; every key has unit, effect, default.
//!
//! Text becomes a value, variables are put in, the value becomes sections ([`McpClientConfig`],
//! [`ToolForwardingConfig`]), and these become the [`GatewayConfig`] that everything else holds: nothing behind it
//! checks again. Files of other programs ([`parse_mcp_config`]) become the same sections.

mod aliases;
mod auth;
mod checked;
mod endpoint;
mod error;
mod file;
mod foreign;
mod interpolate;
mod sections;
// Most of them look at what upstreams come out, and a build without forwarding refuses any.
#[cfg(test)]
#[cfg(feature = "tool-forwarding")]
mod tests;

pub use aliases::Aliases;
pub use auth::{AuthConfig, ClientAuthentication};
pub use checked::{
    GatewayConfig, Namespace, NamingConfig, SamplingConfig, StdioConfig, ToolListing, TransportConfig, UpstreamConfig,
    UpstreamId,
};
pub use endpoint::{AuthorizationServer, HttpAuth, HttpConfig, OAuthConfig};
pub use error::ConfigError;
pub use file::{FileFormat, mcp_config_from_value, parse_mcp_config};
pub use interpolate::{Environment, interpolate};
pub use sections::{
    McpClientConfig, NamespaceStrategy, NotYet, ProtocolEra, SamplingMode, SearchConfig, Secret, SecurityConfig,
    Separator, ServerConfig, ToolForwardingConfig, TransportName,
};
