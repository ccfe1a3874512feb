//! What people write about upstream servers; every key has unit, effect, default.
//!
//! Text becomes a value, variables are put in, the value becomes sections ([`McpClientConfig`],
//! [`ToolForwardingConfig`]), and these become the [`GatewayConfig`] that everything else holds: nothing behind it
//! checks again. Files of other programs ([`parse_mcp_config`]) become the same sections.

mod checked;
mod error;
mod file;
mod foreign;
mod interpolate;
mod sections;
// Most of them look at what upstreams come out, and a build without forwarding refuses any.
#[cfg(test)]
#[cfg(feature = "tool-forwarding")]
mod tests;

pub use checked::{
    GatewayConfig, HttpConfig, Namespace, NamingConfig, StdioConfig, ToolListing, TransportConfig, UpstreamConfig,
    UpstreamId,
};
pub use error::ConfigError;
pub use file::{FileFormat, mcp_config_from_value, parse_mcp_config};
pub use interpolate::{Environment, interpolate};
pub use sections::{
    AuthConfig, McpClientConfig, NamespaceStrategy, NotYet, SearchConfig, Secret, SecurityConfig, Separator,
    ServerConfig, ToolForwardingConfig, TransportName,
};
