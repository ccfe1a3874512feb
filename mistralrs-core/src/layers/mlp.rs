//! The gated feed-forward block.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::linear::{FusedLinear, Linear};
use super::rows;

/// `down(silu(gate(x)) · up(x))`. Source: Shazeer 2020 (arXiv:2002.05202), SwiGLU.
#[derive(Debug, Clone)]
pub struct SwiGluMlp {
    /// Gate, then up.
    pub gate_up: FusedLinear,
    /// Back to the hidden size.
    pub down: Linear,
}

impl SwiGluMlp {
    /// `input` `[T, hidden]` → `[T, hidden]`.
    pub fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let gate_up = self.gate_up.forward(input)?;
        self.down.forward(&gate_up.apply_op1_no_bwd(&SiluTimes)?)
    }
}

/// `[T, 2F]` gate and up side by side → `[T, F]` `silu(gate) · up`.
struct SiluTimes;

impl CustomOp1 for SiluTimes {
    fn name(&self) -> &'static str {
        "silu-times"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (input, num_rows, num_columns) = rows::contiguous_rows(storage, layout)?;
        if !num_columns.is_multiple_of(2) {
            candle_core::bail!("gate and up together have {num_columns} columns, which is odd")
        }
        Ok(rows::build_rows((num_rows, num_columns / 2), |row, out| {
            let (gate, up) = input[row * num_columns..(row + 1) * num_columns].split_at(num_columns / 2);
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                *out = gate / (1.0 + (-gate).exp()) * up;
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_gate_passes_through_silu() {
        let input = Tensor::new(&[[0f32, 1., -100., 7., 2., 3.]], &Device::Cpu).unwrap();
        let output = input.apply_op1_no_bwd(&SiluTimes).unwrap().to_vec2::<f32>().unwrap();
        let silu_of_one = 1.0 / (1.0 + (-1f32).exp());
        assert_eq!(output, [[0., 2. * silu_of_one, 0.]]);
    }
}
