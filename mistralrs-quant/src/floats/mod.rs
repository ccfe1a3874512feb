//! Float weights, and their products in f32.
//!
//! **The answer** is that of the widened matrix in f32: each output is one chain of fused multiply-adds over the inputs, in
//! order. It does not depend on the tiling, the instruction set or the number of rows. Rows of prompts can be multiplied by the
//! CPU's matrix unit instead: each value is two bf16, and so is an element of F16, so that only the last bits differ.

#![expect(clippy::inline_always, reason = "a call would keep a kernel's registers from staying where they are")]
#![expect(clippy::needless_range_loop, reason = "an iterator that is not inlined would keep registers in memory")]

use std::fmt;

use half::{bf16, f16};

use crate::bf16_product;
use crate::bf16_rows::{Bf16Parts, Bf16Rows};
use crate::format::BLOCK;
use crate::kernels::Bf16Weights;
use crate::matrix::{Columns, NotRows, Output, with_scratch};
use crate::packing::{self, FillPiece, MatrixShape, StoredRows};
use crate::storage::Storage;
use crate::threads::Threads;
use crate::tile::TILE;

mod kernel;
mod lanes;
#[cfg(target_arch = "x86_64")]
mod x86;

/// Rows of activations one unit of work reads; keeps a unit's activations in the second-level cache.
const ROWS_PER_UNIT: usize = 64;

/// From so many rows on tiles are widened to f32 first: three strips of the largest kernel.
const MIN_WIDENED_ROWS: usize = 24;

/// What widened tiles may take: with as much for activations they have room in a second-level cache of 1 MB.
const MAX_WIDENED_BYTES: usize = 512 * 1024;

/// Inputs that kernels take at once.
const PAIR: usize = 2;

/// Element types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatFormat {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// A weight `[N, K]` of floats: tiles of 16 outputs, each a run of inputs; the last tile is zero-padded.
pub struct FloatMatrix {
    storage: Storage,
    format: FloatFormat,
    num_outputs: usize,
    num_inputs: usize,
}

impl FloatFormat {
    /// Little-endian elements, widened.
    pub fn widen(self, bytes: &[u8]) -> Vec<f32> {
        bytes.chunks_exact(self.element_bytes()).map(|element| self.widen_one(element)).collect()
    }

    /// As ggml calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    /// Bytes of an element.
    pub const fn element_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Whether an element is one bf16 or two without loss.
    const fn is_bf16_parts(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16)
    }

    /// Bytes of a packed matrix; `None` where K is odd, or the number has no room.
    pub fn num_packed_bytes(self, shape: MatrixShape) -> Option<usize> {
        shape.num_packed_bytes(PAIR, PAIR * TILE * self.element_bytes())
    }

    fn widen_one(self, element: &[u8]) -> f32 {
        match *element {
            [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
            [a, b] if self == Self::F16 => f16::from_le_bytes([a, b]).to_f32(),
            [a, b] => bf16::from_le_bytes([a, b]).to_f32(),
            _ => unreachable!("elements have 2 or 4 bytes"),
        }
    }
}

/// Elements of SIZE bytes of `rows` into a tile: those of one input beside each other.
fn interleave<const SIZE: usize>(rows: &[&[u8]], tile: &mut [u8]) {
    let inputs = tile.as_chunks_mut::<SIZE>().0.chunks_exact_mut(TILE);
    let rows: Vec<&[[u8; SIZE]]> = rows.iter().map(|row| row.as_chunks().0).collect();
    for (input, elements) in inputs.enumerate() {
        for (element, row) in elements.iter_mut().zip(&rows) {
            *element = row[input];
        }
    }
}

impl FloatMatrix {
    /// Packs `parts`, each a whole number of rows of `num_inputs` as a file stores them, one part after the other.
    ///
    /// # Errors
    /// [`NotRows`]: a part ends within a row, or K is odd.
    pub fn pack(
        format: FloatFormat,
        num_inputs: usize,
        parts: &[&[u8]],
        threads: &dyn Threads,
    ) -> Result<Self, NotRows> {
        Self::pack_rows(format, num_inputs, StoredRows::new(parts), threads)
    }

    /// [`Self::pack`], saying what was read.
    ///
    /// # Errors
    /// As there.
    pub fn pack_rows(
        format: FloatFormat,
        num_inputs: usize,
        stored: StoredRows<'_>,
        threads: &dyn Threads,
    ) -> Result<Self, NotRows> {
        let size = format.element_bytes();
        let rows = stored.split(num_inputs * size).filter(|_| num_inputs.is_multiple_of(PAIR));
        let rows = rows.ok_or_else(|| stored.not_rows(num_inputs, format.name()))?;
        let storage = stored.pack(&rows, TILE * num_inputs * size, threads, |rows, tile| {
            if size == 4 { interleave::<4>(rows, tile) } else { interleave::<2>(rows, tile) }
        });
        Ok(Self { storage, format, num_outputs: rows.len(), num_inputs })
    }

    /// A matrix of tiles that [`Self::packed_bytes`] gave once, of the same `format` and `shape`; `None` where no matrix has
    /// such a shape.
    pub fn from_tiles(
        format: FloatFormat,
        shape: MatrixShape,
        fill: FillPiece<'_>,
        threads: &dyn Threads,
    ) -> Option<Self> {
        let storage = packing::fill_pieces(format.num_packed_bytes(shape)?, fill, threads);
        Some(Self { storage, format, num_outputs: shape.num_outputs, num_inputs: shape.num_inputs })
    }

    /// Its tiles, one after the other.
    pub fn packed_bytes(&self) -> &[u8] {
        self.storage.bytes()
    }

    /// N.
    pub fn num_outputs(&self) -> usize {
        self.num_outputs
    }

    /// K.
    pub fn num_inputs(&self) -> usize {
        self.num_inputs
    }

    /// Bytes held.
    pub fn num_bytes(&self) -> usize {
        self.storage.bytes().len()
    }

    /// Row `index`, widened.
    ///
    /// # Panics
    /// If there is no such row or `out` is not K long.
    pub fn copy_row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.num_outputs && out.len() == self.num_inputs, "row {index} into {} values", out.len());
        let size = self.format.element_bytes();
        let tile = &self.storage.bytes()[index / TILE * TILE * self.num_inputs * size..];
        for (input, out) in out.iter_mut().enumerate() {
            *out = self.format.widen_one(&tile[(input * TILE + index % TILE) * size..][..size]);
        }
    }

    /// `activations` `[T, K]` → `out` `[T, N]`. A row of it depends on that row of the activations alone.
    ///
    /// # Panics
    /// If sizes differ.
    pub fn matmul(&self, activations: &[f32], out: Columns<'_>, threads: &dyn Threads) {
        self.matmul_with(kernel::detected(), activations, out, threads);
    }

    fn matmul_with(&self, level: kernel::Level, activations: &[f32], out: Columns<'_>, threads: &dyn Threads) {
        let num_rows = activations.len() / self.num_inputs;
        assert_eq!(activations.len(), num_rows * self.num_inputs, "activations are whole rows");
        out.check(num_rows, self.num_outputs);
        if num_rows == 0 {
            return;
        }
        let out = Output::new(out, self.num_outputs);
        let num_tiles = self.num_outputs.div_ceil(TILE);
        let tiles_per_unit = kernel::tiles_at_once(level, num_rows);
        let row_chunks = num_rows.div_ceil(ROWS_PER_UNIT);
        let tile_bytes = TILE * self.num_inputs * self.format.element_bytes();
        let weights = self.storage.bytes();
        let widened_bytes = self.widened_bytes(tiles_per_unit, num_rows);
        threads.run(num_tiles.div_ceil(tiles_per_unit) * row_chunks, &|units| {
            with_scratch(widened_bytes, |scratch| {
                // Neighbouring units read the same tiles.
                let mut widened = None;
                for unit in units {
                    let first_tile = unit / row_chunks * tiles_per_unit;
                    let first_row = unit % row_chunks * ROWS_PER_UNIT;
                    let tiles = first_tile..num_tiles.min(first_tile + tiles_per_unit);
                    let (stored, num_inputs) = (&weights[first_tile * tile_bytes..], self.num_inputs);
                    let (format, num_elements) = (self.format, tiles.len() * num_inputs * TILE);
                    if widened_bytes > 0 && widened != Some(first_tile) {
                        let mut widening = kernel::Widening { from: stored, format, num_elements, to: scratch };
                        // SAFETY: the CPU has `level`, see below; `scratch` has room for so many tiles.
                        unsafe { kernel::widen(level, &mut widening) };
                        widened = Some(first_tile);
                    }
                    let rows = first_row..num_rows.min(first_row + ROWS_PER_UNIT);
                    let (weights, format) =
                        if widened.is_some() { (&*scratch, FloatFormat::F32) } else { (stored, format) };
                    let panel = kernel::Panel { weights, format, num_inputs, activations, out, tiles, rows };
                    // SAFETY: `level` was detected on this CPU (or is the plain one); units are disjoint in (tile, row),
                    // all inside the sizes asserted above, and `run` returns only after every unit is done.
                    unsafe { kernel::run(level, &panel) };
                }
            });
        });
    }

    /// Whether [`Self::matmul_bf16`] multiplies it, here.
    pub fn multiplies_bf16(&self) -> bool {
        self.format.is_bf16_parts() && self.num_inputs.is_multiple_of(BLOCK) && Bf16Rows::is_supported()
    }

    /// `rows` `[T, K]`, each value two bf16, times the weights, one bf16 or two → `out` `[T, N]`: but for the last bits what
    /// [`Self::matmul`] gives. A row of it depends on that row alone.
    ///
    /// # Panics
    /// If sizes differ, or there are rows and [`Self::multiplies_bf16`] says no.
    pub fn matmul_bf16(&self, rows: &Bf16Rows, out: Columns<'_>, threads: &dyn Threads) {
        assert!(rows.num_rows() == 0 || self.multiplies_bf16(), "{self:?} as bf16");
        assert_eq!(rows.parts(), Bf16Parts::Two, "rows beside floats");
        let weights = Bf16Weights {
            bytes: self.storage.bytes(),
            format: self.format.into(),
            num_groups: self.num_inputs / BLOCK,
        };
        bf16_product::matmul(&weights, (self.num_outputs, self.num_inputs), rows, out, threads);
    }

    /// Bytes of so many tiles in f32, or nothing where so many rows are better off without.
    fn widened_bytes(&self, num_tiles: usize, num_rows: usize) -> usize {
        let num_bytes = num_tiles * TILE * self.num_inputs * size_of::<f32>();
        let pays = self.format != FloatFormat::F32 && num_rows >= MIN_WIDENED_ROWS && num_bytes <= MAX_WIDENED_BYTES;
        if pays { num_bytes } else { 0 }
    }
}

impl fmt::Debug for FloatMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FloatMatrix[{}, {}; {:?}]", self.num_outputs, self.num_inputs, self.format)
    }
}

#[cfg(test)]
mod tests;
