//! SmolLM2 in other quantizations, made from the Q4_1 file that is there.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Seek};
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Content};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use mistralrs_core::layers::WeightMatrix;
use mistralrs_core::loader::gguf::GgufFile;
use mistralrs_core::loader::weights::{StoredTensor, WeightFiles};

use crate::runner::fixture;

/// SmolLM2 in Q4_1.
pub fn smollm2() -> PathBuf {
    model("SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// `file` of `MISTRALRS_TEST_MODELS`, else of the workspace's `models/`.
pub fn model(file: &str) -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "tests are not configured by the server")]
    let directory = std::env::var_os("MISTRALRS_TEST_MODELS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../models"), PathBuf::from);
    let path = directory.join(file);
    assert!(path.exists(), "{} is missing: scripts/get_models.sh fetches it", path.display());
    path
}

/// SmolLM2 with the weights that llama.cpp makes of it for `file_type`; in `directory`, unless it is the type it has already.
pub fn smollm2_as(file_type: &str, directory: &Path) -> PathBuf {
    let tensors = Tensors::read(file_type);
    let path = if file_type == "q4_1" { smollm2() } else { directory.join("smollm2.gguf") };
    if file_type != "q4_1" {
        requantize(&smollm2(), &path, |name| tensors.dtype(name));
    }
    tensors.check(&path);
    path
}

/// Writes `source` to `target` with matrices of the types that `dtype_of` names; vectors stay F32.
pub fn requantize(source: &Path, target: &Path, dtype_of: impl Fn(&str) -> GgmlDType) {
    let mut reader = BufReader::new(File::open(source).unwrap());
    let content = Content::read(&mut reader).unwrap();
    let mut tensors = HashMap::new();
    for name in content.tensor_infos.keys() {
        reader.rewind().unwrap();
        let tensor = content.tensor(&mut reader, name, &Device::Cpu).unwrap();
        let dtype = if tensor.rank() == 1 { GgmlDType::F32 } else { dtype_of(name) };
        let tensor = if tensor.dtype() == dtype {
            tensor
        } else {
            QTensor::quantize(&tensor.dequantize(&Device::Cpu).unwrap(), dtype).unwrap()
        };
        tensors.insert(name.as_str(), tensor);
    }
    let metadata: Vec<_> = content.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    gguf_file::write(&mut BufWriter::new(File::create(target).unwrap()), &metadata, &tensors).unwrap();
}

/// Writes `source` to `target` with all tensors in F32, of whatever type that we read.
pub fn widen(source: &Path, target: &Path) {
    let file = GgufFile::open(source).unwrap();
    let widened = |name| {
        let StoredTensor { dtype, shape, data } = file.find(name).unwrap().unwrap();
        let num_inputs = *shape.last().unwrap();
        let matrix = WeightMatrix::from_parts(dtype, num_inputs, &[data]).unwrap();
        let rows = Tensor::zeros((matrix.num_outputs(), matrix.num_inputs()), DType::F32, &Device::Cpu).unwrap();
        matrix.rows(&(0..matrix.num_outputs() as u32).collect::<Vec<_>>(), &rows).unwrap();
        (name, QTensor::quantize(&Tensor::reshape(&rows, shape).unwrap(), GgmlDType::F32).unwrap())
    };
    let tensors: Vec<_> = file.tensor_names().map(widened).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let metadata: Vec<_> = file.metadata().iter().map(|(key, value)| (key.as_str(), value)).collect();
    gguf_file::write(&mut BufWriter::new(File::create(target).unwrap()), &metadata, &tensors).unwrap();
}

/// What llama.cpp made of SmolLM2's tensors for one file type: by name, type and checksum.
struct Tensors(HashMap<String, (String, String)>);

impl Tensors {
    fn read(file_type: &str) -> Self {
        let json = std::fs::read(fixture("references/smollm2-tensors.json")).unwrap();
        let mut types: HashMap<String, HashMap<String, (String, String)>> = serde_json::from_slice(&json).unwrap();
        Self(types.remove(file_type).unwrap())
    }

    fn dtype(&self, name: &str) -> GgmlDType {
        match self.0[name].0.as_str() {
            "F32" => GgmlDType::F32,
            "F16" => GgmlDType::F16,
            "Q4_0" => GgmlDType::Q4_0,
            "Q8_0" => GgmlDType::Q8_0,
            other => panic!("{name} is {other}"),
        }
    }

    /// Fails unless the file at `path` has these very weights.
    fn check(&self, path: &Path) {
        let mut reader = BufReader::new(File::open(path).unwrap());
        let content = Content::read(&mut reader).unwrap();
        assert_eq!(content.tensor_infos.len(), self.0.len());
        for (name, (_, expected)) in &self.0 {
            let tensor = content.tensor(&mut reader, name, &Device::Cpu).unwrap();
            assert_eq!(checksum(&tensor.data().unwrap()), *expected, "{name} is not what llama.cpp makes of it");
        }
    }
}

/// Sum of the 16-bit words, each times its place; what `make_fixtures.py` computes.
fn checksum(bytes: &[u8]) -> String {
    let words = bytes.chunks_exact(2).map(|word| u64::from(u16::from_le_bytes([word[0], word[1]])));
    let sum = words.zip(1u64..).fold(0u64, |sum, (word, place)| sum.wrapping_add(word.wrapping_mul(place)));
    format!("{sum:016x}")
}
