//! The OpenAI API: chat and text completions, models, and vLLM's tokenizer routes.
//!
//! A handler extracts, routes, submits and renders. `messages`, `options` and
//! `sampling_options` check what clients write, `types` and `logprobs` are what they read, `generation` is the running answer, `sse` renders
//! it as it grows.

mod chat_completions;
mod completions;
mod generation;
mod logprobs;
mod messages;
mod models;
mod options;
mod ranking;
mod sampling_options;
mod sse;
#[cfg(test)]
mod tests;
mod tokenize;
mod types;

pub use chat_completions::chat_completions;
pub use completions::completions;
pub use models::{list_models, retrieve_model};
pub use tokenize::{detokenize, tokenize};
