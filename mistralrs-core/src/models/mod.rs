//! Architectures over shared layers.
//!
//! An architecture is one short file that names what differs ([`llama`], [`mistral`], [`qwen2`]); [`decoder`] is the model
//! they share, [`ARCHITECTURES`] the list that loaders look in.

use candle_core::Tensor;
use mistralrs_paged_attn::{KvCache, RaggedBatch};

use crate::error::LoadError;
use crate::layers::RotaryPairing;
use crate::loader::weights::Weights;

pub mod config;
pub mod decoder;
pub mod llama;
pub mod mistral;
pub mod qwen2;
pub mod workspace;

pub use config::DecoderConfig;

use config::{AttentionBias, Presence};

/// One packed ragged batch: prefill chunks and decode tokens of any lengths, T tokens in all.
#[derive(Debug, Clone, Default)]
pub struct StepBatch {
    /// `[T]` token ids.
    pub token_ids: Vec<u32>,
    /// `[T]` position of each token in its sequence.
    pub positions: Vec<u32>,
    /// Where the tokens read and write KV, and which were generated.
    pub ragged: RaggedBatch,
    /// `[L]` rows of T whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
    /// `[E]` rows of T whose hidden states are wanted, ascending.
    pub hidden_rows: Vec<u32>,
}

/// What one step computes. A model may use the tensors' memory again in its next step.
#[derive(Debug, Clone)]
pub struct StepOutput {
    /// `[L, V]` f32, of the batch's `logit_rows`.
    pub logits: Tensor,
    /// `[E, hidden_size]` f32, of the batch's `hidden_rows`: what the head would have made logits of, so after the last norm.
    pub hidden: Tensor,
}

/// What the engine must know of a model's shape.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelShape {
    /// Decoder layers.
    pub num_layers: usize,
    /// Columns of a hidden state.
    pub hidden_size: usize,
    /// KV heads (K).
    pub num_kv_heads: usize,
    /// Head size (D).
    pub head_size: usize,
    /// Vocabulary size (V).
    pub vocab_size: usize,
    /// Context length in tokens.
    pub max_position_embeddings: usize,
}

/// A decoder that predicts the next token.
pub trait CausalLm: Send {
    /// Its shape.
    fn shape(&self) -> &ModelShape;

    /// Whether a prompt's tokens are computed in another precision than generated ones, so that the KV of equal tokens differs.
    fn computes_prompts_apart(&self) -> bool {
        false
    }

    /// Runs the batch, writing its KV into `kv`. Rows that nobody asks for cost no head and no copy.
    fn forward(&mut self, batch: &StepBatch, kv: &mut KvCache) -> candle_core::Result<StepOutput>;
}

/// What sets one architecture apart from the others.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    /// GGUF's `general.architecture`, the prefix of its metadata keys, and `config.json`'s `model_type`.
    pub name: &'static str,
    /// Its names in `config.json`'s `architectures`.
    pub class_names: &'static [&'static str],
    /// How q and k of its GGUF files are laid out; Hugging Face checkpoints are always half-split.
    pub gguf_pairing: RotaryPairing,
    /// The attention's biases where the architecture fixes them; else the files say.
    pub attention_bias: Option<AttentionBias>,
    /// What gives layers of its Hugging Face checkpoints a sliding window.
    pub window_keys: WindowKeys,
    /// Builds the model from checked numbers and named weights.
    pub build: Build,
}

/// Keys of `config.json` that say which tokens a layer sees, as far as transformers reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowKeys {
    /// None, whichever are there: all of them.
    Ignored,
    /// `sliding_window`, for all layers.
    AllLayers,
    /// `sliding_window` where `use_sliding_window` is true, for the layers that `layer_types` lists, else from
    /// `max_window_layers` on.
    SomeLayers,
}

/// Makes a model of checked numbers and named weights.
pub type Build = fn(&DecoderConfig, &mut Weights<'_>) -> Result<Box<dyn CausalLm>, LoadError>;

/// All architectures this build can load.
pub const ARCHITECTURES: &[Architecture] = &[llama::ARCHITECTURE, mistral::ARCHITECTURE, qwen2::ARCHITECTURE];

impl Architecture {
    /// The one that GGUF files and `model_type` call `name`.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|architecture| architecture.name == name)
    }

    /// The one of a Hugging Face class.
    pub fn by_class_name(class_name: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|architecture| architecture.class_names.contains(&class_name))
    }

    /// The attention's biases of a model whose files say `declared` of all of them.
    pub fn attention_bias(&self, declared: Presence) -> AttentionBias {
        self.attention_bias.unwrap_or(AttentionBias::uniform(declared))
    }
}
