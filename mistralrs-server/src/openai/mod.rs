//! The OpenAI API: chat and text completions, responses, embeddings, models, and vLLM's tokenizer routes.
//!
//! A handler extracts, routes, submits and renders. `messages`, `options` and
//! `sampling_options` check what clients write, `types` and `logprobs` are what they read, `generation` is the running answer, `sse` renders
//! it as it grows.

mod chat_completions;
mod completions;
mod embeddings;
pub(crate) mod generation;
mod logprobs;
pub(crate) mod messages;
mod models;
pub(crate) mod options;
mod ranking;
mod responses;
mod sampling_options;
pub(crate) mod sse;
#[cfg(test)]
mod tests;
mod tokenize;
pub(crate) mod types;

pub use chat_completions::chat_completions;
pub use completions::completions;
pub use embeddings::embeddings;
pub use models::{list_models, retrieve_model};
pub use responses::{
    ResponseStore, cancel_response, create_response, delete_response, list_input_items, retrieve_response,
};
pub use tokenize::{detokenize, tokenize};
