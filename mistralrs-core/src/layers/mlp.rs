//! The gated feed-forward block.

use candle_core::{Result, Tensor};

use super::linear::{Epilogue, FusedLinear, Linear, Pass, Prologue};
use super::norm::RmsNorm;

/// `x + down(silu(gate(norm(x))) · up(norm(x)))`. Source: Shazeer 2020 (arXiv:2002.05202), SwiGLU.
#[derive(Debug, Clone)]
pub struct SwiGluMlp {
    /// Before gate and up.
    pub norm: RmsNorm,
    /// Gate, then up.
    pub gate_up: FusedLinear,
    /// Back to the hidden size.
    pub down: Linear,
}

impl SwiGluMlp {
    /// Adds the block's result to `hidden` `[T, hidden]`; `gate_up` `[T, 2F]` is room for what is between.
    ///
    /// # Errors
    /// Sizes differ.
    pub fn forward(&self, hidden: &Tensor, gate_up: &Tensor, pass: Pass<'_>) -> Result<()> {
        self.gate_up.forward(hidden, gate_up, (Prologue::Norm(&self.norm), Epilogue::Store), pass)?;
        self.down.forward(gate_up, hidden, (Prologue::SwiGlu, Epilogue::Add), pass)
    }
}
