//! Log-probabilities in the two shapes that OpenAI has for them.

use mistralrs_core::request::TokenLogprob;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// JSON has no infinity: a token that cannot be drawn has this log-probability, as in vLLM.
const IMPOSSIBLE: f32 = -9999.0;

/// The chat endpoint's: `{"content": [{token, logprob, bytes, top_logprobs}]}`.
#[derive(Debug, Default, Serialize)]
pub(super) struct ChatLogprobs {
    content: Vec<ChatLogprob>,
}

#[derive(Debug, Serialize)]
struct ChatLogprob {
    #[serde(flatten)]
    token: ChatToken,
    top_logprobs: Vec<ChatToken>,
}

#[derive(Debug, Serialize)]
struct ChatToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    /// Adds the tokens of one piece of text.
    pub fn extend(&mut self, tokens: &[TokenLogprob]) {
        self.content.extend(tokens.iter().map(|token| ChatLogprob {
            token: ChatToken::from(token),
            top_logprobs: token.top.iter().map(ChatToken::from).collect(),
        }));
    }
}

impl From<&TokenLogprob> for ChatToken {
    fn from(token: &TokenLogprob) -> Self {
        Self { token: token.text.clone(), logprob: finite(token.logprob), bytes: token.bytes.clone() }
    }
}

/// The text endpoint's: four lists of one length.
#[derive(Debug, Default, Serialize)]
pub(super) struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<Map<String, Value>>,
    text_offset: Vec<usize>,
}

impl TextLogprobs {
    /// Adds the tokens of one piece of text; `offset` counts the characters before them and is moved on.
    pub fn extend(&mut self, tokens: &[TokenLogprob], offset: &mut usize) {
        for token in tokens {
            self.tokens.push(token.text.clone());
            self.token_logprobs.push(finite(token.logprob));
            let top = token.top.iter().map(|top| (top.text.clone(), json!(finite(top.logprob))));
            self.top_logprobs.push(top.collect());
            self.text_offset.push(*offset);
            *offset += token.text.chars().count();
        }
    }
}

fn finite(logprob: f32) -> f32 {
    logprob.max(IMPOSSIBLE)
}
