//! GGUF files: weights, hyperparameters, tokenizer and template in one.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value};
use mistralrs_quant::WeightFormat;

use crate::config::{ModelSource, PackedCacheConfig};
use crate::error::LoadError;
use crate::layers::RotaryScaling;
use crate::loader::mapped_file::{FileStamp, MappedFile};
use crate::loader::progress::LoadProgress;
use crate::loader::tokenizer::GgufTokenizer;
use crate::loader::weights::{Naming, Role, StoredTensor, WeightFiles, WeightTotals, Weights};
use crate::loader::{LoadedModel, ModelDescription, beside, check_vocabulary, compile_template, main_dtype};
use crate::models::{Architecture, CausalLm, DecoderConfig};

mod header;
mod metadata;

use header::{HeaderError, TensorInfo};
use metadata::Metadata;

/// An open GGUF file whose header and tensor bounds have been checked.
pub struct GgufFile {
    path: PathBuf,
    map: MappedFile,
    content: Content,
    tensors: HashMap<String, LocatedTensor>,
}

struct LocatedTensor {
    dtype: WeightFormat,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// Reads the model in the GGUF file at `path`.
///
/// # Errors
/// What is wrong with the file. The weights are read last, so most errors come at once.
pub fn load(path: &Path, source: &ModelSource) -> Result<LoadedModel, LoadError> {
    let mut file = GgufFile::open(path)?;
    let metadata = Metadata::new(path, &file.content);
    let architecture = metadata.architecture()?;
    let vocab_size = file.tensors.get("token_embd.weight").and_then(|table| table.shape.first().copied());
    let config = metadata.decoder_config(architecture, vocab_size)?;
    let malformed = |reason| LoadError::Malformed { path: path.to_owned(), reason };
    config.check().map_err(malformed)?;

    let (special_texts, template) = (metadata.special_texts(), metadata.chat_template());
    let eos_token_ids = metadata.eos_token_ids(config.vocab_size);
    let pooling = metadata.pooling(architecture)?;
    let quantization = metadata.file_type().map_or_else(
        || main_dtype(file.tensors.values().map(|tensor| (tensor.dtype.to_string(), tensor.bytes.len()))),
        str::to_owned,
    );

    let tokenizer_error = |reason| LoadError::Tokenizer { path: path.to_owned(), reason };
    let tokenizer = GgufTokenizer::take(&mut file.content.metadata).map_err(tokenizer_error)?;
    check_vocabulary(path, tokenizer.num_tokens(), &config)?;
    let chat_template = compile_template(source, (path, template), special_texts)?;
    // What the tokenizer has left of hundreds of thousands of values: weights come into their place.
    file.content.metadata.clear();

    let build_tokenizer = || tokenizer.build().map_err(tokenizer_error);
    let read_weights = || read_weights(&file, architecture, config, source.packed_cache.as_ref());
    let (tokenizer, (model, totals)) = beside(build_tokenizer, read_weights)?;
    let description = ModelDescription {
        architecture: architecture.name.to_owned(),
        quantization,
        num_parameters: totals.num_parameters,
        num_weight_bytes: totals.num_bytes,
    };
    Ok(LoadedModel { model, tokenizer, chat_template, eos_token_ids, pooling, description })
}

/// The model in `file`, of which `config` is all but the rotary divisors.
fn read_weights(
    file: &GgufFile,
    architecture: &Architecture,
    mut config: DecoderConfig,
    packed_cache: Option<&PackedCacheConfig>,
) -> Result<(Box<dyn CausalLm>, WeightTotals), LoadError> {
    let name = file.path.file_stem().map_or_else(|| "model".into(), |name| name.to_string_lossy());
    let progress = LoadProgress::new(&name, file.num_tensor_bytes());
    let mut weights = Weights::new(file, &progress).with_packed_cache(packed_cache);
    if config.rotary.scaling == RotaryScaling::None && weights.has(Role::RotaryDivisors) {
        let divisors = weights.vector(Role::RotaryDivisors, config.rotary.size / 2)?;
        config.rotary.scaling = RotaryScaling::Divisors(divisors);
    }
    let model = (architecture.build)(&config, &mut weights)?;
    progress.finish();
    Ok((model, weights.finish()))
}

impl GgufFile {
    /// Maps the file and reads its header.
    ///
    /// # Errors
    /// What is wrong with the file: damage, a tensor that ends after it, or a type that this build cannot run.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let map = MappedFile::open(path)?;
        let malformed = |reason| LoadError::Malformed { path: path.to_owned(), reason };
        let header = header::read(&map).map_err(|error| match error {
            HeaderError::Malformed(reason) => malformed(reason),
            HeaderError::Unsupported(reason) => LoadError::Incomplete { path: path.to_owned(), reason },
        })?;
        let content = header.content;
        let start = content.tensor_data_offset;
        let data = DataSection { start, alignment: header.alignment.into(), file_len: map.len() };
        let mut tensors = HashMap::new();
        for TensorInfo { name, dtype, shape, offset } in header.tensors {
            let located = data.locate(dtype, shape, offset);
            let located = located.map_err(|reason| malformed(format!("tensor `{name}` {reason}")))?;
            if tensors.insert(name.clone(), located).is_some() {
                return Err(malformed(format!("it has tensor `{name}` twice")));
            }
        }
        Ok(Self { path: path.to_owned(), map, content, tensors })
    }

    /// Its key-value pairs.
    pub fn metadata(&self) -> &HashMap<String, Value> {
        &self.content.metadata
    }

    /// Names of its tensors, in no order.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    fn num_tensor_bytes(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.bytes.len() as u64).sum()
    }
}

impl WeightFiles for GgufFile {
    fn naming(&self) -> Naming {
        Naming::Gguf
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn find(&self, name: &str) -> Result<Option<StoredTensor<'_>>, LoadError> {
        let stored = |tensor: &LocatedTensor| self.map.get(tensor.bytes.clone());
        Ok(self
            .tensors
            .get(name)
            .and_then(|tensor| Some(StoredTensor { dtype: tensor.dtype, shape: &tensor.shape, data: stored(tensor)? })))
    }

    fn stamps(&self) -> Option<Vec<FileStamp>> {
        Some(vec![self.map.stamp()?])
    }

    fn release(&self, bytes: &[u8]) {
        self.map.release(bytes);
    }
}

/// Where tensors may lie.
struct DataSection {
    start: u64,
    alignment: u64,
    file_len: usize,
}

impl DataSection {
    /// The bytes of such a tensor, all inside the file; or what is wrong with it.
    fn locate(&self, dtype: WeightFormat, shape: Vec<usize>, offset: u64) -> Result<LocatedTensor, String> {
        let num_elements = shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
        let row_len = shape.last().copied().unwrap_or(1);
        if !row_len.is_multiple_of(dtype.block_len()) {
            return Err(format!("has rows of {row_len} values, not a multiple of {dtype}'s {}", dtype.block_len()));
        }
        if !offset.is_multiple_of(self.alignment) {
            return Err(format!("lies at offset {offset}, not a multiple of {}", self.alignment));
        }
        let num_bytes = num_elements.and_then(|count| (count / dtype.block_len()).checked_mul(dtype.block_bytes()));
        let start = self.start.checked_add(offset).and_then(|start| usize::try_from(start).ok());
        let bytes = num_bytes.zip(start).and_then(|(num_bytes, start)| Some(start..start.checked_add(num_bytes)?));
        match bytes {
            Some(bytes) if bytes.end <= self.file_len => Ok(LocatedTensor { dtype, shape, bytes }),
            _ => Err(format!(
                "of shape {shape:?} at offset {offset} ends after the file, which has {} bytes: it is cut off or damaged",
                self.file_len
            )),
        }
    }
}

/// Ids as a set, without those the model has no row for.
fn within_vocabulary(ids: impl IntoIterator<Item = u32>, vocab_size: usize) -> BTreeSet<u32> {
    ids.into_iter().filter(|id| (*id as usize) < vocab_size).collect()
}

#[cfg(test)]
mod tests;
