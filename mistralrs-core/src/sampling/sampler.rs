//! The per-sequence sampler: what it remembers and the order of its steps.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha12Rng;

use super::penalties::TokenCounts;
use super::softmax::{LANES, Softmax, Weights};
use super::truncation::{self, Candidate, Cutoff};
use crate::request::SamplingParams;

/// Below this a temperature is greedy: dividing logits by less leaves one token with all the weight anyway.
const MIN_TEMPERATURE: f32 = 1e-5;

/// Where a choice's random numbers come from. The draw for output token i is a function of `seed`, `choice` and
/// i alone: preemption, recomputation and the rest of the batch cannot change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChoiceSeed {
    /// The request's seed, its own or a fresh random one.
    pub seed: u64,
    /// Index of the choice in its request: each of `n` choices draws from its own stream.
    pub choice: u64,
}

/// Picks the tokens of one sequence. Keep it across preemptions: it remembers what it has picked.
pub struct Sampler {
    params: SamplingParams,
    num_top_logprobs: Option<usize>,
    rng: ChaCha12Rng,
    counts: TokenCounts,
    num_output_tokens: u64,
}

/// Buffers of vocabulary size, lent to each call by their owner so that sequences need not have their own.
#[derive(Default)]
pub struct SamplerScratch {
    weights: Weights,
    candidates: Vec<Candidate>,
    /// Logits before bias and penalties, of the tokens these changed.
    originals: Vec<(u32, f32)>,
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
    /// A sampler for one choice with checked `params`. `num_top_logprobs`: `Some(k)` reports log-probabilities.
    /// Reads `prompt_token_ids` once, for `repetition_penalty`; long prompts make this worth doing off the
    /// engine thread.
    pub fn new(
        params: &SamplingParams,
        seed: ChoiceSeed,
        num_top_logprobs: Option<usize>,
        prompt_token_ids: &[u32],
    ) -> Self {
        let mut rng = ChaCha12Rng::seed_from_u64(seed.seed);
        rng.set_stream(seed.choice);
        Self {
            params: params.clone(),
            num_top_logprobs,
            rng,
            counts: TokenCounts::new(params, prompt_token_ids),
            num_output_tokens: 0,
        }
    }

    /// Picks the next token from `logits` `[V]`, which bias and penalties change in place, and remembers it.
    /// −∞ masks a token.
    ///
    /// # Errors
    /// [`SamplingError`]; nothing is remembered then.
    pub fn sample(&mut self, logits: &mut [f32], scratch: &mut SamplerScratch) -> Result<Sampled, SamplingError> {
        let mut best = find_best(logits)?;
        let raw = self.num_top_logprobs.map(|num_top| RawLogprobs::measure(logits, best.logit(), num_top, scratch));
        scratch.originals.clear();
        self.counts.adjust(&self.params, logits, &mut scratch.originals);
        if !scratch.originals.is_empty() {
            best = find_best(logits)?;
        }
        let is_greedy = self.params.temperature < MIN_TEMPERATURE;
        let token_id = if is_greedy { best.token_id() } else { self.draw(logits, best.logit(), scratch) };
        let logprob = raw.as_ref().map(|raw| raw.of(token_id, logits, &scratch.originals));
        self.record(token_id);
        Ok(Sampled { token_id, logprob, top: raw.map(|raw| raw.top).unwrap_or_default() })
    }

    /// Counts a token that joined the output without being drawn here; [`Self::sample`] does it for its own.
    pub fn record(&mut self, token_id: u32) {
        self.counts.record(token_id);
        self.num_output_tokens += 1;
    }

    /// Tokens of output so far; the next draw's index.
    pub fn num_output_tokens(&self) -> u64 {
        self.num_output_tokens
    }

    fn draw(&mut self, logits: &[f32], max: f32, scratch: &mut SamplerScratch) -> u32 {
        self.weigh(logits, max, scratch);
        scratch.weights.token_at(self.uniform())
    }

    /// Fills `scratch.weights` with the distribution to draw from.
    fn weigh(&self, logits: &[f32], max: f32, scratch: &mut SamplerScratch) {
        let softmax = Softmax { max, temperature: self.params.temperature };
        let cutoff = self.cutoff(logits, softmax, scratch);
        scratch.weights.fill(logits, softmax, cutoff);
    }

    /// The narrowest of the truncations that are on.
    fn cutoff(&self, logits: &[f32], softmax: Softmax, scratch: &mut SamplerScratch) -> Cutoff {
        let SamplerScratch { weights, candidates, .. } = scratch;
        let mut cutoff = Cutoff::KEEP_ALL;
        let top_k = self.params.top_k.filter(|&k| k < logits.len());
        if let Some(k) = top_k {
            cutoff = truncation::top_k(logits, k, candidates);
        }
        if self.params.top_p < 1.0 {
            let top_p = f64::from(self.params.top_p);
            if top_k.is_none() {
                weights.fill(logits, softmax, Cutoff::KEEP_ALL);
                truncation::gather_nucleus(logits, weights, top_p, candidates);
            }
            let total = if top_k.is_some() { truncation::total_weight(candidates, softmax) } else { weights.total() };
            cutoff = truncation::nucleus(candidates, softmax, top_p * total);
        }
        cutoff.narrower(truncation::min_p(softmax, self.params.min_p))
    }

    /// Uniform in [0, 1), 53 bits, for the current output position.
    fn uniform(&mut self) -> f64 {
        // Two 32-bit words per token.
        let word = u128::from(self.num_output_tokens) * 2;
        if self.rng.get_word_pos() != word {
            self.rng.set_word_pos(word);
        }
        (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
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

    fn of(&self, token_id: u32, adjusted: &[f32], originals: &[(u32, f32)]) -> f32 {
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
    pub(super) fn probabilities(&self, logits: &mut [f32], scratch: &mut SamplerScratch) -> Vec<f64> {
        self.counts.adjust(&self.params, logits, &mut scratch.originals);
        self.weigh(logits, find_best(logits).unwrap().logit(), scratch);
        let total = scratch.weights.total();
        scratch.weights.values().iter().map(|&weight| f64::from(weight) / total).collect()
    }
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
