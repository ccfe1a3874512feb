//! Text to token ids: the tokenizer in a model's files.
//!
//! A `tokenizer.json` says everything itself. GGUF keeps vocabulary, token types and merges or scores, and names
//! the rest (how text is split before merging, what is put before it) by one word, `tokenizer.ggml.pre`; what these
//! words mean is `pre_tokenizer`'s table. An unknown word is an error: a wrong split would load, run and answer,
//! only worse.

use std::path::Path;

use tokenizers::Tokenizer;

mod gguf;
mod pre_tokenizer;
mod sentencepiece;

#[cfg(test)]
mod tests;

pub use gguf::GgufTokenizer;

/// Reads a `tokenizer.json`.
///
/// # Errors
/// A sentence, where the file cannot be read or is not one.
pub fn from_file(path: &Path) -> Result<Tokenizer, String> {
    let mut tokenizer = Tokenizer::from_file(path).map_err(|error| error.to_string())?;
    // Settings of a training pipeline that some files carry along: prompts must not be cut or padded.
    tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}
