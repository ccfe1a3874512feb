//! From files to a model: weights, tokenizer, chat template.
//!
//! [`load`] looks at what `--model` points to and hands over to [`gguf`] or [`safetensors`]. Both check the whole file
//! before they copy anything, build the model through [`weights`], and answer a damaged file with a
//! [`LoadError`] that names the file and what is wrong: never with a panic, nor with an allocation sized by the damage.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{panic, thread};

use crate::config::ModelSource;
use crate::error::LoadError;
use crate::loader::chat_template::ChatTemplate;
use crate::models::{ARCHITECTURES, CausalLm, DecoderConfig};
use crate::pooling::DeclaredPooling;

pub mod chat_template;
mod end_of_turn;
pub mod gguf;
mod mapped_file;
mod packed_cache;
pub mod progress;
pub mod safetensors;
pub mod tokenizer;
pub mod weights;

/// All that a model directory or file holds.
pub struct LoadedModel {
    /// The weights, ready to run.
    pub model: Box<dyn CausalLm>,
    /// The tokenizer.
    pub tokenizer: tokenizers::Tokenizer,
    /// The chat template, if the files have one.
    pub chat_template: Option<ChatTemplate>,
    /// Tokens that end a generation.
    pub eos_token_ids: BTreeSet<u32>,
    /// How the model is meant to embed texts.
    pub pooling: DeclaredPooling,
    /// For `/v1/models` and logs.
    pub description: ModelDescription,
}

/// What a model is, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelDescription {
    /// `llama`.
    pub architecture: String,
    /// `Q4_1`, `F16`, …
    pub quantization: String,
    /// Parameters.
    pub num_parameters: u64,
    /// Bytes of weights in memory.
    pub num_weight_bytes: u64,
}

/// Reads `source`, showing progress on a terminal.
///
/// A file is GGUF; a directory holds safetensors with their `config.json`, or a single `.gguf` file.
///
/// # Errors
/// What is wrong with which file. Nothing stays in memory.
pub fn load(source: &ModelSource) -> Result<LoadedModel, LoadError> {
    let path = &source.path;
    let metadata = std::fs::metadata(path).map_err(|error| LoadError::Io { path: path.clone(), source: error })?;
    if !metadata.is_dir() {
        return load_file(path, source);
    }
    if safetensors::has_weights(path) {
        return safetensors::load(path, source);
    }
    match gguf_files(path)?.as_slice() {
        [only] => gguf::load(only, source),
        [] if path.join(safetensors::CONFIG_FILE).exists() => safetensors::load(path, source),
        [] => Err(LoadError::Incomplete {
            path: path.clone(),
            reason: "the directory holds no model: neither a `.gguf` file nor `config.json` with `model.safetensors`"
                .to_owned(),
        }),
        several => Err(LoadError::Config(format!(
            "`{}` holds {} GGUF files; name one of them: {}",
            path.display(),
            several.len(),
            several.iter().filter_map(|file| file.file_name()?.to_str()).collect::<Vec<_>>().join(", ")
        ))),
    }
}

fn load_file(path: &Path, source: &ModelSource) -> Result<LoadedModel, LoadError> {
    let extension = path.extension().and_then(|extension| extension.to_str());
    if matches!(extension, Some("safetensors" | "json")) {
        return Err(LoadError::Config(format!(
            "`{}` is one file of a model; give the directory that holds it with its `config.json`",
            path.display()
        )));
    }
    gguf::load(path, source)
}

/// The `.gguf` files of a directory, sorted by name.
fn gguf_files(directory: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let io_error = |source| LoadError::Io { path: directory.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(io_error)? {
        let path = entry.map_err(io_error)?.path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The template of `--chat-template`, else the files' own.
fn compile_template(
    source: &ModelSource,
    (own_path, own): (&Path, Option<String>),
    special: SpecialTexts,
) -> Result<Option<ChatTemplate>, LoadError> {
    let (path, text) = match &source.chat_template {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).map_err(|error| LoadError::Io { path: path.clone(), source: error })?;
            (path.as_path(), Some(text))
        }
        None => (own_path, own),
    };
    let compiled = text.map(|text| ChatTemplate::from_source(text, special.bos, special.eos)).transpose();
    compiled.map_err(|reason| LoadError::ChatTemplate { path: path.to_owned(), reason })
}

/// Texts of the tokens that templates name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct SpecialTexts {
    bos: Option<String>,
    eos: Option<String>,
}

fn unsupported(path: &Path, found: impl Into<String>) -> LoadError {
    let names = ARCHITECTURES.iter().map(|architecture| architecture.name);
    LoadError::UnsupportedArchitecture {
        path: path.to_owned(),
        found: found.into(),
        supported: names.collect::<Vec<_>>().join(", "),
    }
}

/// Fails where the tokenizer of `num_tokens` knows tokens that the model has no row for.
fn check_vocabulary(path: &Path, num_tokens: usize, config: &DecoderConfig) -> Result<(), LoadError> {
    if num_tokens > config.vocab_size {
        let reason = format!("it has {num_tokens} tokens, the model's table only {} rows", config.vocab_size);
        return Err(LoadError::Tokenizer { path: path.to_owned(), reason });
    }
    Ok(())
}

/// Builds the tokenizer on a thread of its own while this one, with those that compute, reads the weights. If neither
/// succeeds, the tokenizer's error is told.
fn beside<T: Send, W>(
    tokenizer: impl FnOnce() -> Result<T, LoadError> + Send,
    weights: impl FnOnce() -> Result<W, LoadError>,
) -> Result<(T, W), LoadError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("tokenizer".to_owned()).spawn_scoped(scope, tokenizer);
        let thread =
            thread.map_err(|error| LoadError::Config(format!("cannot start a thread for the tokenizer: {error}")))?;
        let weights = weights();
        let tokenizer = thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))?;
        Ok((tokenizer, weights?))
    })
}

/// The type most bytes have, for files that do not say what they are.
fn main_dtype(tensors: impl Iterator<Item = (String, usize)>) -> String {
    let mut num_bytes: BTreeMap<String, usize> = BTreeMap::new();
    for (dtype, bytes) in tensors {
        *num_bytes.entry(dtype).or_default() += bytes;
    }
    num_bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or_else(String::new, |(dtype, _)| dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(path: &Path) -> String {
        let source = ModelSource { path: path.to_owned(), id: None, chat_template: None, packed_cache: None };
        let error = load(&source).err().expect("nothing here can be loaded");
        error.to_string().replace(&path.display().to_string(), "<path>")
    }

    #[test]
    fn a_path_that_is_no_model_says_what_would_be_one() {
        let directory = tempfile::tempdir().unwrap();
        let empty = directory.path();
        let expected = "`<path>`: the directory holds no model: neither a `.gguf` file nor `config.json` with \
                        `model.safetensors`";
        assert_eq!(error_of(empty), expected);

        let missing = empty.join("missing");
        assert_eq!(error_of(&missing), "cannot read `<path>`: No such file or directory (os error 2)");

        let shard = empty.join("model.safetensors");
        std::fs::write(&shard, "").unwrap();
        let expected = "`<path>` is one file of a model; give the directory that holds it with its `config.json`";
        assert_eq!(error_of(&shard), expected);
    }

    #[test]
    fn several_gguf_files_are_listed_to_choose_from() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["b.gguf", "a.gguf", "readme.md"] {
            std::fs::write(directory.path().join(name), "GGUF").unwrap();
        }
        assert_eq!(error_of(directory.path()), "`<path>` holds 2 GGUF files; name one of them: a.gguf, b.gguf");
    }

    #[test]
    fn the_tokenizers_failure_is_the_one_that_is_told() {
        let fails = |what: &str| Err::<(), _>(LoadError::Config(what.to_owned()));
        let error = |result: Result<((), ()), LoadError>| result.unwrap_err().to_string();
        assert_eq!(error(beside(|| fails("tokenizer"), || fails("weights"))), "tokenizer");
        assert_eq!(error(beside(|| Ok(()), || fails("weights"))), "weights");
        let panicked = panic::catch_unwind(|| beside(|| panic!("on its thread"), || Ok(())).map(|_: ((), ())| ()));
        assert_eq!(panicked.unwrap_err().downcast_ref::<&str>(), Some(&"on its thread"));
    }

    #[test]
    fn a_single_gguf_file_in_a_directory_is_read() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a.gguf"), "not a model").unwrap();
        let error = error_of(directory.path());
        assert_eq!(error, "`<path>/a.gguf` is damaged or not a model file: it does not begin with `GGUF`");
    }
}
