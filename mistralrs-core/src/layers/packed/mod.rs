//! Weight matrices in the layout our kernels read, and their products with activations.
//!
//! **The answer** is that of the dequantized matrix in f32: each output is one chain of fused multiply-adds over the
//! inputs, in order. It does not depend on the tiling, the instruction set or the number of rows: row t of a product
//! has the same bits alone and among 500 others, and a Q4_1 matrix gives the bits of its dequantized F32 copy.
//! (The `gemm` crate and candle's kernels for small and large batches order their sums by the number of rows, so that
//! greedy decoding of one prompt could depend on its neighbours.)
//!
//! **The layout** is tiles of 16 outputs side by side, in the file's own number of bytes: weights are widened in
//! registers, so a model takes the memory and bandwidth of its file.

#![expect(clippy::inline_always, reason = "a call would keep a kernel's registers from staying where they are")]
#![expect(clippy::cast_ptr_alignment, reason = "groups are read by unaligned loads, and begin on cache lines besides")]

use candle_core::quantized::GgmlDType;
use candle_core::utils::barrier_pool;

use super::rows::SendPointer;

mod format;
mod kernel;
mod lanes;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use format::WeightFormat;

/// Outputs of a tile: one AVX-512 register of f32.
const TILE: usize = 16;

/// Rows of activations one unit of work reads; keeps a unit's activations in the second-level cache.
const ROWS_PER_UNIT: usize = 64;

/// A weight `[N, K]`: tiles of 16 outputs, each a run of groups of inputs; the last tile is zero-padded.
pub struct PackedMatrix {
    storage: Vec<CacheLine>,
    format: WeightFormat,
    num_outputs: usize,
    num_inputs: usize,
}

/// Aligned so that no load straddles two cache lines.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine([u8; 64]);

/// Why bytes are not a matrix.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{num_bytes} bytes are not whole rows of {num_inputs} inputs in {format:?}")]
pub struct NotRows {
    num_bytes: usize,
    num_inputs: usize,
    format: WeightFormat,
}

impl PackedMatrix {
    /// Packs `parts`, each a whole number of rows of `num_inputs` as a file stores them, one part after the other.
    ///
    /// # Errors
    /// [`NotRows`]: a part ends within a row, or a row within a group.
    pub fn pack(format: WeightFormat, num_inputs: usize, parts: &[&[u8]]) -> Result<Self, NotRows> {
        let row_bytes = num_inputs / format.block_len() * format.block_bytes();
        let is_whole = |part: &&[u8]| row_bytes > 0 && part.len().is_multiple_of(row_bytes);
        if !num_inputs.is_multiple_of(format.group_len()) || !parts.iter().all(is_whole) {
            let num_bytes = parts.iter().map(|part| part.len()).sum();
            return Err(NotRows { num_bytes, num_inputs, format });
        }
        let rows: Vec<&[u8]> = parts.iter().flat_map(|part| part.chunks_exact(row_bytes)).collect();
        let num_bytes = rows.len().div_ceil(TILE) * TILE * row_bytes;
        let mut storage = vec![CacheLine([0; 64]); num_bytes.div_ceil(64)];
        let tiles = bytes_mut(&mut storage)[..num_bytes].chunks_exact_mut(TILE * row_bytes);
        for (tile, rows) in tiles.zip(rows.chunks(TILE)) {
            format.pack_tile(rows, tile);
        }
        Ok(Self { storage, format, num_outputs: rows.len(), num_inputs })
    }

    /// N.
    pub fn num_outputs(&self) -> usize {
        self.num_outputs
    }

    /// K.
    pub fn num_inputs(&self) -> usize {
        self.num_inputs
    }

    /// How weights are stored.
    pub fn format(&self) -> WeightFormat {
        self.format
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

    /// Row `index`, dequantized.
    ///
    /// # Panics
    /// If there is no such row or `out` is not K long.
    pub fn copy_row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.num_outputs && out.len() == self.num_inputs, "row {index} into {} values", out.len());
        let group_bytes = self.format.group_bytes();
        let tile_bytes = self.num_inputs / self.format.group_len() * group_bytes;
        let tile = &bytes(&self.storage)[index / TILE * tile_bytes..][..tile_bytes];
        for (group, out) in tile.chunks_exact(group_bytes).zip(out.chunks_exact_mut(self.format.group_len())) {
            self.format.unpack_lane(group, index % TILE, out);
        }
    }

    fn matmul_with(&self, level: kernel::Level, activations: &[f32], out: &mut [f32]) {
        let num_rows = activations.len() / self.num_inputs;
        assert_eq!(activations.len(), num_rows * self.num_inputs, "activations are whole rows");
        assert_eq!(out.len(), num_rows * self.num_outputs, "one output per row and weight row");
        let num_tiles = self.num_outputs.div_ceil(TILE);
        let tiles_per_unit = kernel::tiles_at_once(level, self.format, num_rows);
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

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedMatrix[{}, {}; {:?}]", self.num_outputs, self.num_inputs, self.format)
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
