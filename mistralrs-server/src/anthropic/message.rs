//! What clients read: a message, made of pieces.

use mistralrs_core::FinishReason;
use mistralrs_core::request::Usage;
use schemars::JsonSchema;
use serde::Serialize;

use crate::openai::generation::Piece;
use crate::openai::types::fresh_id;

/// An answer, whole or as it begins.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Message {
    id: String,
    #[schemars(extend("const" = "message"))]
    r#type: &'static str,
    #[schemars(extend("const" = "assistant"))]
    role: &'static str,
    model: String,
    content: Vec<TextBlock>,
    stop_reason: Option<StopReason>,
    stop_sequence: Option<String>,
    usage: MessageUsage,
}

/// The only kind of content.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct TextBlock {
    #[schemars(extend("const" = "text"))]
    r#type: &'static str,
    text: String,
}

/// Why a message ended.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum StopReason {
    /// The model was done.
    EndTurn,
    /// `max_tokens`.
    MaxTokens,
    /// One of `stop_sequences`, which `stop_sequence` names.
    StopSequence,
}

/// How a message ended.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Ending {
    pub stop_reason: Option<StopReason>,
    pub stop_sequence: Option<String>,
}

/// What a message used, in tokens. The prompt is the sum of the three that speak of input: Anthropic's way to count.
#[expect(clippy::struct_field_names, reason = "names of the wire")]
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub(super) struct MessageUsage {
    /// Of the prompt, without those from the cache.
    input_tokens: usize,
    /// Writes to the cache are free here and not counted.
    cache_creation_input_tokens: usize,
    /// Of the prompt, those from the cache.
    cache_read_input_tokens: usize,
    output_tokens: usize,
}

impl From<Usage> for MessageUsage {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.num_prompt_tokens - usage.num_cached_tokens,
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: usage.num_cached_tokens,
            output_tokens: usage.num_completion_tokens,
        }
    }
}

impl TextBlock {
    /// A block with `text`.
    pub fn new(text: String) -> Self {
        Self { r#type: "text", text }
    }
}

impl Message {
    /// A message of `model` without content. How much of the prompt comes from the cache is not known before it ends.
    pub fn new(model: &str, num_prompt_tokens: usize) -> Self {
        Self {
            id: fresh_id("msg"),
            r#type: "message",
            role: "assistant",
            model: model.to_owned(),
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            usage: Usage { num_prompt_tokens, ..Usage::default() }.into(),
        }
    }

    /// Takes a piece in.
    pub fn accept(&mut self, piece: Piece) {
        match piece {
            Piece::Text { text, .. } if text.is_empty() => {}
            Piece::Text { text, .. } => match self.content.last_mut() {
                Some(block) => block.text.push_str(&text),
                None => self.content.push(TextBlock::new(text)),
            },
            Piece::End { reason, stop_string, .. } => {
                let Ending { stop_reason, stop_sequence } = Ending::new(reason, stop_string);
                (self.stop_reason, self.stop_sequence) = (stop_reason, stop_sequence);
            }
        }
    }

    /// The whole message.
    pub fn end(mut self, usage: Usage) -> Self {
        self.usage = usage.into();
        self
    }
}

impl Ending {
    /// `stop_string` is the one that ended the text, if one did.
    pub fn new(reason: FinishReason, stop_string: Option<String>) -> Self {
        let stop_reason = match (reason, &stop_string) {
            (FinishReason::Length, _) => StopReason::MaxTokens,
            (_, Some(_)) => StopReason::StopSequence,
            (_, None) => StopReason::EndTurn,
        };
        Self { stop_reason: Some(stop_reason), stop_sequence: stop_string }
    }
}

/// The answer to `/v1/messages/count_tokens`.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct TokenCount {
    pub input_tokens: usize,
}
