//! Prompts that are the same in every run with the same seed, and begin differently from each other unless told not to.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Short, frequent words: each is one token, with the space before it, in the vocabularies of most models.
const WORDS: [&str; 64] = [
    "the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not", "he",
    "his", "but", "at", "are", "this", "have", "from", "or", "had", "an", "they", "which", "one", "you", "were", "her",
    "all", "she", "there", "would", "their", "we", "him", "been", "has", "when", "who", "will", "more", "no", "if",
    "out", "so", "said", "what", "up", "its", "about", "into", "than", "them", "can", "only", "other", "new", "some",
    "could",
];

/// Lengths of a prompt's parts, in tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct PromptShape {
    /// The beginning that all prompts share.
    pub num_shared: usize,
    /// What follows, which is each prompt's own.
    pub num_own: usize,
}

/// Makes the prompts of one run.
#[derive(Debug, Clone)]
pub(super) struct Prompts {
    shape: PromptShape,
    seed: u64,
}

impl Prompts {
    pub fn new(shape: PromptShape, seed: u64) -> Self {
        Self { shape, seed }
    }

    pub fn shape(&self) -> PromptShape {
        self.shape
    }

    /// The beginning of all prompts, a word per token.
    pub fn shared_text(&self) -> String {
        words(&mut self.random(0), self.shape.num_shared)
    }

    /// What follows in prompt `index`.
    pub fn own_text(&self, index: u64) -> String {
        words(&mut self.random(index + 1), self.shape.num_own)
    }

    fn random(&self, stream: u64) -> ChaCha8Rng {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(stream);
        random
    }
}

/// Each with a space before it, so that parts join to one text.
fn words(random: &mut ChaCha8Rng, num_words: usize) -> String {
    (0..num_words).flat_map(|_| [" ", WORDS[random.random_range(0..WORDS.len())]]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_depend_on_seed_and_number_and_begin_alike_only_where_they_should() {
        let prompts = |seed| Prompts::new(PromptShape { num_shared: 20, num_own: 30 }, seed);
        assert_eq!(prompts(1).shared_text(), prompts(1).shared_text());
        assert_eq!(prompts(1).own_text(7), prompts(1).own_text(7));
        assert_ne!(prompts(1).own_text(7), prompts(1).own_text(8));
        assert_ne!(prompts(1).own_text(7), prompts(2).own_text(7));
        assert_ne!(prompts(1).shared_text(), prompts(2).shared_text());
        assert_eq!(prompts(1).shared_text().split_whitespace().count(), 20);
        assert_eq!(prompts(1).own_text(0).split_whitespace().count(), 30);
    }
}
