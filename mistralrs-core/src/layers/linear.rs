//! Weights as they are multiplied: dense or quantized, one or several projections of the same input at once.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};

use super::dense::DenseMatrix;
use super::rows;

/// A weight `[N, K]`: of a projection, or the token table, or both when the head is tied.
#[derive(Debug)]
pub enum WeightMatrix {
    /// F32, F16 or BF16, multiplied by our own row-invariant kernels.
    Dense(DenseMatrix),
    /// Quantized blocks, multiplied by candle.
    Quantized(QTensor),
}

impl WeightMatrix {
    /// Quantized `parts`: slices of whole rows of K elements in blocks of `dtype`, N rows in all.
    pub fn quantized(dtype: GgmlDType, shape: (usize, usize), parts: &[&[u8]]) -> Result<Self> {
        let data = match parts {
            [only] => Cow::Borrowed(*only),
            parts => Cow::Owned(parts.concat()),
        };
        let storage = QStorage::from_data(data, &Device::Cpu, dtype)?;
        Ok(Self::Quantized(QTensor::new(storage, shape)?))
    }

    /// `(N, K)`.
    pub fn shape(&self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(matrix) => Ok((matrix.num_outputs(), matrix.num_inputs())),
            Self::Quantized(matrix) => matrix.shape().dims2(),
        }
    }

    /// Bytes held, without what candle repacks on first use.
    pub fn num_bytes(&self) -> usize {
        match self {
            Self::Dense(matrix) => matrix.num_bytes(),
            Self::Quantized(matrix) => matrix.storage_size_in_bytes(),
        }
    }

    /// `input` `[T, K]` f32 → `[T, N]` f32; a row's result does not depend on the other rows.
    pub fn matmul(&self, input: &Tensor) -> Result<Tensor> {
        rows::expect_f32(input.dtype())?;
        match self {
            Self::Dense(matrix) => input.apply_op1_no_bwd(&DenseMatmul(matrix)),
            // candle multiplies one row of Q6_K by other kernels than several rows, and they round differently.
            Self::Quantized(matrix) if matrix.dtype() == GgmlDType::Q6K && input.dim(0)? == 1 => {
                Tensor::cat(&[input, input], 0)?.apply_op1_no_bwd(matrix)?.narrow(0, 0, 1)
            }
            Self::Quantized(matrix) => input.apply_op1_no_bwd(matrix),
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
            Self::Dense(matrix) => {
                let mut values = vec![0f32; indices.len() * row_size];
                for (index, row) in indices.iter().zip(values.chunks_exact_mut(row_size.max(1))) {
                    matrix.copy_row(*index as usize, row);
                }
                Tensor::from_vec(values, (indices.len(), row_size), &Device::Cpu)
            }
            Self::Quantized(matrix) => matrix.embedding(&Tensor::new(indices, &Device::Cpu)?),
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

struct DenseMatmul<'a>(&'a DenseMatrix);

impl CustomOp1 for DenseMatmul<'_> {
    fn name(&self) -> &'static str {
        "dense-matmul"
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

    /// Every type the loaders accept, and rows of 64 or 256 so that candle's packed and plain kernels are both reached.
    const QUANTIZED: [(GgmlDType, usize); 13] = [
        (GgmlDType::Q4_0, 64),
        (GgmlDType::Q4_1, 64),
        (GgmlDType::Q5_0, 64),
        (GgmlDType::Q5_1, 64),
        (GgmlDType::Q8_0, 64),
        (GgmlDType::Q4_0, 256),
        (GgmlDType::Q4_1, 256),
        (GgmlDType::Q8_0, 256),
        (GgmlDType::Q2K, 512),
        (GgmlDType::Q3K, 512),
        (GgmlDType::Q4K, 512),
        (GgmlDType::Q5K, 512),
        (GgmlDType::Q6K, 512),
    ];

    fn random(seed: u64, shape: (usize, usize)) -> Tensor {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| rng.random_range(-1.0..1.0)).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn a_quantized_row_has_the_same_bits_alone_and_among_others() {
        for (dtype, num_inputs) in QUANTIZED {
            // 99 outputs: not a multiple of any tile, so candle's plain kernels; 96: its packed ones.
            for num_outputs in [96, 99] {
                let weight = QTensor::quantize(&random(1, (num_outputs, num_inputs)), dtype).unwrap();
                let weight = WeightMatrix::Quantized(weight);
                let input = random(2, (300, num_inputs));
                let expected = weight.matmul(&input).unwrap();
                for num_rows in [1, 2, 3, 7, 8, 32, 33] {
                    let some = |tensor: &Tensor| tensor.narrow(0, 300 - num_rows, num_rows).unwrap();
                    let product = weight.matmul(&some(&input).contiguous().unwrap()).unwrap();
                    assert!(
                        bits(&product) == bits(&some(&expected)),
                        "{dtype:?} [{num_outputs}, {num_inputs}] differs at {num_rows} rows"
                    );
                }
            }
        }
    }

    #[test]
    fn fused_projections_equal_the_parts() {
        let part = |dtype, seed, size| {
            let weight = QTensor::quantize(&random(seed, (size, 64)), dtype).unwrap();
            Linear::new(Arc::new(WeightMatrix::Quantized(weight)), None)
        };
        let parts = vec![part(GgmlDType::Q8_0, 1, 32), part(GgmlDType::Q4_1, 2, 16)];
        let input = random(3, (5, 64));
        let apart: Vec<Tensor> = parts.iter().map(|part| part.forward(&input).unwrap()).collect();
        let together = FusedLinear::new(parts).forward(&input).unwrap();
        assert_eq!(bits(&together), bits(&Tensor::cat(&apart, 1).unwrap()));
    }

    #[test]
    fn a_row_outside_the_table_is_an_error() {
        let table = WeightMatrix::Quantized(QTensor::quantize(&random(1, (4, 32)), GgmlDType::Q8_0).unwrap());
        assert!(table.rows(&[3]).is_ok());
        let error = table.rows(&[0, 4]).unwrap_err().to_string();
        assert!(error.starts_with("row 4 of a table of 4"), "{error}");
    }
}
