//! Decides, once per step, which sequences run and how many tokens each computes.
//!
//! Owns the queues, borrows the [`BlockManager`], never sees a tensor or the clock. First come, first
//! served: a sequence is admitted only after all that came before it, and the newest gives way when blocks run out.

mod decode;
mod prefill;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use mistralrs_paged_attn::BlockManager;

use crate::sequence::{Sequence, SequenceId};

/// The limits of one step.
#[derive(Debug, Clone, Copy)]
pub struct SchedulerConfig {
    /// Sequences in one batch.
    pub max_num_seqs: usize,
    /// Tokens one step may compute over all sequences. More: throughput. Fewer: inter-token latency.
    pub max_num_batched_tokens: usize,
}

/// What one step runs.
#[derive(Debug, Default)]
pub struct StepPlan {
    /// Decodes first, then prefill chunks, each in order of arrival.
    pub chunks: Vec<ScheduledChunk>,
    /// Sequences admitted for this step, fresh or after preemption.
    pub admitted: Vec<SequenceId>,
    /// Sequences that lost their blocks and wait again.
    pub preempted: Vec<SequenceId>,
}

/// Tokens of one sequence that run in this step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScheduledChunk {
    /// Whose.
    pub id: SequenceId,
    /// How many, starting at the sequence's `num_computed`.
    pub num_scheduled: usize,
    /// Whether a decode or a prefill chunk.
    pub phase: Phase,
    /// Whether the chunk reaches the newest token, so that a next one can be sampled.
    pub is_last: bool,
    /// Of `num_scheduled`, the last ones that are guesses: only those that come true count as computed.
    pub num_drafted: usize,
}

/// Metric label and plan vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// KV of tokens that are known.
    Prefill,
    /// One new token.
    Decode,
}

/// The queues. `running` and `waiting` are each in order of arrival.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    running: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
}

impl Scheduler {
    /// Empty queues.
    pub fn new(config: SchedulerConfig) -> Self {
        Self { config, running: Vec::new(), waiting: VecDeque::new() }
    }

    /// Puts a new sequence behind all others.
    pub fn enqueue(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// Plans one step: decodes first, so that admitted streams keep flowing; prefills share the rest.
    pub fn schedule(&mut self, blocks: &BlockManager) -> StepPlan {
        let mut plan = StepPlan::default();
        let mut budget = self.config.max_num_batched_tokens;
        self.plan_decodes(blocks, &mut plan, &mut budget);
        self.continue_prefills(&mut plan, &mut budget);
        // Admitting right after preempting would hand the freed blocks to newcomers and thrash.
        if plan.preempted.is_empty() {
            self.admit_prefills(blocks, &mut plan, &mut budget);
        }
        plan
    }

    /// Records that `chunk` ran: its known tokens have KV, and blocks it filled are in the prefix cache.
    pub fn complete(&mut self, chunk: &ScheduledChunk, blocks: &BlockManager) {
        self.advance(chunk.id, chunk.num_scheduled - chunk.num_drafted, blocks);
    }

    /// Records that the next guess came true: the token that was sampled has KV already.
    pub fn accept_guess(&mut self, id: SequenceId, blocks: &BlockManager) {
        self.advance(id, 1, blocks);
    }

    fn advance(&mut self, id: SequenceId, num_tokens: usize, blocks: &BlockManager) {
        let Some(sequence) = self.running_mut(id) else { return };
        sequence.num_computed += num_tokens;
        publish_full_blocks(sequence, blocks);
    }

    /// Ends a sequence wherever it is; its blocks are free when this returns.
    pub fn remove(&mut self, id: SequenceId, blocks: &BlockManager) -> Option<Sequence> {
        let mut sequence = if let Some(at) = self.position(id) {
            self.running.remove(at)
        } else {
            let at = self.waiting.iter().position(|sequence| sequence.id == id)?;
            self.waiting.remove(at)?
        };
        blocks.release(std::mem::take(&mut sequence.block_table));
        Some(sequence)
    }

    /// Ends all sequences.
    pub fn clear(&mut self, blocks: &BlockManager) {
        self.waiting.clear();
        for sequence in self.running.drain(..) {
            blocks.release(sequence.block_table);
        }
    }

    /// Sequences in the batch, in order of arrival.
    pub fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// The batch, to write guesses into.
    pub fn batch_mut(&mut self) -> &mut [Sequence] {
        &mut self.running
    }

    /// Whether all that there is to compute is one token for each sequence.
    pub fn only_decodes(&self) -> bool {
        self.waiting.is_empty() && self.running.iter().all(Sequence::is_decoding)
    }

    /// Sequences waiting, in order of arrival; preempted ones are among them.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = &Sequence> {
        self.waiting.iter()
    }

    /// A running sequence.
    pub fn running_sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.position(id).map(|at| &self.running[at])
    }

    /// A running sequence, to append tokens to.
    pub fn running_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.position(id).map(|at| &mut self.running[at])
    }

    /// Where `id` runs: the batch is in order of arrival.
    fn position(&self, id: SequenceId) -> Option<usize> {
        self.running.binary_search_by_key(&id, |sequence| sequence.id).ok()
    }

    /// Whether nothing is running or waiting.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Every block is accounted for, and both queues are in order of arrival.
    ///
    /// # Panics
    /// If not.
    pub fn check_invariants(&self, blocks: &BlockManager) {
        let tables: Vec<_> = self.running.iter().map(|sequence| &sequence.block_table).collect();
        blocks.check_invariants(&tables);
        assert!(self.running.is_sorted_by_key(|sequence| sequence.id), "running is in order of arrival");
        assert!(self.waiting.iter().is_sorted_by_key(|sequence| sequence.id), "waiting is in order of arrival");
        assert!(self.running.len() <= self.config.max_num_seqs, "the batch has a limit");
        for sequence in &self.waiting {
            assert!(sequence.block_table.blocks().is_empty(), "waiting sequences hold no blocks");
        }
        for sequence in &self.running {
            let capacity = sequence.block_table.blocks().len() * blocks.block_size();
            assert!(sequence.num_computed <= capacity, "computed tokens have slots");
            assert!(sequence.num_computed <= sequence.token_ids.len(), "only known tokens have KV");
        }
    }
}

/// Publishes blocks that became full, extending the hash chain over generated tokens. Without a prefix cache there
/// are no hashes and nothing happens.
fn publish_full_blocks(sequence: &mut Sequence, blocks: &BlockManager) {
    let num_full = sequence.num_computed / blocks.block_size();
    if num_full > sequence.block_hashes.len() {
        let full = &sequence.token_ids[..num_full * blocks.block_size()];
        blocks.extend_hashes(&mut sequence.block_hashes, full, &sequence.salt);
    }
    let num_full = num_full.min(sequence.block_hashes.len());
    for index in sequence.num_published..num_full {
        blocks.publish(&sequence.block_table, index, sequence.block_hashes[index]);
    }
    sequence.num_published = sequence.num_published.max(num_full);
}
