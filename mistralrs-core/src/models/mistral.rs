//! Mistral, dense: Mistral 7B, Mistral Nemo, Mistral Small and what was made of them.
//! Source: Jiang et al. 2023 (arXiv:2310.06825).

use crate::layers::RotaryPairing;
use crate::models::config::{AttentionBias, Presence};
use crate::models::decoder::Decoder;
use crate::models::{Architecture, WindowKeys};

/// A Llama without biases whose layers may all have a sliding window. GGUF files of it call it `llama`, and are Llama's.
pub const ARCHITECTURE: Architecture = Architecture {
    name: "mistral",
    class_names: &["MistralForCausalLM"],
    gguf_pairing: RotaryPairing::Interleaved,
    attention_bias: Some(AttentionBias { query_key_value: Presence::Absent, output: Presence::Absent }),
    window_keys: WindowKeys::AllLayers,
    build: |config, weights| Ok(Box::new(Decoder::load(config, weights)?)),
};
