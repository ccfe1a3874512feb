//! The tokenizer in a GGUF file's metadata (`tokenizer.ggml.*`).

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::processors::template::{SpecialToken, TemplateProcessing};
use tokenizers::{AddedToken, Tokenizer};

use super::pre_tokenizer::{self, PreTokenizer};
use super::sentencepiece::{self, SpacePrefix};

/// Tokens that are special whatever their type says: some converters have marked them as plain text.
const SPECIAL_ID_KEYS: [&str; 9] = [
    "bos_token_id",
    "eos_token_id",
    "eot_token_id",
    "eom_token_id",
    "unknown_token_id",
    "padding_token_id",
    "seperator_token_id", // The key is spelled so.
    "cls_token_id",
    "mask_token_id",
];

/// Phi-3's special tokens that take nothing along.
const PHI_3_PLAIN: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

/// All that a GGUF file says of its tokenizer, checked as far as that takes no look at the whole vocabulary.
pub struct GgufTokenizer {
    tokens: Tokens,
    kind: Kind,
    ends: Ends,
}

enum Kind {
    /// GPT-2's: text is cut into words, bytes are written as characters, merges are listed.
    ByteLevel { pre_tokenizer: Box<PreTokenizer>, merges: Merges },
    /// SentencePiece's BPE: no words, scores instead of merges, bytes only where no piece fits.
    SentencePiece { scores: Vec<f32>, unknown: String, spaces: SpacePrefix },
}

impl GgufTokenizer {
    /// Takes vocabulary, merges and scores out of `metadata`, a file's key-value pairs, and reads what else they say.
    ///
    /// # Errors
    /// A sentence naming the key that is missing or wrong, or the kind of tokenizer that this build does not know.
    pub fn take(metadata: &mut HashMap<String, Value>) -> Result<Self, String> {
        let metadata = &mut Metadata(metadata);
        let name = metadata.required("model", Value::to_string)?.clone();
        let read = match name.as_str() {
            "gpt2" => Self::byte_level,
            "llama" => Self::sentencepiece,
            unknown => return Err(format!("`tokenizer.ggml.model` is `{unknown}`; supported: gpt2, llama")),
        };
        read(Tokens::take(metadata)?, metadata)
    }

    fn byte_level(tokens: Tokens, metadata: &mut Metadata) -> Result<Self, String> {
        let pre_tokenizer = pre_tokenizer::named(metadata.optional("pre", Value::to_string)?.map(String::as_str))?;
        let merges = metadata.take_array("merges")?.into_iter().map(split_merge).collect::<Result<_, _>>()?;
        let defaults = EndDefaults { bos: None, eos: None, adds_bos: pre_tokenizer.adds_bos };
        let ends = Ends::read(metadata, &defaults, &tokens)?;
        Ok(Self { tokens, kind: Kind::ByteLevel { pre_tokenizer: Box::new(pre_tokenizer), merges }, ends })
    }

    fn sentencepiece(tokens: Tokens, metadata: &mut Metadata) -> Result<Self, String> {
        let scores = metadata.take_array("scores")?.iter().map(Value::to_f32).collect::<Result<_, _>>();
        let scores = scores.map_err(|error| error.to_string())?;
        let unknown_id = metadata.token_id("unknown_token_id")?.unwrap_or(0);
        let unknown = tokens.text(unknown_id, "unknown_token_id")?.to_owned();
        let adds_space = metadata.optional("add_space_prefix", Value::to_bool)?.unwrap_or(true);
        let spaces = if adds_space { SpacePrefix::Add } else { SpacePrefix::Omit };
        let ends = Ends::read(metadata, &EndDefaults { bos: Some(1), eos: Some(2), adds_bos: true }, &tokens)?;
        Ok(Self { tokens, kind: Kind::SentencePiece { scores, unknown, spaces }, ends })
    }

    /// Tokens that it will know.
    pub fn num_tokens(&self) -> usize {
        self.tokens.texts.len()
    }

    /// Builds the tokenizer, which takes a while where there are many tokens. Encoding with special tokens adds BOS and
    /// EOS as the file asks.
    ///
    /// # Errors
    /// A sentence: merges name tokens that are not there.
    pub fn build(self) -> Result<Tokenizer, String> {
        self.try_build().map_err(|error| error.to_string())
    }

    fn try_build(self) -> tokenizers::Result<Tokenizer> {
        let Self { tokens, kind, ends } = self;
        let added = tokens.added();
        let mut tokenizer = match kind {
            Kind::ByteLevel { pre_tokenizer, merges } => {
                let bpe = BPE::builder().vocab_and_merges(tokens.into_vocab(), merges);
                let mut tokenizer = Tokenizer::new(bpe.ignore_merges(pre_tokenizer.ignore_merges).build()?);
                tokenizer.with_normalizer(pre_tokenizer.normalizer)?;
                tokenizer.with_pre_tokenizer(Some(pre_tokenizer.splitter));
                tokenizer.with_decoder(Some(ByteLevel::default()));
                tokenizer
            }
            Kind::SentencePiece { scores, unknown, spaces } => {
                let merges = sentencepiece::merges(&tokens.pieces(&scores));
                let bpe = BPE::builder().vocab_and_merges(tokens.into_vocab(), merges).unk_token(unknown);
                let mut tokenizer = Tokenizer::new(bpe.fuse_unk(true).byte_fallback(true).build()?);
                sentencepiece::set_spaces(&mut tokenizer, spaces)?;
                tokenizer
            }
        };
        added.mark_in(&mut tokenizer)?;
        ends.set(&mut tokenizer)?;
        Ok(tokenizer)
    }
}

/// A merge is two tokens with a space between; the first token may begin with one.
fn split_merge(merge: Value) -> Result<(String, String), String> {
    let Value::String(mut left) = merge else {
        return Err("`tokenizer.ggml.merges` holds something other than text".to_owned());
    };
    let after_first = left.chars().next().map_or(0, char::len_utf8);
    let space = left[after_first..].find(' ').map(|at| after_first + at);
    let Some(space) = space.filter(|at| at + 1 < left.len()) else {
        return Err(format!("`{left}` in `tokenizer.ggml.merges` is not two tokens"));
    };
    let right = left.split_off(space + 1);
    left.truncate(space);
    Ok((left, right))
}

/// `tokenizer.ggml.*`, read with errors that name the key.
struct Metadata<'a>(&'a mut HashMap<String, Value>);

impl Metadata<'_> {
    fn optional<'s, T>(
        &'s self,
        key: &str,
        read: impl FnOnce(&'s Value) -> candle_core::Result<T>,
    ) -> Result<Option<T>, String> {
        let key = format!("tokenizer.ggml.{key}");
        let value = self.0.get(&key).map(read).transpose();
        value.map_err(|_| format!("`{key}` has the wrong type"))
    }

    fn required<'s, T>(
        &'s self,
        key: &str,
        read: impl FnOnce(&'s Value) -> candle_core::Result<T>,
    ) -> Result<T, String> {
        self.optional(key, read)?.ok_or_else(|| format!("`tokenizer.ggml.{key}` is missing"))
    }

    /// Arrays are as large as the vocabulary, so they move.
    fn take_array(&mut self, key: &str) -> Result<Vec<Value>, String> {
        self.required(key, Value::to_vec)?;
        match self.0.remove(&format!("tokenizer.ggml.{key}")) {
            Some(Value::Array(values)) => Ok(values),
            _ => unreachable!("`{key}` was just seen to be an array"),
        }
    }

    fn token_id(&self, key: &str) -> Result<Option<u32>, String> {
        self.optional(key, |value| value.to_u32().or_else(|_| Ok(value.to_i32()? as u32)))
    }
}

/// `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenType {
    /// A piece of text.
    Normal,
    /// Never text: BOS, ends of turns, what stands for the unknown.
    Special,
    /// Text that is matched as it is, before anything else.
    UserDefined,
    /// Bytes and unused ids.
    Other,
}

/// The vocabulary, by id.
struct Tokens {
    texts: Vec<String>,
    types: Vec<TokenType>,
    /// Phi-3's special and user-defined tokens take the white space behind them along: GGUF has no key for it.
    added_strip: bool,
}

impl Tokens {
    fn take(metadata: &mut Metadata) -> Result<Self, String> {
        let text = |value| match value {
            Value::String(text) => Ok(text),
            _ => Err("`tokenizer.ggml.tokens` holds something other than text".to_owned()),
        };
        let texts = metadata.take_array("tokens")?.into_iter().map(text).collect::<Result<Vec<_>, _>>()?;
        let mut types = vec![TokenType::Normal; texts.len()];
        for (kind, value) in types.iter_mut().zip(metadata.optional("token_type", Value::to_vec)?.into_iter().flatten())
        {
            *kind = match value {
                Value::I32(1) | Value::U32(1) => TokenType::Normal,
                Value::I32(2 | 3) | Value::U32(2 | 3) => TokenType::Special,
                Value::I32(4) | Value::U32(4) => TokenType::UserDefined,
                _ => TokenType::Other,
            };
        }
        for key in SPECIAL_ID_KEYS {
            if let Some(kind) = metadata.token_id(key)?.and_then(|id| types.get_mut(id as usize)) {
                *kind = TokenType::Special;
            }
        }
        let name = metadata.0.get("general.name").and_then(|name| name.to_string().ok());
        let name = name.map(|name| name.to_lowercase()).unwrap_or_default();
        Ok(Self { texts, types, added_strip: name.contains("phi-3") || name.contains("phi3") })
    }

    fn text(&self, token_id: u32, key: &str) -> Result<&str, String> {
        let text = self.texts.get(token_id as usize).map(String::as_str);
        text.ok_or_else(|| format!("`tokenizer.ggml.{key}` is {token_id}, but there are {} tokens", self.texts.len()))
    }

    /// Pieces of text with their scores.
    fn pieces(&self, scores: &[f32]) -> Vec<(&str, f32)> {
        let pieces = self.texts.iter().zip(&self.types).zip(scores);
        let pieces = pieces.filter(|((_, kind), _)| **kind == TokenType::Normal);
        pieces.map(|((text, _), score)| (text.as_str(), *score)).collect()
    }

    fn added(&self) -> AddedTokens {
        let of_type = |wanted| {
            let tokens = self.texts.iter().zip(&self.types).filter(move |(_, kind)| **kind == wanted);
            let is_special = wanted == TokenType::Special;
            let strips = |text: &str| self.added_strip && !PHI_3_PLAIN.contains(&text);
            let token = |text: &str| AddedToken::from(text, is_special).normalized(false).rstrip(strips(text));
            tokens.map(|(text, _)| token(text)).collect()
        };
        AddedTokens { special: of_type(TokenType::Special), user_defined: of_type(TokenType::UserDefined) }
    }

    fn into_vocab(self) -> Vocab {
        self.texts.into_iter().enumerate().map(|(id, text)| (text, id as u32)).collect()
    }
}

/// Tokens that are matched before the text between them is looked at.
struct AddedTokens {
    /// Left out of text.
    special: Vec<AddedToken>,
    user_defined: Vec<AddedToken>,
}

impl AddedTokens {
    fn mark_in(self, tokenizer: &mut Tokenizer) -> tokenizers::Result<()> {
        tokenizer.add_special_tokens(self.special)?;
        tokenizer.add_tokens(self.user_defined)?;
        Ok(())
    }
}

/// What a kind of tokenizer does where the file is silent.
struct EndDefaults {
    bos: Option<u32>,
    eos: Option<u32>,
    adds_bos: bool,
}

/// The tokens put around a prompt, as ids and texts.
struct Ends {
    bos: Option<(u32, String)>,
    eos: Option<(u32, String)>,
}

impl Ends {
    fn read(metadata: &Metadata, defaults: &EndDefaults, tokens: &Tokens) -> Result<Self, String> {
        let adds_bos = metadata.optional("add_bos_token", Value::to_bool)?.unwrap_or(defaults.adds_bos);
        let adds_eos = metadata.optional("add_eos_token", Value::to_bool)?.unwrap_or(false);
        let token_if = |is_added: bool, key: &str, default: Option<u32>| {
            if !is_added {
                return Ok(None);
            }
            let id = metadata.token_id(key)?.or(default);
            let id = id.ok_or_else(|| format!("prompts need `tokenizer.ggml.{key}`, which is missing"))?;
            Ok::<_, String>(Some((id, tokens.text(id, key)?.to_owned())))
        };
        Ok(Self {
            bos: token_if(adds_bos, "bos_token_id", defaults.bos)?,
            eos: token_if(adds_eos, "eos_token_id", defaults.eos)?,
        })
    }

    fn set(self, tokenizer: &mut Tokenizer) -> tokenizers::Result<()> {
        let mut special_tokens = Vec::new();
        let mut single = vec!["$A"];
        let mut pair = vec!["$A", "$B:1"];
        // The template's own names: a token's text may hold what the template language reserves.
        if let Some((id, text)) = self.bos {
            special_tokens.push(SpecialToken::new("bos".to_owned(), vec![id], vec![text])?);
            single.insert(0, "bos");
            pair.insert(0, "bos");
        }
        if let Some((id, text)) = self.eos {
            special_tokens.push(SpecialToken::new("eos".to_owned(), vec![id], vec![text])?);
            single.push("eos");
            pair.push("eos:1");
        }
        let template =
            TemplateProcessing::builder().try_single(single)?.try_pair(pair)?.special_tokens(special_tokens).build()?;
        tokenizer.with_post_processor(Some(template));
        Ok(())
    }
}
