//! Anthropic's Messages API over the same models: `POST /v1/messages` and `POST /v1/messages/count_tokens`.
//!
//! `request` checks what clients write, `message` is what they read, `events` renders it as it grows, `error` puts every
//! error of these routes into Anthropic's shape. What runs is `openai::generation`, as for the other endpoints.

mod error;
mod events;
mod message;
mod messages;
mod request;
#[cfg(test)]
mod tests;

pub(crate) use error::ErrorBody;
pub use error::{REQUEST_ID, render_errors};
pub use messages::{count_tokens, create_message};
pub(crate) use messages::{describe_count_tokens, describe_create_message};
