//! Where a choice's random numbers come from.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha12Rng;

/// What a choice's random numbers are a function of, with the position of the token they are for: preemption,
/// recomputation and the rest of the batch cannot change them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChoiceSeed {
    /// The request's seed, its own or a fresh random one.
    pub seed: u64,
    /// Index of the choice in its request: each of `n` choices draws from its own stream.
    pub choice: u64,
}

/// What a random number is for. Each purpose has a stream of its own, so that turning one on leaves the others'
/// numbers as they were.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// Which token.
    Token,
    /// Whether XTC leaves out the top this time.
    Exclusion,
}

/// One stream of random numbers, one per output token.
pub(super) struct Draws(ChaCha12Rng);

impl Draws {
    pub(super) fn new(seed: ChoiceSeed, purpose: Purpose) -> Self {
        let mut rng = ChaCha12Rng::seed_from_u64(seed.seed);
        rng.set_stream(match purpose {
            Purpose::Token => seed.choice,
            // Choices count from 0: nobody has half of all streams.
            Purpose::Exclusion => seed.choice | 1 << 63,
        });
        Self(rng)
    }

    /// Uniform in [0, 1), 53 bits, for the output token at `position`.
    pub(super) fn uniform(&mut self, position: u64) -> f64 {
        // Two 32-bit words per token.
        let word = u128::from(position) * 2;
        if self.0.get_word_pos() != word {
            self.0.set_word_pos(word);
        }
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}
