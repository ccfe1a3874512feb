//! One step's batch: chunks of sequences laid end to end, no padding, whatever their lengths.

use std::ops::Range;

use mistralrs_paged_attn::{BlockId, RaggedBatch};

use crate::models::StepBatch;
use crate::sequence::Sequence;

/// Tokens of one sequence that run in a step.
pub(crate) struct PackedChunk<'a> {
    /// Whose: known tokens, and guesses behind them.
    pub sequence: &'a Sequence,
    /// Where its KV is.
    pub blocks: &'a [BlockId],
    /// Which of its tokens.
    pub positions: Range<usize>,
    /// Of these the last ones, after which logits are wanted.
    pub num_logit_rows: usize,
    /// Of these the ones whose hidden states are wanted.
    pub pooled: Range<usize>,
}

/// Lays `chunks` end to end. Those at the end that are of prompts alone are computed as prompts: callers put them there.
pub(crate) fn pack(chunks: &[PackedChunk<'_>], block_size: usize) -> StepBatch {
    let max_blocks = chunks.iter().map(|chunk| chunk.blocks.len()).max().unwrap_or(0);
    let mut batch = StepBatch::default();
    batch.ragged.max_blocks = max_blocks;
    batch.ragged.query_offsets.push(0);
    for PackedChunk { sequence, blocks, positions, num_logit_rows, pooled } in chunks {
        for position in positions.clone() {
            batch.token_ids.push(sequence.token_at(position));
            batch.positions.push(position as u32);
            let slot = blocks[position / block_size].0 as usize * block_size + position % block_size;
            batch.ragged.slot_mapping.push(slot as u32);
        }
        let num_tokens = batch.token_ids.len() as u32;
        batch.ragged.query_offsets.push(num_tokens);
        batch.ragged.context_lens.push(positions.end as u32);
        batch.ragged.block_tables.extend(blocks.iter().map(|block| block.0));
        batch.ragged.block_tables.extend(std::iter::repeat_n(0, max_blocks - blocks.len()));
        batch.logit_rows.extend(num_tokens - *num_logit_rows as u32..num_tokens);
        batch.hidden_rows.extend(pooled.clone().map(|position| num_tokens - (positions.end - position) as u32));
    }
    let in_prompts = chunks.iter().rev().take_while(|chunk| chunk.positions.end <= chunk.sequence.num_prompt_tokens);
    batch.ragged.num_generated_sequences = chunks.len() - in_prompts.count();
    batch
}

/// A text of one token whose KV goes into `block`: warms a model up, and tells how long its steps take.
pub(crate) fn single_token(block: BlockId, block_size: usize) -> StepBatch {
    let ragged = RaggedBatch {
        query_offsets: vec![0, 1],
        context_lens: vec![1],
        slot_mapping: vec![block.0 * block_size as u32],
        block_tables: vec![block.0],
        max_blocks: 1,
        num_generated_sequences: 1,
    };
    StepBatch { token_ids: vec![0], positions: vec![0], ragged, logit_rows: vec![0], hidden_rows: Vec::new() }
}
