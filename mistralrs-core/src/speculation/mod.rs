//! Guesses of the next tokens, verified beside the newest one in the same step.
//!
//! **Exact by construction.** A guess decides nothing: the step computes the logits after each guessed token, the
//! sequence's sampler picks from them in order, and the first pick that is not the guess ends the round. Picks, their
//! random draws and their penalties are therefore those the sequence makes alone, greedy or seeded; only how many
//! tokens a step yields changes. (Leviathan et al. 2023, arXiv:2211.17192, with a draft that is certain of itself.)
//!
//! [`PromptLookup`] guesses, [`Acceptance`] and [`StepCost`] decide whether guessing pays.

mod pay;
mod prompt_lookup;

pub(crate) use pay::{Acceptance, StepCost};
pub(crate) use prompt_lookup::PromptLookup;

/// What one sequence knows about guessing its own tokens.
#[derive(Debug, Default)]
pub(crate) struct Speculation {
    lookup: PromptLookup,
    acceptance: Acceptance,
}

impl Speculation {
    /// Writes up to `max_tokens` guesses of what follows `token_ids` to `draft`, as many as pay at `row_share`: the
    /// cost of one more row as a share of what a token costs now.
    pub fn draft(&mut self, token_ids: &[u32], max_tokens: usize, row_share: f64, draft: &mut Vec<u32>) {
        draft.clear();
        self.lookup.extend(token_ids);
        let max_tokens = self.acceptance.max_draft_tokens(row_share).min(max_tokens);
        if max_tokens > 0 {
            self.lookup.draft(token_ids, max_tokens, draft);
        } else {
            self.acceptance.recover();
        }
    }

    /// Of `num_drafted` guesses, the first `num_accepted` were right.
    pub fn observe(&mut self, num_drafted: usize, num_accepted: usize) {
        self.acceptance.observe(num_drafted, num_accepted);
    }
}
