//! Decodes: one token for each sequence whose prompt is done, preempting the last in line when blocks run out.

use mistralrs_paged_attn::BlockManager;

use super::{Phase, ScheduledChunk, Scheduler, StepPlan};
use crate::sequence::Sequence;

impl Scheduler {
    /// Gives every decoding sequence a slot for its newest token, the first in line first, and for its guesses where
    /// blocks and budget are left: no guess costs another sequence anything.
    pub(super) fn plan_decodes(&mut self, blocks: &BlockManager, plan: &mut StepPlan) {
        let num_decodes = self.running.iter().filter(|sequence| sequence.is_decoding()).count();
        let mut spare = self.config.max_num_batched_tokens.saturating_sub(num_decodes);
        let mut at = 0;
        while at < self.running.len() {
            if !self.running[at].is_decoding() {
                at += 1;
                continue;
            }
            let sequence = &mut self.running[at];
            if grow_for_decode(sequence, blocks, spare) {
                let num_drafted = sequence.draft.len();
                spare -= num_drafted;
                plan.chunks.push(ScheduledChunk {
                    id: sequence.id,
                    num_scheduled: 1 + num_drafted,
                    phase: Phase::Decode,
                    is_last: true,
                    num_drafted,
                });
                at += 1;
            } else {
                // The last in line may be this very sequence: then the loop ends.
                self.preempt_last(blocks, plan);
            }
        }
    }

    /// Takes the blocks of the last running sequence in line, the newest of the lowest class; it recomputes when it is
    /// admitted again. Nobody after it in line runs, so its own place is where it waits.
    fn preempt_last(&mut self, blocks: &BlockManager, plan: &mut StepPlan) {
        let Some(mut sequence) = self.running.pop() else { return };
        blocks.release(std::mem::take(&mut sequence.block_table));
        sequence.num_computed = 0;
        sequence.num_published = 0;
        sequence.draft.clear();
        sequence.was_preempted = true;
        plan.preempted.push(sequence.id);
        self.waiting.insert(self.rank(&sequence), sequence);
    }
}

/// A slot for the newest token and for guesses, or for it alone, or none.
fn grow_for_decode(sequence: &mut Sequence, blocks: &BlockManager, max_drafted: usize) -> bool {
    sequence.draft.truncate(max_drafted);
    let num_tokens = sequence.token_ids.len();
    if !sequence.draft.is_empty() {
        if blocks.grow(&mut sequence.block_table, num_tokens + sequence.draft.len()).is_ok() {
            return true;
        }
        sequence.draft.clear();
    }
    blocks.grow(&mut sequence.block_table, num_tokens).is_ok()
}
