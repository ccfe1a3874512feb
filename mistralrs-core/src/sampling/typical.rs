//! `typical_p`: keeps tokens that carry about as much information as the distribution leads one to expect
//! (Meister et al. 2022, arXiv:2202.00666).

use super::softmax::{Softmax, Weights};
use super::truncation::shortest_prefix;

/// A token and how far its surprise is from the expected one, as one number that sorts by distance, then by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Surprise(u64);

impl Surprise {
    fn new(distance: f32, token_id: u32) -> Self {
        // Bits of numbers that are not negative sort as the numbers do.
        Self(u64::from(distance.to_bits()) << 32 | u64::from(token_id))
    }

    fn token_id(self) -> u32 {
        self.0 as u32
    }
}

/// Takes the weight from all but the most typical tokens that together have `typical_p` of it.
pub(super) fn keep_typical(
    weights: &mut Weights,
    logits: &[f32],
    softmax: Softmax,
    typical_p: f32,
    surprises: &mut Vec<Surprise>,
) {
    // A token's surprise is −ln p = ln Σ exp(x) − x, x being its scaled logit. The first term is the same for all, so the
    // distance from the expected surprise is that of x from the expected x.
    let scaled = |logit: f32| f64::from((logit - softmax.max) / softmax.temperature);
    let total = weights.total();
    let kept = || logits.iter().zip(weights.values()).enumerate().filter(|(_, (_, weight))| **weight > 0.0);
    let expected = kept().map(|(_, (&logit, &weight))| f64::from(weight) * scaled(logit)).sum::<f64>() / total;
    surprises.clear();
    surprises.extend(
        kept().map(|(token_id, (&logit, _))| Surprise::new((scaled(logit) - expected).abs() as f32, token_id as u32)),
    );
    let weight = |surprise: Surprise| f64::from(weights.values()[surprise.token_id() as usize]);
    let target = f64::from(typical_p) * total;
    if let Some(last) = shortest_prefix(surprises, weight, target) {
        weights.exclude(surprises.iter().filter(|surprise| **surprise > last).map(|surprise| surprise.token_id()));
    }
}
