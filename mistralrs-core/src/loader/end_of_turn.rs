//! Tokens that end a turn of chat beside the declared end of text.

/// Texts that chat models end a turn with. A file's single `eos_token_id` is often that of the base model, so any of
/// these that is a special token of the vocabulary ends a generation too, as it does in llama.cpp.
const END_OF_TURN: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
];

/// Whether a special token of this text ends a turn.
pub(super) fn ends_turn(text: &str) -> bool {
    END_OF_TURN.contains(&text)
}
