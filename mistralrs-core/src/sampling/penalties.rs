//! Bias and penalties: what a request changes about single tokens' logits.

use std::collections::HashMap;

use crate::request::SamplingParams;

/// Which tokens a sequence has seen. Empty where no penalty is on, so that requests without one pay nothing.
pub(super) struct TokenCounts {
    /// Occurrences in the output; 0 for tokens that only the prompt has.
    output: HashMap<u32, u32>,
    is_counting: bool,
}

impl TokenCounts {
    pub(super) fn new(params: &SamplingParams, prompt_token_ids: &[u32]) -> Self {
        let mut counts = Self { output: HashMap::new(), is_counting: penalizes_output(params) };
        if penalizes_repetition(params) {
            counts.output.extend(prompt_token_ids.iter().map(|&token_id| (token_id, 0)));
        }
        counts
    }

    pub(super) fn record(&mut self, token_id: u32) {
        if self.is_counting {
            *self.output.entry(token_id).or_default() += 1;
        }
    }

    /// Applies bias, then penalties to `logits`; appends each changed token's logit from before to `originals`.
    pub(super) fn adjust(&self, params: &SamplingParams, logits: &mut [f32], originals: &mut Vec<(u32, f32)>) {
        for (&token_id, &bias) in &params.logit_bias {
            change(logits, token_id, originals, |logit| logit + bias);
        }
        for (&token_id, &num_output) in &self.output {
            change(logits, token_id, originals, |logit| penalize(params, logit, num_output));
        }
    }
}

fn penalizes_output(params: &SamplingParams) -> bool {
    penalizes_repetition(params) || params.frequency_penalty != 0.0 || params.presence_penalty != 0.0
}

#[expect(clippy::float_cmp, reason = "1 is a setting here, not the result of a computation")]
fn penalizes_repetition(params: &SamplingParams) -> bool {
    params.repetition_penalty != 1.0
}

fn change(logits: &mut [f32], token_id: u32, originals: &mut Vec<(u32, f32)>, new: impl FnOnce(f32) -> f32) {
    // Ids outside the logits: a tokenizer may know more tokens than the model's head has rows.
    if let Some(logit) = logits.get_mut(token_id as usize) {
        originals.push((token_id, *logit));
        *logit = new(*logit);
    }
}

/// `repetition_penalty` as in Keskar et al. 2019, 4.1 (arXiv:1909.05858), with negative logits multiplied so that a
/// penalty never makes a token likelier; the other two as OpenAI's API documents them.
fn penalize(params: &SamplingParams, logit: f32, num_output: u32) -> f32 {
    let repeated = if logit > 0.0 { logit / params.repetition_penalty } else { logit * params.repetition_penalty };
    if num_output == 0 {
        return repeated;
    }
    repeated - params.frequency_penalty * num_output as f32 - params.presence_penalty
}
