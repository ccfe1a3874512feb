//! `top_k`, `top_p` and `min_p` as cutoffs in one order of tokens: higher logit first, then lower id.

use std::cmp::Ordering;
use std::ops::Range;

use super::softmax::{Softmax, Weights};

/// Below this many candidates sorting beats halving further.
const SORT_LEN: usize = 32;
/// [`top_k`] drops its losers when this many times k candidates have gathered.
const TOP_K_SLACK: usize = 4;

/// The last token that is kept: those after it in the order are dropped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cutoff {
    /// Higher logits are kept.
    pub(super) logit: f32,
    /// Of equal logits, ids up to this one are kept.
    token_id: u32,
}

/// A token that may be kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) logit: f32,
    pub(super) token_id: u32,
}

impl Cutoff {
    pub(super) const KEEP_ALL: Self = Self { logit: f32::NEG_INFINITY, token_id: u32::MAX };

    pub(super) fn narrower(self, other: Self) -> Self {
        let is_earlier = self.logit > other.logit || (self.logit == other.logit && self.token_id <= other.token_id);
        if is_earlier { self } else { other }
    }

    /// How many of the first of `token_ids` are kept where their logit equals the cutoff's.
    pub(super) fn num_ties_kept(self, token_ids: Range<usize>) -> u32 {
        (self.token_id as usize).saturating_add(1).saturating_sub(token_ids.start).min(token_ids.len()) as u32
    }
}

impl From<Candidate> for Cutoff {
    fn from(last: Candidate) -> Self {
        Self { logit: last.logit, token_id: last.token_id }
    }
}

impl Candidate {
    pub(super) fn order(&self, other: &Self) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.token_id.cmp(&other.token_id))
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
            candidates.push(Candidate { logit, token_id: token_id as u32 });
            if candidates.len() >= capacity && candidates.len() > k {
                threshold = keep_first(candidates, k).logit;
            }
        }
    }
    keep_first(candidates, k)
}

/// Drops all but the first k, and returns the last of these.
fn keep_first(candidates: &mut Vec<Candidate>, k: usize) -> Cutoff {
    let last = k.min(candidates.len()) - 1;
    let (_, &mut last, _) = candidates.select_nth_unstable_by(last, Candidate::order);
    candidates.truncate(k);
    last.into()
}

/// Gathers into `candidates` every token that can be in the `top_p` nucleus of `weights`.
pub(super) fn gather_nucleus(logits: &[f32], weights: &Weights, top_p: f64, candidates: &mut Vec<Candidate>) {
    // All tokens lighter than this together weigh less than the 1 − top_p that the nucleus may leave out.
    let negligible = (1.0 - top_p) * weights.total() / logits.len() as f64;
    candidates.clear();
    for (token_id, (&logit, &weight)) in logits.iter().zip(weights.values()).enumerate() {
        if f64::from(weight) >= negligible {
            candidates.push(Candidate { logit, token_id: token_id as u32 });
        }
    }
}

/// The last token of the shortest prefix of `candidates`' order whose weight reaches `target`.
pub(super) fn nucleus(candidates: &mut [Candidate], softmax: Softmax, target: f64) -> Cutoff {
    let mut rest = candidates;
    let mut missing = target;
    while rest.len() > SORT_LEN {
        let middle = rest.len() / 2;
        rest.select_nth_unstable_by(middle, Candidate::order);
        let (likelier, others) = rest.split_at_mut(middle);
        let weight = total_weight(likelier, softmax);
        if weight >= missing {
            rest = likelier;
        } else {
            missing -= weight;
            rest = others;
        }
    }
    rest.sort_unstable_by(Candidate::order);
    for candidate in &*rest {
        missing -= f64::from(softmax.weight(candidate.logit));
        if missing <= 0.0 {
            return (*candidate).into();
        }
    }
    // Rounding kept the sum below the target: all of them are needed.
    rest.last().map_or(Cutoff::KEEP_ALL, |last| (*last).into())
}

/// Sum of the candidates' weights.
pub(super) fn total_weight(candidates: &[Candidate], softmax: Softmax) -> f64 {
    candidates.iter().map(|candidate| f64::from(softmax.weight(candidate.logit))).sum()
}

/// Keeps tokens at least `min_p` times as likely as the likeliest; 0 keeps all.
pub(super) fn min_p(softmax: Softmax, min_p: f32) -> Cutoff {
    if min_p > 0.0 { Cutoff { logit: softmax.logit_of(min_p), token_id: u32::MAX } } else { Cutoff::KEEP_ALL }
}
