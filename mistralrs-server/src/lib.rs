//! The process: reads configuration, builds engine and gateway, serves, drains.
//!
//! Reading order: [`cli`] and [`config`] are what people write, [`process`] the life of the process, [`app`] the route table,
//! [`openai`] and [`anthropic`] the handlers, [`openapi`] the document of what they do. `http_mcp` is the MCP endpoint, `adapters` joins engine and gateway.
//!
//! **Never** here: tensors, scheduling, the protocol of upstream servers.

mod access_log;
#[cfg(feature = "http-mcp-stream")]
pub mod adapters;
pub mod anthropic;
pub mod api_keys;
pub mod app;
pub mod bench;
pub mod cli;
pub mod config;
pub mod error;
pub mod extract;
pub mod health;
#[cfg(feature = "http-mcp-stream")]
pub mod http_mcp;
pub mod hub;
pub mod listener;
#[cfg(feature = "http-mcp-stream")]
pub mod mcp_command;
#[cfg(feature = "http-mcp-stream")]
mod mcp_endpoint;
pub mod metrics;
pub mod openai;
mod openapi;
pub mod process;
pub mod request_id;
mod stalled_writes;
