//! From the hidden states of a text's tokens to one vector. What computed them does not matter here: a decoder's come in
//! chunks, an encoder's all at once.

use std::ops::Range;

use crate::sequence::PrefixSharing;

/// Which hidden states make a text's vector, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// The last token's: in a decoder the only one that has seen the whole text.
    Last,
    /// The first token's, which some encoders are trained to make the whole text's (`[CLS]`).
    Cls,
}

/// What a model's files say about pooling.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DeclaredPooling {
    /// Nothing, as those of models that generate text.
    #[default]
    Unstated,
    /// One that is supported.
    Known(Pooling),
    /// Something else, by its name.
    Unsupported(String),
}

impl DeclaredPooling {
    /// What is done: as configured, else as declared. Where nothing says anything the last token's hidden state: under
    /// causal attention the others know a part of the text only. (llama.cpp and vLLM do the same for decoders.)
    ///
    /// # Errors
    /// The name of a pooling that is not supported.
    pub fn resolve(&self, configured: Option<Pooling>) -> Result<Pooling, &str> {
        match (configured, self) {
            (Some(pooling), _) => Ok(pooling),
            (None, Self::Known(pooling)) => Ok(*pooling),
            (None, Self::Unstated) => Ok(Pooling::Last),
            (None, Self::Unsupported(name)) => Err(name),
        }
    }
}

impl Pooling {
    /// Of the positions `computed` in this step, of a text of `num_tokens`, those whose hidden states count.
    pub fn needed(self, computed: Range<usize>, num_tokens: usize) -> Range<usize> {
        let all = match self {
            Self::Mean => 0..num_tokens,
            Self::Last => num_tokens - 1..num_tokens,
            Self::Cls => 0..1,
        };
        let start = all.start.clamp(computed.start, computed.end);
        start..all.end.clamp(start, computed.end)
    }

    /// Cached KV spares computing tokens, and with them their hidden states: it is of use where only the newest counts.
    pub(crate) fn prefix_sharing(self) -> PrefixSharing {
        match self {
            Self::Last => PrefixSharing::Shared,
            Self::Mean | Self::Cls => PrefixSharing::Private,
        }
    }
}

/// One text's vector as it grows, chunk by chunk.
#[derive(Debug)]
pub(crate) struct Pooler {
    pooling: Pooling,
    /// Over the hidden states so far, in f64 and in the order of tokens: however a text is cut into chunks, and whatever
    /// runs beside it, the same numbers are added in the same order.
    sums: Vec<f64>,
    num_states: usize,
}

impl Pooler {
    pub fn new(pooling: Pooling) -> Self {
        Self { pooling, sums: Vec::new(), num_states: 0 }
    }

    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// Adds hidden states of consecutive tokens, of which the first is at `position`. A text that begins again, because
    /// it was preempted, begins from nothing.
    pub fn add(&mut self, position: usize, states: &[f32], hidden_size: usize) {
        if position == 0 {
            self.sums.clear();
            self.num_states = 0;
        }
        self.sums.resize(hidden_size, 0.0);
        for state in states.chunks_exact(hidden_size) {
            for (sum, value) in self.sums.iter_mut().zip(state) {
                *sum += f64::from(*value);
            }
            self.num_states += 1;
        }
    }

    /// The vector, complete once the text's last token has run.
    ///
    /// # Errors
    /// A sentence for the client, if its numbers are none.
    pub fn vector(&self) -> Result<Vec<f32>, String> {
        let vector: Vec<f32> = self.sums.iter().map(|sum| (sum / self.num_states as f64) as f32).collect();
        if !vector.is_empty() && vector.iter().all(|value| value.is_finite()) {
            Ok(vector)
        } else {
            Err("the model's hidden states are not finite numbers".to_owned())
        }
    }
}

/// The first `num_dimensions` of `vector`, scaled to length 1. A vector of zeros stays one.
pub(crate) fn unit_vector(mut vector: Vec<f32>, num_dimensions: usize) -> Vec<f32> {
    vector.truncate(num_dimensions);
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        for value in &mut vector {
            *value = (f64::from(*value) / length) as f32;
        }
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pooling_needs_its_own_positions_of_each_chunk() {
        let needed = |pooling: Pooling| [0..4, 4..9, 9..10].map(|chunk| pooling.needed(chunk, 10));
        assert_eq!(needed(Pooling::Mean), [0..4, 4..9, 9..10]);
        assert_eq!(needed(Pooling::Last), [4..4, 9..9, 9..10]);
        assert_eq!(needed(Pooling::Cls), [0..1, 4..4, 9..9]);
        assert_eq!(Pooling::Last.needed(0..1, 1), 0..1);
    }

    #[test]
    fn chunks_of_any_lengths_give_the_same_bits_and_a_new_beginning_forgets_the_old_one() {
        let states: Vec<f32> = (0..12).map(|i| (i as f32 * 0.7).sin() * 1e3_f32.powi(i % 3)).collect();
        let mut whole = Pooler::new(Pooling::Mean);
        whole.add(0, &states, 2);
        let mut chunked = Pooler::new(Pooling::Mean);
        chunked.add(0, &states[..8], 2);
        for (position, end) in [(0, 2), (1, 8), (4, 8), (4, 12)] {
            chunked.add(position, &states[position * 2..end], 2);
        }
        assert_eq!(whole.vector(), chunked.vector());
        let mean = states.iter().step_by(2).map(|value| f64::from(*value)).sum::<f64>() / 6.0;
        assert_eq!(whole.vector().unwrap()[0].to_bits(), (mean as f32).to_bits());
    }

    #[test]
    fn states_that_are_not_numbers_give_no_vector() {
        let mut pooler = Pooler::new(Pooling::Last);
        assert!(pooler.vector().is_err());
        pooler.add(3, &[1.0, f32::NAN], 2);
        assert_eq!(pooler.vector(), Err("the model's hidden states are not finite numbers".to_owned()));
    }

    #[test]
    fn a_vector_that_is_cut_has_length_one_again() {
        assert_eq!(unit_vector(vec![3.0, 4.0, 12.0], 2), [0.6, 0.8]);
        assert_eq!(unit_vector(vec![0.0, 0.0], 2), [0.0, 0.0]);
        // Squares that f32 has no room for.
        assert_eq!(unit_vector(vec![1e30, 0.0], 2), [1.0, 0.0]);
    }

    #[test]
    fn what_is_configured_wins_over_the_files_and_silence_means_the_last_token() {
        let unsupported = DeclaredPooling::Unsupported("max".to_owned());
        assert_eq!(DeclaredPooling::Known(Pooling::Mean).resolve(None), Ok(Pooling::Mean));
        assert_eq!(DeclaredPooling::Known(Pooling::Mean).resolve(Some(Pooling::Cls)), Ok(Pooling::Cls));
        assert_eq!(DeclaredPooling::Unstated.resolve(None), Ok(Pooling::Last));
        assert_eq!(unsupported.resolve(None), Err("max"));
        assert_eq!(unsupported.resolve(Some(Pooling::Mean)), Ok(Pooling::Mean));
    }
}
