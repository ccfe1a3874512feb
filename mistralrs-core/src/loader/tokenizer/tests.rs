use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;

use candle_core::quantized::gguf_file::{Content, Value, VersionedMagic};
use serde::Deserialize;
use tokenizers::Tokenizer;

use super::from_gguf;

/// Texts and the token ids that llama.cpp or `tokenizers` made of them, by family; see the fixtures' README.
#[derive(Deserialize)]
struct Cases {
    texts: Vec<String>,
    token_ids: HashMap<String, Vec<Vec<u32>>>,
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
        Self { tokenizer: from_gguf(&content).unwrap(), original_ids }
    }

    fn encode(&self, text: &str) -> Vec<u32> {
        let encoding = self.tokenizer.encode(text, false).unwrap();
        encoding.get_ids().iter().map(|&id| self.original_ids[id as usize]).collect()
    }
}

fn fixtures() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer"))
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
            let found = family.encode(text);
            if found != *expected {
                wrong.push(format!("{name}: {text:?} is {found:?} instead of {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
