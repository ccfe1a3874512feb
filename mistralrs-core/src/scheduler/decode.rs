//! Decodes: one token for each sequence whose prompt is done, preempting the last in line when blocks run out.

use mistralrs_paged_attn::BlockManager;

use super::{Phase, ScheduledChunk, Scheduler, StepPlan};

impl Scheduler {
    /// Gives every decoding sequence a slot for its newest token, the first in line first.
    pub(super) fn plan_decodes(&mut self, blocks: &BlockManager, plan: &mut StepPlan) {
        let mut at = 0;
        while at < self.running.len() {
            let sequence = &mut self.running[at];
            let num_tokens = sequence.token_ids.len();
            if !sequence.is_decoding() {
                at += 1;
            } else if blocks.grow(&mut sequence.block_table, num_tokens).is_ok() {
                plan.chunks.push(ScheduledChunk {
                    id: sequence.id,
                    num_scheduled: 1,
                    phase: Phase::Decode,
                    is_last: true,
                    num_drafted: 0,
                });
                at += 1;
            } else {
                // The last in line may be this very sequence: then the loop ends.
                self.preempt_last(blocks, plan);
            }
        }
    }

    /// Adds the guesses of planned decodes where budget and blocks are left. After all decodes have their slots: a guess
    /// costs no other sequence anything.
    pub(super) fn plan_guesses(&mut self, blocks: &BlockManager, plan: &mut StepPlan) {
        let mut spare = self.config.max_num_batched_tokens.saturating_sub(plan.num_tokens());
        for chunk in &mut plan.chunks {
            let Some(sequence) = self.running_mut(chunk.id) else { continue };
            // What follows a prompt's last token is a token of another kind: not in one chunk with it.
            sequence.draft.truncate(if sequence.is_in_prompt() { 0 } else { spare });
            let num_tokens = sequence.token_ids.len() + sequence.draft.len();
            if blocks.grow(&mut sequence.block_table, num_tokens).is_err() {
                sequence.draft.clear();
            }
            chunk.num_drafted = sequence.draft.len();
            chunk.num_scheduled += chunk.num_drafted;
            spare -= chunk.num_drafted;
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
