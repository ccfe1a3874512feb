//! Decides, once per step, which sequences run and how many tokens each computes.
//!
//! Owns the queues, borrows the [`BlockManager`], never sees a tensor or the clock. There is one line, by priority
//! and arrival with aging: sequences are admitted in its order, and the last of those that run gives way when blocks
//! run out.
//!
//! What holds in every step: each decoding sequence computes its token, unless it is preempted; the first prompt in line
//! computes its share ([`PREFILL_SHARE`]); and a sequence that was preempted comes back only once there is room for
//! the progress that pays for computing it again ([`READMISSION_COST`]).
//!
//! **Never** here: preempting a sequence so that a more urgent one is admitted. It would throw computed tokens away
//! for a wait that is bounded by the length of an answer.

mod decode;
mod prefill;
mod rank;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use mistralrs_paged_attn::{BlockCopy, BlockManager};

use crate::sequence::{PrefixSharing, Sequence, SequenceId};
use rank::Rank;

pub use prefill::{PREFILL_SHARE, READMISSION_COST};

/// The limits of one step.
#[derive(Debug, Clone, Copy)]
pub struct SchedulerConfig {
    /// Sequences in one batch.
    pub max_num_seqs: usize,
    /// Tokens one step may compute over all sequences. More: throughput. Fewer: inter-token latency.
    pub max_num_batched_tokens: usize,
    /// Later arrivals of the next more urgent class that may pass a waiting sequence; twice as many of the class above
    /// that, and so on. 0: priorities have no effect.
    pub priority_aging: usize,
}

/// What one step runs.
#[derive(Debug, Default)]
pub struct StepPlan {
    /// Chunks of generated tokens first, then those of prompts; in each decodes before prefills, by their place in line.
    pub chunks: Vec<ScheduledChunk>,
    /// Blocks whose contents must be in another one as well before anything is computed: the partly filled last blocks
    /// of prompts that several choices share.
    pub copies: Vec<BlockCopy>,
    /// Sequences admitted for this step, fresh or after preemption.
    pub admitted: Vec<SequenceId>,
    /// Sequences that lost their blocks and wait again.
    pub preempted: Vec<SequenceId>,
}

impl StepPlan {
    /// Tokens of all chunks.
    pub fn num_tokens(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.num_scheduled).sum()
    }
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

/// The line: those that run, and those that wait.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    /// By rank.
    running: Vec<Sequence>,
    waiting: BTreeMap<Rank, Sequence>,
    /// Of every sequence in either queue.
    ranks: HashMap<SequenceId, Rank>,
    /// Of a step that decodes, in all.
    max_mixed_tokens: usize,
    /// Whether prompts find no KV in the prefix cache that was computed of generated tokens.
    keeps_generated_apart: bool,
}

impl Scheduler {
    /// Empty queues.
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            config,
            running: Vec::new(),
            waiting: BTreeMap::new(),
            ranks: HashMap::new(),
            max_mixed_tokens: usize::MAX,
            keeps_generated_apart: false,
        }
    }

    /// For a model whose KV of a token depends on whether it is a prompt's: no prompt adopts blocks of what was generated.
    #[must_use]
    pub fn keeping_generated_apart(self, keeps_generated_apart: bool) -> Self {
        Self { keeps_generated_apart, ..self }
    }

    /// From now on steps that decode compute `max_tokens` at most, prompts included; at least one of a prompt.
    pub fn limit_mixed_steps(&mut self, max_tokens: usize) {
        self.max_mixed_tokens = max_tokens;
    }

    /// Puts a new sequence where its priority and its id say.
    pub fn enqueue(&mut self, sequence: Sequence) {
        let rank = self.rank(&sequence);
        self.ranks.insert(sequence.id, rank);
        self.waiting.insert(rank, sequence);
    }

    /// Plans one step: decodes first, so that admitted streams keep flowing; prefills share the rest.
    pub fn schedule(&mut self, blocks: &BlockManager) -> StepPlan {
        let mut plan = StepPlan::default();
        self.plan_decodes(blocks, &mut plan);
        self.plan_guesses(blocks, &mut plan);
        self.plan_prefills(blocks, &mut plan);
        let is_prompt = |chunk: &ScheduledChunk| self.running_sequence(chunk.id).is_some_and(Sequence::is_in_prompt);
        if !plan.chunks.is_sorted_by_key(is_prompt) {
            plan.chunks.sort_by_key(is_prompt);
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
        let keeps_generated_apart = self.keeps_generated_apart;
        let Some(sequence) = self.running_mut(id) else { return };
        sequence.num_computed += num_tokens;
        let num_prompt = if keeps_generated_apart { sequence.num_prompt_tokens } else { usize::MAX };
        publish_full_blocks(sequence, num_prompt, blocks);
    }

    /// Ends a sequence wherever it is; its blocks are free when this returns.
    pub fn remove(&mut self, id: SequenceId, blocks: &BlockManager) -> Option<Sequence> {
        let mut sequence = match self.position(id) {
            Some(at) => self.running.remove(at),
            None => self.waiting.remove(self.ranks.get(&id)?)?,
        };
        self.ranks.remove(&id);
        blocks.release(std::mem::take(&mut sequence.block_table));
        Some(sequence)
    }

    /// Ends all sequences.
    pub fn clear(&mut self, blocks: &BlockManager) {
        self.waiting.clear();
        self.ranks.clear();
        for sequence in self.running.drain(..) {
            blocks.release(sequence.block_table);
        }
    }

    /// Sequences in the batch, by their place in line.
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

    /// Sequences waiting, by their place in line; preempted ones are among them.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = &Sequence> {
        self.waiting.values()
    }

    /// A running sequence.
    pub fn running_sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.position(id).map(|at| &self.running[at])
    }

    /// A running sequence, to append tokens to.
    pub fn running_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.position(id).map(|at| &mut self.running[at])
    }

    /// Where `id` runs.
    fn position(&self, id: SequenceId) -> Option<usize> {
        let rank = self.ranks.get(&id)?;
        self.running.binary_search_by_key(rank, |sequence| self.rank(sequence)).ok()
    }

    fn rank(&self, sequence: &Sequence) -> Rank {
        Rank::of(sequence, self.config.priority_aging)
    }

    /// Whether nothing is running or waiting.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Every block is accounted for, and both queues are in line.
    ///
    /// # Panics
    /// If not.
    pub fn check_invariants(&self, blocks: &BlockManager) {
        let tables: Vec<_> = self.running.iter().map(|sequence| &sequence.block_table).collect();
        blocks.check_invariants(&tables);
        assert!(self.running.is_sorted_by(|a, b| self.rank(a) < self.rank(b)), "running is in line");
        assert!(self.running.len() <= self.config.max_num_seqs, "the batch has a limit");
        assert_eq!(self.ranks.len(), self.running.len() + self.waiting.len(), "everyone has one place");
        for (rank, sequence) in &self.waiting {
            assert_eq!((*rank, Some(rank)), (self.rank(sequence), self.ranks.get(&sequence.id)), "waiting is in line");
            assert!(sequence.block_table.blocks().is_empty(), "waiting sequences hold no blocks");
        }
        for sequence in &self.running {
            assert_eq!(self.ranks.get(&sequence.id), Some(&self.rank(sequence)), "who runs is found by id");
            let capacity = sequence.block_table.blocks().len() * blocks.block_size();
            assert!(sequence.num_computed <= capacity, "computed tokens have slots");
            assert!(sequence.num_computed <= sequence.token_ids.len(), "only known tokens have KV");
        }
    }
}

/// Publishes blocks that became full, extending the hash chain over generated tokens. Without a prefix cache there
/// are no hashes and nothing happens. Tokens from `num_prompt` on have KV of their own kind.
fn publish_full_blocks(sequence: &mut Sequence, num_prompt: usize, blocks: &BlockManager) {
    if sequence.prefix_sharing == PrefixSharing::Private {
        return;
    }
    let num_full = sequence.num_computed / blocks.block_size();
    if num_full > sequence.block_hashes.len() {
        let full = &sequence.token_ids[..num_full * blocks.block_size()];
        blocks.extend_hashes(&mut sequence.block_hashes, (full, num_prompt), &sequence.salt);
    }
    let num_full = num_full.min(sequence.block_hashes.len());
    for index in sequence.num_published..num_full {
        blocks.publish(&sequence.block_table, index, sequence.block_hashes[index]);
    }
    sequence.num_published = sequence.num_published.max(num_full);
}
