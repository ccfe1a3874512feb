//! Weights as they are multiplied, one or several projections of the same input at once.

use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::{CpuStorage, CustomOp1, Device, Error, Layout, Result, Shape, Tensor};
use mistralrs_quant::{BlockFormat, BlockMatrix, Columns, FloatFormat, FloatMatrix, Precision, QuantizedRows, SpanSet};

use super::rows::{self, Pool};

/// A weight `[N, K]`: of a projection, or the token table, or both when the head is tied.
#[derive(Debug)]
pub enum WeightMatrix {
    /// Floats, multiplied in f32.
    Floats(FloatMatrix),
    /// Quantized blocks, multiplied by activations in 8 bits.
    Blocks(BlockMatrix),
}

/// How a type of GGUF's is multiplied.
enum WeightFormat {
    Floats(FloatFormat),
    Blocks(BlockFormat),
}

impl WeightFormat {
    fn from_ggml(dtype: GgmlDType) -> Option<Self> {
        Some(match dtype {
            GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 => Self::Floats(float_format(dtype)?),
            GgmlDType::Q4_0 => Self::Blocks(BlockFormat::Q4_0),
            GgmlDType::Q4_1 => Self::Blocks(BlockFormat::Q4_1),
            GgmlDType::Q5_0 => Self::Blocks(BlockFormat::Q5_0),
            GgmlDType::Q5_1 => Self::Blocks(BlockFormat::Q5_1),
            GgmlDType::Q8_0 => Self::Blocks(BlockFormat::Q8_0),
            GgmlDType::Q2K => Self::Blocks(BlockFormat::Q2K),
            GgmlDType::Q3K => Self::Blocks(BlockFormat::Q3K),
            GgmlDType::Q4K => Self::Blocks(BlockFormat::Q4K),
            GgmlDType::Q5K => Self::Blocks(BlockFormat::Q5K),
            GgmlDType::Q6K => Self::Blocks(BlockFormat::Q6K),
            // Made of activations on the way, never written to files.
            GgmlDType::Q8_1 | GgmlDType::Q8K => return None,
        })
    }
}

/// The float type that `dtype` is, if it is one.
pub fn float_format(dtype: GgmlDType) -> Option<FloatFormat> {
    match dtype {
        GgmlDType::F32 => Some(FloatFormat::F32),
        GgmlDType::F16 => Some(FloatFormat::F16),
        GgmlDType::BF16 => Some(FloatFormat::Bf16),
        _ => None,
    }
}

impl WeightMatrix {
    /// `parts`: slices of whole rows of K elements as a file stores `dtype`, N rows in all.
    ///
    /// # Errors
    /// They are not rows of `num_inputs` elements, or weights are not kept in this type.
    pub fn from_parts(dtype: GgmlDType, num_inputs: usize, parts: &[&[u8]]) -> Result<Self> {
        match WeightFormat::from_ggml(dtype) {
            Some(WeightFormat::Floats(format)) => {
                Ok(Self::Floats(FloatMatrix::pack(format, num_inputs, parts).map_err(Error::wrap)?))
            }
            Some(WeightFormat::Blocks(format)) => {
                Ok(Self::Blocks(BlockMatrix::pack(format, num_inputs, parts).map_err(Error::wrap)?))
            }
            None => candle_core::bail!("weights of type {dtype:?} cannot be multiplied"),
        }
    }

    /// N.
    pub fn num_outputs(&self) -> usize {
        match self {
            Self::Floats(matrix) => matrix.num_outputs(),
            Self::Blocks(matrix) => matrix.num_outputs(),
        }
    }

    /// K.
    pub fn num_inputs(&self) -> usize {
        match self {
            Self::Floats(matrix) => matrix.num_inputs(),
            Self::Blocks(matrix) => matrix.num_inputs(),
        }
    }

    /// Bytes held.
    pub fn num_bytes(&self) -> usize {
        match self {
            Self::Floats(matrix) => matrix.num_bytes(),
            Self::Blocks(matrix) => matrix.num_bytes(),
        }
    }

    /// Rows `indices` of the weight, dequantized: `[indices, K]` f32.
    ///
    /// # Errors
    /// An index of N or more.
    pub fn rows(&self, indices: &[u32]) -> Result<Tensor> {
        let (num_rows, row_size) = (self.num_outputs(), self.num_inputs());
        if let Some(index) = indices.iter().find(|index| **index as usize >= num_rows) {
            candle_core::bail!("row {index} of a table of {num_rows}")
        }
        let mut values = vec![0f32; indices.len() * row_size];
        for (index, row) in indices.iter().zip(values.chunks_exact_mut(row_size.max(1))) {
            match self {
                Self::Floats(matrix) => matrix.copy_row(*index as usize, row),
                Self::Blocks(matrix) => matrix.copy_row(*index as usize, row),
            }
        }
        Tensor::from_vec(values, (indices.len(), row_size), &Device::Cpu)
    }
}

/// `y = x · Wᵀ + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Arc<WeightMatrix>,
    /// `[N]`.
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// `bias` is `[N]`.
    pub fn new(weight: Arc<WeightMatrix>, bias: Option<Vec<f32>>) -> Self {
        Self { weight, bias }
    }

    /// `input` `[T, K]` f32 → `[T, N]`; a row's result does not depend on the other rows.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        rows::expect_f32(input.dtype())?;
        input.apply_op1_no_bwd(&Projections { parts: std::slice::from_ref(self), precision: Precision::Bits8 })
    }
}

/// Several projections of one input, side by side in as few matrices as their dtypes allow: the activations are
/// rounded once for all of them.
#[derive(Debug, Clone)]
pub struct FusedLinear {
    parts: Vec<Linear>,
    /// Of the activations, where weights are quantized.
    precision: Precision,
}

impl FusedLinear {
    /// `parts`' outputs lie one after the other.
    pub fn new(parts: Vec<Linear>) -> Self {
        Self { parts, precision: Precision::Bits8 }
    }

    /// Keeps activations as exactly as `precision` says beside quantized weights.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// `input` `[T, K]` f32 → `[T, N]`, N over all parts.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        rows::expect_f32(input.dtype())?;
        input.apply_op1_no_bwd(&Projections { parts: &self.parts, precision: self.precision })
    }
}

struct Projections<'a> {
    parts: &'a [Linear],
    precision: Precision,
}

impl Projections<'_> {
    /// The activations rounded, if any part reads them so.
    fn quantize(&self, activations: &[f32], num_inputs: usize) -> Option<QuantizedRows> {
        let spans = self.parts.iter().filter_map(|part| match &*part.weight {
            WeightMatrix::Floats(_) => None,
            WeightMatrix::Blocks(matrix) => Some(matrix.spans()),
        });
        let spans = spans.reduce(|one, other| if one == SpanSet::Whole { other } else { one })?;
        let rows = QuantizedRows::new(activations, num_inputs, spans, &Pool);
        Some(rows.refined(activations, self.precision, &Pool))
    }
}

impl CustomOp1 for Projections<'_> {
    fn name(&self) -> &'static str {
        "projections"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (activations, num_rows, num_inputs) = rows::contiguous_rows(storage, layout)?;
        if let Some(part) = self.parts.iter().find(|part| part.weight.num_inputs() != num_inputs) {
            candle_core::bail!("an input of {num_inputs} columns does not fit {:?}", part.weight)
        }
        let num_columns = self.parts.iter().map(|part| part.weight.num_outputs()).sum();
        let quantized = self.quantize(activations, num_inputs);
        let mut out = vec![0f32; num_rows * num_columns];
        let mut first = 0;
        for part in self.parts {
            let columns = Columns::from(&mut out, num_columns, first).with_bias(part.bias.as_deref());
            match (&*part.weight, &quantized) {
                (WeightMatrix::Floats(matrix), _) => matrix.matmul(activations, columns, &Pool),
                (WeightMatrix::Blocks(matrix), Some(quantized)) => matrix.matmul(quantized, columns, &Pool),
                (WeightMatrix::Blocks(_), None) => unreachable!("blocks ask for rounded activations"),
            }
            first += part.weight.num_outputs();
        }
        Ok((CpuStorage::F32(out), Shape::from((num_rows, num_columns))))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::QTensor;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const DTYPES: [GgmlDType; 13] = [
        GgmlDType::F32,
        GgmlDType::F16,
        GgmlDType::BF16,
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ];

    fn random(seed: u64, shape: (usize, usize)) -> Tensor {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| rng.random_range(-1.0..1.0)).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    }

    /// Random weights as candle quantizes them, and as layers hold them.
    fn quantized(dtype: GgmlDType, seed: u64, shape: (usize, usize)) -> (QTensor, WeightMatrix) {
        let stored = QTensor::quantize(&random(seed, shape), dtype).unwrap();
        let matrix = WeightMatrix::from_parts(dtype, shape.1, &[&stored.data().unwrap()]).unwrap();
        (stored, matrix)
    }

    fn linear(dtype: GgmlDType, seed: u64, shape: (usize, usize), bias: Option<Vec<f32>>) -> Linear {
        Linear::new(Arc::new(quantized(dtype, seed, shape).1), bias)
    }

    #[test]
    fn rows_come_back_as_candle_dequantizes_them() {
        for dtype in DTYPES {
            let (stored, matrix) = quantized(dtype, 1, (35, 512));
            let values = |tensor: Tensor| tensor.to_vec2::<f32>().unwrap();
            let found = values(matrix.rows(&(0..35).collect::<Vec<_>>()).unwrap());
            assert_eq!(found, values(stored.dequantize(&Device::Cpu).unwrap()), "{dtype:?}");
        }
    }

    /// Rounding activations to 8 bits moves a sum of 512 random products by a hundredth of its size at most.
    #[test]
    fn a_product_is_near_that_of_the_dequantized_matrix() {
        for dtype in DTYPES {
            let (stored, matrix) = quantized(dtype, 1, (35, 512));
            let input = random(2, (20, 512));
            let expected = input.matmul(&stored.dequantize(&Device::Cpu).unwrap().t().unwrap()).unwrap();
            let found = Linear::new(Arc::new(matrix), None).forward(&input).unwrap();
            let norm = |tensor: &Tensor| tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            let error = norm(&(&found - &expected).unwrap()) / norm(&expected);
            let allowed = if float_format(dtype).is_some() { 1e-6 } else { 0.01 };
            assert!(error < allowed, "{dtype:?}: {error} off");
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others() {
        for dtype in DTYPES {
            let weight = linear(dtype, 1, (99, 512), None);
            let input = random(2, (300, 512));
            let expected = weight.forward(&input).unwrap();
            for num_rows in [1, 2, 3, 7, 8, 32, 33] {
                let some = |tensor: &Tensor| tensor.narrow(0, 300 - num_rows, num_rows).unwrap();
                let product = weight.forward(&some(&input).contiguous().unwrap()).unwrap();
                assert!(bits(&product) == bits(&some(&expected)), "{dtype:?} differs at {num_rows} rows");
            }
        }
    }

    #[test]
    fn fused_projections_equal_the_parts() {
        let bias = (0..16).map(|index| index as f32).collect();
        let parts = vec![
            linear(GgmlDType::Q4K, 1, (32, 256), None),
            linear(GgmlDType::Q6K, 2, (16, 256), Some(bias)),
            linear(GgmlDType::F16, 2, (7, 256), None),
        ];
        let input = random(3, (5, 256));
        let apart: Vec<Tensor> = parts.iter().map(|part| part.forward(&input).unwrap()).collect();
        let together = FusedLinear::new(parts).forward(&input).unwrap();
        assert_eq!(bits(&together), bits(&Tensor::cat(&apart, 1).unwrap()));
    }

    #[test]
    fn a_row_outside_the_table_is_an_error() {
        for dtype in [GgmlDType::F16, GgmlDType::Q6K] {
            let (_, table) = quantized(dtype, 1, (4, 256));
            assert!(table.rows(&[3]).is_ok());
            let error = table.rows(&[0, 4]).unwrap_err().to_string();
            assert!(error.starts_with("row 4 of a table of 4"), "{error}");
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let error = WeightMatrix::from_parts(GgmlDType::Q8_1, 32, &[]).unwrap_err().to_string();
        assert!(error.starts_with("weights of type Q8_1 cannot be multiplied"), "{error}");
        let error = linear(GgmlDType::Q4_0, 1, (4, 32), None).forward(&random(1, (1, 64))).unwrap_err().to_string();
        assert!(error.starts_with("an input of 64 columns does not fit"), "{error}");
    }
}
