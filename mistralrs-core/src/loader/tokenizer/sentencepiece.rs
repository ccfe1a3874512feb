//! SentencePiece BPE (`tokenizer.ggml.model` = `llama`): pieces with scores, no merges.
//!
//! SentencePiece joins, again and again, the two neighbours whose piece has the highest score. A list of
//! merges in the order of these scores does the same, and is what the `tokenizers` crate runs.

use std::collections::HashSet;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Sequence};
use tokenizers::{DecoderWrapper, Tokenizer};

/// What SentencePiece writes for a space.
const SPACE: &str = "\u{2581}";

/// `tokenizer.ggml.add_space_prefix`: whether text, and each text after a special token, gets a space in front, so that
/// its first word is tokenized like any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpacePrefix {
    Add,
    Omit,
}

/// All ways to make each of `pieces` (text and score, by id) of two others, best first.
pub(super) fn merges(pieces: &[(&str, f32)]) -> Vec<(String, String)> {
    let known: HashSet<&str> = pieces.iter().map(|(piece, _)| *piece).collect();
    let mut merges = Vec::new();
    for &(piece, score) in pieces {
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if known.contains(left) && known.contains(right) {
                merges.push((score, left, right));
            }
        }
    }
    // Stable: pieces of equal score stay in the order of their ids.
    merges.sort_by(|(score, ..), (other, ..)| other.total_cmp(score));
    merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect()
}

/// Sets how spaces are written and read back.
pub(super) fn set_spaces(tokenizer: &mut Tokenizer, prefix: SpacePrefix) -> tokenizers::Result<()> {
    let mut normalizers: Vec<NormalizerWrapper> = vec![Replace::new(" ", SPACE)?.into()];
    let mut decoders: Vec<DecoderWrapper> =
        vec![Replace::new(SPACE, " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if prefix == SpacePrefix::Add {
        normalizers.insert(0, Prepend::new(SPACE.to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_normalizer(Some(Sequence::new(normalizers)))?;
    tokenizer.with_decoder(Some(DecoderSequence::new(decoders)));
    Ok(())
}
