//! Bias and penalties: what a request changes about single tokens' logits.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use crate::request::SamplingParams;

/// A token and its logit as the model gave it.
pub(super) type Original = (u32, f32);

/// Which tokens a sequence has seen. Empty where no penalty is on, so that requests without one pay nothing.
pub(super) struct TokenCounts {
    seen: HashMap<u32, Seen>,
    /// The tokens that `repetition_penalty` looks back at, oldest first, where it looks back at some only.
    recent: VecDeque<u32>,
    reach: Reach,
}

/// How often one token occurs.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    num_output: u32,
    /// In prompt and output, as far as `repetition_penalty` looks back.
    num_recent: u32,
}

/// What the penalties that are on need to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Nothing,
    Output,
    All,
    Last(usize),
}

impl Reach {
    #[expect(clippy::float_cmp, reason = "0 and 1 are settings here, not results of computations")]
    fn of(params: &SamplingParams) -> Self {
        let penalizes_repetition = params.repetition_penalty != 1.0;
        let penalizes_output = params.frequency_penalty != 0.0 || params.presence_penalty != 0.0;
        match params.repetition_window {
            None if penalizes_repetition => Self::All,
            Some(window @ 1..) if penalizes_repetition => Self::Last(window),
            _ if penalizes_output => Self::Output,
            _ => Self::Nothing,
        }
    }
}

impl TokenCounts {
    pub(super) fn new(params: &SamplingParams, prompt_token_ids: &[u32]) -> Self {
        let mut counts = Self { seen: HashMap::new(), recent: VecDeque::new(), reach: Reach::of(params) };
        let num_skipped = match counts.reach {
            Reach::Nothing | Reach::Output => prompt_token_ids.len(),
            Reach::Last(window) => prompt_token_ids.len().saturating_sub(window),
            Reach::All => 0,
        };
        prompt_token_ids[num_skipped..].iter().for_each(|&token_id| counts.look_at(token_id));
        counts
    }

    /// Counts a token of the output.
    pub(super) fn record(&mut self, token_id: u32) {
        if self.reach != Reach::Nothing {
            self.seen.entry(token_id).or_default().num_output += 1;
            self.look_at(token_id);
        }
    }

    /// Moves what `repetition_penalty` sees on by one token.
    fn look_at(&mut self, token_id: u32) {
        match self.reach {
            Reach::Nothing | Reach::Output => return,
            Reach::All => {}
            Reach::Last(window) => {
                if self.recent.len() == window {
                    self.forget_oldest();
                }
                self.recent.push_back(token_id);
            }
        }
        self.seen.entry(token_id).or_default().num_recent += 1;
    }

    fn forget_oldest(&mut self) {
        let Some(token_id) = self.recent.pop_front() else { return };
        if let Entry::Occupied(mut entry) = self.seen.entry(token_id) {
            let seen = entry.get_mut();
            seen.num_recent -= 1;
            if seen.num_recent == 0 && seen.num_output == 0 {
                entry.remove();
            }
        }
    }

    /// Applies bias, then penalties to `logits`; appends each changed token's logit from before to `originals`.
    pub(super) fn adjust(&self, params: &SamplingParams, logits: &mut [f32], originals: &mut Vec<Original>) {
        for (&token_id, &bias) in &params.logit_bias {
            change(logits, token_id, originals, |logit| logit + bias);
        }
        for (&token_id, &seen) in &self.seen {
            change(logits, token_id, originals, |logit| penalize(params, logit, seen));
        }
    }
}

/// Replaces one logit and notes what it was. Of several changes to one token the first note is the model's own.
pub(super) fn change(logits: &mut [f32], token_id: u32, originals: &mut Vec<Original>, new: impl FnOnce(f32) -> f32) {
    // Ids outside the logits: a tokenizer may know more tokens than the model's head has rows.
    if let Some(logit) = logits.get_mut(token_id as usize) {
        originals.push((token_id, *logit));
        *logit = new(*logit);
    }
}

/// `repetition_penalty` as in Keskar et al. 2019, 4.1 (arXiv:1909.05858), with negative logits multiplied so that a
/// penalty never makes a token likelier; the other two as OpenAI's API documents them.
fn penalize(params: &SamplingParams, logit: f32, seen: Seen) -> f32 {
    let repeated = match seen.num_recent {
        0 => logit,
        _ if logit > 0.0 => logit / params.repetition_penalty,
        _ => logit * params.repetition_penalty,
    };
    if seen.num_output == 0 {
        return repeated;
    }
    repeated - params.frequency_penalty * seen.num_output as f32 - params.presence_penalty
}
