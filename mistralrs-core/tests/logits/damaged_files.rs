//! Files that are cut off, changed or incomplete end in an error that names them, never in a panic.

use std::panic::catch_unwind;
use std::path::Path;

use mistralrs_core::LoadError;
use mistralrs_core::config::ModelSource;
use mistralrs_core::loader;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::runner::fixture;

/// Places at which the file is cut.
const NUM_CUTS: usize = 50;

/// Random changes tried; each flips a few bits in the header.
const NUM_CHANGES: usize = 400;

/// What loading `path` says, or that it loaded; a panic fails the test.
fn outcome(path: &Path, what: &str) -> Result<(), LoadError> {
    let source = ModelSource { path: path.to_owned(), id: None, chat_template: None, packed_cache: None };
    let result = catch_unwind(|| loader::load(&source).map(drop));
    result.unwrap_or_else(|_| panic!("loading a file with {what} panicked"))
}

#[test]
fn a_gguf_file_cut_anywhere_is_an_error_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cut.gguf");
    let bytes = std::fs::read(fixture("tiny-llama-f32.gguf")).unwrap();
    for cut in 0..NUM_CUTS {
        std::fs::write(&path, &bytes[..bytes.len() * cut / NUM_CUTS]).unwrap();
        let error = outcome(&path, "a missing end").expect_err("the end is missing");
        assert!(error.to_string().contains("cut.gguf"), "{error}");
        let is_cut_off = error.to_string().contains("cut off");
        assert!(cut == 0 || is_cut_off, "{cut}/{NUM_CUTS} of the file: {error}");
    }
}

#[test]
fn a_gguf_header_changed_at_random_never_panics() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("changed.gguf");
    let original = std::fs::read(fixture("tiny-llama-f32.gguf")).unwrap();
    // Metadata and tensor descriptions come first and are all that is parsed.
    let header_len = original.len() / 20;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for change in 0..NUM_CHANGES {
        let mut bytes = original.clone();
        for _ in 0..rng.random_range(1..4) {
            bytes[rng.random_range(0..header_len)] ^= 1 << rng.random_range(0..8);
        }
        std::fs::write(&path, &bytes).unwrap();
        let _ = outcome(&path, &format!("change {change}"));
    }
}

/// Copies the sharded checkpoint, lets `damage` change the copy, and checks the error.
fn check_checkpoint(damage: impl FnOnce(&Path), expected: &str) {
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture("tiny-llama")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    damage(directory.path());
    let error = outcome(directory.path(), "damage").expect_err(expected).to_string();
    let error = error.replace(&directory.path().display().to_string(), "<path>");
    assert!(error.contains(expected), "{error:?} does not contain {expected:?}");
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{} has no {from}", path.display());
    std::fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn what_a_checkpoint_lacks_is_named() {
    const SHARD: &str = "model-00002-of-00002.safetensors";
    let remove = |name: &'static str| move |directory: &Path| std::fs::remove_file(directory.join(name)).unwrap();
    check_checkpoint(remove("config.json"), "`<path>`: the directory holds no config.json");
    check_checkpoint(remove("tokenizer.json"), "`<path>`: the directory holds no tokenizer.json");
    check_checkpoint(remove(SHARD), "index.json`: it names `model-00002-of-00002.safetensors`, which is not in the");
    check_checkpoint(remove("model.safetensors.index.json"), "`<path>`: the directory holds no model.safetensors");
    check_checkpoint(
        |directory| {
            let bytes = std::fs::read(directory.join(SHARD)).unwrap();
            std::fs::write(directory.join(SHARD), &bytes[..bytes.len() - 100]).unwrap();
        },
        "`<path>/model-00002-of-00002.safetensors` is damaged",
    );
    check_checkpoint(
        |directory| edit(&directory.join("config.json"), "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
        "tensor `model.layers.2.input_layernorm.weight` is missing",
    );
    check_checkpoint(
        |directory| edit(&directory.join("config.json"), "\"intermediate_size\": 96", "\"intermediate_size\": 94"),
        "has shape [96, 64], the model's configuration asks for [94, 64]",
    );
    check_checkpoint(
        |directory| std::fs::write(directory.join("config.json"), "{").unwrap(),
        "`<path>/config.json` is damaged or not a model file: EOF while parsing",
    );
}

#[test]
fn an_index_may_not_point_out_of_its_directory() {
    for outside in ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ""] {
        check_checkpoint(
            |directory| {
                let index = directory.join("model.safetensors.index.json");
                edit(&index, "\"model-00002-of-00002.safetensors\"", &format!("{outside:?}"));
            },
            &format!("it names `{outside}`, which is not a file of its own directory"),
        );
    }
}

#[test]
fn another_architecture_is_refused_with_what_would_work() {
    check_checkpoint(
        |directory| edit(&directory.join("config.json"), "LlamaForCausalLM", "GPT2LMHeadModel"),
        "architecture `GPT2LMHeadModel` in `<path>/config.json` is not supported; supported: llama, mistral, qwen2",
    );
}
