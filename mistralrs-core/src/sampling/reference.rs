//! The plain sampler that defines the fast one's answers: sorts everything, in f64, in the documented order.

use std::collections::BTreeMap;

use crate::request::SamplingParams;

/// What a sequence has seen.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    pub(super) prompt: Vec<u32>,
    pub(super) output: Vec<u32>,
}

/// Logits after bias and penalties.
pub(super) fn adjust(params: &SamplingParams, history: &History, logits: &[f32]) -> Vec<f64> {
    let mut adjusted: Vec<f64> = logits.iter().map(|&logit| f64::from(logit)).collect();
    for (&token_id, &bias) in &params.logit_bias {
        adjusted[token_id as usize] += f64::from(bias);
    }
    let mut counts: BTreeMap<u32, u32> = history.prompt.iter().map(|&token_id| (token_id, 0)).collect();
    for &token_id in &history.output {
        *counts.entry(token_id).or_default() += 1;
    }
    for (token_id, num_output) in counts {
        let logit = &mut adjusted[token_id as usize];
        let penalty = f64::from(params.repetition_penalty);
        *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        *logit -= f64::from(params.frequency_penalty) * f64::from(num_output);
        *logit -= if num_output > 0 { f64::from(params.presence_penalty) } else { 0.0 };
    }
    adjusted
}

/// Softmax of `logits`.
pub(super) fn softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logits.iter().map(|logit| (logit - max).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

/// Tokens from the likeliest on, of equals the lowest id first.
pub(super) fn ranked(values: &[f64]) -> Vec<usize> {
    let mut ranked: Vec<usize> = (0..values.len()).collect();
    // Adding 0 makes −0 equal to 0.
    ranked.sort_by(|&a, &b| (values[b] + 0.0).total_cmp(&(values[a] + 0.0)).then(a.cmp(&b)));
    ranked
}

/// Probabilities of the next draw from adjusted logits; temperature is above 0.
pub(super) fn probabilities(params: &SamplingParams, adjusted: &[f64]) -> Vec<f64> {
    let scaled: Vec<f64> = adjusted.iter().map(|logit| logit / f64::from(params.temperature)).collect();
    let ranked = ranked(&scaled);
    let mut kept = vec![false; scaled.len()];
    for &token_id in ranked.iter().take(params.top_k.unwrap_or(usize::MAX)) {
        kept[token_id] = true;
    }
    let probability = masked_softmax(&scaled, &kept);
    let mut reached = 0.0;
    for &token_id in &ranked {
        kept[token_id] &= reached < f64::from(params.top_p) || params.top_p >= 1.0;
        reached += probability[token_id];
    }
    let best = probability[ranked[0]];
    for (token_id, kept) in kept.iter_mut().enumerate() {
        *kept &= probability[token_id] >= f64::from(params.min_p) * best;
    }
    masked_softmax(&scaled, &kept)
}

fn masked_softmax(logits: &[f64], kept: &[bool]) -> Vec<f64> {
    let masked = logits.iter().zip(kept).map(|(&logit, &kept)| if kept { logit } else { f64::NEG_INFINITY });
    softmax(&masked.collect::<Vec<_>>())
}
