//! A model's chat template: messages to prompt text.
//!
//! Templates are Jinja2 programs written for `transformers`' `apply_chat_template`, whose environment
//! `environment` rebuilds on minijinja. They differ in what shape of message they can read; `messages` finds
//! out by trying, once, when the template is loaded.

mod environment;
mod json;
mod messages;
mod template;

#[cfg(test)]
mod tests;

pub use template::{ChatTemplate, MAX_RENDERED_BYTES, MAX_TEMPLATE_BYTES};
