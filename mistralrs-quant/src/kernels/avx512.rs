//! [`Lanes`] in AVX-512 with VNNI.

use core::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _MM_HINT_T1, _mm_loadu_si128, _mm_prefetch, _mm_storeu_si128, _mm256_loadu_si256,
    _mm512_add_ps, _mm512_and_si512, _mm512_broadcast_i32x4, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_cvtepi8_epi32, _mm512_cvtepi32_epi8, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_cvtph_ps,
    _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_max_epu32, _mm512_mul_ps,
    _mm512_or_si512, _mm512_reduce_add_epi32, _mm512_reduce_max_epu32, _mm512_set1_epi8, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_shuffle_epi8, _mm512_slli_epi16, _mm512_slli_epi32, _mm512_srli_epi16, _mm512_srli_epi32,
    _mm512_storeu_ps, _mm512_storeu_si512,
};

use half::f16;

use super::elementwise;
use super::lanes::Lanes;
use super::product::{self, RowPointers, Target, TileGroups};
use super::weights::{self, ExpandedWeights, Weights};
use crate::activations::{RowSlots, SUM_ORIGIN, scale_and_factor};
use crate::bf16_rows::Bf16Slots;
use crate::format::{BLOCK, SMALLEST_POWER};
use crate::tile::QUAD;

/// [`RowSlots::fill`] with AVX-512F.
///
/// # Safety
/// The CPU has AVX-512F; the rest as there.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn quantize(values: &[f32], slots: RowSlots) {
    // SAFETY: the caller's promise.
    unsafe { slots.fill(values, |values, quants| quantize_block(values, quants)) }
}

/// [`RowSlots::subtract`] with AVX-512F.
///
/// # Safety
/// The CPU has AVX-512F; the rest as there.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn subtract(slots: RowSlots, values: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe { slots.subtract(values) }
}

/// [`Bf16Slots::fill`] with AVX-512F.
///
/// # Safety
/// The CPU has AVX-512F; the rest as there.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn round_to_bf16(slots: Bf16Slots, values: &[f32]) {
    // SAFETY: the caller's promise.
    unsafe { slots.fill(values) }
}

/// [`elementwise::rms_norm`] with AVX-512F.
#[target_feature(enable = "avx512f")]
pub(super) fn rms_norm(input: &[f32], norm: (&[f32], f32), out: &mut [f32]) {
    elementwise::rms_norm(input, norm, out);
}

/// [`elementwise::swiglu`] with AVX-512F.
#[target_feature(enable = "avx512f")]
pub(super) fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    elementwise::swiglu(gate, up, out);
}

/// [`activations::quantize_block`].
#[inline]
#[target_feature(enable = "avx512f")]
fn quantize_block(values: &[f32; BLOCK], quants: &mut [i8; BLOCK]) -> (f32, [i32; 2]) {
    // SAFETY: a block is two registers.
    let halves = unsafe { [0, 16].map(|at| _mm512_loadu_ps(values.as_ptr().add(at))) };
    let bits = halves.map(|half| _mm512_and_si512(_mm512_castps_si512(half), _mm512_set1_epi32(0x7fff_ffff)));
    let reach = _mm512_reduce_max_epu32(_mm512_max_epu32(bits[0], bits[1]));
    let (scale, factor) = scale_and_factor(f32::from_bits(reach));
    let (factor, origin) = (_mm512_set1_ps(factor), _mm512_set1_ps(SUM_ORIGIN));
    let rounded = halves.map(|half| _mm512_castps_si512(_mm512_add_ps(_mm512_mul_ps(half, factor), origin)));
    let (to, _) = quants.as_chunks_mut::<16>();
    let sums = std::array::from_fn(|half| {
        let bytes = _mm512_cvtepi32_epi8(rounded[half]);
        // SAFETY: half a block is one register of bytes.
        unsafe { _mm_storeu_si128(to[half].as_mut_ptr().cast(), bytes) };
        _mm512_reduce_add_epi32(_mm512_cvtepi8_epi32(bytes))
    });
    (scale, sums)
}

#[derive(Clone, Copy)]
pub(super) struct Avx512Lanes(pub(super) __m512);

// SAFETY: needs AVX-512F, BW and VNNI, which `multiply` and `expand` have; loads and stores touch what they name.
unsafe impl Lanes for Avx512Lanes {
    type Bytes = __m512i;
    type Weights = __m512i;
    /// Where they are: each quad is broadcast from there.
    type Quads = *const i8;
    type Sums = __m512i;
    /// The scale, and what takes the origin of the sums away again: `-SUM_ORIGIN · scale`, exactly.
    type Scale = (__m512, __m512);

    const IS_WIDE: bool = true;
    const MAX_ROWS: usize = 6;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self(_mm512_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self(_mm512_loadu_ps(at)) }
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(at.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_i8(at: *const i8) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast())))) }
    }

    #[inline(always)]
    unsafe fn load_exponents(at: *const u8) -> Self {
        // SAFETY: the trait's promise.
        unsafe {
            let bits = _mm512_slli_epi32::<23>(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast())));
            Self(_mm512_castsi512_ps(_mm512_max_epu32(bits, _mm512_set1_epi32(SMALLEST_POWER.cast_signed()))))
        }
    }

    #[inline(always)]
    unsafe fn load_low_nibbles(at: *const u8) -> Self {
        // SAFETY: the trait's promise.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()));
            Self(_mm512_cvtepi32_ps(_mm512_and_si512(bytes, _mm512_set1_epi32(15))))
        }
    }

    #[inline(always)]
    unsafe fn load_high_nibbles(at: *const u8) -> Self {
        // SAFETY: the trait's promise.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()));
            Self(_mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(bytes)))
        }
    }

    #[inline(always)]
    unsafe fn mul(self, factor: Self) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self(_mm512_mul_ps(self.0, factor.0)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self(_mm512_fmadd_ps(self.0, factor.0, addend.0)) }
    }

    #[inline(always)]
    unsafe fn add(self, addend: Self) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self(_mm512_add_ps(self.0, addend.0)) }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the trait's promise.
        unsafe { _mm512_storeu_ps(at, self.0) }
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
        unsafe { _mm512_loadu_si512(at.cast()) }
    }

    #[inline(always)]
    unsafe fn store_bytes(bytes: Self::Bytes, at: *mut u8) {
        // SAFETY: the trait's promise.
        unsafe { _mm512_storeu_si512(at.cast(), bytes) }
    }

    #[inline(always)]
    unsafe fn mask(bytes: Self::Bytes, mask: u8) -> Self::Bytes {
        // SAFETY: the trait's promise.
        unsafe { _mm512_and_si512(bytes, _mm512_set1_epi8(mask.cast_signed())) }
    }

    #[inline(always)]
    unsafe fn or(one: Self::Bytes, other: Self::Bytes) -> Self::Bytes {
        // SAFETY: the trait's promise.
        unsafe { _mm512_or_si512(one, other) }
    }

    #[inline(always)]
    unsafe fn look_up(book: &[u8; 16], places: Self::Bytes) -> Self::Bytes {
        // SAFETY: the trait's promise; a book is one register of 16 bytes.
        unsafe {
            let book = _mm512_broadcast_i32x4(_mm_loadu_si128(book.as_ptr().cast()));
            _mm512_shuffle_epi8(book, places)
        }
    }

    #[inline(always)]
    unsafe fn shift_left<const BY: u32>(bytes: Self::Bytes) -> Self::Bytes {
        // SAFETY: the trait's promise.
        unsafe { _mm512_slli_epi16::<BY>(bytes) }
    }

    #[inline(always)]
    unsafe fn shift_right<const BY: u32>(bytes: Self::Bytes) -> Self::Bytes {
        // SAFETY: the trait's promise.
        unsafe { _mm512_srli_epi16::<BY>(bytes) }
    }

    #[inline(always)]
    unsafe fn weights(codes: Self::Bytes) -> Self::Weights {
        codes
    }

    #[inline(always)]
    unsafe fn quads(at: *const i8) -> Self::Quads {
        at
    }

    #[inline(always)]
    unsafe fn start(base: *const i32) -> Self::Sums {
        // SAFETY: the trait's promise.
        unsafe { _mm512_set1_epi32(*base) }
    }

    #[inline(always)]
    unsafe fn dot<const PLACE: i32>(sums: Self::Sums, weights: Self::Weights, quads: Self::Quads) -> Self::Sums {
        // SAFETY: the trait's promise.
        unsafe {
            let quad = quads.add(QUAD * PLACE as usize).cast::<i32>().read_unaligned();
            _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(quad))
        }
    }

    #[inline(always)]
    unsafe fn scale(self) -> Self::Scale {
        // SAFETY: the trait's promise.
        unsafe { (self.0, _mm512_mul_ps(self.0, _mm512_set1_ps(-SUM_ORIGIN))) }
    }

    #[inline(always)]
    unsafe fn scaled(sums: Self::Sums, scale: Self::Scale) -> Self {
        // The bits are those of `SUM_ORIGIN` plus the sum as a float: no conversion, and one rounding, after the origin
        // is gone.
        // SAFETY: the trait's promise.
        unsafe { Self(_mm512_fmadd_ps(_mm512_castsi512_ps(sums), scale.0, scale.1)) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn multiply<W: Weights, const R: usize, const V: usize>(
        tiles: &TileGroups<V>,
        rows: &RowPointers,
        target: &Target,
    ) {
        // SAFETY: the trait's promise.
        unsafe { product::multiply::<Self, W, R, V>(tiles, rows, target) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn expand<S: Weights, E: ExpandedWeights>(tile: *const u8, num_groups: usize, out: *mut u8) {
        // SAFETY: the trait's promise.
        unsafe { weights::expand::<Self, S, E>(tile, num_groups, out) }
    }
}
