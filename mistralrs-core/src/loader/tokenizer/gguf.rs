//! The tokenizer in a GGUF file's metadata (`tokenizer.ggml.*`).

use candle_core::quantized::gguf_file::{Content, Value};
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::processors::template::{SpecialToken, TemplateProcessing};
use tokenizers::{AddedToken, Tokenizer};

use super::pre_tokenizer;
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

/// Builds the tokenizer that a GGUF file describes. Encoding with special tokens adds BOS and EOS as the file asks.
///
/// # Errors
/// A sentence naming the key that is missing or wrong, or the kind of tokenizer that this build does not know.
pub fn from_gguf(content: &Content) -> Result<Tokenizer, String> {
    let metadata = Metadata(content);
    let tokenizer = match metadata.required("model", Value::to_string)?.as_str() {
        "gpt2" => byte_level(metadata),
        "llama" => sentencepiece(metadata),
        unknown => return Err(format!("`tokenizer.ggml.model` is `{unknown}`; supported: gpt2, llama")),
    };
    tokenizer.map_err(|error| error.to_string())
}

/// GPT-2's kind: text is cut into words, bytes are written as characters, merges are listed.
fn byte_level(metadata: Metadata) -> tokenizers::Result<Tokenizer> {
    let tokens = Tokens::read(metadata)?;
    let pre_tokenizer = pre_tokenizer::named(metadata.optional("pre", Value::to_string)?.map(String::as_str))?;
    let merges = metadata.required("merges", Value::to_vec)?;
    let merges = merges.iter().map(split_merge).collect::<Result<Vec<_>, _>>()?;
    let model = BPE::builder().vocab_and_merges(tokens.vocab(), merges).ignore_merges(pre_tokenizer.ignore_merges);
    let mut tokenizer = Tokenizer::new(model.build()?);
    tokenizer.with_normalizer(pre_tokenizer.normalizer)?;
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer.splitter));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokens.mark(&mut tokenizer)?;
    Ends::read(metadata, &EndDefaults { bos: None, eos: None, adds_bos: pre_tokenizer.adds_bos })?
        .set(&mut tokenizer, &tokens)?;
    Ok(tokenizer)
}

/// SentencePiece's BPE: no words, scores instead of merges, bytes only where no piece fits.
fn sentencepiece(metadata: Metadata) -> tokenizers::Result<Tokenizer> {
    let tokens = Tokens::read(metadata)?;
    let scores = metadata.required("scores", Value::to_vec)?;
    let scores = scores.iter().map(Value::to_f32).collect::<Result<Vec<_>, _>>()?;
    let pieces = tokens.texts.iter().zip(&tokens.types).zip(&scores);
    let pieces = pieces.filter(|((_, kind), _)| **kind == TokenType::Normal);
    let pieces: Vec<(&str, f32)> = pieces.map(|((text, _), score)| (*text, *score)).collect();
    let unknown_id = metadata.token_id("unknown_token_id")?.unwrap_or(0);
    let unknown = tokens.text(unknown_id, "unknown_token_id")?;
    let model = BPE::builder()
        .vocab_and_merges(tokens.vocab(), sentencepiece::merges(&pieces))
        .unk_token(unknown.to_owned())
        .fuse_unk(true)
        .byte_fallback(true);
    let mut tokenizer = Tokenizer::new(model.build()?);
    let adds_space = metadata.optional("add_space_prefix", Value::to_bool)?.unwrap_or(true);
    sentencepiece::set_spaces(&mut tokenizer, if adds_space { SpacePrefix::Add } else { SpacePrefix::Omit })?;
    tokens.mark(&mut tokenizer)?;
    Ends::read(metadata, &EndDefaults { bos: Some(1), eos: Some(2), adds_bos: true })?.set(&mut tokenizer, &tokens)?;
    Ok(tokenizer)
}

/// A merge is two tokens with a space between; the first token may begin with one.
fn split_merge(merge: &Value) -> Result<(String, String), String> {
    let text = merge.to_string().map_err(|_| "`tokenizer.ggml.merges` holds something other than text".to_owned())?;
    let after_first = text.chars().next().map_or(0, char::len_utf8);
    let space = text[after_first..].find(' ').map(|at| after_first + at);
    let (left, right) = space.map(|at| (&text[..at], &text[at + 1..])).unwrap_or_default();
    if left.is_empty() || right.is_empty() {
        return Err(format!("`{text}` in `tokenizer.ggml.merges` is not two tokens"));
    }
    Ok((left.to_owned(), right.to_owned()))
}

/// `tokenizer.ggml.*`, read with errors that name the key.
#[derive(Clone, Copy)]
struct Metadata<'a>(&'a Content);

impl<'a> Metadata<'a> {
    fn optional<T>(
        self,
        key: &str,
        read: impl FnOnce(&'a Value) -> candle_core::Result<T>,
    ) -> Result<Option<T>, String> {
        let key = format!("tokenizer.ggml.{key}");
        let value = self.0.metadata.get(&key).map(read).transpose();
        value.map_err(|_| format!("`{key}` has the wrong type"))
    }

    fn required<T>(self, key: &str, read: impl FnOnce(&'a Value) -> candle_core::Result<T>) -> Result<T, String> {
        self.optional(key, read)?.ok_or_else(|| format!("`tokenizer.ggml.{key}` is missing"))
    }

    fn token_id(self, key: &str) -> Result<Option<u32>, String> {
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
struct Tokens<'a> {
    texts: Vec<&'a str>,
    types: Vec<TokenType>,
    /// Phi-3's special and user-defined tokens take the white space behind them along: GGUF has no key for it.
    added_strip: bool,
}

impl<'a> Tokens<'a> {
    fn read(metadata: Metadata<'a>) -> Result<Self, String> {
        let texts = metadata.required("tokens", Value::to_vec)?.iter().map(|text| text.to_string().map(String::as_str));
        let texts: Vec<&str> = texts
            .collect::<Result<_, _>>()
            .map_err(|_| "`tokenizer.ggml.tokens` holds something other than text".to_owned())?;
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
        let name = metadata.0.metadata.get("general.name").and_then(|name| name.to_string().ok());
        let name = name.map(|name| name.to_lowercase()).unwrap_or_default();
        Ok(Self { texts, types, added_strip: name.contains("phi-3") || name.contains("phi3") })
    }

    fn vocab(&self) -> Vocab {
        self.texts.iter().enumerate().map(|(id, text)| ((*text).to_owned(), id as u32)).collect()
    }

    fn text(&self, token_id: u32, key: &str) -> Result<&'a str, String> {
        let text = self.texts.get(token_id as usize).copied();
        text.ok_or_else(|| format!("`tokenizer.ggml.{key}` is {token_id}, but there are {} tokens", self.texts.len()))
    }

    /// Has `tokenizer` match special and user-defined tokens before it looks at the text between them, and leave the
    /// special ones out of text.
    fn mark(&self, tokenizer: &mut Tokenizer) -> tokenizers::Result<()> {
        let of_type = |wanted| {
            let tokens = self.texts.iter().zip(&self.types).filter(move |(_, kind)| **kind == wanted);
            let is_special = wanted == TokenType::Special;
            let strips = |text: &str| self.added_strip && !PHI_3_PLAIN.contains(&text);
            let token = |text: &str| AddedToken::from(text, is_special).normalized(false).rstrip(strips(text));
            tokens.map(|(text, _)| token(text)).collect::<Vec<_>>()
        };
        tokenizer.add_special_tokens(of_type(TokenType::Special))?;
        tokenizer.add_tokens(of_type(TokenType::UserDefined))?;
        Ok(())
    }
}

/// What a kind of tokenizer does where the file is silent.
struct EndDefaults {
    bos: Option<u32>,
    eos: Option<u32>,
    adds_bos: bool,
}

/// The tokens put around a prompt.
struct Ends {
    bos: Option<u32>,
    eos: Option<u32>,
}

impl Ends {
    fn read(metadata: Metadata, defaults: &EndDefaults) -> Result<Self, String> {
        let adds_bos = metadata.optional("add_bos_token", Value::to_bool)?.unwrap_or(defaults.adds_bos);
        let adds_eos = metadata.optional("add_eos_token", Value::to_bool)?.unwrap_or(false);
        let id_if = |is_added: bool, key: &str, default: Option<u32>| {
            let id = if is_added { metadata.token_id(key)?.or(default) } else { None };
            if is_added && id.is_none() {
                return Err(format!("prompts need `tokenizer.ggml.{key}`, which is missing"));
            }
            Ok(id)
        };
        Ok(Self {
            bos: id_if(adds_bos, "bos_token_id", defaults.bos)?,
            eos: id_if(adds_eos, "eos_token_id", defaults.eos)?,
        })
    }

    fn set(&self, tokenizer: &mut Tokenizer, tokens: &Tokens) -> tokenizers::Result<()> {
        let mut special_tokens = Vec::new();
        let mut single = vec!["$A"];
        let mut pair = vec!["$A", "$B:1"];
        // The template's own names: a token's text may hold what the template language reserves.
        if let Some(bos) = self.bos {
            special_tokens.push(special_token("bos", bos, tokens.text(bos, "bos_token_id")?)?);
            single.insert(0, "bos");
            pair.insert(0, "bos");
        }
        if let Some(eos) = self.eos {
            special_tokens.push(special_token("eos", eos, tokens.text(eos, "eos_token_id")?)?);
            single.push("eos");
            pair.push("eos:1");
        }
        let template =
            TemplateProcessing::builder().try_single(single)?.try_pair(pair)?.special_tokens(special_tokens).build()?;
        tokenizer.with_post_processor(Some(template));
        Ok(())
    }
}

fn special_token(name: &str, token_id: u32, text: &str) -> tokenizers::Result<SpecialToken> {
    SpecialToken::new(name.to_owned(), vec![token_id], vec![text.to_owned()])
}
