//! Root-mean-square normalization.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};
use mistralrs_quant::Source;

use super::pool::Pool;
use super::rows::{Matrix, MatrixMut};

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

    /// `input` `[T, columns]` f32, normalized row by row to `out` of the same shape.
    ///
    /// # Errors
    /// The columns are not as many as the weights.
    pub fn forward(&self, input: &Tensor, out: &Tensor) -> Result<()> {
        out.inplace_op2(input, self)
    }

    /// `rows` as they are made for a projection.
    pub(super) fn source<'a>(&'a self, rows: Matrix<'a>) -> Result<Source<'a>> {
        if rows.num_columns != self.weight.len() {
            candle_core::bail!("a norm of {} columns got {}", self.weight.len(), rows.num_columns)
        }
        Ok(Source::Normed { rows: rows.values, weight: &self.weight, eps: self.eps })
    }
}

impl InplaceOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        out: &mut CpuStorage,
        out_layout: &Layout,
        from: &CpuStorage,
        from_layout: &Layout,
    ) -> Result<()> {
        let (out, from) = (MatrixMut::of(out, out_layout)?, Matrix::of(from, from_layout)?);
        let source = self.source(from)?;
        if (out.num_rows, out.num_columns) != (from.num_rows, from.num_columns) {
            candle_core::bail!("{from_layout:?} normalized into {out_layout:?}")
        }
        source.write(from.num_columns, out.values, &Pool);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn a_row_is_divided_by_its_root_mean_square() {
        // Root mean square of (3, 4) is sqrt(12.5).
        let input = Tensor::new(&[[3f32, 4.], [0., 0.]], &Device::Cpu).unwrap();
        let out = Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
        RmsNorm::new(vec![1., 2.], 1e-12).forward(&input, &out).unwrap();
        let expected = [3. / 12.5f32.sqrt(), 8. / 12.5f32.sqrt(), 0., 0.];
        for (found, expected) in out.to_vec2::<f32>().unwrap().concat().iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
        }
    }

    #[test]
    fn a_wrong_width_is_an_error() {
        let input = Tensor::zeros((1, 3), DType::F32, &Device::Cpu).unwrap();
        let out = input.zeros_like().unwrap();
        let error = RmsNorm::new(vec![1., 2.], 0.).forward(&input, &out).unwrap_err();
        assert!(error.to_string().contains("a norm of 2 columns got 3"), "{error}");
    }
}
