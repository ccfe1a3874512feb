//! [`Lanes`] in AVX2, with and without dot products of bytes. Two registers are 16 lanes.

use core::arch::x86_64::{
    __m128i, __m256, __m256i, _MM_HINT_T0, _MM_HINT_T1, _mm_and_si128, _mm_cvtsi32_si128, _mm_loadu_si128,
    _mm_prefetch, _mm_set1_epi8, _mm_srli_epi16, _mm_srli_si128, _mm256_abs_epi8, _mm256_add_epi32, _mm256_add_ps,
    _mm256_and_si256, _mm256_broadcastsi128_si256, _mm256_castps_si256, _mm256_castsi256_ps, _mm256_cvtepi8_epi32,
    _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_cvtph_ps, _mm256_dpbusd_avx_epi32, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_max_epu32, _mm256_mul_ps,
    _mm256_or_si256, _mm256_packs_epi16, _mm256_packs_epi32, _mm256_permutevar8x32_epi32, _mm256_sad_epu8,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32, _mm256_setzero_si256,
    _mm256_shuffle_epi8, _mm256_sign_epi8, _mm256_sll_epi16, _mm256_slli_epi32, _mm256_srl_epi16, _mm256_storeu_ps,
    _mm256_storeu_si256, _mm256_sub_epi32, _mm256_xor_si256,
};
use std::marker::PhantomData;

use half::f16;

use super::elementwise;
use super::lanes::Lanes;
use super::product::{self, RowPointers, Target, TileGroups};
use super::weights::{self, ExpandedWeights, Weights};
use crate::activations::{RowSlots, SUM_ORIGIN, scale_and_factor};
use crate::format::{BLOCK, SMALLEST_POWER};
use crate::tile::QUAD;

/// [`RowSlots::fill`] with AVX2.
///
/// # Safety
/// The CPU has AVX2; the rest as there.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn quantize(values: &[f32], slots: RowSlots) {
    // SAFETY: the caller's promise.
    unsafe { slots.fill(values, |values, quants| quantize_block(values, quants)) }
}

/// [`RowSlots::subtract`] with AVX2.
///
/// # Safety
/// The CPU has AVX2; the rest as there.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn subtract(slots: RowSlots, values: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe { slots.subtract(values) }
}

/// [`elementwise::rms_norm`] with AVX2.
#[target_feature(enable = "avx2")]
pub(super) fn rms_norm(input: &[f32], norm: (&[f32], f32), out: &mut [f32]) {
    elementwise::rms_norm(input, norm, out);
}

/// [`elementwise::swiglu`] with AVX2.
#[target_feature(enable = "avx2")]
pub(super) fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    elementwise::swiglu(gate, up, out);
}

/// [`activations::quantize_block`](crate::activations::quantize_block).
#[inline]
#[target_feature(enable = "avx2")]
fn quantize_block(values: &[f32; BLOCK], quants: &mut [i8; BLOCK]) -> (f32, [i32; 2]) {
    // SAFETY: a block is four registers.
    let parts = unsafe { [0, 8, 16, 24].map(|at| _mm256_loadu_ps(values.as_ptr().add(at))) };
    let bits = parts.map(|part| _mm256_and_si256(_mm256_castps_si256(part), _mm256_set1_epi32(0x7fff_ffff)));
    let most = _mm256_max_epu32(_mm256_max_epu32(bits[0], bits[1]), _mm256_max_epu32(bits[2], bits[3]));
    let mut lanes = [0u32; 8];
    // SAFETY: eight lanes are one register.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), most) };
    let (scale, factor) = scale_and_factor(f32::from_bits(lanes.into_iter().max().unwrap_or(0)));
    let (factor, origin) = (_mm256_set1_ps(factor), _mm256_set1_ps(SUM_ORIGIN));
    let origin_bits = _mm256_set1_epi32(SUM_ORIGIN.to_bits().cast_signed());
    let whole = parts.map(|part| {
        let rounded = _mm256_castps_si256(_mm256_add_ps(_mm256_mul_ps(part, factor), origin));
        _mm256_sub_epi32(rounded, origin_bits)
    });
    // Packing works within halves of registers and leaves groups of four out of order.
    let words = [_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3])];
    let bytes = _mm256_packs_epi16(words[0], words[1]);
    let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    // SAFETY: a block of quants is one register.
    unsafe { _mm256_storeu_si256(quants.as_mut_ptr().cast(), bytes) };
    // Sums of eight bytes without sign, each 128 too large.
    let sums = _mm256_sad_epu8(_mm256_xor_si256(bytes, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
    let mut eights = [0i64; 4];
    // SAFETY: four sums are one register.
    unsafe { _mm256_storeu_si256(eights.as_mut_ptr().cast(), sums) };
    (scale, [eights[0] + eights[1], eights[2] + eights[3]].map(|sum| sum as i32 - 16 * 128))
}

/// How eight outputs' quads are multiplied.
///
/// # Safety
/// Implementations document the CPU features they need.
pub(super) unsafe trait ByteDot: Copy {
    /// Codes of eight outputs, ready.
    type Weights: Copy;
    /// Rows that have room in 16 registers.
    const MAX_ROWS: usize;

    /// Prepares codes.
    unsafe fn weights(codes: __m256i) -> Self::Weights;
    /// See [`Lanes::start`].
    unsafe fn start(base: *const i32) -> __m256i;
    /// Adds the products.
    unsafe fn dot(sums: __m256i, weights: Self::Weights, quad: __m256i) -> __m256i;
    /// See [`Lanes::multiply`].
    unsafe fn multiply<W: Weights, const R: usize, const V: usize>(
        tiles: &TileGroups<V>,
        rows: &RowPointers,
        target: &Target,
    );
    /// See [`Lanes::expand`].
    unsafe fn expand<S: Weights, E: ExpandedWeights>(tile: *const u8, num_groups: usize, out: *mut u8);
}

pub(super) type Avx2Lanes = Lanes256<Maddubs>;
pub(super) type AvxVnniLanes = Lanes256<Vnni>;

/// By way of sums of two products in 16 bits.
#[derive(Clone, Copy)]
pub(super) struct Maddubs;

// SAFETY: needs AVX2, FMA and F16C, which `multiply` and `expand` have.
unsafe impl ByteDot for Maddubs {
    /// Magnitudes and values.
    type Weights = (__m256i, __m256i);

    const MAX_ROWS: usize = 2;

    #[inline(always)]
    unsafe fn weights(codes: __m256i) -> Self::Weights {
        // SAFETY: the trait's promise.
        unsafe {
            let values = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
            (_mm256_abs_epi8(values), values)
        }
    }

    #[inline(always)]
    unsafe fn start(_base: *const i32) -> __m256i {
        // SAFETY: the trait's promise.
        unsafe { _mm256_set1_epi32(SUM_ORIGIN.to_bits().cast_signed()) }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m256i, (magnitudes, values): Self::Weights, quad: __m256i) -> __m256i {
        // The signs go over to the activations, which are never -128; two products of 128 · 127 fit 16 bits.
        // SAFETY: the trait's promise.
        unsafe {
            let pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(quad, values));
            _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn multiply<W: Weights, const R: usize, const V: usize>(
        tiles: &TileGroups<V>,
        rows: &RowPointers,
        target: &Target,
    ) {
        // SAFETY: the trait's promise.
        unsafe { product::multiply::<Avx2Lanes, W, R, V>(tiles, rows, target) }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn expand<S: Weights, E: ExpandedWeights>(tile: *const u8, num_groups: usize, out: *mut u8) {
        // SAFETY: the trait's promise.
        unsafe { weights::expand::<Avx2Lanes, S, E>(tile, num_groups, out) }
    }
}

/// By the instruction made for it.
#[derive(Clone, Copy)]
pub(super) struct Vnni;

// SAFETY: needs AVX2, FMA, F16C and AVX-VNNI, which `multiply` and `expand` have.
unsafe impl ByteDot for Vnni {
    type Weights = __m256i;

    const MAX_ROWS: usize = 3;

    #[inline(always)]
    unsafe fn weights(codes: __m256i) -> Self::Weights {
        codes
    }

    #[inline(always)]
    unsafe fn start(base: *const i32) -> __m256i {
        // SAFETY: the trait's promise.
        unsafe { _mm256_set1_epi32(*base) }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m256i, weights: Self::Weights, quad: __m256i) -> __m256i {
        // SAFETY: the trait's promise.
        unsafe { _mm256_dpbusd_avx_epi32(sums, weights, quad) }
    }

    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn multiply<W: Weights, const R: usize, const V: usize>(
        tiles: &TileGroups<V>,
        rows: &RowPointers,
        target: &Target,
    ) {
        // SAFETY: the trait's promise.
        unsafe { product::multiply::<AvxVnniLanes, W, R, V>(tiles, rows, target) }
    }

    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn expand<S: Weights, E: ExpandedWeights>(tile: *const u8, num_groups: usize, out: *mut u8) {
        // SAFETY: the trait's promise.
        unsafe { weights::expand::<AvxVnniLanes, S, E>(tile, num_groups, out) }
    }
}

/// 16 lanes as two halves of eight.
#[derive(Clone, Copy)]
pub(super) struct Lanes256<D>([__m256; 2], PhantomData<D>);

impl<D> Lanes256<D> {
    /// Both halves.
    #[inline(always)]
    fn of(halves: [__m256; 2]) -> Self {
        Self(halves, PhantomData)
    }

    /// 16 bytes with sign as floats.
    #[inline(always)]
    unsafe fn widened(bytes: __m128i) -> Self {
        // SAFETY: called from methods of `Lanes` only, which need AVX2.
        unsafe {
            let low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
            Self::of([low, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes)))])
        }
    }
}

// SAFETY: needs what `D` needs, AVX2, FMA and F16C at least; loads and stores touch what they name.
unsafe impl<D: ByteDot> Lanes for Lanes256<D> {
    type Bytes = [__m256i; 2];
    type Weights = [D::Weights; 2];
    /// Where they are: each quad is broadcast from there.
    type Quads = *const i8;
    type Sums = [__m256i; 2];
    /// The scale, and what takes the origin of the sums away again: `-SUM_ORIGIN · scale`, exactly.
    type Scale = (Self, Self);

    const IS_WIDE: bool = false;
    const MAX_ROWS: usize = D::MAX_ROWS;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self::of([_mm256_set1_ps(value); 2]) }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self::of([_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))]) }
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self {
        // SAFETY: the trait's promise.
        unsafe {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(at.cast()));
            Self::of([low, _mm256_cvtph_ps(_mm_loadu_si128(at.add(8).cast()))])
        }
    }

    #[inline(always)]
    unsafe fn load_i8(at: *const i8) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self::widened(_mm_loadu_si128(at.cast())) }
    }

    #[inline(always)]
    unsafe fn load_exponents(at: *const u8) -> Self {
        // SAFETY: the trait's promise.
        unsafe {
            let bytes = _mm_loadu_si128(at.cast());
            let smallest = _mm256_set1_epi32(SMALLEST_POWER.cast_signed());
            let halves = [bytes, _mm_srli_si128::<8>(bytes)];
            Self::of(halves.map(|half| {
                let bits = _mm256_slli_epi32::<23>(_mm256_cvtepu8_epi32(half));
                _mm256_castsi256_ps(_mm256_max_epu32(bits, smallest))
            }))
        }
    }

    #[inline(always)]
    unsafe fn load_low_nibbles(at: *const u8) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self::widened(_mm_and_si128(_mm_loadu_si128(at.cast()), _mm_set1_epi8(15))) }
    }

    #[inline(always)]
    unsafe fn load_high_nibbles(at: *const u8) -> Self {
        // SAFETY: the trait's promise.
        unsafe {
            let shifted = _mm_srli_epi16::<4>(_mm_loadu_si128(at.cast()));
            Self::widened(_mm_and_si128(shifted, _mm_set1_epi8(15)))
        }
    }

    #[inline(always)]
    unsafe fn mul(self, factor: Self) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self::of([_mm256_mul_ps(self.0[0], factor.0[0]), _mm256_mul_ps(self.0[1], factor.0[1])]) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: the trait's promise.
        unsafe {
            let low = _mm256_fmadd_ps(self.0[0], factor.0[0], addend.0[0]);
            Self::of([low, _mm256_fmadd_ps(self.0[1], factor.0[1], addend.0[1])])
        }
    }

    #[inline(always)]
    unsafe fn add(self, addend: Self) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self::of([_mm256_add_ps(self.0[0], addend.0[0]), _mm256_add_ps(self.0[1], addend.0[1])]) }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the trait's promise.
        unsafe {
            _mm256_storeu_ps(at, self.0[0]);
            _mm256_storeu_ps(at.add(8), self.0[1]);
        }
    }

    #[inline(always)]
    fn prefetch(at: *const u8) {
        // SAFETY: a hint, which reads nothing; every x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    fn prefetch_far(at: *const u8) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn load_bytes(at: *const u8) -> Self::Bytes {
        // SAFETY: the trait's promise.
        unsafe { [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(32).cast())] }
    }

    #[inline(always)]
    unsafe fn store_bytes(bytes: Self::Bytes, at: *mut u8) {
        // SAFETY: the trait's promise.
        unsafe {
            _mm256_storeu_si256(at.cast(), bytes[0]);
            _mm256_storeu_si256(at.add(32).cast(), bytes[1]);
        }
    }

    #[inline(always)]
    unsafe fn mask(bytes: Self::Bytes, mask: u8) -> Self::Bytes {
        // SAFETY: the trait's promise.
        unsafe {
            let mask = _mm256_set1_epi8(mask.cast_signed());
            [_mm256_and_si256(bytes[0], mask), _mm256_and_si256(bytes[1], mask)]
        }
    }

    #[inline(always)]
    unsafe fn or(one: Self::Bytes, other: Self::Bytes) -> Self::Bytes {
        // SAFETY: the trait's promise.
        unsafe { [_mm256_or_si256(one[0], other[0]), _mm256_or_si256(one[1], other[1])] }
    }

    #[inline(always)]
    unsafe fn look_up(book: &[u8; 16], places: Self::Bytes) -> Self::Bytes {
        // SAFETY: the trait's promise; a book is one register of 16 bytes.
        unsafe {
            let book = _mm256_broadcastsi128_si256(_mm_loadu_si128(book.as_ptr().cast()));
            [_mm256_shuffle_epi8(book, places[0]), _mm256_shuffle_epi8(book, places[1])]
        }
    }

    #[inline(always)]
    unsafe fn shift_left<const BY: u32>(bytes: Self::Bytes) -> Self::Bytes {
        // SAFETY: the trait's promise.
        unsafe {
            let by = _mm_cvtsi32_si128(BY.cast_signed());
            [_mm256_sll_epi16(bytes[0], by), _mm256_sll_epi16(bytes[1], by)]
        }
    }

    #[inline(always)]
    unsafe fn shift_right<const BY: u32>(bytes: Self::Bytes) -> Self::Bytes {
        // SAFETY: the trait's promise.
        unsafe {
            let by = _mm_cvtsi32_si128(BY.cast_signed());
            [_mm256_srl_epi16(bytes[0], by), _mm256_srl_epi16(bytes[1], by)]
        }
    }

    #[inline(always)]
    unsafe fn weights(codes: Self::Bytes) -> Self::Weights {
        // SAFETY: the trait's promise.
        unsafe { [D::weights(codes[0]), D::weights(codes[1])] }
    }

    #[inline(always)]
    unsafe fn quads(at: *const i8) -> Self::Quads {
        at
    }

    #[inline(always)]
    unsafe fn start(base: *const i32) -> Self::Sums {
        // SAFETY: the trait's promise.
        unsafe { [D::start(base); 2] }
    }

    #[inline(always)]
    unsafe fn dot<const PLACE: i32>(sums: Self::Sums, weights: Self::Weights, quads: Self::Quads) -> Self::Sums {
        // SAFETY: the trait's promise.
        unsafe {
            let quad = _mm256_set1_epi32(quads.add(QUAD * PLACE as usize).cast::<i32>().read_unaligned());
            [D::dot(sums[0], weights[0], quad), D::dot(sums[1], weights[1], quad)]
        }
    }

    #[inline(always)]
    unsafe fn scale(self) -> Self::Scale {
        // SAFETY: the trait's promise.
        unsafe { (self, self.mul(Self::splat(-SUM_ORIGIN))) }
    }

    #[inline(always)]
    unsafe fn scaled(sums: Self::Sums, scale: Self::Scale) -> Self {
        // The bits are those of `SUM_ORIGIN` plus the sum as a float: no conversion, and one rounding, after the origin
        // is gone.
        // SAFETY: the trait's promise.
        unsafe { Self::of([_mm256_castsi256_ps(sums[0]), _mm256_castsi256_ps(sums[1])]).mul_add(scale.0, scale.1) }
    }

    #[inline(always)]
    unsafe fn multiply<W: Weights, const R: usize, const V: usize>(
        tiles: &TileGroups<V>,
        rows: &RowPointers,
        target: &Target,
    ) {
        // SAFETY: the trait's promise.
        unsafe { D::multiply::<W, R, V>(tiles, rows, target) }
    }

    #[inline(always)]
    unsafe fn expand<S: Weights, E: ExpandedWeights>(tile: *const u8, num_groups: usize, out: *mut u8) {
        // SAFETY: the trait's promise.
        unsafe { D::expand::<S, E>(tile, num_groups, out) }
    }
}
