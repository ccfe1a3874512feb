//! `top_n_sigma`, `top_k`, `top_p` and `min_p` as cutoffs in one order of tokens: higher logit first, then lower id.

use std::ops::Range;

use super::softmax::{Softmax, Weights};

/// The sign bit of an f32.
const SIGN: u32 = 1 << 31;
/// Below this many candidates sorting beats halving further.
const SORT_LEN: usize = 32;
/// [`top_k`] drops its losers when this many times k candidates have gathered.
const TOP_K_SLACK: usize = 4;

/// A token that may be kept, as one number so that comparing takes one instruction: the logit's bits, turned so that
/// higher logits are less, above the id. Of two candidates the less is kept first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate(u64);

/// The last token that is kept: those after it in the order are dropped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cutoff(Candidate);

impl Candidate {
    pub(super) fn new(logit: f32, token_id: u32) -> Self {
        // Adding 0 makes −0 equal to 0, as it is where a logit is compared with the cutoff's.
        let bits = (logit + 0.0).to_bits();
        let descending = if bits & SIGN == 0 { !(bits | SIGN) } else { bits };
        Self(u64::from(descending) << 32 | u64::from(token_id))
    }

    pub(super) fn logit(self) -> f32 {
        let descending = (self.0 >> 32) as u32;
        f32::from_bits(if descending & SIGN == 0 { !descending & !SIGN } else { descending })
    }

    pub(super) fn token_id(self) -> u32 {
        self.0 as u32
    }
}

impl Cutoff {
    pub(super) const KEEP_ALL: Self = Self(Candidate((f32::NEG_INFINITY.to_bits() as u64) << 32 | u32::MAX as u64));

    /// Higher logits are kept; of this one, only ids up to the cutoff's.
    pub(super) fn logit(self) -> f32 {
        self.0.logit()
    }

    /// How many of `token_ids` are not above the cutoff's.
    pub(super) fn num_ids_upto(self, token_ids: Range<usize>) -> usize {
        (self.0.token_id() as usize).saturating_add(1).saturating_sub(token_ids.start).min(token_ids.len())
    }

    pub(super) fn narrower(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }

    /// Keeps logits of at least `logit`.
    pub(super) fn at_least(logit: f32) -> Self {
        Self(Candidate::new(logit, u32::MAX))
    }

    pub(super) fn keeps(self, candidate: Candidate) -> bool {
        candidate <= self.0
    }
}

/// Leaves the k likeliest tokens in `candidates`, in no order, and returns the last of them. k is at least 1; fewer
/// than k logits are all kept.
pub(super) fn top_k(logits: &[f32], k: usize, candidates: &mut Vec<Candidate>) -> Cutoff {
    let capacity = k.saturating_mul(TOP_K_SLACK).min(logits.len());
    let mut threshold = f32::NEG_INFINITY;
    candidates.clear();
    for (token_id, &logit) in logits.iter().enumerate() {
        // Equal to the threshold is not enough: k tokens of lower id are already at least as likely.
        if logit > threshold || candidates.len() < k {
            candidates.push(Candidate::new(logit, token_id as u32));
            if candidates.len() >= capacity && candidates.len() > k {
                threshold = keep_first(candidates, k).logit();
            }
        }
    }
    keep_first(candidates, k)
}

/// Drops all but the first k, and returns the last of these.
fn keep_first(candidates: &mut Vec<Candidate>, k: usize) -> Cutoff {
    let last = k.min(candidates.len()) - 1;
    let (_, &mut last, _) = candidates.select_nth_unstable(last);
    candidates.truncate(k);
    Cutoff(last)
}

/// Gathers into `candidates` every token that can be in the `top_p` nucleus of `weights`.
pub(super) fn gather_nucleus(logits: &[f32], weights: &Weights, top_p: f64, candidates: &mut Vec<Candidate>) {
    // All tokens lighter than this together weigh less than the 1 − top_p that the nucleus may leave out.
    let negligible = (1.0 - top_p) * weights.total() / logits.len() as f64;
    candidates.clear();
    for (token_id, (&logit, &weight)) in logits.iter().zip(weights.values()).enumerate() {
        if f64::from(weight) >= negligible {
            candidates.push(Candidate::new(logit, token_id as u32));
        }
    }
}

/// The last token of the shortest prefix of `candidates`' order whose weight reaches `target`.
pub(super) fn nucleus(candidates: &mut [Candidate], softmax: Softmax, target: f64) -> Cutoff {
    let weight = |candidate: Candidate| f64::from(softmax.weight(candidate.logit()));
    shortest_prefix(candidates, weight, target).map_or(Cutoff::KEEP_ALL, Cutoff)
}

/// The last item of the shortest prefix, in ascending order, whose weight reaches `target`; `None` of no items.
/// Halves what is left instead of sorting all of it.
pub(super) fn shortest_prefix<T: Ord + Copy>(items: &mut [T], weight: impl Fn(T) -> f64, target: f64) -> Option<T> {
    let mut rest = items;
    let mut missing = target;
    while rest.len() > SORT_LEN {
        let middle = rest.len() / 2;
        rest.select_nth_unstable(middle);
        let (first, others) = rest.split_at_mut(middle);
        let reached: f64 = first.iter().map(|&item| weight(item)).sum();
        if reached >= missing {
            rest = first;
        } else {
            missing -= reached;
            rest = others;
        }
    }
    rest.sort_unstable();
    for &item in &*rest {
        missing -= weight(item);
        if missing <= 0.0 {
            return Some(item);
        }
    }
    // Rounding kept the sum below the target: all of them are needed.
    rest.last().copied()
}

/// Sum of the candidates' weights.
pub(super) fn total_weight(candidates: &[Candidate], softmax: Softmax) -> f64 {
    candidates.iter().map(|candidate| f64::from(softmax.weight(candidate.logit()))).sum()
}

/// Keeps tokens at least `min_p` times as likely as the likeliest; 0 keeps all.
pub(super) fn min_p(softmax: Softmax, min_p: f32) -> Cutoff {
    if min_p > 0.0 { Cutoff::at_least(softmax.logit_of(min_p)) } else { Cutoff::KEEP_ALL }
}

/// Standard deviation of the logits that are not masked.
pub(super) fn deviation(logits: &[f32], max: f32) -> f64 {
    let (mut count, mut sum, mut sum_of_squares) = (0.0_f64, 0.0_f64, 0.0_f64);
    for &logit in logits {
        // Relative to the largest: squares of large logits would swallow small differences.
        let distance = f64::from(max) - f64::from(logit);
        let is_masked = logit == f32::NEG_INFINITY;
        count += if is_masked { 0.0 } else { 1.0 };
        sum += if is_masked { 0.0 } else { distance };
        sum_of_squares += if is_masked { 0.0 } else { distance * distance };
    }
    let mean = sum / count;
    (sum_of_squares / count - mean * mean).max(0.0).sqrt()
}
