//! `config.json` of Hugging Face checkpoints.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::error::LoadError;
use crate::layers::{HeadCounts, Llama3Scaling, RotaryConfig, RotaryPairing, RotaryScaling};
use crate::loader::unsupported;
use crate::models::config::Presence;
use crate::models::{Architecture, DecoderConfig};

/// Rotary base of configurations that name none.
const DEFAULT_ROTARY_BASE: f32 = 10_000.0;

/// The keys we read; the many others do not change what a decoder computes.
#[derive(Debug, Deserialize)]
struct HfConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: f32,
    vocab_size: usize,
    max_position_embeddings: usize,
    rope_theta: Option<f32>,
    rope_scaling: Option<RopeParameters>,
    /// Where transformers 5 writes the two above.
    rope_parameters: Option<RopeParameters>,
    partial_rotary_factor: Option<f32>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    /// The layers below it attend to everything whatever `use_sliding_window` says.
    #[serde(default)]
    max_window_layers: usize,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    quantization_config: Option<Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct RopeParameters {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f32>,
    partial_rotary_factor: Option<f32>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<f32>,
}

/// The architecture that `config` names.
pub(super) fn architecture(path: &Path, config: &Value) -> Result<&'static Architecture, LoadError> {
    let class_name = config.get("architectures").and_then(|names| names.get(0)).and_then(Value::as_str);
    let model_type = config.get("model_type").and_then(Value::as_str);
    match (class_name, model_type) {
        (Some(name), _) => Architecture::by_class_name(name).ok_or_else(|| unsupported(path, name)),
        (None, Some(name)) => Architecture::by_name(name).ok_or_else(|| unsupported(path, name)),
        (None, None) => Err(LoadError::Incomplete {
            path: path.to_owned(),
            reason: "it names neither `architectures` nor a `model_type`".to_owned(),
        }),
    }
}

/// The numbers of the decoder.
pub(super) fn decoder_config(
    path: &Path,
    architecture: &Architecture,
    config: &Value,
) -> Result<DecoderConfig, LoadError> {
    let config = HfConfig::deserialize(config)
        .map_err(|error| LoadError::Incomplete { path: path.to_owned(), reason: error.to_string() })?;
    let unsupported = |what: String| Err(unsupported(path, format!("{} with {what}", architecture.name)));
    if config.quantization_config.is_some() {
        return unsupported("a quantization_config (GPTQ, AWQ, bitsandbytes, …)".to_owned());
    }
    if let Some(activation) = config.hidden_act.as_deref()
        && activation != "silu"
    {
        return unsupported(format!("activation `{activation}`"));
    }
    if config.use_sliding_window && config.max_window_layers < config.num_hidden_layers {
        return unsupported("sliding windows (`use_sliding_window`)".to_owned());
    }
    let num_heads = config.num_attention_heads;
    let head_size = config.head_dim.or_else(|| config.hidden_size.checked_div(num_heads)).unwrap_or(0);
    let rope = config.rope_parameters.clone().or_else(|| config.rope_scaling.clone()).unwrap_or_default();
    let partial = rope.partial_rotary_factor.or(config.partial_rotary_factor).unwrap_or(1.0);
    let scaling = match rope.scaling() {
        Ok(scaling) => scaling,
        Err(what) => return unsupported(what),
    };
    Ok(DecoderConfig {
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        num_layers: config.num_hidden_layers,
        heads: HeadCounts { num_heads, num_kv_heads: config.num_key_value_heads.unwrap_or(num_heads), head_size },
        rms_norm_eps: config.rms_norm_eps,
        vocab_size: config.vocab_size,
        max_position_embeddings: config.max_position_embeddings,
        rotary: RotaryConfig {
            theta: rope.rope_theta.or(config.rope_theta).unwrap_or(DEFAULT_ROTARY_BASE),
            size: (head_size as f32 * partial) as usize,
            pairing: RotaryPairing::HalfSplit,
            scaling,
        },
        attention_bias: architecture.attention_bias(Presence::from_config(config.attention_bias)),
        mlp_bias: Presence::from_config(config.mlp_bias),
        output_matrix: match config.tie_word_embeddings {
            Some(is_tied) => Presence::from_config(!is_tied),
            None => Presence::IfPresent,
        },
    })
}

impl RopeParameters {
    fn scaling(&self) -> Result<RotaryScaling, String> {
        let missing = |kind: &str| format!("rotary scaling `{kind}` without all its factors");
        match self.rope_type.as_deref() {
            None | Some("default") => Ok(RotaryScaling::None),
            Some(kind @ "linear") => self.factor.map(RotaryScaling::Linear).ok_or_else(|| missing(kind)),
            Some(kind @ "llama3") => self.llama3().map(RotaryScaling::Llama3).ok_or_else(|| missing(kind)),
            Some(other) => Err(format!("rotary scaling `{other}`")),
        }
    }

    fn llama3(&self) -> Option<Llama3Scaling> {
        Some(Llama3Scaling {
            factor: self.factor?,
            low_freq_factor: self.low_freq_factor?,
            high_freq_factor: self.high_freq_factor?,
            original_max_position_embeddings: self.original_max_position_embeddings?,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::models::config::AttentionBias;
    use crate::models::{llama, qwen2};

    fn smollm2() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
            "num_key_value_heads": 3, "rms_norm_eps": 1e-5, "vocab_size": 49152, "max_position_embeddings": 8192,
            "rope_theta": 100_000, "rope_scaling": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16"
        })
    }

    fn changed(changes: &Value) -> Result<DecoderConfig, String> {
        let mut config = smollm2();
        let object = config.as_object_mut().unwrap();
        object.extend(changes.as_object().unwrap().clone());
        decoder_config(Path::new("config.json"), &llama::ARCHITECTURE, &config).map_err(|error| error.to_string())
    }

    #[test]
    fn smollm2_is_read() {
        let config = changed(&json!({})).unwrap();
        assert_eq!(config.heads, HeadCounts { num_heads: 9, num_kv_heads: 3, head_size: 64 });
        assert_eq!((config.rotary.theta, config.rotary.size), (100_000.0, 64));
        assert_eq!(config.attention_bias, AttentionBias::uniform(Presence::Absent));
        assert_eq!(config.output_matrix, Presence::Absent);
        assert_eq!(config.rotary.scaling, RotaryScaling::None);
    }

    #[test]
    fn both_generations_of_rotary_keys_are_read() {
        let llama3 = json!({
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192
        });
        let expected = RotaryScaling::Llama3(Llama3Scaling {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        });
        let new = changed(&json!({"rope_parameters": llama3})).unwrap();
        assert_eq!((new.rotary.theta, &new.rotary.scaling), (5e5, &expected));
        let old = changed(&json!({"rope_scaling": llama3, "rope_theta": 5e5})).unwrap();
        assert_eq!((old.rotary.theta, &old.rotary.scaling), (5e5, &expected));
        let linear = changed(&json!({"rope_scaling": {"type": "linear", "factor": 2.0}})).unwrap();
        assert_eq!(linear.rotary.scaling, RotaryScaling::Linear(2.0));
    }

    #[test]
    fn a_head_size_of_its_own_and_biases_are_read() {
        let config = changed(&json!({"head_dim": 80, "attention_bias": true, "num_key_value_heads": null})).unwrap();
        assert_eq!(config.heads, HeadCounts { num_heads: 9, num_kv_heads: 9, head_size: 80 });
        assert_eq!((config.rotary.size, config.attention_bias), (80, AttentionBias::uniform(Presence::Required)));
    }

    #[test]
    fn qwen2_has_its_biases_without_a_key_and_no_windows() {
        let read = |changes: &Value| {
            let mut config = smollm2();
            config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            decoder_config(Path::new("config.json"), &qwen2::ARCHITECTURE, &config).map_err(|error| error.to_string())
        };
        // As Qwen2.5's files have it: a window, switched off.
        let config = read(&json!({"sliding_window": 32768, "use_sliding_window": false, "max_window_layers": 21}));
        let expected = AttentionBias { query_key_value: Presence::Required, output: Presence::Absent };
        assert_eq!(config.unwrap().attention_bias, expected);
        assert!(read(&json!({"use_sliding_window": true, "max_window_layers": 30})).is_ok());
        let windows = read(&json!({"use_sliding_window": true, "max_window_layers": 29})).unwrap_err();
        assert!(windows.starts_with("architecture `qwen2 with sliding windows (`use_sliding_window`)"), "{windows}");
    }

    #[test]
    fn what_cannot_be_run_is_named() {
        let error = |changes: Value| changed(&changes).unwrap_err();
        let supported = "in `config.json` is not supported; supported: llama, qwen2";
        let yarn = error(json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}));
        assert_eq!(yarn, format!("architecture `llama with rotary scaling `yarn`` {supported}"));
        let gptq = error(json!({"quantization_config": {"quant_method": "gptq"}}));
        assert!(gptq.starts_with("architecture `llama with a quantization_config"), "{gptq}");
        let gelu = error(json!({"hidden_act": "gelu"}));
        assert_eq!(gelu, format!("architecture `llama with activation `gelu`` {supported}"));
        let missing = decoder_config(Path::new("config.json"), &llama::ARCHITECTURE, &json!({})).unwrap_err();
        assert_eq!(missing.to_string(), "`config.json`: missing field `hidden_size`");
    }

    #[test]
    fn the_architecture_is_found_by_class_then_by_type() {
        let found = |config: Value| {
            architecture(Path::new("c"), &config).map(|found| found.name).map_err(|error| error.to_string())
        };
        assert_eq!(found(smollm2()), Ok("llama"));
        assert_eq!(found(json!({"model_type": "llama"})), Ok("llama"));
        let gpt2 = found(json!({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}));
        assert_eq!(
            gpt2.unwrap_err(),
            "architecture `GPT2LMHeadModel` in `c` is not supported; supported: llama, qwen2"
        );
        assert_eq!(found(json!([])).unwrap_err(), "`c`: it names neither `architectures` nor a `model_type`");
    }
}
