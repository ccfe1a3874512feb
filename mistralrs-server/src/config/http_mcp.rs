//! What the MCP endpoint is told: addresses, keys, who may call from where, how often and how much.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

/// Everything the MCP endpoint knows of the configuration. Checked: a non-loopback address always comes with keys.
#[derive(Debug, Clone)]
pub struct HttpMcpConfig {
    /// Where it listens (`--http-mcp-port`).
    pub addr: SocketAddr,
    /// A second listener with the same routes, under the older spelling (`--mcp-port`).
    pub older_addr: Option<SocketAddr>,
    /// Bearer tokens that may call; empty: anybody who reaches the (loopback) address.
    pub api_keys: Vec<String>,
    /// Values of `Origin` that may call from a browser, besides loopback ones. `*` allows all.
    pub allowed_origins: Vec<String>,
    /// Methods that a browser may use across origins; empty: those the endpoint has.
    pub allowed_methods: Vec<String>,
    /// Values of `Host` that are answered besides loopback ones and `addr`'s own; `*` allows all.
    pub allowed_hosts: Vec<String>,
    /// `None`: unlimited.
    pub rate_limit: Option<RateLimitConfig>,
    /// Bytes one request body may have; more is 413.
    pub max_body_bytes: usize,
    /// Sessions at once; more get 503.
    pub max_sessions: usize,
    /// A session that no request and no open stream used for this long is closed.
    pub session_idle_limit: Duration,
    /// Routes that speak MCP, each with a leading slash.
    pub paths: Vec<String>,
}

/// Requests a second; `None`: that one is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RateLimitConfig {
    /// Over all callers.
    pub global: Option<NonZeroU32>,
    /// For each API key.
    pub per_key: Option<NonZeroU32>,
    /// For each address, requests without a key.
    pub per_ip: Option<NonZeroU32>,
}
