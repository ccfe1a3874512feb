//! Llama 2 and 3 and their many relatives (SmolLM2, TinyLlama, Yi, …).
//! Source: Touvron et al. 2023 (arXiv:2307.09288).

use crate::layers::RotaryPairing;
use crate::models::decoder::Decoder;
use crate::models::{Architecture, WindowKeys};

/// The shared decoder as it is; only the GGUF layout of q and k is its own.
pub const ARCHITECTURE: Architecture = Architecture {
    name: "llama",
    class_names: &["LlamaForCausalLM"],
    gguf_pairing: RotaryPairing::Interleaved,
    attention_bias: None,
    window_keys: WindowKeys::Ignored,
    build: |config, weights| Ok(Box::new(Decoder::load(config, weights)?)),
};
