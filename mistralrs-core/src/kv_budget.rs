//! How many KV blocks an engine gets.

use mistralrs_paged_attn::{KvCache, KvLayout};

use crate::config::EngineConfig;
use crate::error::LoadError;
use crate::models::ModelShape;

/// Without `--pa-memory-mb` KV takes at most this share of the memory that is free at start: the rest is for weights
/// that are not resident yet, activations and everyone else.
const MAX_SHARE_OF_FREE_MEMORY: usize = 4;

/// And at most this many bytes: a small model on a large machine should not grow to the machine's size because its
/// prefix cache never has to evict.
const MAX_AUTOMATIC_BYTES: usize = 4 << 30;

/// KV memory of an engine.
#[derive(Debug)]
pub(crate) struct KvPlan {
    /// The model's.
    pub own: KvPart,
    /// Its draft model's.
    pub draft: Option<KvPart>,
}

/// One model's KV memory.
#[derive(Debug)]
pub(crate) struct KvPart {
    pub layout: KvLayout,
    pub num_blocks: usize,
}

impl KvPlan {
    /// Divides what `config` allows between a model and its draft model, so that both can hold the same tokens.
    ///
    /// # Errors
    /// [`LoadError`], if there is too little, or if KV of that type does not fit the heads.
    pub fn new(
        config: &EngineConfig,
        max_model_len: usize,
        (own, draft): (&ModelShape, Option<&ModelShape>),
        num_free_bytes: Option<usize>,
    ) -> Result<Self, LoadError> {
        let own = layout(config, own)?;
        let draft = match draft {
            Some(shape) => {
                let layout = layout(config, shape).map_err(|error| LoadError::Draft(Box::new(error)))?;
                Some((layout, shape.max_position_embeddings))
            }
            None => None,
        };
        let layouts: Vec<_> = [own].into_iter().chain(draft.map(|(layout, _)| layout)).collect();
        let num_blocks = num_blocks(config, &layouts, max_model_len, num_free_bytes)?;
        let draft = draft.map(|(layout, max_len)| {
            // What no batch could fill, and the one block that no sequence gets.
            let num_useful = config.max_num_seqs * max_len.div_ceil(config.block_size) + 1;
            KvPart { layout, num_blocks: num_blocks.min(num_useful) }
        });
        Ok(Self { own: KvPart { layout: own, num_blocks }, draft })
    }
}

impl KvPart {
    /// Takes the memory.
    ///
    /// # Errors
    /// [`LoadError::Config`], if it is not to be had.
    pub fn allocate(&self) -> Result<KvCache, LoadError> {
        KvCache::new(self.layout, self.num_blocks)
            .map_err(|error| LoadError::Config(format!("{error}; lower --pa-memory-mb or --max-seqs")))
    }

    /// How much it is.
    pub fn num_bytes(&self) -> usize {
        self.num_blocks * self.layout.block_bytes()
    }
}

fn layout(config: &EngineConfig, shape: &ModelShape) -> Result<KvLayout, LoadError> {
    let layout = KvLayout {
        num_layers: shape.num_layers,
        num_kv_heads: shape.num_kv_heads,
        head_size: shape.head_size,
        block_size: config.block_size,
        dtype: config.kv_dtype,
    };
    layout.validate().map_err(|error| LoadError::Config(format!("{error} (--pa-cache-type)")))?;
    Ok(layout)
}

/// Blocks for each of `layouts`, the model's and its draft model's: what was asked for, or what memory allows and a full
/// batch of full-length sequences could use. A block of each is counted together, so that both hold the same tokens.
///
/// # Errors
/// [`LoadError::Config`] if not even two blocks fit.
fn num_blocks(
    config: &EngineConfig,
    layouts: &[KvLayout],
    max_model_len: usize,
    num_free_bytes: Option<usize>,
) -> Result<usize, LoadError> {
    let block_bytes: usize = layouts.iter().map(KvLayout::block_bytes).sum();
    let num_useful = config.max_num_seqs * max_model_len.div_ceil(config.block_size);
    let num_blocks = if let Some(num_bytes) = config.kv_memory_bytes {
        num_bytes / block_bytes
    } else {
        let budget = num_free_bytes.map_or(MAX_AUTOMATIC_BYTES, |free| free / MAX_SHARE_OF_FREE_MEMORY);
        (budget.min(MAX_AUTOMATIC_BYTES) / block_bytes).min(num_useful)
    };
    if num_blocks < 2 {
        return Err(LoadError::Config(format!(
            "the KV cache would have {num_blocks} blocks of {} tokens; one block takes {block_bytes} bytes: raise --pa-memory-mb",
            config.block_size,
        )));
    }
    // Slots are u32, and a cache that no batch could fill would only hold stale prefixes.
    Ok(num_blocks.min(u32::MAX as usize / config.block_size))
}

#[cfg(test)]
mod tests {
    use mistralrs_paged_attn::KvDType;

    use super::*;

    const LAYOUT: KvLayout =
        KvLayout { num_layers: 2, num_kv_heads: 2, head_size: 8, block_size: 16, dtype: KvDType::F16 };

    #[test]
    fn what_was_asked_for_is_given_to_the_block() {
        let config = EngineConfig {
            block_size: 16,
            kv_memory_bytes: Some(10 * LAYOUT.block_bytes() + 1),
            ..EngineConfig::default()
        };
        assert_eq!(num_blocks(&config, &[LAYOUT], 1024, Some(0)).unwrap(), 10);
    }

    #[test]
    fn automatic_size_is_bounded_by_memory_and_by_use() {
        let config = EngineConfig { block_size: 16, max_num_seqs: 4, ..EngineConfig::default() };
        assert_eq!(num_blocks(&config, &[LAYOUT], 160, Some(1 << 30)).unwrap(), 40, "a full batch of full sequences");
        let num_free_bytes = 4 * 8 * LAYOUT.block_bytes();
        assert_eq!(num_blocks(&config, &[LAYOUT], 160, Some(num_free_bytes)).unwrap(), 8, "a quarter of free memory");
    }

    #[test]
    fn a_draft_model_has_as_many_blocks_out_of_the_same_memory() {
        let draft = KvLayout { num_layers: 1, ..LAYOUT };
        let num_bytes = 10 * (LAYOUT.block_bytes() + draft.block_bytes());
        let config = EngineConfig { block_size: 16, kv_memory_bytes: Some(num_bytes), ..EngineConfig::default() };
        assert_eq!(num_blocks(&config, &[LAYOUT, draft], 1024, None).unwrap(), 10);
        assert_eq!(num_blocks(&config, &[LAYOUT], 1024, None).unwrap(), 15, "half as many more without");
    }

    #[test]
    fn a_draft_model_of_a_short_context_has_no_more_blocks_than_it_can_use() {
        let shape = |max_position_embeddings| ModelShape {
            num_layers: 2,
            num_kv_heads: 2,
            hidden_size: 64,
            head_size: 8,
            vocab_size: 10,
            max_position_embeddings,
        };
        let config = EngineConfig {
            block_size: 16,
            max_num_seqs: 2,
            kv_memory_bytes: Some(200 * LAYOUT.block_bytes()),
            ..EngineConfig::default()
        };
        let num_blocks = |draft_len| {
            let plan = KvPlan::new(&config, 1024, (&shape(1024), Some(&shape(draft_len))), None).unwrap();
            (plan.own.num_blocks, plan.draft.unwrap().num_blocks)
        };
        assert_eq!(num_blocks(1024), (100, 100));
        assert_eq!(num_blocks(30), (100, 2 * 2 + 1));
    }

    #[test]
    fn too_little_memory_is_an_error_with_the_figures() {
        let config = EngineConfig { block_size: 16, kv_memory_bytes: Some(1), ..EngineConfig::default() };
        let message = num_blocks(&config, &[LAYOUT], 160, None).unwrap_err().to_string();
        assert!(message.contains("0 blocks of 16 tokens"), "{message}");
        assert!(message.contains("--pa-memory-mb"), "{message}");
    }
}
