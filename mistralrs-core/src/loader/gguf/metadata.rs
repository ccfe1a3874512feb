//! Hyperparameters, special tokens and the template out of GGUF's key-value pairs.

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};

use super::within_vocabulary;
use crate::error::LoadError;
use crate::layers::{HeadCounts, RotaryConfig, RotaryScaling};
use crate::loader::{SpecialTexts, end_of_turn, unsupported};
use crate::models::config::Presence;
use crate::models::{Architecture, DecoderConfig};
use crate::pooling::{DeclaredPooling, Pooling};

/// Rotary base of files that name none.
const DEFAULT_ROTARY_BASE: f32 = 10_000.0;

/// Token types that `tokenizer.ggml.token_type` gives to special tokens: control, and user-defined.
const SPECIAL_TOKEN_TYPES: [u64; 2] = [3, 4];

/// Typed access to the key-value pairs of a file.
pub(super) struct Metadata<'a> {
    path: &'a Path,
    content: &'a Content,
}

impl<'a> Metadata<'a> {
    pub(super) fn new(path: &'a Path, content: &'a Content) -> Self {
        Self { path, content }
    }

    /// The architecture, if this build and this file's kind can be run.
    pub(super) fn architecture(&self) -> Result<&'static Architecture, LoadError> {
        if self.u64("split.count")?.is_some_and(|count| count > 1) {
            let reason = "it is one part of a split file; join the parts with `llama-gguf-split --merge` first";
            return Err(LoadError::Incomplete { path: self.path.to_owned(), reason: reason.to_owned() });
        }
        let name = self.string("general.architecture").ok_or_else(|| self.missing("general.architecture"))?;
        let architecture = Architecture::by_name(name).ok_or_else(|| unsupported(self.path, name))?;
        match self.u64(&format!("{name}.expert_count"))? {
            None | Some(0) => Ok(architecture),
            Some(count) => Err(unsupported(self.path, format!("{name} with {count} experts"))),
        }
    }

    /// The numbers of the decoder; `vocab_size` is the token table's.
    pub(super) fn decoder_config(
        &self,
        architecture: &Architecture,
        vocab_size: Option<usize>,
    ) -> Result<DecoderConfig, LoadError> {
        let key = |suffix: &str| format!("{}.{suffix}", architecture.name);
        let hidden_size = self.required(&key("embedding_length"))?;
        let num_heads = self.required(&key("attention.head_count"))?;
        let head_size = match self.size(&key("attention.key_length"))? {
            Some(head_size) => head_size,
            None => hidden_size.checked_div(num_heads).unwrap_or(0),
        };
        if let Some(value_size) = self.size(&key("attention.value_length"))?
            && value_size != head_size
        {
            let found = format!("{} with values of {value_size} and keys of {head_size}", architecture.name);
            return Err(unsupported(self.path, found));
        }
        let eps_key = key("attention.layer_norm_rms_epsilon");
        Ok(DecoderConfig {
            hidden_size,
            intermediate_size: self.required(&key("feed_forward_length"))?,
            num_layers: self.required(&key("block_count"))?,
            heads: HeadCounts {
                num_heads,
                num_kv_heads: self.size(&key("attention.head_count_kv"))?.unwrap_or(num_heads),
                head_size,
            },
            rms_norm_eps: self.f32(&eps_key)?.ok_or_else(|| self.missing(&eps_key))?,
            vocab_size: vocab_size
                .ok_or_else(|| self.incomplete("tensor `token_embd.weight` is missing".to_owned()))?,
            max_position_embeddings: self.required(&key("context_length"))?,
            rotary: RotaryConfig {
                theta: self.f32(&key("rope.freq_base"))?.unwrap_or(DEFAULT_ROTARY_BASE),
                size: self.size(&key("rope.dimension_count"))?.unwrap_or(head_size),
                pairing: architecture.gguf_pairing,
                scaling: self.rotary_scaling(architecture)?,
            },
            // `attention.sliding_window` is not read: llama.cpp ignores it in these architectures, and its converter does
            // not write it, not even for Mistral, whose files are `llama`.
            sliding_window: None,
            // The converter writes what the checkpoint has, and no key says so.
            attention_bias: architecture.attention_bias(Presence::IfPresent),
            mlp_bias: Presence::IfPresent,
            output_matrix: Presence::IfPresent,
        })
    }

    /// What is declared by keys; `rope_freqs.weight` is the loader's to find.
    fn rotary_scaling(&self, architecture: &Architecture) -> Result<RotaryScaling, LoadError> {
        let key = |suffix: &str| format!("{}.rope.{suffix}", architecture.name);
        let kind = self.string(&key("scaling.type"));
        let factor = match self.f32(&key("scaling.factor"))? {
            Some(factor) => Some(factor),
            // What files before 2023-09 call it, without a type.
            None => self.f32(&key("scale_linear"))?,
        };
        match (kind, factor) {
            (None | Some("linear"), Some(factor)) if factor > 0.0 => Ok(RotaryScaling::Linear(factor)),
            (None | Some("none" | "linear"), _) => Ok(RotaryScaling::None),
            (Some(other), _) => {
                Err(unsupported(self.path, format!("{} with rotary scaling `{other}`", architecture.name)))
            }
        }
    }

    /// The template of chats.
    pub(super) fn chat_template(&self) -> Option<String> {
        self.string("tokenizer.chat_template").map(str::to_owned)
    }

    /// Texts of the tokens that templates name.
    pub(super) fn special_texts(&self) -> SpecialTexts {
        let tokens = self.array("tokenizer.ggml.tokens");
        let text = |key: &str| match tokens.get(usize::try_from(self.u64(key).ok()??).ok()?)? {
            Value::String(text) => Some(text.clone()),
            _ => None,
        };
        SpecialTexts { bos: text("tokenizer.ggml.bos_token_id"), eos: text("tokenizer.ggml.eos_token_id") }
    }

    /// Tokens that end a generation: those declared, and special tokens known to end a turn.
    pub(super) fn eos_token_ids(&self, vocab_size: usize) -> BTreeSet<u32> {
        let declared = ["eos_token_id", "eot_token_id", "eom_token_id"]
            .into_iter()
            .filter_map(|key| u32::try_from(self.u64(&format!("tokenizer.ggml.{key}")).ok()??).ok());
        let types = self.array("tokenizer.ggml.token_type");
        let is_special =
            |id: usize| types.get(id).and_then(integer).is_some_and(|kind| SPECIAL_TOKEN_TYPES.contains(&kind));
        let tokens = self.array("tokenizer.ggml.tokens").iter().enumerate();
        let ending = tokens.filter_map(|(id, token)| match token {
            Value::String(text) if end_of_turn::ends_turn(text) && is_special(id) => u32::try_from(id).ok(),
            _ => None,
        });
        within_vocabulary(declared.chain(ending), vocab_size)
    }

    /// How embeddings are pooled, in llama.cpp's numbers.
    pub(super) fn pooling(&self, architecture: &Architecture) -> Result<DeclaredPooling, LoadError> {
        let number = self.u64(&format!("{}.pooling_type", architecture.name))?;
        Ok(match number {
            None => DeclaredPooling::Unstated,
            Some(0) => DeclaredPooling::Unsupported("none".to_owned()),
            Some(1) => DeclaredPooling::Known(Pooling::Mean),
            Some(2) => DeclaredPooling::Known(Pooling::Cls),
            Some(3) => DeclaredPooling::Known(Pooling::Last),
            Some(4) => DeclaredPooling::Unsupported("rank".to_owned()),
            Some(other) => DeclaredPooling::Unsupported(other.to_string()),
        })
    }

    /// What the file says its quantization is.
    pub(super) fn file_type(&self) -> Option<&'static str> {
        Some(match self.u64("general.file_type").ok()?? {
            0 => "F32",
            1 => "F16",
            2 => "Q4_0",
            3 => "Q4_1",
            7 => "Q8_0",
            8 => "Q5_0",
            9 => "Q5_1",
            10 => "Q2_K",
            11 => "Q3_K_S",
            12 => "Q3_K_M",
            13 => "Q3_K_L",
            14 => "Q4_K_S",
            15 => "Q4_K_M",
            16 => "Q5_K_S",
            17 => "Q5_K_M",
            18 => "Q6_K",
            25 => "IQ4_NL",
            30 => "IQ4_XS",
            32 => "BF16",
            38 => "MXFP4",
            _ => return None,
        })
    }

    fn required(&self, key: &str) -> Result<usize, LoadError> {
        self.size(key)?.ok_or_else(|| self.missing(key))
    }

    /// A size, or an array with the same size for every layer.
    fn size(&self, key: &str) -> Result<Option<usize>, LoadError> {
        let Some(Value::Array(values)) = self.content.metadata.get(key) else {
            return Ok(self.u64(key)?.and_then(|size| usize::try_from(size).ok()));
        };
        let sizes: Vec<_> = values.iter().map(integer).collect();
        match sizes.first() {
            Some(Some(first)) if sizes.iter().all(|size| size == &Some(*first)) => Ok(usize::try_from(*first).ok()),
            _ => Err(unsupported(self.path, format!("model whose layers differ in `{key}`"))),
        }
    }

    fn u64(&self, key: &str) -> Result<Option<u64>, LoadError> {
        let Some(value) = self.content.metadata.get(key) else { return Ok(None) };
        integer(value).map(Some).ok_or_else(|| self.wrong_type(key, "a number from 0 on"))
    }

    fn f32(&self, key: &str) -> Result<Option<f32>, LoadError> {
        match self.content.metadata.get(key) {
            None => Ok(None),
            Some(Value::F32(value)) => Ok(Some(*value)),
            Some(Value::F64(value)) => Ok(Some(*value as f32)),
            Some(other) => {
                integer(other).map(|value| Some(value as f32)).ok_or_else(|| self.wrong_type(key, "a number"))
            }
        }
    }

    fn string(&self, key: &str) -> Option<&'a str> {
        match self.content.metadata.get(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    fn array(&self, key: &str) -> &'a [Value] {
        match self.content.metadata.get(key) {
            Some(Value::Array(values)) => values,
            _ => &[],
        }
    }

    fn missing(&self, key: &str) -> LoadError {
        self.incomplete(format!("metadata key `{key}` is missing"))
    }

    fn incomplete(&self, reason: String) -> LoadError {
        LoadError::Incomplete { path: self.path.to_owned(), reason }
    }

    fn wrong_type(&self, key: &str, expected: &str) -> LoadError {
        let reason = format!("metadata key `{key}` is not {expected}");
        LoadError::Malformed { path: self.path.to_owned(), reason }
    }
}

/// A non-negative integer of any width.
fn integer(value: &Value) -> Option<u64> {
    match value {
        Value::U8(value) => Some(u64::from(*value)),
        Value::U16(value) => Some(u64::from(*value)),
        Value::U32(value) => Some(u64::from(*value)),
        Value::U64(value) => Some(*value),
        Value::I8(value) => u64::try_from(*value).ok(),
        Value::I16(value) => u64::try_from(*value).ok(),
        Value::I32(value) => u64::try_from(*value).ok(),
        Value::I64(value) => u64::try_from(*value).ok(),
        _ => None,
    }
}
