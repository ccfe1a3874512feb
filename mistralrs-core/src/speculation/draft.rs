//! What makes a model fit to guess for another: the same tokens under the same ids.

use std::path::Path;

use mistralrs_paged_attn::BlockManager;

use super::draft_model::{DraftLimits, DraftModel};
use crate::config::{EngineConfig, ModelSource, PackedCacheConfig};
use crate::detokenizer::Vocabulary;
use crate::error::LoadError;
use crate::kv_budget::KvPart;
use crate::loader::{self, LoadedModel};
use crate::models::ModelShape;

/// One in so many of a step's tokens may go into catching up: decoding streams wait for it.
const CATCH_UP_SHARE: usize = 4;

/// Tokens that the draft model lacks of a sequence all of whose guesses came true.
const NUM_BEHIND: usize = 2;

/// A loaded model that is to guess for another one.
pub struct Draft {
    /// The model; of its files only weights and vocabulary matter.
    pub loaded: LoadedModel,
    /// What its guesses are taken to cost.
    pub cost: DraftCost,
}

/// What a draft model's guesses are taken to cost when it is decided whether they pay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DraftCost {
    /// What steps of both models took lately.
    Measured,
    /// This share of a token for each guess, and nothing for catching up with a text: for tests, whose models have no
    /// cost to speak of.
    Fixed(f64),
}

impl Draft {
    /// Reads its files.
    pub(crate) fn load(path: &Path, packed_cache: Option<&PackedCacheConfig>) -> Result<Self, LoadError> {
        let packed_cache = packed_cache.cloned();
        let source = ModelSource { path: path.to_owned(), id: None, chat_template: None, packed_cache };
        let loaded = loader::load(&source).map_err(|error| LoadError::Draft(Box::new(error)))?;
        Ok(Self { loaded, cost: DraftCost::Measured })
    }

    /// Fails unless its tokens are those of `own`, the vocabulary of the model to guess for.
    pub(crate) fn check_vocabulary(&self, own: &Vocabulary) -> Result<(), LoadError> {
        let found = Vocabulary::from_tokenizer(&self.loaded.tokenizer);
        let difference = match found {
            Ok(found) => difference(own, &found),
            Err(reason) => Some(reason),
        };
        difference.map_or(Ok(()), |reason| Err(LoadError::DraftVocabulary { reason }))
    }

    /// Gives it its KV and runs it for the first time. `own` is the shape of the model it guesses for.
    pub(crate) fn start(
        self,
        memory: &KvPart,
        own: &ModelShape,
        config: &EngineConfig,
    ) -> Result<DraftModel, LoadError> {
        let LoadedModel { model, description, .. } = self.loaded;
        let shape = model.shape();
        let limits = DraftLimits {
            max_len: shape.max_position_embeddings,
            // Tables are padded to round sizes, each to its own.
            vocab_size: shape.vocab_size.min(own.vocab_size),
            // Even where the share is small, nobody who keeps up is left out.
            max_catch_up_tokens: (config.max_num_batched_tokens / CATCH_UP_SHARE).max(NUM_BEHIND * config.max_num_seqs),
        };
        let blocks = BlockManager::new(memory.num_blocks, config.block_size, config.enable_prefix_cache);
        let kv = memory.allocate()?;
        tracing::info!(
            architecture = description.architecture,
            quantization = description.quantization,
            parameters = description.num_parameters,
            context_tokens = limits.max_len,
            kv_megabytes = memory.num_bytes() / 1_000_000,
            "the draft model is loaded; its KV is part of the memory for KV"
        );
        DraftModel::new(model, kv, blocks, limits).map_err(|error| LoadError::Draft(Box::new(error.into())))
    }
}

/// How `found` differs from `own`, in numbers and by the first token.
fn difference(own: &Vocabulary, found: &Vocabulary) -> Option<String> {
    if found.len() != own.len() {
        return Some(format!("it has {} tokens, the model's has {}", found.len(), own.len()));
    }
    let differs = |id: &u32| own.bytes(*id) != found.bytes(*id) || own.is_special(*id) != found.is_special(*id);
    let mut different = (0..own.len() as u32).filter(differs);
    let first = different.next()?;
    let num_different = 1 + different.count();
    let describe = |vocabulary: &Vocabulary| {
        let kind = if vocabulary.is_special(first) { "special" } else { "ordinary" };
        format!("{kind} {:?}", String::from_utf8_lossy(vocabulary.bytes(first)))
    };
    Some(format!(
        "{num_different} of {} tokens differ, the first is {first}: {} there, {} in the model's",
        own.len(),
        describe(found),
        describe(own)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(own: &[&[u8]], found: &[&[u8]], expected: Option<&str>) {
        let difference = difference(&Vocabulary::from_bytes(own), &Vocabulary::from_bytes(found));
        assert_eq!(difference.as_deref(), expected);
    }

    #[test]
    fn vocabularies_that_differ_say_where_and_by_how_much() {
        check(&[b"a", b"b"], &[b"a", b"b"], None);
        check(&[b"a", b"b"], &[b"a"], Some("it has 1 tokens, the model's has 2"));
        let expected = "2 of 3 tokens differ, the first is 1: ordinary \"c\" there, ordinary \"b\" in the model's";
        check(&[b"a", b"b", b"c"], &[b"a", b"c", b"b"], Some(expected));
        // Pieces of the same text, cut elsewhere.
        check(
            &[b"ab", b"c"],
            &[b"a", b"bc"],
            Some("2 of 2 tokens differ, the first is 0: ordinary \"a\" there, ordinary \"ab\" in the model's"),
        );
    }
}
