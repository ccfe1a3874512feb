//! Directories of safetensors, as Hugging Face hubs hold them: `config.json`, `tokenizer.json`, one file or several.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use mistralrs_quant::FloatFormat;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::config::ModelSource;
use crate::error::LoadError;
use crate::loader::mapped_file::{FileStamp, MappedFile};
use crate::loader::progress::LoadProgress;
use crate::loader::weights::{Naming, StoredTensor, WeightFiles, Weights};
use crate::loader::{LoadedModel, ModelDescription, check_vocabulary, compile_template, main_dtype, tokenizer};

mod hf_config;
mod sentence_transformers;
mod special_tokens;

/// The file every model directory has.
pub const CONFIG_FILE: &str = "config.json";

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
const TOKENIZER_FILE: &str = "tokenizer.json";

/// Bytes of a JSON file we read whole; `tokenizer.json`, the largest, is read by its own crate.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// Whether `directory` holds a checkpoint in safetensors.
pub fn has_weights(directory: &Path) -> bool {
    [SINGLE_FILE, INDEX_FILE].iter().any(|name| directory.join(name).exists())
}

/// Reads the checkpoint in `directory`.
///
/// # Errors
/// What is wrong with which file. The weights are read last, so most errors come at once.
pub fn load(directory: &Path, source: &ModelSource) -> Result<LoadedModel, LoadError> {
    let config_path = directory.join(CONFIG_FILE);
    let value = read_json(&config_path)?.ok_or_else(|| absent(directory, CONFIG_FILE))?;
    let architecture = hf_config::architecture(&config_path, &value)?;
    let config = hf_config::decoder_config(&config_path, architecture, &value)?;
    config.check().map_err(|reason| LoadError::Malformed { path: config_path.clone(), reason })?;

    let tokenizer_path = directory.join(TOKENIZER_FILE);
    if !tokenizer_path.exists() {
        return Err(absent(directory, TOKENIZER_FILE));
    }
    let tokenizer = tokenizer::from_file(&tokenizer_path)
        .map_err(|reason| LoadError::Tokenizer { path: tokenizer_path.clone(), reason })?;
    check_vocabulary(&tokenizer_path, tokenizer.get_vocab_size(true), &config)?;
    let special = special_tokens::read(directory, &value, &tokenizer)?;
    let template = (special.template_path.as_path(), special.template);
    let chat_template = compile_template(source, template, special.texts)?;
    let pooling = sentence_transformers::pooling(directory)?;

    let checkpoint = Checkpoint::open(directory)?;
    let name = directory.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy());
    let progress = LoadProgress::new(&name, checkpoint.num_tensor_bytes());
    let mut weights = Weights::new(&checkpoint, &progress).with_packed_cache(source.packed_cache.as_ref());
    let model = (architecture.build)(&config, &mut weights)?;
    progress.finish();
    let totals = weights.finish();
    let description = ModelDescription {
        architecture: architecture.name.to_owned(),
        quantization: main_dtype(
            checkpoint.tensors.values().map(|tensor| (format!("{:?}", tensor.dtype), tensor.bytes.len())),
        ),
        num_parameters: totals.num_parameters,
        num_weight_bytes: totals.num_bytes,
    };
    let eos_token_ids = special.eos_token_ids;
    Ok(LoadedModel { model, tokenizer, chat_template, eos_token_ids, pooling, description })
}

/// The tensors of one or several open files, all of whose headers have been checked.
struct Checkpoint {
    /// What says which tensors there are.
    path: PathBuf,
    files: Vec<MappedFile>,
    tensors: HashMap<String, LocatedTensor>,
}

struct LocatedTensor {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct ShardIndex {
    /// Tensor to file name; sorted, so that shards are opened in a fixed order.
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    fn open(directory: &Path) -> Result<Self, LoadError> {
        let single = directory.join(SINGLE_FILE);
        if single.exists() {
            let mut checkpoint = Self { path: single.clone(), files: Vec::new(), tensors: HashMap::new() };
            checkpoint.add_file(&single)?;
            return Ok(checkpoint);
        }
        let path = directory.join(INDEX_FILE);
        let Some(index) = read_json::<ShardIndex>(&path)? else {
            return Err(absent(directory, "model.safetensors, nor an index of its parts"));
        };
        let mut checkpoint = Self { path: path.clone(), files: Vec::new(), tensors: HashMap::new() };
        for name in index.weight_map.values().collect::<BTreeSet<_>>() {
            let shard = directory.join(shard_name(&path, name)?);
            if !shard.exists() {
                return Err(LoadError::Incomplete {
                    path,
                    reason: format!("it names `{name}`, which is not in the directory"),
                });
            }
            checkpoint.add_file(&shard)?;
        }
        Ok(checkpoint)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), LoadError> {
        let map = MappedFile::open(path)?;
        let (header_len, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|error| LoadError::Malformed { path: path.to_owned(), reason: error.to_string() })?;
        // The length of the header itself is stored in 8 bytes before it.
        let data_start = 8 + header_len;
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let bytes = data_start + start..data_start + end;
            let located = LocatedTensor { file: self.files.len(), dtype: info.dtype, shape: info.shape.clone(), bytes };
            self.tensors.insert(name, located);
        }
        self.files.push(map);
        Ok(())
    }

    fn num_tensor_bytes(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.bytes.len() as u64).sum()
    }
}

impl WeightFiles for Checkpoint {
    fn naming(&self) -> Naming {
        Naming::HuggingFace
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn find(&self, name: &str) -> Result<Option<StoredTensor<'_>>, LoadError> {
        let Some(tensor) = self.tensors.get(name) else { return Ok(None) };
        let dtype = match tensor.dtype {
            Dtype::F32 => FloatFormat::F32.into(),
            Dtype::F16 => FloatFormat::F16.into(),
            Dtype::BF16 => FloatFormat::Bf16.into(),
            other => {
                let reason = format!("tensor `{name}` is stored as {other:?}; supported are F32, F16 and BF16");
                return Err(LoadError::Incomplete { path: self.path.clone(), reason });
            }
        };
        let data = &self.files[tensor.file][tensor.bytes.clone()];
        Ok(Some(StoredTensor { dtype, shape: &tensor.shape, data }))
    }

    fn stamps(&self) -> Option<Vec<FileStamp>> {
        self.files.iter().map(MappedFile::stamp).collect()
    }

    fn release(&self, bytes: &[u8]) {
        self.files.iter().for_each(|file| file.release(bytes));
    }
}

/// The one place where a file name comes from inside a file: it may only name a neighbour.
fn shard_name<'a>(index: &Path, name: &'a str) -> Result<&'a str, LoadError> {
    let mut components = Path::new(name).components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(only)), None) if only == name => Ok(name),
        _ => Err(LoadError::Malformed {
            path: index.to_owned(),
            reason: format!("it names `{name}`, which is not a file of its own directory"),
        }),
    }
}

/// `path` as JSON; `None` if there is no such file.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LoadError> {
    let io_error = |source| LoadError::Io { path: path.to_owned(), source };
    let malformed = |reason| LoadError::Malformed { path: path.to_owned(), reason };
    if !path.exists() {
        return Ok(None);
    }
    let num_bytes = std::fs::metadata(path).map_err(io_error)?.len();
    if num_bytes > MAX_JSON_BYTES {
        return Err(malformed(format!("it has {num_bytes} bytes; at most {MAX_JSON_BYTES} are read")));
    }
    let bytes = std::fs::read(path).map_err(io_error)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| malformed(error.to_string()))
}

fn absent(directory: &Path, what: &str) -> LoadError {
    LoadError::Incomplete { path: directory.to_owned(), reason: format!("the directory holds no {what}") }
}

#[cfg(test)]
mod tests;
