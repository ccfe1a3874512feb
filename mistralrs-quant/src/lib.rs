//! Weights packed for the CPU's integer units, and their products with activations.
//!
//! A [`BlockMatrix`] holds a quantized weight in tiles of 16 outputs, in about the bytes of its file and never twice.
//! A [`FloatMatrix`] holds floats in tiles of the same kind. [`QuantizedRows`] are activations in 8 bits, made once of a
//! [`Source`] for all matrices that read them. Their product sums integers exactly and floats in one fixed order, so a row
//! has the same bits alone or among others, on any number of threads and with any instruction set. [`Bf16Rows`] are
//! activations for CPUs with a matrix unit, which is many times as fast where rows are many: nearer to exact, and the same
//! bits alone or among others too. `reference` defines the answers, `kernels` makes them fast.
//!
//! **Never** here: tensors, files, layers, a pool of threads (see [`Threads`]).

pub mod activations;
mod bf16_product;
pub mod bf16_rows;
pub mod floats;
pub mod format;
mod kernels;
pub mod matrix;
pub mod packing;
pub mod reference;
pub mod source;
mod storage;
pub mod threads;
mod tile;
pub mod weight_format;

pub use activations::{Precision, QuantizedRows, RowShape, SpanSet};
pub use bf16_rows::{Bf16Parts, Bf16Rows};
pub use floats::{FloatFormat, FloatMatrix};
pub use format::BlockFormat;
pub use matrix::{BlockMatrix, Columns, NotRows};
pub use packing::{FillPiece, MatrixShape, PIECE_BYTES, StoredRows, TILE_LAYOUT};
pub use source::Source;
pub use threads::{CallingThread, Threads};
pub use weight_format::WeightFormat;

#[cfg(test)]
mod tests;
