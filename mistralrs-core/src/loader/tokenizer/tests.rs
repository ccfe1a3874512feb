use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;

use candle_core::quantized::gguf_file::{Content, Value, VersionedMagic};
use serde::Deserialize;
use tokenizers::{PaddingParams, PaddingStrategy, Tokenizer, TruncationParams};

use super::{GgufTokenizer, from_file};

/// Texts and the token ids that llama.cpp or `tokenizers` made of them, by family; see the fixtures' README.
#[derive(Deserialize)]
struct Cases {
    texts: Vec<String>,
    /// `None` where the reference is known to be wrong.
    token_ids: HashMap<String, Vec<Option<Vec<u32>>>>,
}

/// A family's vocabulary, reduced to what its cases need.
struct Family {
    tokenizer: Tokenizer,
    /// The ids that the tokens have in the whole vocabulary.
    original_ids: Vec<u32>,
}

impl Family {
    fn load(name: &str) -> Self {
        let content = read_gguf(&fixtures().join(format!("{name}.gguf")));
        let original_ids = content.metadata["fixture.original_ids"].to_vec().unwrap();
        let original_ids = original_ids.iter().map(|id| id.to_i32().unwrap() as u32).collect();
        Self { tokenizer: from_gguf(content).unwrap(), original_ids }
    }

    fn encode(&self, text: &str) -> Vec<u32> {
        let encoding = self.tokenizer.encode(text, false).unwrap();
        encoding.get_ids().iter().map(|&id| self.original_ids[id as usize]).collect()
    }
}

fn fixtures() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer"))
}

fn from_gguf(mut content: Content) -> Result<Tokenizer, String> {
    GgufTokenizer::take(&mut content.metadata)?.build()
}

fn read_gguf(path: &PathBuf) -> Content {
    Content::read(&mut File::open(path).unwrap()).unwrap()
}

fn cases() -> Cases {
    serde_json::from_reader(File::open(fixtures().join("cases.json")).unwrap()).unwrap()
}

#[test]
fn token_ids_are_those_of_the_reference_for_every_family() {
    let cases = cases();
    let mut wrong = Vec::new();
    for (name, expected) in &cases.token_ids {
        let family = Family::load(name);
        for (text, expected) in cases.texts.iter().zip(expected) {
            let Some(expected) = expected else { continue };
            let found = family.encode(text);
            if found != *expected {
                wrong.push(format!("{name}: {text:?} is {found:?} instead of {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_whole_tokenizer_of_a_real_file_gives_the_references_token_ids() {
    let tokenizer = from_gguf(read_gguf(&model("SmolLM2-135M-Instruct.Q4_1.gguf"))).unwrap();
    let cases = cases();
    for (text, expected) in cases.texts.iter().zip(&cases.token_ids["smollm"]) {
        assert_eq!(tokenizer.encode(text.as_str(), true).unwrap().get_ids(), expected.as_deref().unwrap(), "{text:?}");
    }
}

#[test]
fn prompts_begin_with_bos_where_the_file_or_its_kind_says_so() {
    let first_tokens = |name: &str| {
        let encoding = Family::load(name).tokenizer.encode("Hello", true).unwrap();
        encoding.get_tokens().iter().map(String::as_str).take(2).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(first_tokens("llama-spm"), "<s> ▁Hello");
    assert_eq!(first_tokens("llama-bpe"), "<|begin_of_text|> Hello");
    assert_eq!(first_tokens("command-r"), "<BOS_TOKEN> Hello");
    assert_eq!(first_tokens("smollm"), "Hello");
    assert_eq!(first_tokens("gpt-2"), "Hello");
}

#[test]
fn decoding_gives_the_text_back_without_special_tokens() {
    for name in ["smollm", "llama-spm", "llama-bpe", "qwen2_5", "mistral_nemo", "deepseek_v3", "falcon"] {
        let tokenizer = Family::load(name).tokenizer;
        for text in ["Hello world", "def f(x):\n    return x\n", "東京 naïve 👩‍🔬", "a\r\n\r\n  b"] {
            let ids = tokenizer.encode(text, true).unwrap().get_ids().to_vec();
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), text, "{name}");
        }
    }
}

#[test]
fn special_tokens_are_left_out_of_text_and_user_defined_ones_are_not() {
    let tokenizer = from_gguf(tiny(&[])).unwrap();
    let encoding = tokenizer.encode("a<tool>b<end>", false).unwrap();
    assert_eq!(encoding.get_tokens(), ["a", "<tool>", "b", "<end>"]);
    assert_eq!(tokenizer.decode(encoding.get_ids(), true).unwrap(), "a<tool>b");
}

#[test]
fn tokens_that_a_key_names_are_special_whatever_their_type_says() {
    let tokenizer = from_gguf(tiny(&[("eos_token_id", Some(Value::U32(3)))])).unwrap();
    let encoding = tokenizer.encode("a<tool>", false).unwrap();
    assert_eq!(tokenizer.decode(encoding.get_ids(), true).unwrap(), "a");
}

#[test]
fn a_tokenizer_json_is_read_without_its_limits_on_length() {
    let path = tempfile::NamedTempFile::new().unwrap();
    let mut tokenizer = from_gguf(tiny(&[])).unwrap();
    tokenizer.with_truncation(Some(TruncationParams { max_length: 1, ..TruncationParams::default() })).unwrap();
    tokenizer.with_padding(Some(PaddingParams { strategy: PaddingStrategy::Fixed(9), ..PaddingParams::default() }));
    tokenizer.save(path.path(), false).unwrap();
    let read = from_file(path.path()).unwrap();
    assert_eq!(read.encode("abab", false).unwrap().len(), 2);
    assert!(from_file(&fixtures().join("cases.json")).is_err());
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let check = |key: &str, value: Option<Value>, expected: &str| {
        assert_eq!(from_gguf(tiny(&[(key, value)])).map(|_| ()), Err(expected.to_owned()));
    };
    let text = |text: &str| Some(Value::String(text.to_owned()));
    check("model", None, "`tokenizer.ggml.model` is missing");
    check("model", text("bert"), "`tokenizer.ggml.model` is `bert`; supported: gpt2, llama");
    check("model", text("llama"), "`tokenizer.ggml.scores` is missing");
    check("pre", text("no-such"), "its pre-tokenizer `no-such` is not known");
    check("pre", Some(Value::U32(1)), "`tokenizer.ggml.pre` has the wrong type");
    check("tokens", None, "`tokenizer.ggml.tokens` is missing");
    check("tokens", Some(Value::Array(vec![Value::U32(1)])), "`tokenizer.ggml.tokens` holds something other than text");
    check("merges", None, "`tokenizer.ggml.merges` is missing");
    check("merges", Some(strings(&["ab"])), "`ab` in `tokenizer.ggml.merges` is not two tokens");
    check("merges", Some(strings(&["a z"])), "Token `z` out of vocabulary");
    check("add_bos_token", Some(Value::Bool(true)), "prompts need `tokenizer.ggml.bos_token_id`, which is missing");
}

#[test]
fn token_ids_outside_the_vocabulary_are_an_error() {
    let out_of_range = [("add_bos_token", Some(Value::Bool(true))), ("bos_token_id", Some(Value::U32(99)))];
    let error = from_gguf(tiny(&out_of_range)).unwrap_err();
    assert_eq!(error, "`tokenizer.ggml.bos_token_id` is 99, but there are 5 tokens");
}

/// A file with five tokens, `changes` applied: `None` removes a key.
fn tiny(changes: &[(&str, Option<Value>)]) -> Content {
    let types = [1, 1, 1, 4, 3].map(Value::I32).to_vec();
    let keys = [
        ("model", Value::String("gpt2".to_owned())),
        ("pre", Value::String("gpt-2".to_owned())),
        ("tokens", strings(&["a", "b", "ab", "<tool>", "<end>"])),
        ("token_type", Value::Array(types)),
        ("merges", strings(&["a b"])),
    ];
    let name = |key: &str| format!("tokenizer.ggml.{key}");
    let mut metadata: HashMap<String, Value> = keys.into_iter().map(|(key, value)| (name(key), value)).collect();
    for (key, value) in changes {
        match value {
            Some(value) => metadata.insert(name(key), value.clone()),
            None => metadata.remove(&name(key)),
        };
    }
    Content { magic: VersionedMagic::GgufV3, metadata, tensor_infos: HashMap::new(), tensor_data_offset: 0 }
}

fn strings(texts: &[&str]) -> Value {
    Value::Array(texts.iter().map(|text| Value::String((*text).to_owned())).collect())
}

/// A model that `scripts/get_models.sh` fetches, in `models/` or where `MISTRALRS_TEST_MODELS` says.
#[expect(clippy::disallowed_methods, reason = "tests are told where models are by the environment")]
fn model(file: &str) -> PathBuf {
    let default = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../models"));
    let path = std::env::var_os("MISTRALRS_TEST_MODELS").map_or_else(default, PathBuf::from).join(file);
    assert!(path.is_file(), "{} is missing: run scripts/get_models.sh, or set MISTRALRS_TEST_MODELS", path.display());
    path
}
