//! The inner loops of [`FloatMatrix`]: one block of R rows by V tiles, generic over format and instruction set.

use std::ops::Range;

use half::{bf16, f16};

use super::lanes::{Lanes, PlainLanes};
use super::{FloatFormat, PAIR};
use crate::matrix::Output;
use crate::tile::TILE;

/// Instruction sets the loops are compiled for. All give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// No intrinsics.
    Plain,
    /// 256-bit registers, with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 512-bit registers.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// The best level of this CPU.
pub(super) fn detected() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return Level::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            return Level::Avx2;
        }
    }
    Level::Plain
}

/// Tiles a block covers at `num_rows` rows: a unit of work of as many loses nothing to remainders.
pub(super) fn tiles_at_once(level: Level, num_rows: usize) -> usize {
    match (level, num_rows) {
        (_, 1) => 4,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, _) => 3,
        (_, 2) => 2,
        _ => 4,
    }
}

/// The part of a product that one unit of work computes.
pub(super) struct Panel<'a> {
    /// The tiles' elements.
    pub weights: &'a [u8],
    pub format: FloatFormat,
    pub num_inputs: usize,
    /// `[T, K]`.
    pub activations: &'a [f32],
    /// `[T, N]`.
    pub out: Output<'a>,
    /// Of the matrix.
    pub tiles: Range<usize>,
    /// Of the activations.
    pub rows: Range<usize>,
}

/// Computes `panel`.
///
/// # Safety
/// The CPU has `level`; `panel.weights` holds as many tiles as `panel.tiles` says, `activations` the rows; `out` holds a row of
/// N values for every row of `activations`, and nobody else touches this panel's part of it.
pub(super) unsafe fn run(level: Level, panel: &Panel<'_>) {
    // SAFETY: the caller's promise is the callee's.
    unsafe {
        match level {
            Level::Plain => by_format::<PlainLanes>(panel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => super::x86::run_avx2(panel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => super::x86::run_avx512(panel),
        }
    }
}

/// Picks the loops of the matrix's format.
///
/// # Safety
/// As [`run`]'s, for the level of `L`.
#[inline(always)]
pub(super) unsafe fn by_format<L: Lanes>(panel: &Panel<'_>) {
    // SAFETY: the caller's promise is the callee's; the format names how the tiles were packed.
    unsafe {
        match panel.format {
            FloatFormat::F32 => by_rows::<L, f32>(panel),
            FloatFormat::F16 => by_rows::<L, f16>(panel),
            FloatFormat::Bf16 => by_rows::<L, bf16>(panel),
        }
    }
}

/// Tiles' elements, and room for them as f32.
pub(super) struct Widening<'a> {
    pub from: &'a [u8],
    pub format: FloatFormat,
    pub num_elements: usize,
    pub to: &'a mut [u8],
}

/// Writes elements as f32.
///
/// # Safety
/// The CPU has `level`; so many elements, whole tiles, are there and have room.
pub(super) unsafe fn widen(level: Level, widening: &mut Widening<'_>) {
    // SAFETY: the caller's promise is the callee's.
    unsafe {
        match level {
            Level::Plain => widen_by_format::<PlainLanes>(widening),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => super::x86::widen_avx2(widening),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => super::x86::widen_avx512(widening),
        }
    }
}

/// # Safety
/// As [`widen`]'s, for the level of `L`.
#[inline(always)]
pub(super) unsafe fn widen_by_format<L: Lanes>(widening: &mut Widening<'_>) {
    // SAFETY: the caller's promise is the callee's.
    unsafe {
        match widening.format {
            FloatFormat::F32 => widen_elements::<L, f32>(widening),
            FloatFormat::F16 => widen_elements::<L, f16>(widening),
            FloatFormat::Bf16 => widen_elements::<L, bf16>(widening),
        }
    }
}

/// # Safety
/// As [`widen`]'s; elements are `E`.
#[inline(always)]
#[expect(clippy::cast_ptr_alignment, reason = "stores need none")]
unsafe fn widen_elements<L: Lanes, E: Element>(widening: &mut Widening<'_>) {
    let (from, to) = (widening.from.as_ptr().cast::<E>(), widening.to.as_mut_ptr().cast::<f32>());
    for at in (0..widening.num_elements).step_by(TILE) {
        // SAFETY: the caller's promise.
        unsafe { E::load::<L>(from.add(at)).store(to.add(at)) };
    }
}

/// How a tile's elements become f32.
trait Element: Sized {
    /// # Safety
    /// 16 elements can be read there; the CPU has what `L` needs.
    unsafe fn load<L: Lanes>(at: *const Self) -> L;
}

/// Splits the panel into strips of as many rows as have room in registers, so that each weight is widened once a strip.
#[inline(always)]
unsafe fn by_rows<L: Lanes, E: Element>(panel: &Panel<'_>) {
    let is_wide = L::NUM_IN_REGISTERS >= 32;
    let max_rows = if is_wide { 8 } else { 3 };
    let mut row = panel.rows.start;
    while row < panel.rows.end {
        let num_rows = max_rows.min(panel.rows.end - row);
        // R · V sums, what V tiles share, 2 V weights and an activation must fit in the registers.
        // SAFETY: the caller's promise is the callee's.
        unsafe {
            match (is_wide, num_rows) {
                (_, 1) => strip::<L, E, 1, 4>(panel, row),
                (true, 2) => strip::<L, E, 2, 3>(panel, row),
                (true, 3) => strip::<L, E, 3, 3>(panel, row),
                (true, 4) => strip::<L, E, 4, 3>(panel, row),
                (true, 5) => strip::<L, E, 5, 2>(panel, row),
                (true, 6) => strip::<L, E, 6, 2>(panel, row),
                (true, 7) => strip::<L, E, 7, 2>(panel, row),
                (true, _) => strip::<L, E, 8, 3>(panel, row),
                (false, 2) => strip::<L, E, 2, 2>(panel, row),
                (false, _) => strip::<L, E, 3, 1>(panel, row),
            }
        }
        row += num_rows;
    }
}

/// R rows from `row` on, by all tiles of the panel: V at a time, then one at a time.
#[inline(always)]
unsafe fn strip<L: Lanes, E: Element, const R: usize, const V: usize>(panel: &Panel<'_>, row: usize) {
    let mut tile = panel.tiles.start;
    // SAFETY: the caller's promise is the callee's.
    unsafe {
        while tile + V <= panel.tiles.end {
            block::<L, E, R, V>(panel, row, tile);
            tile += V;
        }
        while tile < panel.tiles.end {
            block::<L, E, R, 1>(panel, row, tile);
            tile += 1;
        }
    }
}

/// R rows by V tiles: every sum is one chain over the inputs, so R and V never change a result.
///
/// Counting loops, and a buffer between the sums and where they go: a loop over the sums that LLVM does not unroll, as the
/// one that stores tails and adds biases, would keep them in memory, written again with every pair of inputs.
#[inline(always)]
unsafe fn block<L: Lanes, E: Element, const R: usize, const V: usize>(panel: &Panel<'_>, row: usize, tile: usize) {
    let num_inputs = panel.num_inputs;
    // SAFETY: the caller's promise: R rows and V tiles from here on exist.
    unsafe {
        let tiles = panel.weights.as_ptr().cast::<E>().add((tile - panel.tiles.start) * num_inputs * TILE);
        let activations = panel.activations.as_ptr().add(row * num_inputs);
        let mut sums = [[L::splat(0.0); V]; R];
        for input in (0..num_inputs).step_by(PAIR) {
            let mut weights = [[L::splat(0.0); PAIR]; V];
            for v in 0..V {
                let at = tiles.add((v * num_inputs + input) * TILE);
                weights[v] = [E::load(at), E::load(at.add(TILE))];
            }
            let inputs = activations.add(input);
            for r in 0..R {
                let even = L::splat(*inputs.add(r * num_inputs));
                let odd = L::splat(*inputs.add(r * num_inputs + 1));
                for v in 0..V {
                    sums[r][v] = odd.mul_add(weights[v][1], even.mul_add(weights[v][0], sums[r][v]));
                }
            }
        }
        let mut results = [[[0f32; TILE]; V]; R];
        for r in 0..R {
            for v in 0..V {
                sums[r][v].store(results[r][v].as_mut_ptr());
            }
        }
        for (r, results) in results.iter().enumerate() {
            for (v, result) in results.iter().enumerate() {
                store(&panel.out, row + r, tile + v, L::load_f32(result.as_ptr()));
            }
        }
    }
}

/// Writes one tile's sums of one row, without the padding of the last tile.
#[inline(always)]
unsafe fn store<L: Lanes>(out: &Output<'_>, row: usize, tile: usize, sums: L) {
    let column = tile * TILE;
    let at = out.at.at(row * out.stride + column);
    let addend = out.addend.at(row * out.addend_stride + column).cast_const();
    // SAFETY: `out` has room for the columns from `column` to N; a shorter tail goes through a buffer.
    unsafe {
        if column + TILE <= out.num_columns {
            let sums = if out.addend.0.is_null() { sums } else { sums.add(L::load_f32(addend)) };
            sums.store(at);
            return;
        }
        let mut tail = [0f32; TILE];
        sums.store(tail.as_mut_ptr());
        let tail = &mut tail[..out.num_columns - column];
        if !out.addend.0.is_null() {
            tail.iter_mut().enumerate().for_each(|(index, value)| *value += *addend.add(index));
        }
        std::ptr::copy_nonoverlapping(tail.as_ptr(), at, tail.len());
    }
}

macro_rules! element {
    ($element:ty, $load:ident) => {
        impl Element for $element {
            #[inline(always)]
            unsafe fn load<L: Lanes>(at: *const Self) -> L {
                // SAFETY: the caller's promise.
                unsafe { L::$load(at) }
            }
        }
    };
}

element!(f32, load_f32);
element!(f16, load_f16);
element!(bf16, load_bf16);
