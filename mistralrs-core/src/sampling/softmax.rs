//! Softmax over a vocabulary at the speed of a memory pass.
//!
//! A draw needs `exp` of every logit; libm's scalar one would cost more than a small model's output head. [`exp`] is a
//! branch-free polynomial that the compiler vectorizes, and its result is the same on every machine.

use super::truncation::Cutoff;

/// Tokens per partial sum: a draw finds its block first, then its token.
const BLOCK: usize = 512;
/// Values computed side by side, so that none waits for another: the widest vectors hold 16.
pub(super) const LANES: usize = 16;

/// exp((logit − max) / temperature): 1 for the likeliest token.
#[derive(Clone, Copy)]
pub(super) struct Softmax {
    /// The largest logit, finite.
    pub(super) max: f32,
    /// More than 0.
    pub(super) temperature: f32,
}

impl Softmax {
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "a call would keep the loops around it from being vectorized")]
    pub(super) fn weight(self, logit: f32) -> f32 {
        exp((logit - self.max) / self.temperature)
    }

    /// The logit whose weight is `weight`.
    pub(super) fn logit_of(self, weight: f32) -> f32 {
        self.max + self.temperature * weight.ln()
    }
}

/// Unnormalized probabilities of a whole vocabulary.
#[derive(Default)]
pub(super) struct Weights {
    values: Vec<f32>,
    block_sums: Vec<f64>,
}

impl Weights {
    /// One weight per logit, 0 for what `cutoff` drops.
    pub(super) fn fill(&mut self, logits: &[f32], softmax: Softmax, cutoff: Cutoff) {
        self.values.resize(logits.len(), 0.0);
        self.block_sums.clear();
        for (block, (logits, weights)) in logits.chunks(BLOCK).zip(self.values.chunks_mut(BLOCK)).enumerate() {
            // Up to the cutoff's id its logit is kept, behind it is not.
            let (upto, behind) = logits.split_at(cutoff.num_ids_upto(block * BLOCK..block * BLOCK + logits.len()));
            let (weights_upto, weights_behind) = weights.split_at_mut(upto.len());
            for (&logit, weight) in upto.iter().zip(weights_upto) {
                let kept = softmax.weight(logit);
                *weight = if logit >= cutoff.logit() { kept } else { 0.0 };
            }
            for (&logit, weight) in behind.iter().zip(weights_behind) {
                let kept = softmax.weight(logit);
                *weight = if logit > cutoff.logit() { kept } else { 0.0 };
            }
            self.block_sums.push(sum(weights));
        }
    }

    pub(super) fn values(&self) -> &[f32] {
        &self.values
    }

    /// Gives tokens no weight; at least one other has some.
    pub(super) fn exclude(&mut self, token_ids: impl Iterator<Item = u32>) {
        for token_id in token_ids {
            self.values[token_id as usize] = 0.0;
        }
        for (block_sum, block) in self.block_sums.iter_mut().zip(self.values.chunks(BLOCK)) {
            *block_sum = sum(block);
        }
    }

    pub(super) fn total(&self) -> f64 {
        self.block_sums.iter().sum()
    }

    /// The token at `fraction` in [0, 1) of the total weight, counted in the order of ids. At least one weight is
    /// not 0, and so is the returned token's.
    pub(super) fn token_at(&self, fraction: f64) -> u32 {
        let (block, rest) = position_at(self.block_sums.iter().copied(), fraction * self.total());
        let weights = &self.values[block * BLOCK..self.values.len().min((block + 1) * BLOCK)];
        let (offset, _) = position_at(weights.iter().map(|&weight| f64::from(weight)), rest);
        (block * BLOCK + offset) as u32
    }
}

/// Where `rest` falls among consecutive `parts`, and how far into that part. Past the end, which rounding makes
/// possible, the last part that is not 0.
fn position_at(parts: impl Iterator<Item = f64>, mut rest: f64) -> (usize, f64) {
    let mut last = (0, 0.0);
    for (index, part) in parts.enumerate().filter(|(_, part)| *part > 0.0) {
        if rest < part {
            return (index, rest);
        }
        rest -= part;
        last = (index, part);
    }
    last
}

fn sum(weights: &[f32]) -> f64 {
    let mut lanes = [0.0_f32; LANES];
    let chunks = weights.chunks_exact(LANES);
    let tail: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (lane, weight) in lanes.iter_mut().zip(chunk) {
            *lane += weight;
        }
    }
    lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>() + f64::from(tail)
}

/// e^x for x ≤ 0 within 3e-7 of its value; 0 below −87, where f32 has no normal numbers.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2, then e^r by its Taylor series (the first term left out is r⁸/8! < 6e-9) and
/// 2ⁿ by the exponent bits.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const MIN: f32 = -87.0;
    // Adding 1.5·2²³ rounds to an integer and leaves it in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts: the first has few enough bits that n times it is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;

    let clamped = if x > MIN { x } else { MIN };
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = clamped - n * LN_2_HIGH - n * LN_2_LOW;
    let mut series = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + coefficient;
    }
    // Wrapping: an overflow check would keep the loops from being vectorized, and |n| is at most 126.
    let biased = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let power = f32::from_bits(biased << 23);
    if x > MIN { series * power } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_libm_over_its_whole_range() {
        for step in 0..=870_000 {
            let x = -(step as f32) * 1e-4;
            let expected = f64::from(x).exp();
            let relative = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(relative < 3e-7 || x <= -87.0, "exp({x}) is off by {relative}");
        }
        assert_eq!((exp(0.0), exp(-87.5), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    }

    #[test]
    fn a_fraction_at_the_very_end_finds_the_last_token_that_has_weight() {
        let mut weights = Weights::default();
        let mut logits = vec![0.0; 2000];
        logits[1990..].fill(f32::NEG_INFINITY);
        weights.fill(&logits, Softmax { max: 0.0, temperature: 1.0 }, Cutoff::KEEP_ALL);
        assert_eq!(weights.token_at(1.0), 1989);
        assert_eq!(weights.token_at(0.0), 0);
        assert_eq!(weights.token_at(0.5), 995);
    }
}
