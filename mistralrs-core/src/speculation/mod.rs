//! Guesses of the next tokens, verified beside the newest one in the same step.
//!
//! **Exact by construction.** A guess decides nothing: the step computes the logits after each guessed token, the
//! sequence's sampler picks from them in order, and the first pick that is not the guess ends the round. Picks, their
//! random draws and their penalties are therefore those the sequence makes alone, greedy or seeded; only how many
//! tokens a step yields changes. (Leviathan et al. 2023, arXiv:2211.17192, with a draft that is certain of itself.)
//!
//! The engine holds a [`Guesser`]. Its sources, in order: [`PromptLookup`], which costs nothing, then a [`DraftModel`] for
//! sequences whose text does not repeat itself. [`Acceptance`], apart for each source, and [`StepCost`] decide whether
//! guessing pays. A [`Draft`] becomes a [`DraftModel`] after the checks in [`draft`].

mod draft;
mod draft_model;
mod guesser;
mod pay;
mod prompt_lookup;

pub use draft::{Draft, DraftCost};
pub(crate) use draft_model::DraftModel;
pub(crate) use guesser::{Guesser, Verified};

use pay::Acceptance;
pub(crate) use pay::StepCost;
use prompt_lookup::PromptLookup;

/// Who made a guess; a metric label.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum GuessSource {
    /// The text's own repetitions.
    #[default]
    PromptLookup,
    /// A smaller model.
    DraftModel,
}

impl GuessSource {
    pub const ALL: [Self; 2] = [Self::PromptLookup, Self::DraftModel];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::PromptLookup => "prompt_lookup",
            Self::DraftModel => "draft_model",
        }
    }
}

/// What one sequence knows about guessing its own tokens.
#[derive(Debug, Default)]
pub(crate) struct Speculation {
    lookup: PromptLookup,
    lookup_acceptance: Acceptance,
    /// `None` until the draft model is asked for the first time.
    draft_acceptance: Option<Acceptance>,
    /// Of this step's guesses.
    source: GuessSource,
}

impl Speculation {
    /// Writes up to `max_tokens` guesses of what follows `token_ids` to `draft`, as many as pay at `row_share`: the
    /// cost of one more row as a share of what a token costs now.
    pub fn look_up(&mut self, token_ids: &[u32], max_tokens: usize, row_share: f64, draft: &mut Vec<u32>) {
        self.source = GuessSource::PromptLookup;
        self.lookup.extend(token_ids);
        let max_tokens = self.lookup_acceptance.max_draft_tokens(row_share).min(max_tokens);
        if max_tokens > 0 {
            self.lookup.draft(token_ids, max_tokens, draft);
        } else {
            self.lookup_acceptance.recover();
        }
    }

    /// Who made this step's guesses, if there are any.
    pub fn source(&self) -> GuessSource {
        self.source
    }

    /// Of `num_drafted` guesses of `source`, the first `num_accepted` were right.
    fn observe(&mut self, source: GuessSource, num_drafted: usize, num_accepted: usize) {
        match source {
            GuessSource::PromptLookup => self.lookup_acceptance.observe(num_drafted, num_accepted),
            GuessSource::DraftModel => {
                if let Some(acceptance) = &mut self.draft_acceptance {
                    acceptance.observe(num_drafted, num_accepted);
                }
            }
        }
    }
}
