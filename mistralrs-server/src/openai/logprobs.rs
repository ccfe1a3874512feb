//! Log-probabilities in the two shapes that OpenAI has for them.

use std::collections::BTreeMap;

use mistralrs_core::request::TokenLogprob;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

/// JSON has no infinity: a token that cannot be drawn has this log-probability, as in vLLM.
const IMPOSSIBLE: f32 = -9999.0;

/// The chat endpoint's: `{"content": [{token, logprob, bytes, top_logprobs}]}`.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(super) struct ChatLogprobs {
    content: Vec<ChatLogprob>,
}

/// A token with its alternatives, as chat completions and responses have it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct ChatLogprob {
    #[serde(flatten)]
    token: ChatToken,
    top_logprobs: Vec<ChatToken>,
}

#[derive(Debug, Clone, Serialize, JsonSchema)]
struct ChatToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    /// Adds the tokens of one piece of text.
    pub fn extend(&mut self, tokens: &[TokenLogprob]) {
        self.content.extend(tokens.iter().map(ChatLogprob::from));
    }
}

impl From<&TokenLogprob> for ChatLogprob {
    fn from(token: &TokenLogprob) -> Self {
        Self { token: token.into(), top_logprobs: token.top.iter().map(ChatToken::from).collect() }
    }
}

impl From<&TokenLogprob> for ChatToken {
    fn from(token: &TokenLogprob) -> Self {
        Self { token: token.text.clone(), logprob: finite(token.logprob), bytes: token.bytes.clone() }
    }
}

/// The text endpoint's: four lists of one length.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(super) struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    #[schemars(with = "Vec<BTreeMap<String, f32>>")]
    top_logprobs: Vec<TopLogprobs>,
    text_offset: Vec<usize>,
}

impl TextLogprobs {
    /// Adds the tokens of one piece of text; `offset` counts the characters before them and is moved on.
    pub fn extend(&mut self, tokens: &[TokenLogprob], offset: &mut usize) {
        for token in tokens {
            self.tokens.push(token.text.clone());
            self.token_logprobs.push(finite(token.logprob));
            self.top_logprobs.push(TopLogprobs::new(&token.top));
            self.text_offset.push(*offset);
            *offset += token.text.chars().count();
        }
    }
}

/// Text to log-probability, likeliest first.
#[derive(Debug)]
struct TopLogprobs(Vec<(String, f32)>);

impl TopLogprobs {
    /// Tokens that are parts of characters may have the same text; the likeliest stands for them.
    fn new(tokens: &[TokenLogprob]) -> Self {
        let mut entries: Vec<(String, f32)> = Vec::with_capacity(tokens.len());
        for token in tokens {
            if !entries.iter().any(|(text, _)| *text == token.text) {
                entries.push((token.text.clone(), finite(token.logprob)));
            }
        }
        Self(entries)
    }
}

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(text, logprob)| (text, logprob)))
    }
}

fn finite(logprob: f32) -> f32 {
    logprob.max(IMPOSSIBLE)
}
