//! Finding the first stop string in text that arrives in pieces.

use crate::error::RequestError;
use crate::request::StopConditions;

/// Stop strings of one request. OpenAI allows 4; each is compared with every byte of output.
pub const MAX_STOP_STRINGS: usize = 64;
/// Length of one stop string: as much text may have to be held back.
pub const MAX_STOP_STRING_BYTES: usize = 4096;

impl StopConditions {
    /// Checks number and length of the stop strings.
    ///
    /// # Errors
    /// [`RequestError::Invalid`] with the limit.
    pub fn validate(&self) -> Result<(), RequestError> {
        let invalid = |message| Err(RequestError::Invalid { param: "stop", message });
        if self.strings.len() > MAX_STOP_STRINGS {
            return invalid(format!("{} stop strings; at most {MAX_STOP_STRINGS} are allowed", self.strings.len()));
        }
        for string in &self.strings {
            if string.is_empty() {
                return invalid("a stop string is empty; it must have at least one character".to_owned());
            }
            if string.len() > MAX_STOP_STRING_BYTES {
                let found = string.len();
                return invalid(format!(
                    "a stop string has {found} bytes; at most {MAX_STOP_STRING_BYTES} are allowed"
                ));
            }
        }
        Ok(())
    }
}

/// Follows all stop strings of one choice through its text, byte by byte (Knuth, Morris, Pratt 1977).
pub(crate) struct StopStrings(Vec<StopString>);

struct StopString {
    bytes: Vec<u8>,
    /// For each prefix length − 1: the longest proper prefix of the string that ends that prefix.
    fallbacks: Vec<usize>,
    /// Length of the longest prefix of the string that ends the text so far.
    num_matched: usize,
}

impl StopStrings {
    pub(crate) fn new(strings: &[String]) -> Self {
        Self(strings.iter().filter(|string| !string.is_empty()).map(|string| StopString::new(string)).collect())
    }

    /// Follows `text`; at the first byte that completes a stop string, returns the offset in `text` behind that byte
    /// and the string's length, the longest one's if several end there.
    pub(super) fn advance(&mut self, text: &str) -> Option<StopMatch> {
        for (offset, &byte) in text.as_bytes().iter().enumerate() {
            let mut longest = 0;
            for string in &mut self.0 {
                if string.advance(byte) {
                    longest = longest.max(string.bytes.len());
                }
            }
            if longest > 0 {
                return Some(StopMatch { end: offset + 1, len: longest });
            }
        }
        None
    }

    /// Follows `bytes` to their end, whatever they complete; whether that was any of the strings.
    pub(crate) fn pass(&mut self, bytes: &[u8]) -> bool {
        let mut has_completed = false;
        for &byte in bytes {
            for string in &mut self.0 {
                if string.advance(byte) {
                    has_completed = true;
                    string.num_matched = string.fallbacks[string.num_matched - 1];
                }
            }
        }
        has_completed
    }

    /// Bytes at the end of the text that may be the beginning of a stop string.
    pub(super) fn num_held(&self) -> usize {
        self.0.iter().map(|string| string.num_matched).max().unwrap_or(0)
    }
}

/// Where a stop string was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StopMatch {
    /// Behind its last byte, in the text that completed it.
    pub(super) end: usize,
    /// Its length; more than `end` where it began in earlier text.
    pub(super) len: usize,
}

impl StopString {
    fn new(string: &str) -> Self {
        let bytes = string.as_bytes().to_vec();
        let mut fallbacks = vec![0; bytes.len()];
        let mut len = 0;
        for at in 1..bytes.len() {
            while len > 0 && bytes[at] != bytes[len] {
                len = fallbacks[len - 1];
            }
            len += usize::from(bytes[at] == bytes[len]);
            fallbacks[at] = len;
        }
        Self { bytes, fallbacks, num_matched: 0 }
    }

    /// Whether `byte` completes the string. Must not be called again after it did.
    fn advance(&mut self, byte: u8) -> bool {
        while self.num_matched > 0 && self.bytes[self.num_matched] != byte {
            self.num_matched = self.fallbacks[self.num_matched - 1];
        }
        self.num_matched += usize::from(self.bytes[self.num_matched] == byte);
        self.num_matched == self.bytes.len()
    }
}
