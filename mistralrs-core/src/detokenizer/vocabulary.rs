//! The bytes of every token.

use serde_json::Value;
use tokenizers::Tokenizer;

/// Text of one token when it is a piece of the output: its bytes, in one buffer for the whole vocabulary.
pub struct Vocabulary {
    bytes: Vec<u8>,
    /// Token i's bytes are `bytes[ends[i - 1]..ends[i]]`.
    ends: Vec<u32>,
    is_special: Vec<bool>,
    strips_leading_space: bool,
}

impl Vocabulary {
    /// Reads all tokens of `tokenizer`.
    ///
    /// # Errors
    /// A sentence, where its decoder does not give each token bytes of its own (WordPiece, CTC).
    pub fn from_tokenizer(tokenizer: &Tokenizer) -> Result<Self, String> {
        let decoder = TokenDecoder::of(tokenizer)?;
        let added = tokenizer.get_added_tokens_decoder();
        let tokens = tokenizer.get_vocab(true);
        let num_tokens = tokens.values().max().map_or(0, |&max| max as usize + 1);
        let mut texts = vec![String::new(); num_tokens];
        for (text, token_id) in tokens {
            texts[token_id as usize] = text;
        }
        let mut vocabulary = Self {
            bytes: Vec::new(),
            ends: Vec::with_capacity(num_tokens),
            is_special: vec![false; num_tokens],
            strips_leading_space: decoder.strips_leading_space,
        };
        for (token_id, text) in texts.iter().enumerate() {
            match added.get(&(token_id as u32)) {
                Some(token) => {
                    vocabulary.bytes.extend_from_slice(token.content.as_bytes());
                    vocabulary.is_special[token_id] = token.special;
                }
                None => decoder.decode(text, &mut vocabulary.bytes),
            }
            vocabulary.ends.push(vocabulary.bytes.len() as u32);
        }
        Ok(vocabulary)
    }

    /// One more than the highest token id.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The token's bytes, which may be part of a character; empty for ids outside the vocabulary.
    pub fn bytes(&self, token_id: u32) -> &[u8] {
        let index = token_id as usize;
        let Some(&end) = self.ends.get(index) else { return &[] };
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start as usize..end as usize]
    }

    /// Whether the token is left out of text.
    pub fn is_special(&self, token_id: u32) -> bool {
        self.is_special.get(token_id as usize).copied().unwrap_or(false)
    }

    /// Text (lossy where the token is part of a character) and bytes of one token, for log-probabilities. Special
    /// tokens have theirs too.
    pub fn token_text(&self, token_id: u32) -> (String, Vec<u8>) {
        let bytes = self.bytes(token_id);
        (String::from_utf8_lossy(bytes).into_owned(), bytes.to_vec())
    }

    /// The text of `token_ids` from the beginning, special tokens left out.
    pub fn decode(&self, token_ids: &[u32]) -> String {
        let visible = token_ids.iter().filter(|&&token_id| !self.is_special(token_id));
        let bytes: Vec<u8> = visible.flat_map(|&token_id| self.bytes(token_id)).copied().collect();
        String::from_utf8_lossy(self.strip_leading_space(&bytes)).into_owned()
    }

    /// `bytes`, the beginning of a text, without the space that the tokenizer put before its first word.
    pub(super) fn strip_leading_space<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        if self.strips_leading_space { bytes.strip_prefix(b" ").unwrap_or(bytes) } else { bytes }
    }
}

#[cfg(test)]
impl Vocabulary {
    /// Token i is `tokens[i]`; none is special.
    pub(crate) fn from_bytes(tokens: &[&[u8]]) -> Self {
        let ends = tokens.iter().scan(0, |end, token| {
            *end += token.len() as u32;
            Some(*end)
        });
        Self {
            bytes: tokens.concat(),
            ends: ends.collect(),
            is_special: vec![false; tokens.len()],
            strips_leading_space: false,
        }
    }
}

/// A `tokenizers` decoder as what it does to one token.
#[derive(Default)]
struct TokenDecoder {
    is_byte_level: bool,
    has_byte_fallback: bool,
    replacements: Vec<(String, String)>,
    strips_leading_space: bool,
}

impl TokenDecoder {
    /// Reads the decoder through its serialized form, which is the documented one (`tokenizer.json`).
    fn of(tokenizer: &Tokenizer) -> Result<Self, String> {
        let mut decoder = Self::default();
        let config = serde_json::to_value(tokenizer.get_decoder()).map_err(|error| error.to_string())?;
        decoder.add(&config)?;
        Ok(decoder)
    }

    fn add(&mut self, config: &Value) -> Result<(), String> {
        match config["type"].as_str().unwrap_or("none") {
            "Sequence" => {
                for part in config["decoders"].as_array().into_iter().flatten() {
                    self.add(part)?;
                }
            }
            "ByteLevel" => self.is_byte_level = true,
            "ByteFallback" => self.has_byte_fallback = true,
            "Fuse" => {}
            "Replace" => {
                let (Some(pattern), Some(content)) = (config["pattern"]["String"].as_str(), config["content"].as_str())
                else {
                    return Err(format!("its decoder replaces by a regular expression: {config}"));
                };
                self.replacements.push((pattern.to_owned(), content.to_owned()));
            }
            "Strip" if config["content"] == " " && config["start"] == 1 && config["stop"] == 0 => {
                self.strips_leading_space = true;
            }
            "Metaspace" => {
                let replacement = config["replacement"].as_str().unwrap_or("\u{2581}");
                self.replacements.push((replacement.to_owned(), " ".to_owned()));
                self.strips_leading_space |= config["prepend_scheme"] != "never";
            }
            _ => return Err(format!("its decoder is not one for generated text: {config}")),
        }
        Ok(())
    }

    /// Appends the bytes of `token`.
    fn decode(&self, token: &str, bytes: &mut Vec<u8>) {
        if self.has_byte_fallback
            && let Some(byte) = fallback_byte(token)
        {
            bytes.push(byte);
        } else if self.is_byte_level {
            decode_byte_level(token, bytes);
        } else {
            let mut text = token.to_owned();
            for (pattern, content) in &self.replacements {
                text = text.replace(pattern, content);
            }
            bytes.extend_from_slice(text.as_bytes());
        }
    }
}

/// The byte that a token like `<0x0A>` stands for.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Appends the bytes behind a byte-level token; one with a character that stands for no byte is text as it is.
fn decode_byte_level(token: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for character in token.chars() {
        let Some(byte) = byte_of_character(character) else {
            bytes.truncate(start);
            bytes.extend_from_slice(token.as_bytes());
            return;
        };
        bytes.push(byte);
    }
}

/// GPT-2's printable stand-ins for bytes (Radford et al. 2019, `encoder.py`): visible Latin-1 characters are themselves,
/// the 68 others follow each other from U+0100 on.
fn byte_of_character(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}
