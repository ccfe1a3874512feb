//! The OpenAI API: chat and text completions, responses, embeddings, models, and vLLM's tokenizer routes.
//!
//! A handler extracts, routes, submits and renders. `messages`, `options`, `sampling_options` and `labels` check what
//! clients write, `types` and `logprobs` are what they read, `generation` is the running answer, `sse` renders it as it
//! grows. Functions named `describe_…` say in the API's document what the handler of that name does.

mod chat_completions;
mod completions;
mod embeddings;
pub(crate) mod generation;
mod labels;
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
pub(crate) use chat_completions::describe_chat_completions;
pub use completions::completions;
pub(crate) use completions::describe_completions;
pub(crate) use embeddings::describe_embeddings;
pub use embeddings::embeddings;
pub(crate) use models::{describe_list_models, describe_retrieve_model};
pub use models::{list_models, retrieve_model};
pub use responses::{
    ResponseStore, cancel_response, create_response, delete_response, list_input_items, retrieve_response,
};
pub(crate) use responses::{
    describe_cancel_response, describe_create_response, describe_delete_response, describe_list_input_items,
    describe_retrieve_response,
};
pub(crate) use tokenize::{describe_detokenize, describe_tokenize};
pub use tokenize::{detokenize, tokenize};
