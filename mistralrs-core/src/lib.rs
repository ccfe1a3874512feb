//! The engine: loading, models, scheduler, sampler.
//!
//! Reading order: [`model::Model`] is what a server holds, [`request`] what it submits,
//! [`engine`] the loop, [`scheduler`] what each step runs, [`speculation`] what it guesses, [`sampling`] how a token
//! is picked, [`pooling`] how a text becomes a vector, [`loader`] how weights, tokenizer and template come off the disk.
//!
//! **Never** here: sockets, HTTP types, MCP, environment variables.

mod admission;
pub mod config;
pub mod detokenizer;
mod embedding;
mod engine;
pub mod error;
mod free_memory;
mod generation;
mod host_copy;
mod kv_budget;
pub mod layers;
pub mod loader;
pub mod metrics;
pub mod model;
pub mod model_router;
pub mod models;
mod packing;
pub mod pooling;
mod prefill_pace;
pub mod request;
pub mod sampling;
pub mod scheduler;
pub mod sequence;
mod speculation;
mod stream;
mod token_width;

pub use config::EngineConfig;
pub use embedding::{Embeddings, MAX_EMBED_INPUTS};
pub use error::{EmbedError, LoadError, RequestError};
pub use metrics::EngineMetrics;
pub use model::Model;
pub use model_router::ModelRouter;
pub use pooling::Pooling;
pub use request::{
    EmbedRequest, FinishReason, GenerateRequest, Priority, Prompt, SamplingParams, StopConditions, TextEvent,
    TextStream,
};
pub use speculation::{Draft, DraftCost};
