//! The description of one step that attention and the KV cache read.

use std::ops::Range;

use crate::error::BatchError;

/// Where one step's tokens read and write KV. T tokens packed over S sequences, no padding.
#[derive(Debug, Clone, Default)]
pub struct RaggedBatch {
    /// `[S + 1]`: sequence s owns tokens `query_offsets[s]..query_offsets[s + 1]`.
    pub query_offsets: Vec<u32>,
    /// `[S]`: tokens each sequence reads, this step's included.
    pub context_lens: Vec<u32>,
    /// `[T]`: slot = block_id * block_size + offset where each token's KV goes.
    pub slot_mapping: Vec<u32>,
    /// `[S * max_blocks]`, row per sequence, zero-padded: physical block ids.
    pub block_tables: Vec<u32>,
    /// Columns of `block_tables`.
    pub max_blocks: usize,
    /// Of S, the first sequences, whose tokens are ones that a model generated; the others' are tokens of prompts, which may be
    /// computed in another way: a token's own, whatever else is in the batch.
    pub num_generated_sequences: usize,
}

impl RaggedBatch {
    /// Sequences, S.
    pub fn num_sequences(&self) -> usize {
        self.context_lens.len()
    }

    /// Tokens computed this step, T.
    pub fn num_tokens(&self) -> usize {
        self.slot_mapping.len()
    }

    /// Of T, the first ones that were generated; 0 in a batch that contradicts itself, which [`Self::validate`] tells.
    pub fn num_generated_tokens(&self) -> usize {
        self.query_offsets.get(self.num_generated_sequences).map_or(0, |offset| *offset as usize)
    }

    /// The tokens of `sequence` in the batch.
    pub fn queries(&self, sequence: usize) -> Range<usize> {
        self.query_offsets[sequence] as usize..self.query_offsets[sequence + 1] as usize
    }

    /// Tokens that `sequence` reads, this step's included.
    pub fn context_len(&self, sequence: usize) -> usize {
        self.context_lens[sequence] as usize
    }

    /// The row of `sequence` in the block tables, padding included.
    pub fn block_table(&self, sequence: usize) -> &[u32] {
        &self.block_tables[sequence * self.max_blocks..][..self.max_blocks]
    }

    /// Checks all of it against a cache of `num_blocks` blocks of `block_size` tokens: O(T + blocks read).
    ///
    /// The engine calls this once per step, so that a bad plan is refused before the first layer writes. What keeps
    /// reading inside the pools is checked again once per step, by `KvCache::plan`; each layer's `write` compares its slots.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn validate(&self, num_blocks: usize, block_size: usize) -> Result<(), BatchError> {
        self.check_reads(num_blocks, block_size)?;
        for sequence in 0..self.num_sequences() {
            let (queries, block_table) = (self.queries(sequence), self.block_table(sequence));
            let first_position = self.context_len(sequence) - queries.len();
            for (position, token) in (first_position..).zip(queries) {
                let expected = block_table[position / block_size] as usize * block_size + position % block_size;
                let slot = self.slot_mapping[token] as usize;
                if slot != expected {
                    return Err(BatchError::Slot { token, slot, expected });
                }
            }
        }
        Ok(())
    }

    /// Everything that attention indexes by is in range.
    pub(crate) fn check_reads(&self, num_blocks: usize, block_size: usize) -> Result<(), BatchError> {
        let (num_sequences, num_tokens) = (self.num_sequences(), self.num_tokens());
        let rises = match self.query_offsets.as_slice() {
            [] => num_sequences == 0 && num_tokens == 0,
            offsets @ [first, .., last] => {
                offsets.len() == num_sequences + 1 && *first == 0 && *last as usize == num_tokens && offsets.is_sorted()
            }
            [only] => *only == 0 && num_sequences == 0 && num_tokens == 0,
        };
        if !rises {
            return Err(BatchError::QueryOffsets { num_sequences, num_tokens });
        }
        if self.num_generated_sequences > num_sequences {
            return Err(BatchError::Generated { num_generated: self.num_generated_sequences, num_sequences });
        }
        if num_sequences.checked_mul(self.max_blocks) != Some(self.block_tables.len()) {
            let (num_entries, max_blocks) = (self.block_tables.len(), self.max_blocks);
            return Err(BatchError::BlockTables { num_entries, max_blocks, num_sequences });
        }
        (0..num_sequences).try_for_each(|sequence| self.check_sequence(sequence, num_blocks, block_size))
    }

    fn check_sequence(&self, sequence: usize, num_blocks: usize, block_size: usize) -> Result<(), BatchError> {
        let (context_len, num_queries) = (self.context_len(sequence), self.queries(sequence).len());
        let num_held = self.max_blocks.saturating_mul(block_size);
        if context_len < num_queries || context_len > num_held {
            return Err(BatchError::ContextLen { sequence, context_len, num_queries, num_held });
        }
        let blocks = &self.block_table(sequence)[..context_len.div_ceil(block_size)];
        match blocks.iter().find(|&&block| block as usize >= num_blocks) {
            Some(&block) => Err(BatchError::Block { sequence, block, num_blocks }),
            None => Ok(()),
        }
    }

    /// Every slot that is written exists.
    pub(crate) fn check_writes(&self, num_slots: usize) -> Result<(), BatchError> {
        match self.slot_mapping.iter().position(|&slot| slot as usize >= num_slots) {
            Some(token) => {
                Err(BatchError::Slot { token, slot: self.slot_mapping[token] as usize, expected: num_slots })
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sequences over 4 blocks of 2 tokens: 3 tokens computed of 3, and 1 of 2.
    fn batch() -> RaggedBatch {
        RaggedBatch {
            query_offsets: vec![0, 3, 4],
            context_lens: vec![3, 2],
            slot_mapping: vec![6, 7, 0, 3],
            block_tables: vec![3, 0, 1, 0],
            max_blocks: 2,
            num_generated_sequences: 1,
        }
    }

    fn check(break_it: impl Fn(&mut RaggedBatch), expected: &str) {
        let mut batch = batch();
        break_it(&mut batch);
        assert_eq!(batch.validate(4, 2).unwrap_err().to_string(), expected);
    }

    #[test]
    fn a_consistent_batch_is_accepted() {
        batch().validate(4, 2).unwrap();
        RaggedBatch::default().validate(0, 16).unwrap();
        assert_eq!((batch().queries(1), batch().num_generated_tokens()), (3..4, 3));
        assert_eq!(batch().block_table(1), [1, 0]);
    }

    #[test]
    fn every_contradiction_is_named() {
        let offsets = "query offsets of 2 sequences do not rise from 0 to 4 tokens";
        check(|batch| batch.query_offsets = vec![0, 4], offsets);
        check(|batch| batch.query_offsets = vec![0, 3, 5], offsets);
        check(|batch| batch.query_offsets = vec![1, 3, 4], offsets);
        check(|batch| batch.query_offsets = vec![], offsets);
        check(|batch| batch.num_generated_sequences = 3, "3 of 2 sequences have generated tokens");
        check(|batch| batch.max_blocks = 3, "4 block table entries are not 3 for each of 2 sequences");
        check(|batch| batch.context_lens[0] = 2, "sequence 0 reads 2 tokens, computes 3, and its table holds 4");
        check(|batch| batch.context_lens[1] = 5, "sequence 1 reads 5 tokens, computes 1, and its table holds 4");
        check(|batch| batch.block_tables[1] = 4, "sequence 0 names block 4 of 4");
        check(|batch| batch.slot_mapping[3] = 2, "token 3 writes slot 2, its block table reads 3");
    }

    #[test]
    fn padding_of_the_block_tables_is_not_read() {
        let mut batch = batch();
        batch.block_tables[3] = u32::MAX;
        batch.validate(4, 2).unwrap();
    }
}
