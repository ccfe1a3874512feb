//! The MCP gateway: one catalog of tools over many upstream servers and the local model.
//!
//! Reading order: [`gateway`] is the door, [`mcp_server`] the side downstreams see,
//! `upstream` the side upstreams see, [`config`] what people write.
//!
//! **Never** here: tensors, axum, sockets that listen.

pub mod config;
pub mod downstream;
pub mod error;
pub mod gateway;
pub mod local_offers;
pub mod local_sampler;
pub mod local_tools;
pub mod mcp_server;
pub mod metrics;
mod reliability;
#[cfg(feature = "tool-forwarding")]
mod upstream;

pub use downstream::{Downstream, DownstreamId};
pub use error::GatewayError;
pub use gateway::{CallContext, Gateway, Local, Principal, ToolCall, UpstreamStatus};
pub use local_offers::{GatewayStatus, LocalOfferError, LocalOffers, NATIVE_SCHEME};
pub use local_sampler::LocalSampler;
pub use local_tools::{LocalTool, LocalToolError, LocalTools, ProgressSink, ProgressUpdate};
pub use mcp_server::handler::GatewayHandler;
pub use mcp_server::search_tool::{Detail, ToolQuery};
pub use metrics::GatewayMetrics;
pub use rmcp;
