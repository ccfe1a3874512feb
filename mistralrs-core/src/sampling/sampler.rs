//! The per-sequence sampler: what it remembers and the order of its steps.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::draws::{ChoiceSeed, Draws, Purpose};
use super::dry::{Dry, DryScratch};
use super::penalties::{Original, TokenCounts, change};
use super::softmax::{LANES, Softmax, Weights};
use super::truncation::{self, Candidate, Cutoff};
use super::typical::{self, Surprise};
use super::xtc;
use crate::detokenizer::Vocabulary;
use crate::request::SamplingParams;

/// Below this a temperature is greedy: dividing logits by less leaves one token with all the weight anyway.
const MIN_TEMPERATURE: f32 = 1e-5;

/// What the samplers of one request are made of.
#[derive(Clone, Copy)]
pub struct SamplerSetup<'a> {
    /// How tokens are picked; checked.
    pub params: &'a SamplingParams,
    /// `Some(k)` reports log-probabilities, and those of the k likeliest tokens.
    pub num_top_logprobs: Option<usize>,
    /// What the penalties look back at, besides the output.
    pub prompt_token_ids: &'a [u32],
    /// Text of the tokens.
    pub vocabulary: &'a Arc<Vocabulary>,
    /// Tokens that are not picked while the output is shorter than `min_tokens`.
    pub stop_token_ids: &'a Arc<BTreeSet<u32>>,
    /// See [`StopConditions::min_tokens`](crate::request::StopConditions).
    pub min_tokens: usize,
}

/// Picks the tokens of one sequence. Keep it across preemptions: it remembers what it has picked.
pub struct Sampler {
    params: SamplingParams,
    num_top_logprobs: Option<usize>,
    stop_token_ids: Arc<BTreeSet<u32>>,
    min_tokens: u64,
    draws: Draws,
    /// For XTC, where it is on.
    exclusions: Option<Draws>,
    counts: TokenCounts,
    dry: Option<Dry>,
    num_output_tokens: u64,
}

/// Buffers of vocabulary size, lent to each call by their owner so that sequences need not have their own.
#[derive(Default)]
pub struct SamplerScratch {
    weights: Weights,
    candidates: Vec<Candidate>,
    surprises: Vec<Surprise>,
    dry: DryScratch,
    /// Logits before bias and penalties, of the tokens these changed.
    originals: Vec<Original>,
}

/// The logits of one position after bias and penalties.
#[derive(Clone, Copy)]
struct Position<'a> {
    logits: &'a [f32],
    /// The largest of them.
    max: f32,
    /// Standard deviation of the model's own logits, where `top_n_sigma` needs it: tokens that a bias or a penalty
    /// has banned must not widen it.
    deviation: f64,
}

/// One picked token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token_id: u32,
    /// Its log-probability in the model's own distribution, before bias, penalties, temperature and truncation.
    /// `None` unless asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens of that distribution and their log-probabilities, likeliest first. Masked tokens are
    /// left out, so there may be fewer than asked for.
    pub top: Vec<(u32, f32)>,
}

/// Why no token can be picked; the sequence fails, the engine goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SamplingError {
    /// A logit is NaN or +∞.
    #[error("the model computed a logit that is not a number, for token {token_id}")]
    NotFinite {
        /// The first such token.
        token_id: u32,
    },
    /// Every logit is −∞, or there are none.
    #[error("no token is allowed at this position")]
    AllMasked,
}

impl Sampler {
    /// A sampler for one choice. Reads the prompt for the penalties that are on: with long prompts that is worth doing
    /// off the engine thread.
    pub fn new(setup: &SamplerSetup<'_>, seed: ChoiceSeed) -> Self {
        let SamplerSetup { params, prompt_token_ids, vocabulary, .. } = setup;
        Self {
            params: (*params).clone(),
            num_top_logprobs: setup.num_top_logprobs,
            stop_token_ids: Arc::clone(setup.stop_token_ids),
            min_tokens: setup.min_tokens as u64,
            draws: Draws::new(seed, Purpose::Token),
            exclusions: params.xtc.map(|_| Draws::new(seed, Purpose::Exclusion)),
            counts: TokenCounts::new(params, prompt_token_ids),
            dry: params.dry.as_ref().map(|dry| Dry::new(dry, vocabulary, prompt_token_ids)),
            num_output_tokens: 0,
        }
    }

    /// Picks the next token from `logits` `[V]`, which bias and penalties change in place, and remembers it.
    /// −∞ masks a token.
    ///
    /// # Errors
    /// [`SamplingError`]; nothing is remembered then.
    pub fn sample(&mut self, logits: &mut [f32], scratch: &mut SamplerScratch) -> Result<Sampled, SamplingError> {
        let best = find_best(logits)?;
        let raw = self.num_top_logprobs.map(|num_top| RawLogprobs::measure(logits, best.logit(), num_top, scratch));
        let (position, best) = self.adjust(logits, best, scratch)?;
        let is_greedy = self.params.temperature < MIN_TEMPERATURE;
        let token_id = if is_greedy { best.token_id() } else { self.draw(position, scratch) };
        let logprob = raw.as_ref().map(|raw| raw.of(token_id, position.logits, &scratch.originals));
        self.record(token_id);
        Ok(Sampled { token_id, logprob, top: raw.map(|raw| raw.top).unwrap_or_default() })
    }

    /// Counts a token that joined the output without being drawn here; [`Self::sample`] does it for its own.
    pub fn record(&mut self, token_id: u32) {
        self.counts.record(token_id);
        if let Some(dry) = &mut self.dry {
            dry.record(token_id);
        }
        self.num_output_tokens += 1;
    }

    /// Tokens of output so far; the next draw's index.
    pub fn num_output_tokens(&self) -> u64 {
        self.num_output_tokens
    }

    /// Masks what may not come yet, then applies bias and penalties; also finds the likeliest token after that, `best`
    /// being the one before.
    fn adjust<'a>(
        &self,
        logits: &'a mut [f32],
        best: Candidate,
        scratch: &mut SamplerScratch,
    ) -> Result<(Position<'a>, Candidate), SamplingError> {
        let deviation = self.params.top_n_sigma.map_or(0.0, |_| truncation::deviation(logits, best.logit()));
        let SamplerScratch { originals, dry, .. } = scratch;
        originals.clear();
        if self.num_output_tokens < self.min_tokens {
            for &token_id in &*self.stop_token_ids {
                change(logits, token_id, originals, |_| f32::NEG_INFINITY);
            }
        }
        self.counts.adjust(&self.params, logits, originals);
        if let Some(repetitions) = &self.dry {
            repetitions.adjust(logits, dry, originals);
        }
        let best = if originals.is_empty() { best } else { find_best(logits)? };
        Ok((Position { logits, max: best.logit(), deviation }, best))
    }

    fn draw(&mut self, position: Position<'_>, scratch: &mut SamplerScratch) -> u32 {
        self.weigh(position, scratch);
        scratch.weights.token_at(self.draws.uniform(self.num_output_tokens))
    }

    /// Fills `scratch.weights` with the distribution to draw from.
    fn weigh(&mut self, position: Position<'_>, scratch: &mut SamplerScratch) {
        let softmax = Softmax { max: position.max, temperature: self.params.temperature };
        let cutoff = self.cutoff(position, softmax, scratch);
        let SamplerScratch { weights, candidates, surprises, .. } = scratch;
        weights.fill(position.logits, softmax, cutoff);
        if self.params.typical_p < 1.0 {
            typical::keep_typical(weights, position.logits, softmax, self.params.typical_p, surprises);
        }
        if let (Some(xtc), Some(exclusions)) = (self.params.xtc, &mut self.exclusions)
            && exclusions.uniform(self.num_output_tokens) < f64::from(xtc.probability)
        {
            xtc::exclude_top(weights, position.logits, xtc.threshold, candidates);
        }
    }

    /// The narrowest of the truncations that are on.
    fn cutoff(&self, position: Position<'_>, softmax: Softmax, scratch: &mut SamplerScratch) -> Cutoff {
        let SamplerScratch { weights, candidates, .. } = scratch;
        let Position { logits, max, deviation } = position;
        let near_the_top = self.params.top_n_sigma.map_or(Cutoff::KEEP_ALL, |num_deviations| {
            Cutoff::at_least((f64::from(max) - f64::from(num_deviations) * deviation) as f32)
        });
        let top_k = self.params.top_k.filter(|&k| k < logits.len());
        let mut cutoff = near_the_top;
        if let Some(k) = top_k {
            cutoff = truncation::top_k(logits, k, candidates).narrower(near_the_top);
        }
        if self.params.top_p < 1.0 {
            let top_p = f64::from(self.params.top_p);
            let total = if top_k.is_some() {
                candidates.retain(|&candidate| near_the_top.keeps(candidate));
                truncation::total_weight(candidates, softmax)
            } else {
                weights.fill(logits, softmax, near_the_top);
                truncation::gather_nucleus(logits, weights, top_p, candidates);
                weights.total()
            };
            cutoff = cutoff.narrower(truncation::nucleus(candidates, softmax, top_p * total));
        }
        cutoff.narrower(truncation::min_p(softmax, self.params.min_p))
    }
}

/// The model's own distribution at one position, as far as log-probabilities need it.
struct RawLogprobs {
    /// log Σ exp(logit).
    log_normalizer: f64,
    top: Vec<(u32, f32)>,
}

impl RawLogprobs {
    /// `max` is the largest logit.
    fn measure(logits: &[f32], max: f32, num_top: usize, scratch: &mut SamplerScratch) -> Self {
        scratch.weights.fill(logits, Softmax { max, temperature: 1.0 }, Cutoff::KEEP_ALL);
        let log_normalizer = f64::from(max) + scratch.weights.total().ln();
        let mut raw = Self { log_normalizer, top: Vec::new() };
        if num_top > 0 {
            truncation::top_k(logits, num_top, &mut scratch.candidates);
            scratch.candidates.sort_unstable();
            raw.top =
                (scratch.candidates.iter().take(num_top).filter(|candidate| candidate.logit() > f32::NEG_INFINITY))
                    .map(|candidate| (candidate.token_id(), raw.normalize(candidate.logit())))
                    .collect();
        }
        raw
    }

    fn of(&self, token_id: u32, adjusted: &[f32], originals: &[Original]) -> f32 {
        // The first entry: bias comes before the penalties, and either may have changed this token.
        let original = originals.iter().find(|(changed, _)| *changed == token_id).map(|(_, logit)| *logit);
        self.normalize(original.unwrap_or_else(|| adjusted[token_id as usize]))
    }

    fn normalize(&self, logit: f32) -> f32 {
        (f64::from(logit) - self.log_normalizer) as f32
    }
}

#[cfg(test)]
impl Sampler {
    /// Probabilities of the next draw, by token.
    pub(super) fn probabilities(&mut self, logits: &mut [f32], scratch: &mut SamplerScratch) -> Vec<f64> {
        let best = find_best(logits).unwrap();
        let (position, _) = self.adjust(logits, best, scratch).unwrap();
        self.weigh(position, scratch);
        let total = scratch.weights.total();
        scratch.weights.values().iter().map(|&weight| f64::from(weight) / total).collect()
    }
}

/// The likeliest token, of equals the lowest id: what a greedy sampler without penalties picks.
///
/// # Errors
/// [`SamplingError`].
pub(crate) fn likeliest(logits: &[f32]) -> Result<u32, SamplingError> {
    Ok(find_best(logits)?.token_id())
}

/// The likeliest token, of equals the lowest id.
fn find_best(logits: &[f32]) -> Result<Candidate, SamplingError> {
    let mut maxima = [f32::NEG_INFINITY; LANES];
    let mut are_nan = [false; LANES];
    let chunks = logits.chunks_exact(LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            maxima[lane] = if chunk[lane] > maxima[lane] { chunk[lane] } else { maxima[lane] };
            are_nan[lane] |= chunk[lane].is_nan();
        }
    }
    let max = maxima.iter().chain(tail).copied().fold(f32::NEG_INFINITY, f32::max);
    let position = |is_wanted: &dyn Fn(f32) -> bool| logits.iter().position(|&logit| is_wanted(logit));
    if max == f32::INFINITY || are_nan.contains(&true) || tail.iter().any(|logit| logit.is_nan()) {
        let token_id = position(&|logit| logit.is_nan() || logit == f32::INFINITY).unwrap_or_default() as u32;
        return Err(SamplingError::NotFinite { token_id });
    }
    match position(&|logit| logit >= max) {
        Some(token_id) if max > f32::NEG_INFINITY => Ok(Candidate::new(max, token_id as u32)),
        _ => Err(SamplingError::AllMasked),
    }
}
