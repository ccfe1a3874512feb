//! What the integration tests share: a running server, clients and upstreams that no one here wrote, and
//! readings of `/metrics` and `/proc`.
#![allow(dead_code, reason = "each test binary uses its own part of this module")]

pub mod gguf;
pub mod http;
pub mod mcp;
pub mod metrics;
pub mod process;
pub mod prometheus;
pub mod random;
pub mod server;
pub mod sse;
pub mod tools;
pub mod upstreams;

pub use http::Http;
pub use server::Launch;
