//! Products of bf16 by the CPU's matrix unit (AMX): an instruction multiplies 16 rows of 32 inputs by 16 outputs.
//!
//! Weights are widened to bf16 a part of the inputs at a time, for as many tiles as a unit of work has. A part stays in
//! the second-level cache while all rows of the unit pass over it, and their sums wait for the next one. Of each block of 32
//! inputs the unit sums the even and the odd ones in f32, adds both, and adds that to what the blocks before gave. Parts are whole
//! blocks, and a sum starts from what it is added to, so it has the same bits whatever the parts, the other rows or the unit of
//! work. Source: Intel 64 and IA-32
//! Architectures Software Developer's Manual, TDPBF16PS.
//!
//! Beside quantized weights a value is one bf16. Beside floats it is two, the nearest and what that leaves, and so is an
//! element of F16: two products, or three, which leave out a 43000th at most.

mod multiply;
mod operand;

use std::ops::Range;

use super::avx512::Avx512Lanes;
use super::lanes::Lanes;
use super::matrix_unit::MatrixUnit;
use super::product::Target;
use super::weights::{Stored, for_format};
use crate::bf16_rows::{BLOCK_BYTES, ROW_TILE};
use crate::floats::FloatFormat;
use crate::format::{BLOCK, BlockFormat};
use crate::kernels::Bf16Job;
use crate::tile::{PLANE_BYTES, TILE};
use crate::weight_format::WeightFormat;
use multiply::Sums;
use operand::{Bf16Floats, F16Floats, Operand};

/// Blocks of bf16 that a tile of weights and one of rows have in a part together, at most: two of each, 40 KiB, share the
/// first-level cache.
const MAX_PART_BLOCKS: usize = 20;

/// Of those the weights' share, at most: half.
const MAX_WIDENED_BYTES: usize = MAX_PART_BLOCKS / 2 * BLOCK_BYTES;

/// Tiles of rows and of outputs that are multiplied together.
const PAIR: usize = 2;

/// Bytes of the sums of two tiles of rows with two of outputs: `[row, output]`.
const SUMS_BYTES: usize = PAIR * ROW_TILE * SUMS_ROW_BYTES;

/// From row to row of them.
const SUMS_ROW_BYTES: usize = PAIR * TILE * size_of::<f32>();

/// Bytes of [`Bf16Job::scratch`] for so many tiles of outputs and rows.
pub(super) fn scratch_bytes(num_tiles: usize, num_row_tiles: usize) -> usize {
    let num_pairs = num_tiles.div_ceil(PAIR) * num_row_tiles.div_ceil(PAIR);
    num_tiles * MAX_WIDENED_BYTES + (num_pairs + 1) * SUMS_BYTES
}

/// Computes `job`.
///
/// # Safety
/// There is a unit ([`is_available`]); the matrix and the rows have the job's tiles, and as many inputs; `scratch` is of
/// [`scratch_bytes`]; `out` has room for every row and nobody else touches these columns of these rows.
///
/// [`is_available`]: super::matrix_unit::is_available
pub(super) unsafe fn run(job: &mut Bf16Job<'_>) {
    macro_rules! with {
        ($format:ident, $spans:literal, $has_minima:literal) => {
            run_format::<Stored<{ BlockFormat::$format as usize }>>(job)
        };
    }
    // SAFETY: the caller's promise is the callee's; the format names how tiles are stored.
    unsafe {
        match job.weights.format {
            WeightFormat::Blocks(format) => for_format!(format, with),
            WeightFormat::Floats(FloatFormat::Bf16) => run_format::<Bf16Floats>(job),
            WeightFormat::Floats(FloatFormat::F16) => run_format::<F16Floats>(job),
            WeightFormat::Floats(FloatFormat::F32) => unreachable!("an f32 is no sum of two bf16"),
        }
    }
}

/// # Safety
/// As [`run`]'s; `W` is the job's format.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn run_format<W: Operand>(job: &mut Bf16Job<'_>) {
    let max_part = const { MAX_PART_BLOCKS / (W::PARTS + W::ROW_PARTS) };
    const { assert!(W::BLOCKS <= MAX_PART_BLOCKS / (W::PARTS + W::ROW_PARTS), "a group is not cut") };
    let num_groups = job.weights.num_groups;
    let (widened, sums) = job.scratch.split_at_mut(job.tiles.len() * MAX_WIDENED_BYTES);
    let (buffer, sums) = sums.split_at_mut(SUMS_BYTES);
    // SAFETY: the caller's promise.
    let unit = unsafe { MatrixUnit::set_up() };
    // Of nearly equal size.
    let num_parts = (num_groups * W::BLOCKS).div_ceil(max_part).max(1);
    let part_groups = num_groups.div_ceil(num_parts).min(max_part / W::BLOCKS);
    for first in (0..num_groups).step_by(part_groups) {
        let groups = first..num_groups.min(first + part_groups);
        let num_blocks = groups.len() * W::BLOCKS;
        let tile_bytes = num_blocks * W::PARTS * BLOCK_BYTES;
        for (index, tile) in job.tiles.clone().enumerate() {
            let stored = job.weights.bytes[(tile * num_groups + groups.start) * W::GROUP_BYTES..].as_ptr();
            let num_bytes = groups.len() * W::GROUP_BYTES;
            // What comes next out of memory, mostly this tile's next part, does so while rows pass over this one.
            for line in (0..num_bytes).step_by(64) {
                Avx512Lanes::prefetch_far(stored.wrapping_add(num_bytes + line));
            }
            // SAFETY: the caller's promise: the tile has these groups, and there is room for a part of each tile.
            unsafe { W::widen(stored, groups.len(), widened[index * tile_bytes..].as_mut_ptr()) };
        }
        let (is_first, is_last) = (groups.start == 0, groups.end == num_groups);
        let mut sums = sums.as_mut_ptr();
        for tile in job.tiles.clone().step_by(PAIR) {
            for row_tile in job.row_tiles.clone().step_by(PAIR) {
                // Where fewer are left the last one stands in for the one that is missing, and is not stored again.
                let two_of = |at: usize, all: &Range<usize>| [at, (at + 1).min(all.end - 1)];
                let first_byte = first * W::BLOCKS * W::ROW_PARTS * BLOCK_BYTES;
                let rows = two_of(row_tile, &job.row_tiles)
                    .map(|row_tile| job.rows.bytes()[row_tile * job.rows.tile_bytes() + first_byte..].as_ptr());
                let weights =
                    two_of(tile, &job.tiles).map(|tile| widened[(tile - job.tiles.start) * tile_bytes..].as_ptr());
                let num_rows = (job.rows.num_rows() - row_tile * ROW_TILE)
                    .min(PAIR * ROW_TILE)
                    .min((job.row_tiles.end - row_tile) * ROW_TILE);
                let num_tiles = PAIR.min(job.tiles.end - tile);
                let pair = Pair { num_rows, target: Target::new(&job.out, tile, num_tiles, row_tile * ROW_TILE) };
                // SAFETY: the caller's promise: these are the tiles' blocks, there is room for the sums of all pairs, and for their
                // results where the target is.
                unsafe {
                    let sums = Sums { at: sums, row_bytes: SUMS_ROW_BYTES };
                    let from = if is_first { pair.addends(buffer) } else { sums };
                    let to = if is_last { pair.results(buffer) } else { sums };
                    W::MULTIPLY(rows, weights, num_blocks, from, to);
                    if is_last {
                        pair.store(buffer);
                    }
                }
                sums = sums.wrapping_add(SUMS_BYTES);
            }
        }
    }
    drop(unit);
}

/// Two tiles of rows by two of outputs: what their sums start from, and where they end.
///
/// A pair that lacks rows or outputs has both in a buffer of [`SUMS_BYTES`] on the way: the unit knows whole tiles only.
struct Pair {
    num_rows: usize,
    target: Target,
}

impl Pair {
    fn is_whole(&self) -> bool {
        self.num_rows == PAIR * ROW_TILE && self.target.num_columns == PAIR * TILE
    }

    /// What products are added to; null for nothing.
    ///
    /// # Safety
    /// The target has these rows.
    #[inline]
    unsafe fn addends(&self, buffer: &mut [u8]) -> Sums {
        let Target { addend, addend_stride, .. } = self.target;
        let whole = Sums { at: addend.cast_mut().cast(), row_bytes: addend_stride * size_of::<f32>() };
        if addend.is_null() || self.is_whole() {
            return whole;
        }
        for row in 0..self.num_rows {
            // SAFETY: the caller's promise; the buffer has room for a pair's rows.
            unsafe { self.copy(addend.add(row * addend_stride), buffer_row(buffer, row)) };
        }
        Sums { at: buffer.as_mut_ptr(), row_bytes: SUMS_ROW_BYTES }
    }

    /// Where results go. Their lines are asked for: rows are far apart, one or two lines of each.
    #[inline]
    fn results(&self, buffer: &mut [u8]) -> Sums {
        (0..self.num_rows).for_each(|row| self.target.prefetch::<Avx512Lanes, PAIR>(row));
        if self.is_whole() {
            return Sums { at: self.target.at.cast(), row_bytes: self.target.stride * size_of::<f32>() };
        }
        Sums { at: buffer.as_mut_ptr(), row_bytes: SUMS_ROW_BYTES }
    }

    /// Takes results from the buffer, if they are there.
    ///
    /// # Safety
    /// The target has these rows, and nobody else touches them.
    #[inline]
    unsafe fn store(&self, buffer: &mut [u8]) {
        let num_rows = if self.is_whole() { 0 } else { self.num_rows };
        for row in 0..num_rows {
            // SAFETY: the caller's promise; the buffer has a pair's rows.
            unsafe { self.copy(buffer_row(buffer, row), self.target.at.add(row * self.target.stride)) };
        }
    }

    /// # Safety
    /// Both have a row of the target's columns.
    unsafe fn copy(&self, from: *const f32, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from, to, self.target.num_columns) };
    }
}

fn buffer_row(buffer: &mut [u8], row: usize) -> *mut f32 {
    buffer[row * SUMS_ROW_BYTES..][..SUMS_ROW_BYTES].as_mut_ptr().cast()
}

const _: () = assert!(BLOCK_BYTES == ROW_TILE * PLANE_BYTES && BLOCK_BYTES == BLOCK / 2 * PLANE_BYTES);
const _: () = assert!(SUMS_BYTES == 4 * 1024 && SUMS_ROW_BYTES == 128 && TILE * size_of::<f32>() == PLANE_BYTES);
