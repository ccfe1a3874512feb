//! `config.json` of Hugging Face checkpoints.

use std::num::NonZeroUsize;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::error::LoadError;
use crate::layers::{HeadCounts, Llama3Scaling, RotaryConfig, RotaryPairing, RotaryScaling};
use crate::loader::unsupported;
use crate::models::config::{Presence, SlidingWindow, WindowedLayers};
use crate::models::{Architecture, DecoderConfig, WindowKeys};

/// Rotary base of configurations that name none.
const DEFAULT_ROTARY_BASE: f32 = 10_000.0;

/// What transformers takes for `sliding_window` where it is absent; where it is null there is no window.
const DEFAULT_WINDOW: usize = 4096;

/// What transformers takes for `max_window_layers`.
const DEFAULT_MAX_WINDOW_LAYERS: usize = 28;

/// Layers with a window, in `layer_types`.
const SLIDING_ATTENTION: &str = "sliding_attention";

/// Those without.
const FULL_ATTENTION: &str = "full_attention";

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
    #[serde(default = "default_window")]
    sliding_window: Option<usize>,
    /// The layers below it see everything whatever `use_sliding_window` says.
    max_window_layers: Option<usize>,
    /// What each layer sees, in newer files.
    layer_types: Option<Vec<String>>,
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
    let num_heads = config.num_attention_heads;
    let head_size = config.head_dim.or_else(|| config.hidden_size.checked_div(num_heads)).unwrap_or(0);
    let rope = config.rope_parameters.clone().or_else(|| config.rope_scaling.clone()).unwrap_or_default();
    let partial = rope.partial_rotary_factor.or(config.partial_rotary_factor).unwrap_or(1.0);
    let scaling = match rope.scaling() {
        Ok(scaling) => scaling,
        Err(what) => return unsupported(what),
    };
    let sliding_window = match config.sliding_window(architecture.window_keys) {
        Ok(sliding_window) => sliding_window,
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
        sliding_window,
        attention_bias: architecture.attention_bias(Presence::from_config(config.attention_bias)),
        mlp_bias: Presence::from_config(config.mlp_bias),
        output_matrix: match config.tie_word_embeddings {
            Some(is_tied) => Presence::from_config(!is_tied),
            None => Presence::IfPresent,
        },
    })
}

#[expect(clippy::unnecessary_wraps, reason = "serde asks for the type of the key")]
fn default_window() -> Option<usize> {
    Some(DEFAULT_WINDOW)
}

impl HfConfig {
    /// The layers that see the last tokens only, if there are such; or what cannot be run.
    fn sliding_window(&self, keys: WindowKeys) -> Result<Option<SlidingWindow>, String> {
        let (is_on, layers) = match keys {
            WindowKeys::Ignored => return Ok(None),
            WindowKeys::AllLayers => (true, WindowedLayers::From(0)),
            WindowKeys::SomeLayers => (self.use_sliding_window, self.windowed_layers()?),
        };
        let Some(size) = self.sliding_window.filter(|_| is_on) else {
            return match layers {
                WindowedLayers::Listed(listed) if listed.contains(&true) => {
                    Err(format!("layers of `{SLIDING_ATTENTION}` and no window"))
                }
                _ => Ok(None),
            };
        };
        let size = NonZeroUsize::new(size).ok_or("a sliding window of 0 tokens")?;
        Ok(Some(SlidingWindow { size, layers }))
    }

    fn windowed_layers(&self) -> Result<WindowedLayers, String> {
        let Some(layer_types) = &self.layer_types else {
            return Ok(WindowedLayers::From(self.max_window_layers.unwrap_or(DEFAULT_MAX_WINDOW_LAYERS)));
        };
        if layer_types.len() != self.num_hidden_layers {
            return Err(format!("`layer_types` of {} of {} layers", layer_types.len(), self.num_hidden_layers));
        }
        let has_window = |layer_type: &String| match layer_type.as_str() {
            SLIDING_ATTENTION => Ok(true),
            FULL_ATTENTION => Ok(false),
            other => Err(format!("layers of `{other}`")),
        };
        Ok(WindowedLayers::Listed(layer_types.iter().map(has_window).collect::<Result<_, _>>()?))
    }
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
    use crate::models::{llama, mistral, qwen2};

    fn smollm2() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
            "num_key_value_heads": 3, "rms_norm_eps": 1e-5, "vocab_size": 49152, "max_position_embeddings": 8192,
            "rope_theta": 100_000, "rope_scaling": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16"
        })
    }

    fn changed(changes: &Value) -> Result<DecoderConfig, String> {
        changed_of(&llama::ARCHITECTURE, changes)
    }

    fn changed_of(architecture: &Architecture, changes: &Value) -> Result<DecoderConfig, String> {
        let mut config = smollm2();
        let object = config.as_object_mut().unwrap();
        object.extend(changes.as_object().unwrap().clone());
        decoder_config(Path::new("config.json"), architecture, &config).map_err(|error| error.to_string())
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
    fn qwen2_and_mistral_have_or_lack_biases_without_a_key() {
        let changes = json!({"attention_bias": true});
        let qwen2 = AttentionBias { query_key_value: Presence::Required, output: Presence::Absent };
        assert_eq!(changed_of(&qwen2::ARCHITECTURE, &changes).unwrap().attention_bias, qwen2);
        let mistral = AttentionBias::uniform(Presence::Absent);
        assert_eq!(changed_of(&mistral::ARCHITECTURE, &changes).unwrap().attention_bias, mistral);
    }

    /// Fails unless `changes` make windows of `expected` tokens in layers 0, 27, 28 and 29; 0 is all.
    fn check_windows(architecture: &Architecture, changes: &Value, expected: [usize; 4]) {
        let config = changed_of(architecture, changes).unwrap();
        let found = [0, 27, 28, 29].map(|layer| config.window(layer).map_or(0, NonZeroUsize::get));
        assert_eq!(found, expected, "{} with {changes}", architecture.name);
    }

    #[test]
    fn windows_are_those_of_transformers() {
        let (qwen2, mistral) = (&qwen2::ARCHITECTURE, &mistral::ARCHITECTURE);
        // As Qwen2.5's files have it: a window, switched off.
        let off = json!({"sliding_window": 32768, "use_sliding_window": false, "max_window_layers": 21});
        check_windows(qwen2, &off, [0; 4]);
        check_windows(qwen2, &json!({"use_sliding_window": true}), [0, 0, 4096, 4096]);
        check_windows(qwen2, &json!({"use_sliding_window": true, "sliding_window": null}), [0; 4]);
        let upper = json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 29});
        check_windows(qwen2, &upper, [0, 0, 0, 8]);
        let mut types = ["full_attention"; 30];
        types[27] = "sliding_attention";
        let listed = json!({"use_sliding_window": true, "sliding_window": 8, "layer_types": types});
        check_windows(qwen2, &listed, [0, 8, 0, 0]);

        check_windows(mistral, &json!({}), [4096; 4]);
        check_windows(mistral, &json!({"sliding_window": 8, "layer_types": types}), [8; 4]);
        check_windows(mistral, &json!({"sliding_window": null}), [0; 4]);
        check_windows(&llama::ARCHITECTURE, &json!({"sliding_window": 8, "use_sliding_window": true}), [0; 4]);
    }

    #[test]
    fn windows_that_cannot_be_run_are_named() {
        let check = |changes: &Value, expected: &str| {
            let error = changed_of(&qwen2::ARCHITECTURE, changes).unwrap_err();
            assert!(error.starts_with(&format!("architecture `qwen2 with {expected}` in")), "{error}");
        };
        let types = |layer_type: &str, len: usize| vec![layer_type.to_owned(); len];
        check(&json!({"layer_types": types("chunked_attention", 30)}), "layers of `chunked_attention`");
        check(&json!({"layer_types": types("full_attention", 3)}), "`layer_types` of 3 of 30 layers");
        check(&json!({"layer_types": types("sliding_attention", 30)}), "layers of `sliding_attention` and no window");
        check(&json!({"use_sliding_window": true, "sliding_window": 0}), "a sliding window of 0 tokens");
    }

    #[test]
    fn what_cannot_be_run_is_named() {
        let error = |changes: Value| changed(&changes).unwrap_err();
        let supported = "in `config.json` is not supported; supported: llama, mistral, qwen2";
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
            "architecture `GPT2LMHeadModel` in `c` is not supported; supported: llama, mistral, qwen2"
        );
        assert_eq!(found(json!([])).unwrap_err(), "`c`: it names neither `architectures` nor a `model_type`");
    }
}
