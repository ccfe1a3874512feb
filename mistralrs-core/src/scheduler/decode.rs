//! Decodes: one token for each sequence whose prompt is done, preempting the newest when blocks run out.

use mistralrs_paged_attn::BlockManager;

use super::{Phase, ScheduledChunk, Scheduler, StepPlan};

impl Scheduler {
    /// Gives every decoding sequence a slot for its newest token, oldest first.
    pub(super) fn plan_decodes(&mut self, blocks: &BlockManager, plan: &mut StepPlan) {
        let mut at = 0;
        while at < self.running.len() {
            if !self.running[at].is_decoding() {
                at += 1;
                continue;
            }
            let sequence = &mut self.running[at];
            let num_tokens = sequence.token_ids.len();
            if blocks.grow(&mut sequence.block_table, num_tokens).is_ok() {
                plan.chunks.push(ScheduledChunk {
                    id: sequence.id,
                    num_scheduled: 1,
                    phase: Phase::Decode,
                    is_last: true,
                });
                at += 1;
            } else {
                // The newest may be this very sequence: then the loop ends, since it stood last.
                self.preempt_newest(blocks, plan);
            }
        }
    }

    /// Takes the blocks of the newest running sequence; it recomputes when it is admitted again.
    fn preempt_newest(&mut self, blocks: &BlockManager, plan: &mut StepPlan) {
        let Some(mut sequence) = self.running.pop() else { return };
        blocks.release(std::mem::take(&mut sequence.block_table));
        sequence.num_computed = 0;
        sequence.num_published = 0;
        plan.preempted.push(sequence.id);
        // It came before everything that never ran, so the front keeps the order of arrival.
        self.waiting.push_front(sequence);
    }
}
