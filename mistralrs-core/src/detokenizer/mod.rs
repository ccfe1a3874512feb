//! Token ids to text, one token at a time.
//!
//! A [`Vocabulary`] knows the bytes of every token and is made once per model. A [`Detokenizer`] belongs to one choice
//! and runs on its response task, never in the engine's loop; it costs a copy of the token's bytes per token,
//! however long the output is.

mod stop_strings;
mod stream;
mod vocabulary;

#[cfg(test)]
mod tests;

pub(crate) use stop_strings::StopStrings;
pub use stop_strings::{MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS};
pub use stream::{Detokenizer, Piece, TextStart};
pub use vocabulary::Vocabulary;
