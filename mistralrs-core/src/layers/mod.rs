//! What decoders are made of. Tensors in, tensors out; no file formats and no architectures.
//!
//! Every operation writes to a tensor that it is given, so a model's steps share their memory, and norms, gates and residual
//! sums are fused into the products beside them.
//!
//! On the CPU activations are f32 and every layer is *row-invariant*: what it computes for a token has the same bits
//! whatever other tokens are in the batch. That is what lets N requests together answer as each would alone.

pub mod attention;
pub mod linear;
pub mod mlp;
pub mod norm;
mod pool;
pub mod rotary;
mod rows;

pub use attention::{Attention, AttentionBuffers, AttentionStep, HeadCounts};
pub use linear::{Epilogue, FusedLinear, Linear, Pass, Prologue, Scratch, WeightMatrix};
pub use mlp::SwiGluMlp;
pub use norm::RmsNorm;
pub use rotary::{Llama3Scaling, RotaryAngles, RotaryConfig, RotaryEmbedding, RotaryPairing, RotaryScaling};
pub use rows::copy_rows;
