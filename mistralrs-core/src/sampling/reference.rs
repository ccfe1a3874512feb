//! The plain sampler that defines the fast one's answers: sorts everything, in f64, in the documented order.

use std::collections::{BTreeMap, BTreeSet};

use super::dry::MAX_PENALTY;
use crate::request::{DryParams, SamplingParams};

/// What a sequence has seen, and how it may not end yet.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    pub(super) prompt: Vec<u32>,
    pub(super) output: Vec<u32>,
    pub(super) stop_token_ids: BTreeSet<u32>,
    pub(super) min_tokens: usize,
}

impl History {
    fn token_ids(&self) -> Vec<u32> {
        [self.prompt.as_slice(), &self.output].concat()
    }
}

/// Logits after masks, bias and penalties; `texts` are those of the tokens.
pub(super) fn adjust(params: &SamplingParams, history: &History, texts: &[String], logits: &[f32]) -> Vec<f64> {
    let mut adjusted: Vec<f64> = logits.iter().map(|&logit| f64::from(logit)).collect();
    if history.output.len() < history.min_tokens {
        history.stop_token_ids.iter().for_each(|&token_id| adjusted[token_id as usize] = f64::NEG_INFINITY);
    }
    for (&token_id, &bias) in &params.logit_bias {
        adjusted[token_id as usize] += f64::from(bias);
    }
    let seen = history.token_ids();
    let recent = &seen[seen.len() - params.repetition_window.unwrap_or(usize::MAX).min(seen.len())..];
    for token_id in recent.iter().collect::<BTreeSet<_>>() {
        let logit = &mut adjusted[*token_id as usize];
        let penalty = f64::from(params.repetition_penalty);
        *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
    }
    for &token_id in &history.output {
        adjusted[token_id as usize] -= f64::from(params.frequency_penalty);
    }
    for &token_id in history.output.iter().collect::<BTreeSet<_>>() {
        adjusted[token_id as usize] -= f64::from(params.presence_penalty);
    }
    if let Some(dry) = &params.dry {
        for (token_id, match_len) in repetitions(dry, history, texts) {
            let excess = (match_len - dry.allowed_length) as f64;
            let penalty = f64::from(dry.multiplier) * f64::from(dry.base).powf(excess);
            adjusted[token_id as usize] -= penalty.min(MAX_PENALTY);
        }
    }
    adjusted
}

/// Tokens that would continue a repetition, each with the longest one's length.
fn repetitions(dry: &DryParams, history: &History, texts: &[String]) -> BTreeMap<u32, usize> {
    let seen = history.token_ids();
    let seen = &seen[seen.len().saturating_sub(dry.window)..];
    let mut longest = BTreeMap::new();
    for next in 1..seen.len() {
        let matching = seen[..next].iter().rev().zip(seen.iter().rev()).take_while(|(left, right)| left == right);
        let match_len = matching.count().min(num_unbroken(dry, history, texts));
        if match_len >= dry.allowed_length {
            let entry = longest.entry(seen[next]).or_insert(match_len);
            *entry = match_len.max(*entry);
        }
    }
    longest
}

/// Tokens after the last one in which a sequence breaker ends.
fn num_unbroken(dry: &DryParams, history: &History, texts: &[String]) -> usize {
    let read = &history.prompt[history.prompt.len().saturating_sub(dry.window)..];
    let mut text = String::new();
    let mut num_unbroken = 0;
    for &token_id in read.iter().chain(&history.output) {
        let begin = text.len();
        text.push_str(&texts[token_id as usize]);
        let ends = |end: usize| dry.sequence_breakers.iter().any(|breaker| text[..end].ends_with(breaker.as_str()));
        num_unbroken = if (begin + 1..=text.len()).any(ends) { 0 } else { num_unbroken + 1 };
    }
    num_unbroken
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

/// Probabilities of the next draw from adjusted logits, XTC always doing what it does now and then; `own` are the
/// logits as the model gave them, temperature is above 0.
pub(super) fn probabilities(params: &SamplingParams, own: &[f32], adjusted: &[f64]) -> Vec<f64> {
    let scaled: Vec<f64> = adjusted.iter().map(|logit| logit / f64::from(params.temperature)).collect();
    let ranked = ranked(&scaled);
    let mut kept = vec![true; scaled.len()];
    if let Some(num_deviations) = params.top_n_sigma {
        let limit = adjusted[ranked[0]] - f64::from(num_deviations) * deviation(own);
        (0..kept.len()).for_each(|token_id| kept[token_id] = adjusted[token_id] >= limit);
    }
    for &token_id in ranked.iter().skip(params.top_k.unwrap_or(usize::MAX)) {
        kept[token_id] = false;
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
    if params.typical_p < 1.0 {
        keep_typical(f64::from(params.typical_p), &scaled, &mut kept);
    }
    if let Some(xtc) = params.xtc {
        let probability = masked_softmax(&scaled, &kept);
        let is_top =
            |token_id: &&usize| probability[**token_id] > 0.0 && probability[**token_id] >= f64::from(xtc.threshold);
        let top: Vec<usize> = ranked.iter().filter(is_top).copied().collect();
        top.iter().rev().skip(1).for_each(|&token_id| kept[token_id] = false);
    }
    masked_softmax(&scaled, &kept)
}

fn keep_typical(typical_p: f64, scaled: &[f64], kept: &mut [bool]) {
    let probability = masked_softmax(scaled, kept);
    let possible: Vec<usize> = (0..scaled.len()).filter(|&token_id| probability[token_id] > 0.0).collect();
    let surprise = |token_id: usize| -probability[token_id].ln();
    let entropy: f64 = possible.iter().map(|&token_id| probability[token_id] * surprise(token_id)).sum();
    let mut by_distance: Vec<_> =
        possible.iter().map(|&token_id| ((surprise(token_id) - entropy).abs(), token_id)).collect();
    by_distance.sort_by(|left, right| left.0.total_cmp(&right.0).then(left.1.cmp(&right.1)));
    kept.fill(false);
    let mut reached = 0.0;
    for (_, token_id) in by_distance {
        kept[token_id] = reached < typical_p;
        reached += probability[token_id];
    }
}

/// Standard deviation of the logits that are not masked.
fn deviation(logits: &[f32]) -> f64 {
    let finite: Vec<f64> = logits.iter().filter(|logit| logit.is_finite()).map(|&logit| f64::from(logit)).collect();
    let mean = finite.iter().sum::<f64>() / finite.len() as f64;
    (finite.iter().map(|logit| (logit - mean).powi(2)).sum::<f64>() / finite.len() as f64).sqrt()
}

fn masked_softmax(logits: &[f64], kept: &[bool]) -> Vec<f64> {
    let masked = logits.iter().zip(kept).map(|(&logit, &kept)| if kept { logit } else { f64::NEG_INFINITY });
    softmax(&masked.collect::<Vec<_>>())
}
