//! The incremental detokenizer of one choice.

use std::sync::Arc;

use super::stop_strings::StopStrings;
use super::vocabulary::Vocabulary;

/// Turns one choice's tokens into text that may be sent: only complete characters, and nothing of what may become
/// a stop string.
///
/// All pieces together, [`finish`](Self::finish)'s included, are the text of all tokens: special tokens left out, each
/// invalid UTF-8 sequence replaced by U+FFFD. Where a stop string is found they are the text before it; of several,
/// the one that is complete first counts, and of those complete at the same byte the longest.
pub struct Detokenizer {
    vocabulary: Arc<Vocabulary>,
    stop_strings: StopStrings,
    /// The start of a character whose other bytes are to come: at most 3 bytes.
    incomplete: Vec<u8>,
    /// Text that may be the beginning of a stop string.
    held: String,
    start: TextStart,
    /// Tokens to come in which stop strings are ordinary text.
    num_unstoppable: usize,
    is_stopped: bool,
}

/// What precedes the first token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextStart {
    /// Nothing: the space that some tokenizers put before the first word is dropped.
    Beginning,
    /// A prompt that the text continues: a leading space belongs to it.
    AfterPrompt,
}

/// Text to send, possibly empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// More may follow.
    Text(String),
    /// A stop string was found; the choice ends here.
    Stop {
        /// The text before it.
        text: String,
        /// Which one.
        stop_string: String,
    },
}

impl Detokenizer {
    /// A detokenizer for one choice; `stop_strings` as checked by
    /// [`StopConditions::validate`](crate::request::StopConditions::validate).
    pub fn new(vocabulary: Arc<Vocabulary>, stop_strings: &[String], start: TextStart) -> Self {
        Self {
            vocabulary,
            stop_strings: StopStrings::new(stop_strings),
            incomplete: Vec::new(),
            held: String::new(),
            start,
            num_unstoppable: 0,
            is_stopped: false,
        }
    }

    /// Lets no stop string end the text that is complete within the first `min_tokens` tokens
    /// ([`StopConditions::min_tokens`](crate::request::StopConditions)).
    #[must_use]
    pub fn with_min_tokens(self, min_tokens: usize) -> Self {
        Self { num_unstoppable: min_tokens, ..self }
    }

    /// The text that `token_id` completes. Ids outside the vocabulary have none. After [`Piece::Stop`] there is no
    /// more text.
    pub fn push(&mut self, token_id: u32) -> Piece {
        let piece = self.push_text_of(token_id);
        self.num_unstoppable = self.num_unstoppable.saturating_sub(1);
        piece
    }

    fn push_text_of(&mut self, token_id: u32) -> Piece {
        if self.vocabulary.is_special(token_id) || self.is_stopped {
            return Piece::Text(String::new());
        }
        let vocabulary = Arc::clone(&self.vocabulary);
        let mut bytes = vocabulary.bytes(token_id);
        if self.start == TextStart::Beginning && !bytes.is_empty() {
            bytes = vocabulary.strip_leading_space(bytes);
            self.start = TextStart::AfterPrompt;
        }
        self.incomplete.extend_from_slice(bytes);
        let text = take_complete(&mut self.incomplete);
        self.emit(&text)
    }

    /// What was held back, when no more tokens come.
    pub fn finish(&mut self) -> Piece {
        if self.is_stopped {
            return Piece::Text(String::new());
        }
        let incomplete = std::mem::take(&mut self.incomplete);
        match self.emit(&String::from_utf8_lossy(&incomplete)) {
            Piece::Text(mut text) => {
                text.push_str(&std::mem::take(&mut self.held));
                Piece::Text(text)
            }
            stopped @ Piece::Stop { .. } => stopped,
        }
    }

    fn emit(&mut self, text: &str) -> Piece {
        let num_held_before = self.held.len();
        self.held.push_str(text);
        if self.num_unstoppable > 0 {
            self.stop_strings.pass(text.as_bytes());
        } else if let Some(found) = self.stop_strings.advance(text) {
            self.is_stopped = true;
            self.held.truncate(num_held_before + found.end);
            let stop_string = self.held.split_off(self.held.len() - found.len);
            return Piece::Stop { text: std::mem::take(&mut self.held), stop_string };
        }
        let held = self.held.split_off(self.held.len() - self.stop_strings.num_held());
        Piece::Text(std::mem::replace(&mut self.held, held))
    }
}

/// Takes all of `bytes` but an incomplete character at their end; invalid sequences become U+FFFD as in
/// [`String::from_utf8_lossy`].
fn take_complete(bytes: &mut Vec<u8>) -> String {
    let mut num_incomplete = 0;
    if let Some(last) = bytes.utf8_chunks().last() {
        let invalid = last.invalid();
        // Only the end of the input makes a sequence incomplete rather than wrong.
        if std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none()) {
            num_incomplete = invalid.len();
        }
    }
    let incomplete = bytes.split_off(bytes.len() - num_incomplete);
    let complete = std::mem::replace(bytes, incomplete);
    String::from_utf8(complete).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}
