//! How many KV blocks an engine gets.

use mistralrs_paged_attn::KvLayout;

use crate::config::EngineConfig;
use crate::error::LoadError;

/// Without `--pa-memory-mb` KV takes at most this share of the memory that is free at start: the rest is for weights
/// that are not resident yet, activations and everyone else.
const MAX_SHARE_OF_FREE_MEMORY: usize = 4;

/// And at most this many bytes: a small model on a large machine should not grow to the machine's size because its
/// prefix cache never has to evict.
const MAX_AUTOMATIC_BYTES: usize = 4 << 30;

/// Blocks for `layout`: what was asked for, or what memory allows and a full batch of full-length sequences could use.
///
/// # Errors
/// [`LoadError::Config`] if not even two blocks fit.
pub(crate) fn num_blocks(
    config: &EngineConfig,
    layout: &KvLayout,
    max_model_len: usize,
    num_free_bytes: Option<usize>,
) -> Result<usize, LoadError> {
    let block_bytes = layout.block_bytes();
    let num_useful = config.max_num_seqs * max_model_len.div_ceil(layout.block_size);
    let num_blocks = if let Some(num_bytes) = config.kv_memory_bytes {
        num_bytes / block_bytes
    } else {
        let budget = num_free_bytes.map_or(MAX_AUTOMATIC_BYTES, |free| free / MAX_SHARE_OF_FREE_MEMORY);
        (budget.min(MAX_AUTOMATIC_BYTES) / block_bytes).min(num_useful)
    };
    if num_blocks < 2 {
        return Err(LoadError::Config(format!(
            "the KV cache would have {num_blocks} blocks of {} tokens; one block takes {block_bytes} bytes: raise --pa-memory-mb",
            layout.block_size,
        )));
    }
    // Slots are u32, and a cache that no batch could fill would only hold stale prefixes.
    Ok(num_blocks.min(u32::MAX as usize / layout.block_size))
}

#[cfg(test)]
mod tests {
    use mistralrs_paged_attn::KvDType;

    use super::*;

    const LAYOUT: KvLayout =
        KvLayout { num_layers: 2, num_kv_heads: 2, head_size: 8, block_size: 16, dtype: KvDType::F16 };

    #[test]
    fn what_was_asked_for_is_given_to_the_block() {
        let config = EngineConfig { kv_memory_bytes: Some(10 * LAYOUT.block_bytes() + 1), ..EngineConfig::default() };
        assert_eq!(num_blocks(&config, &LAYOUT, 1024, Some(0)).unwrap(), 10);
    }

    #[test]
    fn automatic_size_is_bounded_by_memory_and_by_use() {
        let config = EngineConfig { max_num_seqs: 4, ..EngineConfig::default() };
        assert_eq!(num_blocks(&config, &LAYOUT, 160, Some(1 << 30)).unwrap(), 40, "a full batch of full sequences");
        let num_free_bytes = 4 * 8 * LAYOUT.block_bytes();
        assert_eq!(num_blocks(&config, &LAYOUT, 160, Some(num_free_bytes)).unwrap(), 8, "a quarter of free memory");
    }

    #[test]
    fn too_little_memory_is_an_error_with_the_figures() {
        let config = EngineConfig { kv_memory_bytes: Some(1), ..EngineConfig::default() };
        let message = num_blocks(&config, &LAYOUT, 160, None).unwrap_err().to_string();
        assert!(message.contains("0 blocks of 16 tokens"), "{message}");
        assert!(message.contains("--pa-memory-mb"), "{message}");
    }
}
