//! Qwen2 and Qwen2.5, dense: also Qwen2.5-Coder, Qwen2.5-Math and what was distilled into them.
//! Source: Yang et al. 2024, 2.2.1 (arXiv:2407.10671).

use crate::layers::RotaryPairing;
use crate::models::config::{AttentionBias, Presence};
use crate::models::decoder::Decoder;
use crate::models::{Architecture, WindowKeys};

/// The shared decoder; q, k and v have biases, of which no key of `config.json` tells, and the output has none. Its upper
/// layers may have sliding windows.
pub const ARCHITECTURE: Architecture = Architecture {
    name: "qwen2",
    class_names: &["Qwen2ForCausalLM"],
    gguf_pairing: RotaryPairing::HalfSplit,
    attention_bias: Some(AttentionBias { query_key_value: Presence::Required, output: Presence::Absent }),
    window_keys: WindowKeys::SomeLayers,
    build: |config, weights| Ok(Box::new(Decoder::load(config, weights)?)),
};
