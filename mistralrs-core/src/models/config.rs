//! The numbers of a decoder, read from GGUF metadata or `config.json` and checked once.

use std::num::NonZeroUsize;

use crate::layers::{HeadCounts, RotaryConfig};
use crate::models::ModelShape;

/// All that [`super::decoder::Decoder`] must know beside the weights.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Columns of the residual stream.
    pub hidden_size: usize,
    /// Columns inside the feed-forward block.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Attention heads.
    pub heads: HeadCounts,
    /// Epsilon of the norms.
    pub rms_norm_eps: f32,
    /// Rows of the token table.
    pub vocab_size: usize,
    /// Context length in tokens.
    pub max_position_embeddings: usize,
    /// Rotary positions.
    pub rotary: RotaryConfig,
    /// What layers do not see; without it, all see all tokens before theirs.
    pub sliding_window: Option<SlidingWindow>,
    /// Biases of the attention's projections.
    pub attention_bias: AttentionBias,
    /// Biases of the feed-forward block.
    pub mlp_bias: Presence,
    /// Whether there is an output matrix apart from the token table.
    pub output_matrix: Presence,
}

/// Attention to the last tokens only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Tokens that a token sees, itself included.
    pub size: NonZeroUsize,
    /// Whose tokens see no more than that.
    pub layers: WindowedLayers,
}

/// Layers with a sliding window; the others see all tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WindowedLayers {
    /// This one and those after it.
    From(usize),
    /// For each layer, whether it is one.
    Listed(Vec<bool>),
}

/// Which projections of the attention add a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionBias {
    /// Of q, k and v.
    pub query_key_value: Presence,
    /// Of the output.
    pub output: Presence,
}

impl AttentionBias {
    /// All of them, or none.
    pub fn uniform(presence: Presence) -> Self {
        Self { query_key_value: presence, output: presence }
    }
}

/// Whether the files hold an optional tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// The configuration says so; its absence is an error.
    Required,
    /// The configuration says no; ignored even if it is there.
    Absent,
    /// The configuration does not say: used if it is there.
    IfPresent,
}

impl Presence {
    /// For a configuration that does say.
    pub fn from_config(is_present: bool) -> Self {
        if is_present { Self::Required } else { Self::Absent }
    }
}

/// Far above any model; a larger number comes from a damaged file and must not size an allocation.
const MAX_SIZE: usize = 1 << 24;

impl DecoderConfig {
    /// What the engine must know.
    pub fn shape(&self) -> ModelShape {
        ModelShape {
            num_layers: self.num_layers,
            hidden_size: self.hidden_size,
            num_kv_heads: self.heads.num_kv_heads,
            head_size: self.heads.head_size,
            vocab_size: self.vocab_size,
            max_position_embeddings: self.max_position_embeddings,
        }
    }

    /// Tokens that a token of `layer` sees, itself included, if not all.
    pub fn window(&self, layer: usize) -> Option<NonZeroUsize> {
        let SlidingWindow { size, layers } = self.sliding_window.as_ref()?;
        let has_window = match layers {
            WindowedLayers::From(first) => layer >= *first,
            WindowedLayers::Listed(listed) => listed.get(layer).copied().unwrap_or(false),
        };
        has_window.then_some(*size)
    }

    /// # Errors
    /// A sentence about the first number that cannot be.
    pub fn check(&self) -> Result<(), String> {
        let HeadCounts { num_heads, num_kv_heads, head_size } = self.heads;
        let sizes = [
            ("hidden size", self.hidden_size),
            ("feed-forward size", self.intermediate_size),
            ("number of layers", self.num_layers),
            ("number of heads", num_heads),
            ("number of KV heads", num_kv_heads),
            ("head size", head_size),
            ("vocabulary size", self.vocab_size),
            ("context length", self.max_position_embeddings),
        ];
        for (name, size) in sizes {
            if size == 0 || size > MAX_SIZE {
                return Err(format!("the {name} is {size}, which no model has"));
            }
        }
        for (name, size) in [sizes[0], sizes[1], sizes[5]] {
            if !size.is_multiple_of(2) {
                return Err(format!("the {name} is {size}, which is odd"));
            }
        }
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(format!("{num_heads} heads cannot share {num_kv_heads} KV heads evenly"));
        }
        if self.rotary.size > head_size {
            return Err(format!("{} rotary values do not fit a head of {head_size}", self.rotary.size));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return Err(format!("the norms' epsilon is {}", self.rms_norm_eps));
        }
        if !(self.rotary.theta.is_finite() && self.rotary.theta > 0.0) {
            return Err(format!("the rotary base is {}", self.rotary.theta));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{RotaryPairing, RotaryScaling};

    fn config() -> DecoderConfig {
        DecoderConfig {
            hidden_size: 64,
            intermediate_size: 128,
            num_layers: 2,
            heads: HeadCounts { num_heads: 4, num_kv_heads: 2, head_size: 16 },
            rms_norm_eps: 1e-5,
            vocab_size: 100,
            max_position_embeddings: 256,
            rotary: RotaryConfig {
                theta: 10_000.0,
                size: 16,
                pairing: RotaryPairing::HalfSplit,
                scaling: RotaryScaling::None,
            },
            sliding_window: None,
            attention_bias: AttentionBias::uniform(Presence::Absent),
            mlp_bias: Presence::Absent,
            output_matrix: Presence::IfPresent,
        }
    }

    fn check(change: impl FnOnce(&mut DecoderConfig), expected: &str) {
        let mut config = config();
        change(&mut config);
        assert_eq!(config.check().err().unwrap_or_default(), expected);
    }

    #[test]
    fn numbers_that_cannot_be_are_named() {
        check(|_| {}, "");
        check(|config| config.num_layers = 0, "the number of layers is 0, which no model has");
        check(
            |config| config.vocab_size = usize::MAX,
            "the vocabulary size is 18446744073709551615, which no model has",
        );
        check(|config| config.intermediate_size = 127, "the feed-forward size is 127, which is odd");
        check(|config| config.heads.num_kv_heads = 3, "4 heads cannot share 3 KV heads evenly");
        check(|config| config.rotary.size = 18, "18 rotary values do not fit a head of 16");
        check(|config| config.rotary.theta = f32::NAN, "the rotary base is NaN");
        check(|config| config.rms_norm_eps = -1.0, "the norms' epsilon is -1");
    }

    #[test]
    fn a_window_is_that_of_its_layers() {
        let windows = |layers: Option<WindowedLayers>| {
            let size = NonZeroUsize::new(8).unwrap();
            let sliding_window = layers.map(|layers| SlidingWindow { size, layers });
            let config = DecoderConfig { sliding_window, ..config() };
            [0, 1, 2].map(|layer| config.window(layer).map_or(0, NonZeroUsize::get))
        };
        assert_eq!(windows(None), [0, 0, 0]);
        assert_eq!(windows(Some(WindowedLayers::From(1))), [0, 8, 8]);
        assert_eq!(windows(Some(WindowedLayers::Listed(vec![true, false]))), [8, 0, 0]);
    }
}
