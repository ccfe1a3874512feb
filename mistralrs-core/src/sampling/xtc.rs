//! XTC, "exclude top choices": of all tokens that are likely enough, only the least likely stays. What remains is a good
//! continuation, but not the obvious one (P. E. Weidmann, text-generation-webui, pull request 6335).

use super::softmax::Weights;
use super::truncation::Candidate;

/// Takes the weight from all tokens of at least `threshold` probability but the least likely of them; of equals the
/// one with the highest id stays.
pub(super) fn exclude_top(weights: &mut Weights, logits: &[f32], threshold: f32, candidates: &mut Vec<Candidate>) {
    let limit = f64::from(threshold) * weights.total();
    candidates.clear();
    for (token_id, (&weight, &logit)) in weights.values().iter().zip(logits).enumerate() {
        if weight > 0.0 && f64::from(weight) >= limit {
            // By logit: weights of different logits may round to one number.
            candidates.push(Candidate::new(logit, token_id as u32));
        }
    }
    if let Some(&last) = candidates.iter().max() {
        weights.exclude(candidates.iter().filter(|candidate| **candidate < last).map(|top| top.token_id()));
    }
}
