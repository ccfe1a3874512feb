//! Root-mean-square normalization.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::rows;

/// Partial sums of squares kept apart: enough for one AVX-512 register, and more exact than one long chain.
const NUM_SUMS: usize = 16;

/// `y = x / sqrt(mean(x²) + eps) · w`. Source: Zhang & Sennrich 2019 (arXiv:1910.07467).
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Vec<f32>,
    eps: f32,
}

impl RmsNorm {
    /// One weight per column.
    pub fn new(weight: Vec<f32>, eps: f32) -> Self {
        Self { weight, eps }
    }

    /// `input` `[T, columns]` f32, normalized row by row.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        rows::expect_f32(input.dtype())?;
        input.apply_op1_no_bwd(self)
    }
}

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (input, num_rows, num_columns) = rows::contiguous_rows(storage, layout)?;
        if num_columns != self.weight.len() {
            candle_core::bail!("a norm of {} columns got {num_columns}", self.weight.len())
        }
        Ok(rows::build_rows((num_rows, num_columns), |row, out| {
            let input = &input[row * num_columns..(row + 1) * num_columns];
            let scale = (mean_square(input) + self.eps).sqrt().recip();
            for ((out, value), weight) in out.iter_mut().zip(input).zip(&self.weight) {
                *out = value * scale * weight;
            }
        }))
    }
}

fn mean_square(values: &[f32]) -> f32 {
    let mut sums = [0f32; NUM_SUMS];
    let chunks = values.chunks_exact(NUM_SUMS);
    let rest: f32 = chunks.remainder().iter().map(|value| value * value).sum();
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += value * value;
        }
    }
    (sums.iter().sum::<f32>() + rest) / values.len() as f32
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_row_is_divided_by_its_root_mean_square() {
        // Root mean square of (3, 4) is sqrt(12.5).
        let input = Tensor::new(&[[3f32, 4.], [0., 0.]], &Device::Cpu).unwrap();
        let output = RmsNorm::new(vec![1., 2.], 0.).forward(&input.narrow(0, 0, 1).unwrap()).unwrap();
        let expected = [3. / 12.5f32.sqrt(), 8. / 12.5f32.sqrt()];
        for (found, expected) in output.to_vec2::<f32>().unwrap()[0].iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
        }
        let zero = RmsNorm::new(vec![1., 2.], 1e-5).forward(&input.narrow(0, 1, 1).unwrap()).unwrap();
        assert_eq!(zero.to_vec2::<f32>().unwrap(), [[0., 0.]], "eps keeps a zero row finite");
    }

    #[test]
    fn a_wrong_width_is_an_error() {
        let input = Tensor::zeros((1, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        let error = RmsNorm::new(vec![1., 2.], 0.).forward(&input).unwrap_err();
        assert!(error.to_string().contains("a norm of 2 columns got 3"), "{error}");
    }
}
