//! The inner loops of [`DenseMatrix`]: one generic block of R rows by V tiles, compiled for each instruction set.

use std::ops::Range;

use half::{bf16, f16};

use super::{DenseDType, DenseMatrix, SendPointer, TILE};

/// Instruction sets the loops are compiled for. All give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// No intrinsics: the definition of the answer, and the path of CPUs without AVX2.
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
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
            return Level::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            return Level::Avx2;
        }
    }
    Level::Plain
}

/// Tiles one unit of work covers: what [`run`] keeps in registers at once for this many rows.
pub(super) fn tiles_per_unit(level: Level, num_rows: usize) -> usize {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 if num_rows > 5 => 3,
        _ => 4,
    }
}

/// The part of a product that one unit of work computes.
pub(super) struct Panel<'a> {
    pub matrix: &'a DenseMatrix,
    /// `[T, K]`.
    pub activations: &'a [f32],
    /// `[T, N]`.
    pub out: SendPointer,
    /// Of the matrix.
    pub tiles: Range<usize>,
    /// Of the activations.
    pub rows: Range<usize>,
}

/// Computes `panel`.
///
/// # Safety
/// The CPU has `level`; `panel.tiles` are in the matrix, `panel.rows` in `activations`; `out` holds a row of N values
/// for every row of `activations`, and nobody else touches this panel's part of it.
pub(super) unsafe fn run(level: Level, panel: &Panel<'_>) {
    // SAFETY: the caller's promise is the callee's.
    unsafe {
        match level {
            Level::Plain => by_dtype::<PlainLanes>(panel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => x86::run_avx2(panel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => x86::run_avx512(panel),
        }
    }
}

/// Sixteen f32 values in registers. Methods are `inline(always)`: they become part of a caller compiled for the
/// instruction set, which is why only the `run_*` functions carry `target_feature`.
///
/// # Safety
/// Every method needs the CPU feature of its implementor; loads read and `store` writes 16 elements.
unsafe trait Lanes: Copy {
    /// How many of these fit in the register file.
    const NUM_IN_REGISTERS: usize;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load_f32(at: *const f32) -> Self;
    unsafe fn load_f16(at: *const f16) -> Self;
    unsafe fn load_bf16(at: *const bf16) -> Self;
    /// `self * factor + addend`, rounded once.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    unsafe fn store(self, at: *mut f32);
}

/// An element type of the matrix.
trait Element: Copy {
    /// # Safety
    /// As [`Lanes`]' loads.
    unsafe fn load<L: Lanes>(at: *const Self) -> L;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(at: *const Self) -> L {
        // SAFETY: the caller's promise is the callee's.
        unsafe { L::load_f32(at) }
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(at: *const Self) -> L {
        // SAFETY: the caller's promise is the callee's.
        unsafe { L::load_f16(at) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(at: *const Self) -> L {
        // SAFETY: the caller's promise is the callee's.
        unsafe { L::load_bf16(at) }
    }
}

#[inline(always)]
unsafe fn by_dtype<L: Lanes>(panel: &Panel<'_>) {
    // SAFETY: the caller's promise is the callee's; the dtype names the type of the stored elements.
    unsafe {
        match panel.matrix.dtype {
            DenseDType::F32 => by_rows::<L, f32>(panel),
            DenseDType::F16 => by_rows::<L, f16>(panel),
            DenseDType::Bf16 => by_rows::<L, bf16>(panel),
        }
    }
}

/// Splits the panel into strips of as many rows as have room in registers, so that each weight is loaded once a strip.
#[inline(always)]
unsafe fn by_rows<L: Lanes, E: Element>(panel: &Panel<'_>) {
    let max_rows = if L::NUM_IN_REGISTERS >= 32 { 8 } else { 4 };
    let mut row = panel.rows.start;
    while row < panel.rows.end {
        let num_rows = max_rows.min(panel.rows.end - row);
        // R · V sums plus V weights and one activation must fit in the registers.
        // SAFETY: the caller's promise is the callee's.
        unsafe {
            match (L::NUM_IN_REGISTERS >= 32, num_rows) {
                (_, 1) => strip::<L, E, 1, 4>(panel, row),
                (true, 2) => strip::<L, E, 2, 4>(panel, row),
                (true, 3) => strip::<L, E, 3, 4>(panel, row),
                (true, 4) => strip::<L, E, 4, 4>(panel, row),
                (true, 5) => strip::<L, E, 5, 4>(panel, row),
                (true, 6) => strip::<L, E, 6, 3>(panel, row),
                (true, 7) => strip::<L, E, 7, 3>(panel, row),
                (true, _) => strip::<L, E, 8, 3>(panel, row),
                (false, 2) => strip::<L, E, 2, 2>(panel, row),
                (false, 3) => strip::<L, E, 3, 1>(panel, row),
                (false, _) => strip::<L, E, 4, 1>(panel, row),
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

/// R rows by V tiles: every sum is one chain over k, so R and V never change a result.
#[inline(always)]
unsafe fn block<L: Lanes, E: Element, const R: usize, const V: usize>(panel: &Panel<'_>, row: usize, tile: usize) {
    let num_inputs = panel.matrix.num_inputs;
    let tile_size = num_inputs * TILE;
    // SAFETY: the caller's promise: R rows and V tiles from here on exist.
    unsafe {
        let weights = panel.matrix.storage.as_ptr().cast::<E>().add(tile * tile_size);
        let activations = panel.activations.as_ptr().add(row * num_inputs);
        let mut sums = [[L::splat(0.0); V]; R];
        for position in 0..num_inputs {
            let mut columns = [L::splat(0.0); V];
            for (v, column) in columns.iter_mut().enumerate() {
                *column = E::load(weights.add(v * tile_size + position * TILE));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let activation = L::splat(*activations.add(r * num_inputs + position));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = activation.mul_add(column, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                store(panel, row + r, tile + v, *sum);
            }
        }
    }
}

/// Writes one tile's sums of one row, without the padding of the last tile.
#[inline(always)]
unsafe fn store<L: Lanes>(panel: &Panel<'_>, row: usize, tile: usize, sums: L) {
    let num_outputs = panel.matrix.num_outputs;
    let column = tile * TILE;
    let out = panel.out.at(row * num_outputs + column);
    // SAFETY: `out` has room for the columns from `column` to N; a shorter tail goes through a buffer.
    unsafe {
        if column + TILE <= num_outputs {
            sums.store(out);
        } else {
            let mut tail = [0f32; TILE];
            sums.store(tail.as_mut_ptr());
            std::ptr::copy_nonoverlapping(tail.as_ptr(), out, num_outputs - column);
        }
    }
}

/// Sixteen values without intrinsics.
#[derive(Clone, Copy)]
struct PlainLanes([f32; TILE]);

// SAFETY: needs no CPU feature; loads and stores touch 16 elements.
unsafe impl Lanes for PlainLanes {
    // What NEON holds (32 registers of 4); fewer only costs spills.
    const NUM_IN_REGISTERS: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; TILE])
    }

    #[inline(always)]
    unsafe fn load_f32(at: *const f32) -> Self {
        // SAFETY: the caller's promise: 16 elements.
        unsafe { Self(at.cast::<[f32; TILE]>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self {
        // SAFETY: the caller's promise: 16 elements.
        unsafe { Self(at.cast::<[f16; TILE]>().read_unaligned().map(f16::to_f32)) }
    }

    #[inline(always)]
    unsafe fn load_bf16(at: *const bf16) -> Self {
        // SAFETY: the caller's promise: 16 elements.
        unsafe { Self(at.cast::<[bf16; TILE]>().read_unaligned().map(bf16::to_f32)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane].mul_add(factor.0[lane], addend.0[lane])))
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller's promise: 16 elements.
        unsafe { at.cast::<[f32; TILE]>().write_unaligned(self.0) }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::{
        __m256, __m512, _mm_loadu_si128, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_fmadd_ps,
        _mm256_loadu_ps, _mm256_loadu_si256, _mm256_set1_ps, _mm256_slli_epi32, _mm256_storeu_ps, _mm512_castsi512_ps,
        _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_slli_epi32,
        _mm512_storeu_ps,
    };

    use half::{bf16, f16};

    use super::{Lanes, Panel, by_dtype};

    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn run_avx512(panel: &Panel<'_>) {
        // SAFETY: the caller's promise is the callee's, and this function has the features of its lanes.
        unsafe { by_dtype::<Avx512Lanes>(panel) }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn run_avx2(panel: &Panel<'_>) {
        // SAFETY: the caller's promise is the callee's, and this function has the features of its lanes.
        unsafe { by_dtype::<Avx2Lanes>(panel) }
    }

    #[derive(Clone, Copy)]
    struct Avx512Lanes(__m512);

    // SAFETY: needs AVX-512F, which `run_avx512` has; loads and stores touch 16 elements.
    unsafe impl Lanes for Avx512Lanes {
        const NUM_IN_REGISTERS: usize = 32;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the trait's promise.
            unsafe { Self(_mm512_set1_ps(value)) }
        }

        #[inline(always)]
        unsafe fn load_f32(at: *const f32) -> Self {
            // SAFETY: the trait's promise.
            unsafe { Self(_mm512_loadu_ps(at)) }
        }

        #[inline(always)]
        unsafe fn load_f16(at: *const f16) -> Self {
            // SAFETY: the trait's promise.
            unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(at.cast()))) }
        }

        #[inline(always)]
        unsafe fn load_bf16(at: *const bf16) -> Self {
            // SAFETY: the trait's promise.
            unsafe {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
            }
        }

        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
            // SAFETY: the trait's promise.
            unsafe { Self(_mm512_fmadd_ps(self.0, factor.0, addend.0)) }
        }

        #[inline(always)]
        unsafe fn store(self, at: *mut f32) {
            // SAFETY: the trait's promise.
            unsafe { _mm512_storeu_ps(at, self.0) }
        }
    }

    #[derive(Clone, Copy)]
    struct Avx2Lanes(__m256, __m256);

    // SAFETY: needs AVX2, FMA and F16C, which `run_avx2` has; loads and stores touch 16 elements.
    unsafe impl Lanes for Avx2Lanes {
        const NUM_IN_REGISTERS: usize = 8;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the trait's promise.
            unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
        }

        #[inline(always)]
        unsafe fn load_f32(at: *const f32) -> Self {
            // SAFETY: the trait's promise.
            unsafe { Self(_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))) }
        }

        #[inline(always)]
        unsafe fn load_f16(at: *const f16) -> Self {
            // SAFETY: the trait's promise.
            unsafe {
                let (low, high) = (_mm_loadu_si128(at.cast()), _mm_loadu_si128(at.add(8).cast()));
                Self(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
            }
        }

        #[inline(always)]
        unsafe fn load_bf16(at: *const bf16) -> Self {
            // SAFETY: the trait's promise.
            unsafe {
                let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
                let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.add(8).cast()));
                Self(
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
                )
            }
        }

        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
            // SAFETY: the trait's promise.
            unsafe { Self(_mm256_fmadd_ps(self.0, factor.0, addend.0), _mm256_fmadd_ps(self.1, factor.1, addend.1)) }
        }

        #[inline(always)]
        unsafe fn store(self, at: *mut f32) {
            // SAFETY: the trait's promise.
            unsafe {
                _mm256_storeu_ps(at, self.0);
                _mm256_storeu_ps(at.add(8), self.1);
            }
        }
    }
}
