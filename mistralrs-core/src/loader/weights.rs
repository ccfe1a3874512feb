//! Named tensors of a model's files, whatever the format, turned into the weights that layers hold.

use std::path::Path;
use std::sync::Arc;

use mistralrs_quant::{FloatFormat, MatrixShape, StoredRows, WeightFormat};

use crate::config::PackedCacheConfig;
use crate::error::LoadError;
use crate::layers::{FusedLinear, Linear, WeightMatrix};
pub use crate::loader::mapped_file::FileStamp;
use crate::loader::packed_cache::{MatrixKey, PackedCache};
use crate::loader::progress::LoadProgress;
use crate::models::config::Presence;

/// What a tensor is for; files name it by [`Naming`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Token embeddings.
    TokenTable,
    /// The norm before the head.
    OutputNorm,
    /// The head, when it is not the token table.
    Output,
    /// GGUF's divisors of the rotary frequencies.
    RotaryDivisors,
    /// The norm before attention, of a layer.
    AttentionNorm(usize),
    /// Query projection.
    Query(usize),
    /// Key projection.
    Key(usize),
    /// Value projection.
    Value(usize),
    /// Projection of the attended values.
    AttentionOutput(usize),
    /// The norm before the feed-forward block.
    MlpNorm(usize),
    /// Gate of the feed-forward block.
    Gate(usize),
    /// Its values.
    Up(usize),
    /// Back to the hidden size.
    Down(usize),
}

/// A role with its number of outputs (N).
#[derive(Debug, Clone, Copy)]
pub struct Part {
    role: Role,
    num_outputs: usize,
}

impl Role {
    /// This role's tensor with `num_outputs` rows.
    pub fn part(self, num_outputs: usize) -> Part {
        Part { role: self, num_outputs }
    }
}

/// How a format names its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// `blk.0.attn_q.weight`.
    Gguf,
    /// `model.layers.0.self_attn.q_proj.weight`.
    HuggingFace,
}

impl Naming {
    /// The name of `role`'s `weight` or `bias`.
    pub fn name(self, role: Role, suffix: &str) -> String {
        let (layer, gguf, hugging_face) = match role {
            Role::TokenTable => (None, "token_embd", "model.embed_tokens"),
            Role::OutputNorm => (None, "output_norm", "model.norm"),
            Role::Output => (None, "output", "lm_head"),
            Role::RotaryDivisors => (None, "rope_freqs", "rope_freqs"),
            Role::AttentionNorm(layer) => (Some(layer), "attn_norm", "input_layernorm"),
            Role::Query(layer) => (Some(layer), "attn_q", "self_attn.q_proj"),
            Role::Key(layer) => (Some(layer), "attn_k", "self_attn.k_proj"),
            Role::Value(layer) => (Some(layer), "attn_v", "self_attn.v_proj"),
            Role::AttentionOutput(layer) => (Some(layer), "attn_output", "self_attn.o_proj"),
            Role::MlpNorm(layer) => (Some(layer), "ffn_norm", "post_attention_layernorm"),
            Role::Gate(layer) => (Some(layer), "ffn_gate", "mlp.gate_proj"),
            Role::Up(layer) => (Some(layer), "ffn_up", "mlp.up_proj"),
            Role::Down(layer) => (Some(layer), "ffn_down", "mlp.down_proj"),
        };
        match (self, layer) {
            (Self::Gguf, None) => format!("{gguf}.{suffix}"),
            (Self::Gguf, Some(layer)) => format!("blk.{layer}.{gguf}.{suffix}"),
            (Self::HuggingFace, None) => format!("{hugging_face}.{suffix}"),
            (Self::HuggingFace, Some(layer)) => format!("model.layers.{layer}.{hugging_face}.{suffix}"),
        }
    }
}

/// A tensor as it lies in a file. `data` is as long as `dtype` and `shape` say: whoever opened the file has checked it.
#[derive(Debug, Clone, Copy)]
pub struct StoredTensor<'a> {
    /// Element or block type.
    pub dtype: WeightFormat,
    /// Outermost first.
    pub shape: &'a [usize],
    /// Little-endian elements or blocks.
    pub data: &'a [u8],
}

/// The tensors of one model.
pub trait WeightFiles {
    /// How they are named.
    fn naming(&self) -> Naming;

    /// Where a missing tensor was looked for.
    fn path(&self) -> &Path;

    /// The tensor of this name.
    ///
    /// # Errors
    /// Its type is none that layers can hold.
    fn find(&self, name: &str) -> Result<Option<StoredTensor<'_>>, LoadError>;

    /// The files that they are in, if they can be known again.
    fn stamps(&self) -> Option<Vec<FileStamp>> {
        None
    }

    /// `bytes`, part of a tensor's data, were copied: their pages need not stay in memory.
    fn release(&self, bytes: &[u8]);
}

/// Takes weights out of files one by one, counting what it took.
pub struct Weights<'a> {
    files: &'a dyn WeightFiles,
    progress: &'a LoadProgress,
    /// `None`: nothing is kept on disk.
    packed: Option<PackedCache>,
    totals: WeightTotals,
}

/// What was taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WeightTotals {
    /// Elements.
    pub num_parameters: u64,
    /// Bytes in memory.
    pub num_bytes: u64,
}

impl<'a> Weights<'a> {
    /// Nothing is read yet.
    pub fn new(files: &'a dyn WeightFiles, progress: &'a LoadProgress) -> Self {
        Self { files, progress, packed: None, totals: WeightTotals::default() }
    }

    /// Reads matrices that were packed before, and keeps those that are packed now.
    #[must_use]
    pub fn with_packed_cache(self, config: Option<&PackedCacheConfig>) -> Self {
        let packed = config.and_then(|config| Some(PackedCache::open(config, self.files.stamps()?)));
        Self { packed, ..self }
    }

    /// What was taken, which was all of the model.
    pub fn finish(self) -> WeightTotals {
        if let Some(packed) = self.packed {
            packed.finish();
        }
        self.totals
    }

    /// Whether the files hold `role`'s weight.
    pub fn has(&self, role: Role) -> bool {
        matches!(self.files.find(&self.files.naming().name(role, "weight")), Ok(Some(_)))
    }

    /// `role`'s weight of `size` values, widened to f32.
    pub fn vector(&mut self, role: Role, size: usize) -> Result<Vec<f32>, LoadError> {
        self.values(&self.files.naming().name(role, "weight"), size)
    }

    /// `part`'s weight `[N, num_inputs]`.
    pub fn matrix(&mut self, part: Part, num_inputs: usize) -> Result<Arc<WeightMatrix>, LoadError> {
        self.stacked(&[part], num_inputs)
    }

    /// `part`'s weight `[N, num_inputs]` with its bias.
    pub fn linear(&mut self, part: Part, num_inputs: usize, bias: Presence) -> Result<Linear, LoadError> {
        let weight = self.matrix(part, num_inputs)?;
        Ok(Linear::new(weight, self.bias(&[part], bias)?))
    }

    /// `parts` of one input, stacked where they are neighbours of one dtype.
    pub fn fused(&mut self, parts: &[Part], num_inputs: usize, bias: Presence) -> Result<FusedLinear, LoadError> {
        let dtypes = parts.iter().map(|part| self.dtype(*part)).collect::<Result<Vec<_>, _>>()?;
        let mut linears = Vec::new();
        let mut start = 0;
        for end in 1..=parts.len() {
            if end == parts.len() || dtypes[end] != dtypes[start] {
                let weight = self.stacked(&parts[start..end], num_inputs)?;
                linears.push(Linear::new(weight, self.bias(&parts[start..end], bias)?));
                start = end;
            }
        }
        Ok(FusedLinear::new(linears))
    }

    fn dtype(&self, part: Part) -> Result<WeightFormat, LoadError> {
        Ok(self.existing(&self.files.naming().name(part.role, "weight"))?.dtype)
    }

    /// One matrix of the rows of all `parts`, which have one dtype.
    fn stacked(&mut self, parts: &[Part], num_inputs: usize) -> Result<Arc<WeightMatrix>, LoadError> {
        let names: Vec<String> = parts.iter().map(|part| self.files.naming().name(part.role, "weight")).collect();
        let mut dtype = FloatFormat::F32.into();
        let mut slices = Vec::with_capacity(parts.len());
        for (part, name) in parts.iter().zip(&names) {
            let stored = self.existing(name)?;
            self.expect_shape(name, stored.shape, &[part.num_outputs, num_inputs])?;
            dtype = stored.dtype;
            slices.push(stored.data);
        }
        let num_outputs = parts.iter().map(|part| part.num_outputs).sum();
        let key = MatrixKey { tensors: names, format: dtype, shape: MatrixShape { num_outputs, num_inputs } };
        let matrix = Arc::new(self.read_or_pack(&key, &slices)?);
        self.totals.num_bytes += matrix.num_bytes() as u64;
        self.totals.num_parameters += (matrix.num_outputs() * num_inputs) as u64;
        if let Some(packed) = &mut self.packed {
            packed.loaded(key, &matrix);
        }
        Ok(matrix)
    }

    /// The matrix of the rows in `slices`, or the same one as it was packed before.
    fn read_or_pack(&mut self, key: &MatrixKey, slices: &[&[u8]]) -> Result<WeightMatrix, LoadError> {
        if let Some(matrix) = self.packed.as_mut().and_then(|packed| packed.read(key)) {
            for slice in slices {
                self.took(slice);
            }
            return Ok(matrix);
        }
        let rows = StoredRows { parts: slices, taken: &|bytes| self.took(bytes) };
        Ok(WeightMatrix::from_rows(key.format, key.shape.num_inputs, rows)?)
    }

    fn bias(&mut self, parts: &[Part], presence: Presence) -> Result<Option<Vec<f32>>, LoadError> {
        if presence == Presence::Absent {
            return Ok(None);
        }
        let mut values = Vec::new();
        let mut num_found = 0;
        for part in parts {
            let name = self.files.naming().name(part.role, "bias");
            if presence == Presence::IfPresent && self.files.find(&name)?.is_none() {
                values.resize(values.len() + part.num_outputs, 0.0);
            } else {
                values.extend(self.values(&name, part.num_outputs)?);
                num_found += 1;
            }
        }
        Ok((num_found > 0).then_some(values))
    }

    fn values(&mut self, name: &str, size: usize) -> Result<Vec<f32>, LoadError> {
        let stored = self.existing(name)?;
        self.expect_shape(name, stored.shape, &[size])?;
        let WeightFormat::Floats(format) = stored.dtype else {
            return Err(self.incomplete(format!("tensor `{name}` is {}, not a float type", stored.dtype)));
        };
        let values = format.widen(stored.data);
        self.totals.num_bytes += size_of_val(values.as_slice()) as u64;
        self.totals.num_parameters += size as u64;
        self.took(stored.data);
        Ok(values)
    }

    fn existing(&self, name: &str) -> Result<StoredTensor<'a>, LoadError> {
        self.files.find(name)?.ok_or_else(|| self.incomplete(format!("tensor `{name}` is missing")))
    }

    fn expect_shape(&self, name: &str, found: &[usize], expected: &[usize]) -> Result<(), LoadError> {
        if found == expected {
            return Ok(());
        }
        Err(self.incomplete(format!(
            "tensor `{name}` has shape {found:?}, the model's configuration asks for {expected:?}"
        )))
    }

    fn incomplete(&self, reason: String) -> LoadError {
        LoadError::Incomplete { path: self.files.path().to_owned(), reason }
    }

    fn took(&self, bytes: &[u8]) {
        self.files.release(bytes);
        self.progress.advance(bytes.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::{Device, Tensor};

    use super::*;
    use crate::layers::{Epilogue, Pass, Prologue, Scratch};

    /// Tensors in memory under Hugging Face names; `data` is not looked at before shapes are right.
    struct Fake(HashMap<String, (WeightFormat, Vec<usize>, Vec<u8>)>);

    impl WeightFiles for Fake {
        fn naming(&self) -> Naming {
            Naming::HuggingFace
        }

        fn path(&self) -> &Path {
            Path::new("model.safetensors")
        }

        fn find(&self, name: &str) -> Result<Option<StoredTensor<'_>>, LoadError> {
            Ok(self.0.get(name).map(|(dtype, shape, data)| StoredTensor { dtype: *dtype, shape, data }))
        }

        fn release(&self, _bytes: &[u8]) {}
    }

    fn floats(values: &[f32], shape: &[usize]) -> (WeightFormat, Vec<usize>, Vec<u8>) {
        (FloatFormat::F32.into(), shape.to_vec(), values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn fake() -> Fake {
        let query = floats(&[1., 2., 3., 4.], &[2, 2]);
        let key = floats(&[5., 6.], &[1, 2]);
        let bias = floats(&[10., 20.], &[2]);
        Fake(HashMap::from([
            ("model.layers.3.self_attn.q_proj.weight".into(), query),
            ("model.layers.3.self_attn.k_proj.weight".into(), key),
            ("model.layers.3.self_attn.q_proj.bias".into(), bias),
        ]))
    }

    fn fused(files: &Fake, bias: Presence) -> Result<Vec<f32>, LoadError> {
        let progress = LoadProgress::hidden();
        let mut weights = Weights::new(files, &progress);
        let linear = weights.fused(&[Role::Query(3).part(2), Role::Key(3).part(1)], 2, bias)?;
        let (input, out) = (Tensor::new(&[[1f32, 1.]], &Device::Cpu)?, Tensor::new(&[[0f32, 0., 0.]], &Device::Cpu)?);
        let pass = Pass { scratch: &Scratch::default(), num_generated_rows: 1 };
        linear.forward(&input, &out, (Prologue::None, Epilogue::Store), pass)?;
        Ok(out.flatten_all()?.to_vec1()?)
    }

    #[test]
    fn parts_are_stacked_and_an_absent_bias_counts_as_zero() {
        assert_eq!(fused(&fake(), Presence::IfPresent).unwrap(), [13., 27., 11.]);
        assert_eq!(fused(&fake(), Presence::Absent).unwrap(), [3., 7., 11.]);
    }

    #[test]
    fn what_is_missing_is_named_with_its_file() {
        let error = fused(&fake(), Presence::Required).unwrap_err();
        let expected = "`model.safetensors`: tensor `model.layers.3.self_attn.k_proj.bias` is missing";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_wrong_shape_is_named_with_both_shapes() {
        let progress = LoadProgress::hidden();
        let files = fake();
        let error = Weights::new(&files, &progress).matrix(Role::Query(3).part(4), 2).unwrap_err();
        let expected = "`model.safetensors`: tensor `model.layers.3.self_attn.q_proj.weight` has shape [2, 2], \
                        the model's configuration asks for [4, 2]";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn parameters_and_bytes_are_counted() {
        let progress = LoadProgress::hidden();
        let files = fake();
        let mut weights = Weights::new(&files, &progress);
        weights.linear(Role::Query(3).part(2), 2, Presence::Required).unwrap();
        // Two outputs fill a tile of 16 columns by 2 inputs in f32; the bias is 2 floats.
        assert_eq!(weights.finish(), WeightTotals { num_parameters: 6, num_bytes: 16 * 2 * 4 + 8 });
    }

    #[test]
    fn both_formats_have_their_names() {
        let name = |naming: Naming| naming.name(Role::Down(7), "weight");
        assert_eq!(name(Naming::Gguf), "blk.7.ffn_down.weight");
        assert_eq!(name(Naming::HuggingFace), "model.layers.7.mlp.down_proj.weight");
        assert_eq!(Naming::Gguf.name(Role::Output, "weight"), "output.weight");
    }
}
