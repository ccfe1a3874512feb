//! Dense matrix times activations, with answers that do not depend on how many rows are in the batch.
//!
//! Each output is one chain of fused multiply-adds over k, in order, whatever the tiling and the instruction set:
//! row t of a product has the same bits alone and among 500 others, on AVX-512, on AVX2 and in plain Rust.
//! (The `gemm` crate picks its order of sums by the number of rows, so that greedy decoding of one prompt could
//! depend on its neighbours.) Weights stay in their own type and are widened in registers: an F16 model takes
//! F16's memory and bandwidth.

use candle_core::quantized::GgmlDType;
use candle_core::utils::barrier_pool;
use half::{bf16, f16};

use super::rows::SendPointer;

mod kernel;

/// Output columns that lie side by side in memory: one AVX-512 register of f32.
const TILE: usize = 16;

/// Rows of activations one unit of work reads; keeps a unit's activations in the second-level cache.
const ROWS_PER_UNIT: usize = 64;

/// How the elements of a [`DenseMatrix`] are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenseDType {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl DenseDType {
    /// Bytes of one element.
    pub fn size_in_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The float types among GGUF's.
    pub fn from_ggml(dtype: GgmlDType) -> Option<Self> {
        match dtype {
            GgmlDType::F32 => Some(Self::F32),
            GgmlDType::F16 => Some(Self::F16),
            GgmlDType::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// Little-endian elements as f32.
    pub fn widen(self, bytes: &[u8]) -> Vec<f32> {
        let elements = bytes.chunks_exact(self.size_in_bytes());
        elements.map(|element| self.widen_one(element)).collect()
    }

    fn widen_one(self, element: &[u8]) -> f32 {
        match self {
            Self::F32 => f32::from_le_bytes(element.try_into().expect("an f32 has 4 bytes")),
            Self::F16 => f16::from_le_bytes(element.try_into().expect("an f16 has 2 bytes")).to_f32(),
            Self::Bf16 => bf16::from_le_bytes(element.try_into().expect("a bf16 has 2 bytes")).to_f32(),
        }
    }
}

/// A weight `[N, K]`, stored as tiles of 16 outputs: `[N / 16, K, 16]`, the last tile zero-padded.
pub struct DenseMatrix {
    storage: Vec<CacheLine>,
    dtype: DenseDType,
    num_outputs: usize,
    num_inputs: usize,
}

/// Aligned so that no load of a tile's row straddles two cache lines.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine([u8; 64]);

impl DenseMatrix {
    /// Packs `rows`: slices of little-endian elements, each a whole number of rows of `num_inputs`, one after the other.
    ///
    /// # Panics
    /// If a slice is not a whole number of rows: callers have checked shapes.
    pub fn pack(dtype: DenseDType, num_inputs: usize, parts: &[&[u8]]) -> Self {
        let row_bytes = num_inputs * dtype.size_in_bytes();
        assert!(parts.iter().all(|part| part.len().is_multiple_of(row_bytes)), "parts are whole rows");
        let num_outputs = parts.iter().map(|part| part.len() / row_bytes).sum::<usize>();
        let num_bytes = num_outputs.div_ceil(TILE) * TILE * row_bytes;
        let mut storage = vec![CacheLine([0; 64]); num_bytes.div_ceil(64)];
        let rows = parts.iter().flat_map(|part| part.chunks_exact(row_bytes));
        match dtype {
            DenseDType::F32 => pack_rows::<4>(bytes_mut(&mut storage), rows, num_inputs),
            DenseDType::F16 | DenseDType::Bf16 => pack_rows::<2>(bytes_mut(&mut storage), rows, num_inputs),
        }
        Self { storage, dtype, num_outputs, num_inputs }
    }

    /// N.
    pub fn num_outputs(&self) -> usize {
        self.num_outputs
    }

    /// K.
    pub fn num_inputs(&self) -> usize {
        self.num_inputs
    }

    /// How elements are stored.
    pub fn dtype(&self) -> DenseDType {
        self.dtype
    }

    /// Bytes held.
    pub fn num_bytes(&self) -> usize {
        self.storage.len() * size_of::<CacheLine>()
    }

    /// `activations` `[T, K]` → `out` `[T, N]`.
    ///
    /// # Panics
    /// If the slices do not have these sizes.
    pub fn matmul(&self, activations: &[f32], out: &mut [f32]) {
        self.matmul_with(kernel::detected(), activations, out);
    }

    /// Row `index` of the weight, widened.
    ///
    /// # Panics
    /// If there is no such row or `out` is not K long.
    pub fn copy_row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.num_outputs && out.len() == self.num_inputs, "row {index} into {} values", out.len());
        let (bytes, size) = (bytes(&self.storage), self.dtype.size_in_bytes());
        let first = (index / TILE) * TILE * self.num_inputs + index % TILE;
        for (position, value) in out.iter_mut().enumerate() {
            let at = (first + position * TILE) * size;
            *value = self.dtype.widen_one(&bytes[at..at + size]);
        }
    }

    fn matmul_with(&self, level: kernel::Level, activations: &[f32], out: &mut [f32]) {
        let num_rows = activations.len() / self.num_inputs.max(1);
        assert_eq!(activations.len(), num_rows * self.num_inputs, "activations are whole rows");
        assert_eq!(out.len(), num_rows * self.num_outputs, "one output per row and weight row");
        let num_tiles = self.num_outputs.div_ceil(TILE);
        let tiles_per_unit = kernel::tiles_per_unit(level, num_rows);
        let row_chunks = num_rows.div_ceil(ROWS_PER_UNIT);
        let out = SendPointer(out.as_mut_ptr());
        barrier_pool().execute_chunked(num_tiles.div_ceil(tiles_per_unit) * row_chunks, |units| {
            for unit in units {
                let first_tile = unit / row_chunks * tiles_per_unit;
                let first_row = unit % row_chunks * ROWS_PER_UNIT;
                let panel = kernel::Panel {
                    matrix: self,
                    activations,
                    out,
                    tiles: first_tile..num_tiles.min(first_tile + tiles_per_unit),
                    rows: first_row..num_rows.min(first_row + ROWS_PER_UNIT),
                };
                // SAFETY: `level` was detected on this CPU (or is the plain one); units are disjoint in (tile, row),
                // all inside the sizes asserted above, and the pool returns only after every unit is done.
                unsafe { kernel::run(level, &panel) };
            }
        });
    }
}

impl std::fmt::Debug for DenseMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DenseMatrix[{}, {}; {:?}]", self.num_outputs, self.num_inputs, self.dtype)
    }
}

/// Writes rows of elements of `SIZE` bytes into tiles.
fn pack_rows<'a, const SIZE: usize>(tiles: &mut [u8], rows: impl Iterator<Item = &'a [u8]>, num_inputs: usize) {
    for (index, row) in rows.enumerate() {
        let first = (index / TILE) * TILE * num_inputs + index % TILE;
        for (position, element) in row.chunks_exact(SIZE).enumerate() {
            let at = (first + position * TILE) * SIZE;
            tiles[at..at + SIZE].copy_from_slice(element);
        }
    }
}

fn bytes(lines: &[CacheLine]) -> &[u8] {
    // SAFETY: a `CacheLine` is 64 initialized bytes without padding.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
}

fn bytes_mut(lines: &mut [CacheLine]) -> &mut [u8] {
    // SAFETY: as in `bytes`; every bit pattern is a valid `CacheLine`.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
}

#[cfg(test)]
mod tests;
