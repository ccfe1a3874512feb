//! How few tokens a text can become, from its length alone: tokenizing megabytes takes seconds, and a text that cannot fit
//! the context whatever the tokenizer makes of it need not be tokenized to be refused.

use serde_json::Value;
use tokenizers::{ModelWrapper, Tokenizer};

use crate::detokenizer::Vocabulary;

/// By what composing characters may shorten a text in UTF-8: three times at most (Unicode Standard Annex #15, 1.6), and
/// one to spare.
const COMPOSITION: usize = 4;

/// The most bytes of text that one token of a tokenizer stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenWidth {
    widest: usize,
    /// By byte, whether it has a token; text may be dropped where it has none.
    is_known: [bool; 256],
}

impl TokenWidth {
    /// `None` where one token may stand for any amount of text, or any text may be dropped: then only tokenizing tells.
    pub fn of(tokenizer: &Tokenizer, vocabulary: &Vocabulary) -> Option<Self> {
        let added = tokenizer.get_added_tokens_decoder();
        // Such tokens take in all the spaces beside them.
        let takes_spaces = added.values().any(|token| token.lstrip || token.rstrip);
        if takes_spaces || tokenizer.get_truncation().is_some() {
            return None;
        }
        let is_known = known_bytes(tokenizer, vocabulary)?;
        let normalizer = serde_json::to_value(tokenizer.get_normalizer()).ok()?;
        // It may turn bytes that have a token into some that have none.
        if !normalizer.is_null() && is_known.contains(&false) {
            return None;
        }
        let shrinkage = shrinkage(&normalizer)?;
        if !keeps_all_text(&serde_json::to_value(tokenizer.get_pre_tokenizer()).ok()?) {
            return None;
        }
        let widest = (0..vocabulary.len()).map(|token_id| vocabulary.bytes(token_id as u32).len()).max()?;
        (widest > 0).then_some(Self { widest: widest * shrinkage, is_known })
    }

    /// Tokens that `text` becomes at least.
    pub fn min_tokens(&self, text: &str) -> usize {
        let num_known = text.bytes().filter(|byte| self.is_known[usize::from(*byte)]).count();
        num_known.div_ceil(self.widest)
    }
}

/// Which bytes have a token of their own: others may be dropped, or any number of them become one token. `None` where text
/// is not merged from such tokens.
fn known_bytes(tokenizer: &Tokenizer, vocabulary: &Vocabulary) -> Option<[bool; 256]> {
    let ModelWrapper::BPE(_) = tokenizer.get_model() else { return None };
    let mut is_known = [false; 256];
    for token_id in 0..vocabulary.len() as u32 {
        if let [byte] = vocabulary.bytes(token_id) {
            is_known[usize::from(*byte)] = true;
        }
    }
    Some(is_known)
}

/// By what factor the normalizer may shorten a text; `None`: by any.
fn shrinkage(normalizer: &Value) -> Option<usize> {
    match normalizer["type"].as_str() {
        None if normalizer.is_null() => Some(1),
        Some("Prepend") => Some(1),
        // A space becomes the longer sign that stands for it; tokens are measured with the space.
        Some("Replace") if normalizer["pattern"]["String"] == " " && normalizer["content"] == "\u{2581}" => Some(1),
        Some("NFC") => Some(COMPOSITION),
        Some("Sequence") => {
            normalizer["normalizers"].as_array()?.iter().try_fold(1, |factor, part| Some(factor * shrinkage(part)?))
        }
        _ => None,
    }
}

/// Whether the pre-tokenizer only splits.
fn keeps_all_text(pre_tokenizer: &Value) -> bool {
    match pre_tokenizer["type"].as_str() {
        None => pre_tokenizer.is_null(),
        Some("ByteLevel" | "Digits" | "Metaspace") => true,
        Some("Split") => pre_tokenizer["behavior"] != "Removed",
        Some("Sequence") => {
            pre_tokenizer["pretokenizers"].as_array().is_some_and(|parts| parts.iter().all(keeps_all_text))
        }
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_file(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-llama/tokenizer.json")).unwrap()
    }

    fn width(tokenizer: &Tokenizer) -> Option<TokenWidth> {
        TokenWidth::of(tokenizer, &Vocabulary::from_tokenizer(tokenizer).unwrap())
    }

    #[test]
    fn no_text_has_fewer_tokens_than_its_length_says() {
        let tokenizer = tokenizer();
        let width = width(&tokenizer).unwrap();
        let widest = tokenizer.get_vocab(true).into_keys().max_by_key(String::len).unwrap();
        for text in ["", "a", "the river was cold", "Grüße, 世界! 🦀", "     \n\n\t", &widest.repeat(50)] {
            let num_tokens = tokenizer.encode_fast(text, false).unwrap().len();
            assert!(width.min_tokens(text) <= num_tokens, "{text:?}: {num_tokens}");
        }
        let special = "<|endoftext|>".repeat(9);
        assert_eq!(tokenizer.encode_fast(special.as_str(), false).unwrap().len(), 9);
        assert_eq!(width.min_tokens(&special), 9, "the widest token is the special one");
    }

    #[test]
    fn bytes_without_a_token_do_not_count() {
        let mut config = serde_json::to_value(tokenizer()).unwrap();
        config["normalizer"] = Value::Null;
        // A file whose training text had no tab: the stand-in of byte 9 is U+0109.
        config["model"]["vocab"].as_object_mut().unwrap().remove("\u{109}").unwrap();
        let tokenizer: Tokenizer = serde_json::from_value(config).unwrap();
        let width = width(&tokenizer).unwrap();
        let tabs = "\t".repeat(1000);
        assert_eq!(tokenizer.encode_fast(tabs.as_str(), false).unwrap().len(), 0, "they are dropped");
        assert_eq!(width.min_tokens(&tabs), 0);
        assert!(width.min_tokens(&"a\t".repeat(1000)) > 0);
        assert_eq!(width.min_tokens(&"a\t".repeat(1000)), width.min_tokens(&"a".repeat(1000)));
    }

    #[test]
    fn nothing_is_said_where_text_may_be_dropped_or_shortened_without_limit() {
        let with = |part: &str, value: Value| {
            let mut config = serde_json::to_value(tokenizer()).unwrap();
            config[part] = value;
            width(&serde_json::from_value(config).unwrap())
        };
        let plain = with("normalizer", Value::Null).unwrap();
        assert_eq!(
            with("normalizer", serde_json::json!({ "type": "NFC" })),
            Some(TokenWidth { widest: plain.widest * COMPOSITION, ..plain })
        );
        assert_eq!(with("normalizer", serde_json::json!({ "type": "StripAccents" })), None);
        assert_eq!(with("pre_tokenizer", serde_json::json!({ "type": "WhitespaceSplit" })), None);
        assert_eq!(
            with(
                "truncation",
                serde_json::json!({
                    "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0
                })
            ),
            None
        );
    }
}
