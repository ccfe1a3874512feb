//! Products of bf16 by the CPU's matrix unit (AMX): an instruction multiplies 16 rows of 32 inputs by 16 outputs.
//!
//! Weights are widened to bf16 a part of the inputs at a time, for as many tiles as a unit of work has. A part stays in
//! the second-level cache while all rows of the unit pass over it, and their sums wait for the next one. Of each block of 32
//! inputs the unit sums the even and the odd ones in f32, adds both, and adds that to what the blocks before gave. Parts are whole
//! blocks, and a sum starts from what it is added to, so it has the same bits whatever the parts, the other rows or the unit of
//! work. Source: Intel 64 and IA-32
//! Architectures Software Developer's Manual, TDPBF16PS.
//!
//! Registers of the unit, by number: 0 to 3 hold the sums of two tiles of rows with two tiles of outputs, 4 and 5 the
//! rows, 6 and 7 the weights.

use std::arch::asm;
use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_and_si512, _mm512_castps_si512, _mm512_cvtepi32_ps, _mm512_fmadd_ps,
    _mm512_mul_ps, _mm512_or_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_srli_epi32, _mm512_storeu_si512,
};
use std::ops::Range;

use super::avx512::Avx512Lanes;
use super::lanes::Lanes;
use super::matrix_unit::MatrixUnit;
use super::product::Target;
use super::weights::{Stored, Weights, for_format};
use crate::bf16_rows::{BLOCK_BYTES, ROW_TILE};
use crate::format::{BLOCK, BlockFormat};
use crate::kernels::Bf16Job;
use crate::tile::{PLANE_BYTES, QUADS, TILE};

/// Blocks of inputs in a part, at most: two tiles of weights and two of rows, 20 KiB each, share the first-level cache.
const MAX_PART: usize = 10;

/// Tiles of rows and of outputs that are multiplied together.
const PAIR: usize = 2;

/// Bytes of the sums of two tiles of rows with two of outputs: `[row, output]`.
const SUMS_BYTES: usize = PAIR * ROW_TILE * SUMS_ROW_BYTES;

/// From row to row of them.
const SUMS_ROW_BYTES: usize = PAIR * TILE * size_of::<f32>();

/// Bytes of [`Bf16Job::scratch`] for so many tiles of outputs and rows.
pub(super) fn scratch_bytes(num_tiles: usize, num_row_tiles: usize) -> usize {
    let num_pairs = num_tiles.div_ceil(PAIR) * num_row_tiles.div_ceil(PAIR);
    num_tiles * MAX_PART * BLOCK_BYTES + (num_pairs + 1) * SUMS_BYTES
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
    unsafe { for_format!(job.weights.format, with) }
}

/// # Safety
/// As [`run`]'s; `S` is the job's format.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn run_format<S: Weights>(job: &mut Bf16Job<'_>) {
    const { assert!(S::BLOCKS <= MAX_PART, "a group is not cut") };
    let num_groups = job.weights.num_groups;
    let (widened, sums) = job.scratch.split_at_mut(job.tiles.len() * MAX_PART * BLOCK_BYTES);
    let (buffer, sums) = sums.split_at_mut(SUMS_BYTES);
    // SAFETY: the caller's promise.
    let unit = unsafe { MatrixUnit::set_up() };
    // Of nearly equal size.
    let num_parts = (num_groups * S::BLOCKS).div_ceil(MAX_PART).max(1);
    let part_groups = num_groups.div_ceil(num_parts).min(MAX_PART / S::BLOCKS);
    for first in (0..num_groups).step_by(part_groups) {
        let groups = first..num_groups.min(first + part_groups);
        let num_blocks = groups.len() * S::BLOCKS;
        let tile_bytes = num_blocks * BLOCK_BYTES;
        for (index, tile) in job.tiles.clone().enumerate() {
            let stored = job.weights.bytes[(tile * num_groups + groups.start) * S::GROUP_BYTES..].as_ptr();
            // SAFETY: the caller's promise: the tile has these groups, and there is room for a part of each tile.
            unsafe { widen::<S>(stored, groups.len(), widened[index * tile_bytes..].as_mut_ptr()) };
        }
        let (is_first, is_last) = (groups.start == 0, groups.end == num_groups);
        let mut sums = sums.as_mut_ptr();
        for tile in job.tiles.clone().step_by(PAIR) {
            for row_tile in job.row_tiles.clone().step_by(PAIR) {
                // Where fewer are left the last one stands in for the one that is missing, and is not stored again.
                let two_of = |at: usize, all: &Range<usize>| [at, (at + 1).min(all.end - 1)];
                let row_bytes = job.rows.num_inputs() / BLOCK * BLOCK_BYTES;
                let rows = two_of(row_tile, &job.row_tiles).map(|row_tile| {
                    job.rows.bytes()[row_tile * row_bytes + first * S::BLOCKS * BLOCK_BYTES..].as_ptr()
                });
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
                    multiply(rows, weights, num_blocks, from, to);
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

/// Rows of two lines, so many bytes apart.
#[derive(Clone, Copy)]
struct Sums {
    at: *mut u8,
    row_bytes: usize,
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

/// Writes groups of a stored tile to `out` as the unit reads them: of each two inputs the 16 outputs' pairs.
///
/// # Safety
/// `tile` points to so many groups of layout `S`; `out` has room for their blocks; the CPU has AVX-512F, BW and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn widen<S: Weights>(tile: *const u8, num_groups: usize, out: *mut u8) {
    let num_bytes = num_groups * S::GROUP_BYTES;
    // What comes next out of memory, mostly this tile's next part, does so while rows pass over this one.
    for line in (0..num_bytes).step_by(64) {
        Avx512Lanes::prefetch_far(tile.wrapping_add(num_bytes + line));
    }
    // SAFETY: the caller's promise.
    unsafe {
        let mut to = out;
        for group in 0..num_groups {
            let group = tile.add(group * S::GROUP_BYTES);
            for block in 0..S::BLOCKS {
                let mut open = S::open::<Avx512Lanes>(group, block);
                for span in 0..S::SPANS {
                    let factors = CodeFactors::new(S::factors::<Avx512Lanes>(group, block, span), S::HAS_MINIMA);
                    for quad in span * QUADS / S::SPANS..(span + 1) * QUADS / S::SPANS {
                        let [low, high] = factors.pairs(S::quad(&mut open, quad));
                        _mm512_storeu_si512(to.cast(), low);
                        _mm512_storeu_si512(to.add(PLANE_BYTES).cast(), high);
                        to = to.add(2 * PLANE_BYTES);
                    }
                }
            }
        }
    }
}

/// What the codes of a quad are worth, by output.
struct CodeFactors {
    /// By place in the quad: a code that is not moved to the low end of its 32 bits is worth as much less.
    scales: [Avx512Lanes; 4],
    /// Of a code of zero.
    zero: Avx512Lanes,
}

impl CodeFactors {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn new((scale, minimum): (Avx512Lanes, Avx512Lanes), has_minima: bool) -> Self {
        let times = |factor: f32| Avx512Lanes(_mm512_mul_ps(scale.0, _mm512_set1_ps(factor)));
        // Codes have their zero at 128.
        let zero = times(-128.0);
        // SAFETY: the CPU has AVX-512F.
        let zero = if has_minima { unsafe { zero.add(minimum) } } else { zero };
        Self { scales: [scale, times(1.0 / 256.0), times(1.0 / 65536.0), scale], zero }
    }

    /// The values of the first two inputs of 16 outputs as pairs of bf16, and those of the other two.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn pairs(&self, codes: __m512i) -> [__m512i; 2] {
        let places = [
            _mm512_and_si512(codes, _mm512_set1_epi32(0xff)),
            _mm512_and_si512(codes, _mm512_set1_epi32(0xff00)),
            _mm512_and_si512(codes, _mm512_set1_epi32(0x00ff_0000)),
            _mm512_srli_epi32::<24>(codes),
        ];
        // To nearest: half a unit of what is left is added before the rest is cut off.
        let value = |place: usize| {
            let value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(places[place]), self.scales[place].0, self.zero.0);
            _mm512_add_epi32(_mm512_castps_si512(value), _mm512_set1_epi32(0x8000))
        };
        let pair = |first: usize| {
            let high = _mm512_and_si512(value(first + 1), _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
            _mm512_or_si512(high, _mm512_srli_epi32::<16>(value(first)))
        };
        [pair(0), pair(2)]
    }
}

/// Adds the products of two tiles of rows by two of weights over `num_blocks` to the sums at `from`, nothing if that is
/// null, and stores them at `to`.
///
/// # Safety
/// The unit is set up; tiles have so many blocks; there are 32 rows at `from` unless it is null, and room for as many at `to`.
#[inline]
unsafe fn multiply(rows: [*const u8; 2], weights: [*const u8; 2], num_blocks: usize, from: Sums, to: Sums) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "test {from}, {from}",
            "jz 3f",
            "tileloadd tmm0, [{from} + {from_row}]",
            "tileloadd tmm1, [{from} + {from_row} + 64]",
            "tileloadd tmm2, [{other_from} + {from_row}]",
            "tileloadd tmm3, [{other_from} + {from_row} + 64]",
            "jmp 2f",
            "3:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{row} + {line}]",
            "tileloadd tmm6, [{weight} + {line}]",
            "tileloadd tmm7, [{other_weight} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{other_row} + {line}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {row}, {block}",
            "add {other_row}, {block}",
            "add {weight}, {block}",
            "add {other_weight}, {block}",
            "dec {num_blocks}",
            "jnz 2b",
            "tilestored [{to} + {to_row}], tmm0",
            "tilestored [{to} + {to_row} + 64], tmm1",
            "tilestored [{other_to} + {to_row}], tmm2",
            "tilestored [{other_to} + {to_row} + 64], tmm3",
            from = in(reg) from.at,
            other_from = in(reg) from.at.wrapping_add(ROW_TILE * from.row_bytes),
            from_row = in(reg) from.row_bytes,
            to = in(reg) to.at,
            other_to = in(reg) to.at.wrapping_add(ROW_TILE * to.row_bytes),
            to_row = in(reg) to.row_bytes,
            row = inout(reg) rows[0] => _,
            other_row = inout(reg) rows[1] => _,
            weight = inout(reg) weights[0] => _,
            other_weight = inout(reg) weights[1] => _,
            num_blocks = inout(reg) num_blocks => _,
            line = in(reg) PLANE_BYTES,
            block = const BLOCK_BYTES,
            out("tmm0") _,
            out("tmm1") _,
            out("tmm2") _,
            out("tmm3") _,
            out("tmm4") _,
            out("tmm5") _,
            out("tmm6") _,
            out("tmm7") _,
            options(nostack)
        );
    }
}

const _: () = assert!(BLOCK_BYTES == ROW_TILE * PLANE_BYTES && BLOCK_BYTES == BLOCK / 2 * PLANE_BYTES);
const _: () = assert!(SUMS_BYTES == 4 * 1024 && SUMS_ROW_BYTES == 128 && TILE * size_of::<f32>() == PLANE_BYTES);
