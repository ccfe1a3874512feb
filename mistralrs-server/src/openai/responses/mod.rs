//! `/v1/responses`: one answer to a conversation, which can be kept, continued by its id, and run in the background.
//!
//! `request` and `item` check what clients write, `object` is what they read. `create` has an `answer` made of pieces:
//! whole, as `events`, or in the `background`. `store` keeps it within limits, `stored` serves what is kept.

mod answer;
mod background;
mod create;
mod events;
mod item;
mod object;
mod request;
mod store;
mod stored;
#[cfg(test)]
mod tests;

pub use create::create_response;
pub(crate) use create::describe_create_response;
pub use store::ResponseStore;
pub use stored::{cancel_response, delete_response, list_input_items, retrieve_response};
pub(crate) use stored::{
    describe_cancel_response, describe_delete_response, describe_list_input_items, describe_retrieve_response,
};
