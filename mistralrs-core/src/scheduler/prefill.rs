//! Prefills: chunks of prompts within what decodes left of the token budget, and admission.

use mistralrs_paged_attn::{BlockManager, BlockTable, OutOfBlocks};

use super::{Phase, ScheduledChunk, Scheduler, StepPlan};
use crate::sequence::Sequence;

/// Prefills get this share of the step's tokens, one in so many, even where decodes would fill it: the first prompt in
/// line, of P tokens, is done `PREFILL_SHARE * P / max_num_batched_tokens` steps after its admission at the latest.
/// Decodes all run in every step, so a step can exceed `max_num_batched_tokens` by that share, in a configuration
/// whose batch has more sequences than the step has tokens.
pub const PREFILL_SHARE: usize = 4;

/// Tokens that a preempted sequence may recompute for each token that it generates: it is admitted again when there
/// is room for so much growth, of everyone in the batch. Over its life it recomputes no more than this many tokens
/// per token generated, plus its length once; without such a rule a batch over a cache that is too small recomputes
/// a whole sequence for every block that comes free. More: it comes back earlier, and pays more often.
pub const READMISSION_COST: usize = 2;

/// KV that a sequence need not compute when it is admitted.
struct SharedPrefix {
    num_tokens: usize,
    /// Of its blocks, those that nobody holds now: they are taken from what is available.
    num_unheld_blocks: usize,
    /// Where the choice of the same request runs that has computed their common prompt; `None`: the prefix cache.
    leader: Option<usize>,
}

impl Scheduler {
    /// Chunks in order of the line. Prompts that run and prompts that wait stand in the same one, so that an urgent
    /// arrival passes a long prompt of a lower class. Blocks of those that run were taken at admission.
    pub(super) fn plan_prefills(&mut self, blocks: &BlockManager, plan: &mut StepPlan) {
        let mut budget = self.prefill_budget(plan);
        // Admitting right after preempting would hand the freed blocks to newcomers and thrash.
        let mut may_admit = plan.preempted.is_empty();
        let mut next = 0;
        while budget > 0 {
            next += self.running[next..].iter().take_while(|sequence| sequence.is_decoding()).count();
            let running = self.running.get(next).map(|sequence| self.rank(sequence));
            let waiting = self.waiting.keys().next().copied().filter(|_| may_admit);
            match (running, waiting) {
                (None, None) => break,
                (Some(running), waiting) if waiting.is_none_or(|waiting| running < waiting) => {
                    plan_chunk(&self.running[next], plan, &mut budget);
                    next += 1;
                }
                _ => match self.admit_first(blocks, plan) {
                    Some(at) => {
                        plan_chunk(&self.running[at], plan, &mut budget);
                        next = at + 1;
                    }
                    // Nobody passes the first in line: it would wait for ever.
                    None => may_admit = false,
                },
            }
        }
    }

    fn prefill_budget(&self, plan: &StepPlan) -> usize {
        let max_tokens = self.config.max_num_batched_tokens;
        let budget = max_tokens.saturating_sub(plan.num_tokens()).max(max_tokens.div_ceil(PREFILL_SHARE));
        if plan.chunks.is_empty() {
            return budget;
        }
        budget.min(self.max_mixed_tokens.saturating_sub(plan.num_tokens()).max(1))
    }

    /// Admits the first that waits, if sequences and blocks allow; where it runs then.
    fn admit_first(&mut self, blocks: &BlockManager, plan: &mut StepPlan) -> Option<usize> {
        let (_, candidate) = self.waiting.first_key_value()?;
        if self.running.len() >= self.config.max_num_seqs || self.waits_for_leader(candidate) {
            return None;
        }
        let (rank, mut sequence) = self.waiting.pop_first()?;
        if !self.take_blocks(&mut sequence, blocks, plan) {
            self.waiting.insert(rank, sequence);
            return None;
        }
        plan.admitted.push(sequence.id);
        let at = self.running.partition_point(|running| self.rank(running) < rank);
        self.running.insert(at, sequence);
        Some(at)
    }

    /// Whether the first choice of the same request is still computing the prompt that this one would share.
    fn waits_for_leader(&self, candidate: &Sequence) -> bool {
        let leader = candidate.leader.and_then(|leader| self.running_sequence(leader));
        leader.is_some_and(|leader| leader.num_computed < leader.num_prompt_tokens)
    }

    /// Blocks for all known tokens, shared ones first, or none at all.
    ///
    /// The whole prompt is reserved at once: a prompt that stopped half-way for want of blocks would hold what others need.
    fn take_blocks(&self, sequence: &mut Sequence, blocks: &BlockManager, plan: &mut StepPlan) -> bool {
        let shared = self.find_shared(sequence, blocks);
        let (num_tokens, block_size) = (sequence.token_ids.len(), blocks.block_size());
        let num_new_blocks = num_tokens.div_ceil(block_size) - shared.num_tokens / block_size;
        let num_reserved_blocks = self.num_reserved_blocks(sequence, shared.num_tokens, block_size);
        if num_new_blocks + shared.num_unheld_blocks + num_reserved_blocks > blocks.usage().num_available() {
            return false;
        }
        let shared_blocks = match shared.leader {
            None => Ok((blocks.adopt_prefix(&sequence.block_hashes[..shared.num_tokens / block_size]), None)),
            Some(index) => blocks.fork(&self.running[index].block_table, shared.num_tokens),
        };
        let Ok((table, copy)) = shared_blocks else { return false };
        if start(sequence, table, shared.num_tokens, blocks).is_err() {
            return false;
        }
        plan.copies.extend(copy);
        true
    }

    /// The longer of what the prefix cache has and what the first choice of the same request has computed.
    fn find_shared(&self, sequence: &Sequence, blocks: &BlockManager) -> SharedPrefix {
        // The newest token is always computed: its logits are what the step is for.
        let max_num_tokens = sequence.token_ids.len() - 1;
        let num_reusable_blocks = (max_num_tokens / blocks.block_size()).min(sequence.block_hashes.len());
        let cached = blocks.find_prefix(&sequence.block_hashes[..num_reusable_blocks]);
        let num_cached_tokens = cached.num_blocks * blocks.block_size();
        let num_prompt_tokens = sequence.num_prompt_tokens.min(max_num_tokens);
        match sequence.leader.and_then(|leader| self.position(leader)) {
            Some(index) if num_prompt_tokens > num_cached_tokens => {
                SharedPrefix { num_tokens: num_prompt_tokens, num_unheld_blocks: 0, leader: Some(index) }
            }
            _ => SharedPrefix {
                num_tokens: num_cached_tokens,
                num_unheld_blocks: cached.num_unheld_blocks,
                leader: None,
            },
        }
    }

    /// Blocks that must stay free when `sequence` is admitted, for the growth of those that run then.
    ///
    /// For a newcomer a block for each sequence that runs, or the next decodes would preempt it at once. For one that
    /// was preempted as many as the growth takes that pays for computing it again, but no more than answers can grow.
    fn num_reserved_blocks(&self, sequence: &Sequence, num_shared_tokens: usize, block_size: usize) -> usize {
        if self.running.is_empty() {
            return 0;
        }
        if !sequence.was_preempted {
            return self.running.len();
        }
        let growth = (sequence.token_ids.len() - num_shared_tokens).div_ceil(READMISSION_COST);
        let num_blocks_to_grow = |sequence: &Sequence| {
            let num_tokens = sequence.token_ids.len();
            let grown = (num_tokens + growth).min(sequence.max_num_tokens).max(num_tokens);
            grown.div_ceil(block_size) - num_tokens.div_ceil(block_size)
        };
        self.running.iter().chain([sequence]).map(num_blocks_to_grow).sum()
    }
}

/// Puts `sequence`, of whose tokens `table` has the first `num_shared_tokens`, on its way.
fn start(
    sequence: &mut Sequence,
    mut table: BlockTable,
    num_shared_tokens: usize,
    blocks: &BlockManager,
) -> Result<(), OutOfBlocks> {
    if let Err(error) = blocks.grow(&mut table, sequence.token_ids.len()) {
        blocks.release(table);
        return Err(error);
    }
    sequence.block_table = table;
    sequence.num_computed = num_shared_tokens;
    sequence.num_cached = num_shared_tokens;
    sequence.num_published = num_shared_tokens / blocks.block_size();
    Ok(())
}

fn plan_chunk(sequence: &Sequence, plan: &mut StepPlan, budget: &mut usize) {
    // After a preemption generated tokens follow the prompt. They are computed as they were the first time, in a step of their own.
    let num_alike = if sequence.is_in_prompt() {
        sequence.num_prompt_tokens - sequence.num_computed
    } else {
        sequence.num_uncomputed()
    };
    let num_scheduled = num_alike.min(*budget);
    *budget -= num_scheduled;
    plan.chunks.push(ScheduledChunk {
        id: sequence.id,
        num_scheduled,
        phase: Phase::Prefill,
        is_last: num_scheduled == sequence.num_uncomputed(),
        num_drafted: 0,
    });
}
