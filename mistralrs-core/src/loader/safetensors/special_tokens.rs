//! Which tokens end a generation, and the chat template: `generation_config.json`, `config.json`,
//! `tokenizer_config.json`, `chat_template.jinja`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::read_json;
use crate::error::LoadError;
use crate::loader::SpecialTexts;

const GENERATION_CONFIG_FILE: &str = "generation_config.json";
const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";

/// What a directory says beside its weights.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    pub eos_token_ids: BTreeSet<u32>,
    pub texts: SpecialTexts,
    pub template: Option<String>,
    pub template_path: PathBuf,
}

/// `tokenizer_config.json`.
#[derive(Debug, Default, Deserialize)]
struct TokenizerConfig {
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
    chat_template: Option<Templates>,
}

/// A token's text, or an object with its text and flags.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TokenText {
    Plain(String),
    Added { content: String },
}

/// One template, or several of which the one named `default` is for chats.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// Reads what `directory` says; `config` is its `config.json`.
pub(super) fn read(directory: &Path, config: &Value, tokenizer: &Tokenizer) -> Result<SpecialTokens, LoadError> {
    let tokenizer_config_path = directory.join(TOKENIZER_CONFIG_FILE);
    let tokenizer_config: TokenizerConfig = read_json(&tokenizer_config_path)?.unwrap_or_default();
    let generation_config: Value = read_json(&directory.join(GENERATION_CONFIG_FILE))?.unwrap_or_default();
    let texts = SpecialTexts {
        bos: tokenizer_config.bos_token.map(TokenText::into_text),
        eos: tokenizer_config.eos_token.map(TokenText::into_text),
    };
    let mut eos_token_ids: BTreeSet<u32> = [config, &generation_config].into_iter().flat_map(eos_ids).collect();
    // A chat model's tokenizer knows its end of turn even where the configuration is the base model's.
    eos_token_ids.extend(texts.eos.as_deref().and_then(|text| tokenizer.token_to_id(text)));

    let template_path = directory.join(TEMPLATE_FILE);
    let (template, template_path) = if template_path.exists() {
        let read = std::fs::read_to_string(&template_path);
        (Some(read.map_err(|source| LoadError::Io { path: template_path.clone(), source })?), template_path)
    } else {
        (tokenizer_config.chat_template.and_then(Templates::into_chat), tokenizer_config_path)
    };
    Ok(SpecialTokens { eos_token_ids, texts, template, template_path })
}

/// `eos_token_id`: a number, a list, or nothing.
fn eos_ids(config: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match config.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

impl TokenText {
    fn into_text(self) -> String {
        match self {
            Self::Plain(text) | Self::Added { content: text } => text,
        }
    }
}

impl Templates {
    fn into_chat(self) -> Option<String> {
        match self {
            Self::One(template) => Some(template),
            Self::Named(templates) => {
                templates.into_iter().find(|named| named.name == "default").map(|named| named.template)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A tokenizer that knows one token.
    fn tokenizer() -> Tokenizer {
        let model = json!({"type": "WordLevel", "vocab": {"<|im_end|>": 7}, "unk_token": "<|im_end|>"});
        let json = json!({"version": "1.0", "added_tokens": [], "model": model});
        Tokenizer::from_bytes(json.to_string()).unwrap()
    }

    fn read_from(files: &[(&str, &str)], config: &Value) -> SpecialTokens {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        read(directory.path(), config, &tokenizer()).unwrap()
    }

    #[test]
    fn ends_are_collected_from_every_file() {
        let files = [
            ("generation_config.json", r#"{"eos_token_id": [3, 4]}"#),
            ("tokenizer_config.json", r#"{"eos_token": {"content": "<|im_end|>", "lstrip": false}}"#),
        ];
        let special = read_from(&files, &json!({"eos_token_id": 2}));
        assert_eq!(special.eos_token_ids, BTreeSet::from([2, 3, 4, 7]));
        assert_eq!(special.texts.eos.as_deref(), Some("<|im_end|>"));
        let none = read_from(&[], &json!({"eos_token_id": null}));
        assert_eq!((none.eos_token_ids, none.texts), (BTreeSet::new(), SpecialTexts::default()));
    }

    #[test]
    fn a_template_file_wins_over_the_tokenizers_configuration() {
        let configured = ("tokenizer_config.json", r#"{"chat_template": "from config"}"#);
        let template = |files: &[(&str, &str)]| read_from(files, &json!({})).template;
        assert_eq!(template(&[configured]).as_deref(), Some("from config"));
        assert_eq!(template(&[configured, ("chat_template.jinja", "from file")]).as_deref(), Some("from file"));
        let named = r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}"#;
        assert_eq!(template(&[("tokenizer_config.json", named)]).as_deref(), Some("d"));
        assert_eq!(template(&[]), None);
    }
}
