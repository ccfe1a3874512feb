//! Weights as they are multiplied, one or several projections of the same input at once.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{CpuStorage, CustomOp1, Device, Error, Layout, Result, Shape, Tensor};

use super::packed::{PackedMatrix, WeightFormat};
use super::rows;

/// A weight `[N, K]`: of a projection, or the token table, or both when the head is tied.
#[derive(Debug)]
pub enum WeightMatrix {
    /// Floats and blocks of 32, multiplied by our own kernels.
    Packed(PackedMatrix),
    /// k-quants, multiplied by candle. It quantizes activations to 8 bits, as llama.cpp does, and on first use
    /// repacks a copy for itself (Q4_K, Q6_K).
    KQuant(QTensor),
}

impl WeightMatrix {
    /// `parts`: slices of whole rows of K elements as a file stores `dtype`, N rows in all.
    ///
    /// # Errors
    /// They are not `shape.0` rows of `shape.1` elements.
    pub fn from_parts(dtype: GgmlDType, shape: (usize, usize), parts: &[&[u8]]) -> Result<Self> {
        if let Some(format) = WeightFormat::from_ggml(dtype) {
            return Ok(Self::Packed(PackedMatrix::pack(format, shape.1, parts).map_err(Error::wrap)?));
        }
        let data = match parts {
            [only] => Cow::Borrowed(*only),
            parts => Cow::Owned(parts.concat()),
        };
        let storage = QStorage::from_data(data, &Device::Cpu, dtype)?;
        Ok(Self::KQuant(QTensor::new(storage, shape)?))
    }

    /// `(N, K)`.
    pub fn shape(&self) -> Result<(usize, usize)> {
        match self {
            Self::Packed(matrix) => Ok((matrix.num_outputs(), matrix.num_inputs())),
            Self::KQuant(matrix) => matrix.shape().dims2(),
        }
    }

    /// Bytes held, without what candle repacks on first use.
    pub fn num_bytes(&self) -> usize {
        match self {
            Self::Packed(matrix) => matrix.num_bytes(),
            Self::KQuant(matrix) => matrix.storage_size_in_bytes(),
        }
    }

    /// `input` `[T, K]` f32 → `[T, N]` f32; a row's result does not depend on the other rows.
    pub fn matmul(&self, input: &Tensor) -> Result<Tensor> {
        rows::expect_f32(input.dtype())?;
        match self {
            Self::Packed(matrix) => input.apply_op1_no_bwd(&PackedMatmul(matrix)),
            // candle multiplies one row of Q6_K by other kernels than several rows, and they round differently.
            Self::KQuant(matrix) if matrix.dtype() == GgmlDType::Q6K && input.dim(0)? == 1 => {
                Tensor::cat(&[input, input], 0)?.apply_op1_no_bwd(matrix)?.narrow(0, 0, 1)
            }
            Self::KQuant(matrix) => input.apply_op1_no_bwd(matrix),
        }
    }

    /// Rows `indices` of the weight, dequantized: `[indices, K]` f32.
    ///
    /// # Errors
    /// An index of N or more.
    pub fn rows(&self, indices: &[u32]) -> Result<Tensor> {
        let (num_rows, row_size) = self.shape()?;
        if let Some(index) = indices.iter().find(|index| **index as usize >= num_rows) {
            candle_core::bail!("row {index} of a table of {num_rows}")
        }
        match self {
            Self::Packed(matrix) => {
                let mut values = vec![0f32; indices.len() * row_size];
                for (index, row) in indices.iter().zip(values.chunks_exact_mut(row_size.max(1))) {
                    matrix.copy_row(*index as usize, row);
                }
                Tensor::from_vec(values, (indices.len(), row_size), &Device::Cpu)
            }
            Self::KQuant(matrix) => matrix.embedding(&Tensor::new(indices, &Device::Cpu)?),
        }
    }
}

/// `y = x · Wᵀ + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Arc<WeightMatrix>,
    /// `[N]`.
    bias: Option<Tensor>,
}

impl Linear {
    /// `bias` is `[N]`.
    pub fn new(weight: Arc<WeightMatrix>, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// `input` `[T, K]` → `[T, N]`.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let product = self.weight.matmul(input)?;
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }
}

/// Several projections of one input, side by side in as few matrices as their dtypes allow: one pass over the
/// activations and one parallel region instead of one each.
#[derive(Debug, Clone)]
pub struct FusedLinear {
    parts: Vec<Linear>,
}

impl FusedLinear {
    /// `parts`' outputs lie one after the other.
    pub fn new(parts: Vec<Linear>) -> Self {
        Self { parts }
    }

    /// `input` `[T, K]` → `[T, N]`, N over all parts.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        match self.parts.as_slice() {
            [only] => only.forward(input),
            parts => {
                let outputs = parts.iter().map(|part| part.forward(input)).collect::<Result<Vec<_>>>()?;
                Tensor::cat(&outputs, 1)
            }
        }
    }
}

struct PackedMatmul<'a>(&'a PackedMatrix);

impl CustomOp1 for PackedMatmul<'_> {
    fn name(&self) -> &'static str {
        "packed-matmul"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (activations, num_rows, num_inputs) = rows::contiguous_rows(storage, layout)?;
        if num_inputs != self.0.num_inputs() {
            candle_core::bail!("an input of {num_inputs} columns does not fit {:?}", self.0)
        }
        let mut out = vec![0f32; num_rows * self.0.num_outputs()];
        self.0.matmul(activations, &mut out);
        Ok((CpuStorage::F32(out), Shape::from((num_rows, self.0.num_outputs()))))
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// What candle multiplies.
    const K_QUANTS: [GgmlDType; 5] = [GgmlDType::Q2K, GgmlDType::Q3K, GgmlDType::Q4K, GgmlDType::Q5K, GgmlDType::Q6K];

    fn random(seed: u64, shape: (usize, usize)) -> Tensor {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| rng.random_range(-1.0..1.0)).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    }

    fn quantized(dtype: GgmlDType, seed: u64, shape: (usize, usize)) -> WeightMatrix {
        let stored = QTensor::quantize(&random(seed, shape), dtype).unwrap();
        WeightMatrix::from_parts(dtype, shape, &[&stored.data().unwrap()]).unwrap()
    }

    #[test]
    fn a_k_quant_row_has_the_same_bits_alone_and_among_others() {
        const NUM_INPUTS: usize = 512;
        for dtype in K_QUANTS {
            // 96 outputs: candle's packed kernels; 99, a multiple of no tile: its plain ones.
            for num_outputs in [96, 99] {
                let weight = quantized(dtype, 1, (num_outputs, NUM_INPUTS));
                let input = random(2, (300, NUM_INPUTS));
                let expected = weight.matmul(&input).unwrap();
                for num_rows in [1, 2, 3, 7, 8, 32, 33] {
                    let some = |tensor: &Tensor| tensor.narrow(0, 300 - num_rows, num_rows).unwrap();
                    let product = weight.matmul(&some(&input).contiguous().unwrap()).unwrap();
                    let is_same = bits(&product) == bits(&some(&expected));
                    assert!(is_same, "{dtype:?} [{num_outputs}, {NUM_INPUTS}] differs at {num_rows} rows");
                }
            }
        }
    }

    #[test]
    fn fused_projections_equal_the_parts() {
        let part = |dtype, seed, size| Linear::new(Arc::new(quantized(dtype, seed, (size, 256))), None);
        let parts = vec![part(GgmlDType::Q4K, 1, 32), part(GgmlDType::Q4_1, 2, 16)];
        let input = random(3, (5, 256));
        let apart: Vec<Tensor> = parts.iter().map(|part| part.forward(&input).unwrap()).collect();
        let together = FusedLinear::new(parts).forward(&input).unwrap();
        assert_eq!(bits(&together), bits(&Tensor::cat(&apart, 1).unwrap()));
    }

    #[test]
    fn a_row_outside_the_table_is_an_error() {
        for dtype in [GgmlDType::Q8_0, GgmlDType::Q6K] {
            let table = quantized(dtype, 1, (4, 256));
            assert!(table.rows(&[3]).is_ok());
            let error = table.rows(&[0, 4]).unwrap_err().to_string();
            assert!(error.starts_with("row 4 of a table of 4"), "{error}");
        }
    }
}
