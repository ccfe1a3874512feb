//! What `tokenizer.ggml.pre` stands for: how byte-level BPE tokenizers cut text into words before merging.
//!
//! The patterns are those of the models' own `tokenizer.json` files.

use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_V3: &[&str] = &[
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
const DEEPSEEK_CODER: &[&str] = &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\u{d7ff}]+", r"\p{N}"];
const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const FALCON: &[&str] = &[r"[\p{P}\$\+<=>\^~\|`]+", GPT_2, "[0-9][0-9][0-9]"];
/// What llama.cpp does with files that name none.
const UNNAMED: &[&str] = &[r"[\p{P}\$\+<=>\^~\|]+", GPT_2, r"\p{N}+", "[0-9][0-9][0-9]"];

/// A byte-level BPE tokenizer apart from its vocabulary.
pub(super) struct PreTokenizer {
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) splitter: PreTokenizerWrapper,
    /// A word that is a token is taken whole, even where merging would not arrive at it.
    pub(super) ignore_merges: bool,
    /// Whether prompts begin with BOS where the file does not say.
    pub(super) adds_bos: bool,
}

/// The pre-tokenizer that `name`, the value of `tokenizer.ggml.pre`, stands for. `None`: files from before the key
/// existed.
pub(super) fn named(name: Option<&str>) -> Result<PreTokenizer, String> {
    let mut pre_tokenizer = PreTokenizer {
        normalizer: None,
        splitter: ByteLevel::new(false, true, true).into(),
        ignore_merges: false,
        adds_bos: false,
    };
    match name.unwrap_or("default") {
        "gpt-2" | "gpt2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling" | "mellum"
        | "gigachat" | "a.x-4.0" => {}
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            let digits = Digits::new(true);
            pre_tokenizer.splitter = Sequence::new(vec![digits.into(), pre_tokenizer.splitter]).into();
        }
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "lfm2" | "midm-2.0" => {
            pre_tokenizer.splitter = splits(&[LLAMA3])?;
            pre_tokenizer.ignore_merges = true;
            pre_tokenizer.adds_bos = true;
        }
        "glm4" | "glm5" => {
            pre_tokenizer.splitter = splits(&[LLAMA3])?;
            pre_tokenizer.ignore_merges = true;
        }
        "dbrx" | "smaug-bpe" | "chatglm-bpe" => pre_tokenizer.splitter = splits(&[LLAMA3])?,
        "qwen2" | "deepseek-r1-qwen" | "kormo" => {
            pre_tokenizer.normalizer = Some(NFC.into());
            pre_tokenizer.splitter = splits(&[QWEN2])?;
        }
        "stablelm2" | "hunyuan" | "megrez" | "grok-2" | "solar-open" => pre_tokenizer.splitter = splits(&[QWEN2])?,
        "qwen35" => {
            pre_tokenizer.normalizer = Some(NFC.into());
            pre_tokenizer.splitter = splits(&[QWEN35])?;
        }
        "tekken" => {
            pre_tokenizer.splitter = splits(&[TEKKEN])?;
            pre_tokenizer.ignore_merges = true;
            pre_tokenizer.adds_bos = true;
        }
        "gpt-4o" | "llama4" | "kanana2" => pre_tokenizer.splitter = splits(&[GPT_4O])?,
        "deepseek-v3" | "hunyuan-dense" => pre_tokenizer.splitter = splits(DEEPSEEK_V3)?,
        "deepseek-coder" => pre_tokenizer.splitter = splits(DEEPSEEK_CODER)?,
        "falcon" => pre_tokenizer.splitter = splits(FALCON)?,
        "default" => pre_tokenizer.splitter = splits(UNNAMED)?,
        unknown => return Err(format!("its pre-tokenizer `{unknown}` is not known")),
    }
    Ok(pre_tokenizer)
}

/// Cuts at each match of each pattern in turn, then turns bytes into their stand-in characters.
fn splits(patterns: &[&str]) -> Result<PreTokenizerWrapper, String> {
    let mut parts = patterns.iter().map(|pattern| split(pattern)).collect::<Result<Vec<_>, _>>()?;
    parts.push(ByteLevel::new(false, true, false).into());
    Ok(Sequence::new(parts).into())
}

fn split(pattern: &str) -> Result<PreTokenizerWrapper, String> {
    let pattern = SplitPattern::Regex(pattern.to_owned());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(|error| error.to_string())?;
    Ok(split.into())
}
