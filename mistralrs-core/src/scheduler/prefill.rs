//! Prefills: chunks of prompts within what decodes left of the token budget, and admission.

use mistralrs_paged_attn::BlockManager;

use super::{Phase, ScheduledChunk, Scheduler, StepPlan};
use crate::sequence::Sequence;

impl Scheduler {
    /// Gives admitted prompts their next chunk, oldest first. Their blocks were taken at admission.
    pub(super) fn continue_prefills(&self, plan: &mut StepPlan, budget: &mut usize) {
        for sequence in self.running.iter().filter(|sequence| !sequence.is_decoding()) {
            plan_chunk(sequence, plan, budget);
        }
    }

    /// Admits waiting sequences in order of arrival while sequences, tokens and blocks last.
    pub(super) fn admit_prefills(&mut self, blocks: &BlockManager, plan: &mut StepPlan, budget: &mut usize) {
        while *budget > 0 && self.running.len() < self.config.max_num_seqs {
            let Some(candidate) = self.waiting.front() else { break };
            if self.waits_for_leader(candidate) {
                break;
            }
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            if !self.take_blocks(&mut sequence, blocks) {
                self.waiting.push_front(sequence);
                break;
            }
            plan_chunk(&sequence, plan, budget);
            plan.admitted.push(sequence.id);
            self.running.push(sequence);
        }
    }

    /// Whether the first choice of the same request is still computing the prompt that this one would reuse.
    fn waits_for_leader(&self, candidate: &Sequence) -> bool {
        let Some(leader) = candidate.leader else { return false };
        !candidate.block_hashes.is_empty()
            && self
                .running
                .iter()
                .any(|sequence| sequence.id == leader && sequence.num_computed < sequence.num_prompt_tokens)
    }

    /// Blocks for all known tokens, cached ones first, or none at all.
    ///
    /// The whole prompt is reserved at once: a prompt that stopped half-way for want of blocks would hold
    /// what others need. While others run, a block for each of them stays free, or the next decodes would preempt at once.
    fn take_blocks(&self, sequence: &mut Sequence, blocks: &BlockManager) -> bool {
        let num_tokens = sequence.token_ids.len();
        let block_size = blocks.block_size();
        // The newest token is always computed: its logits are what the step is for.
        let num_reusable = ((num_tokens - 1) / block_size).min(sequence.block_hashes.len());
        let mut table = blocks.adopt_prefix(&sequence.block_hashes[..num_reusable]);
        let num_cached_blocks = table.blocks().len();
        let num_new = num_tokens.div_ceil(block_size) - num_cached_blocks;
        if num_new + self.running.len() > blocks.usage().num_available() || blocks.grow(&mut table, num_tokens).is_err()
        {
            blocks.release(table);
            return false;
        }
        sequence.block_table = table;
        sequence.num_computed = num_cached_blocks * block_size;
        sequence.num_cached = sequence.num_computed;
        sequence.num_published = num_cached_blocks;
        true
    }
}

fn plan_chunk(sequence: &Sequence, plan: &mut StepPlan, budget: &mut usize) {
    let num_scheduled = sequence.num_uncomputed().min(*budget);
    if num_scheduled == 0 {
        return;
    }
    *budget -= num_scheduled;
    plan.chunks.push(ScheduledChunk {
        id: sequence.id,
        num_scheduled,
        phase: Phase::Prefill,
        is_last: num_scheduled == sequence.num_uncomputed(),
        num_drafted: 0,
    });
}
