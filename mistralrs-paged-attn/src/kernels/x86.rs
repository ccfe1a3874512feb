//! AVX-512 and AVX2 lanes, and the kernels compiled for each.

use core::arch::x86_64::{
    __m128i, __m256, __m256i, __m512, _CMP_NLT_UQ, _CMP_UNORD_Q, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT,
    _MM_HINT_T0, _mm_loadl_epi64, _mm_loadu_si128, _mm_packs_epi16, _mm_prefetch, _mm_set1_epi16, _mm_storeu_si128,
    _mm256_add_epi32, _mm256_add_ps, _mm256_and_ps, _mm256_and_si256, _mm256_andnot_si256, _mm256_blendv_epi8,
    _mm256_blendv_ps, _mm256_castps_si256, _mm256_castsi256_ps, _mm256_castsi256_si128, _mm256_cmp_ps,
    _mm256_cmpgt_epi32, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps,
    _mm256_cvtps_epi32, _mm256_cvtps_ph, _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_or_si256, _mm256_packs_epi32,
    _mm256_packus_epi32, _mm256_permute4x64_epi64, _mm256_round_ps, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_setr_epi32, _mm256_slli_epi32, _mm256_srli_epi32, _mm256_storeu_ps, _mm256_storeu_si256,
    _mm256_sub_ps, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_cmp_ps_mask, _mm512_cvtepi8_epi32, _mm512_cvtepi32_epi8, _mm512_cvtepi32_epi16, _mm512_cvtepi32_ps,
    _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_cvtps_epi32, _mm512_cvtps_ph, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_mask_blend_ps, _mm512_mask_mov_epi32, _mm512_maskz_mov_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps,
    _mm512_or_si512, _mm512_reduce_max_ps, _mm512_roundscale_ps, _mm512_scalef_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_slli_epi32, _mm512_srli_epi32, _mm512_storeu_ps, _mm512_sub_ps,
};

use half::{bf16, f16};

use super::lanes::Lanes;
use super::write::{self, HeadRows, HeadSlots};
use super::{KvElement, LANES, Rows, Tile, tile};

/// # Safety
/// The CPU must have AVX-512F; `tile` and `rows` must have passed their checks for the same head size.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn attend_tile_avx512<E: KvElement>(tile: &Tile<'_, E>, ahead: &Tile<'_, E>, rows: &mut Rows<'_>) {
    // SAFETY: the caller's promises are the callee's.
    unsafe { tile::attend_wide::<Avx512, E>(tile, ahead, rows) }
}

/// # Safety
/// The CPU must have AVX2, FMA and F16C; `tile` and `rows` must have passed their checks for the same head size.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn attend_tile_avx2<E: KvElement>(tile: &Tile<'_, E>, ahead: &Tile<'_, E>, rows: &mut Rows<'_>) {
    // SAFETY: the caller's promises are the callee's.
    unsafe { tile::attend_narrow::<Avx2, E>(tile, ahead, rows) }
}

/// # Safety
/// The CPU must have AVX-512F.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn write_head_avx512<E: KvElement>(rows: &HeadRows<'_>, slots: &mut HeadSlots<'_, E>) {
    // SAFETY: the caller's promise is the callee's.
    unsafe { write::write_head::<Avx512, E>(rows, slots) }
}

/// # Safety
/// The CPU must have AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn write_head_avx2<E: KvElement>(rows: &HeadRows<'_>, slots: &mut HeadSlots<'_, E>) {
    // SAFETY: the caller's promise is the callee's.
    unsafe { write::write_head::<Avx2, E>(rows, slots) }
}

/// One 512-bit register.
#[derive(Clone, Copy)]
pub(super) struct Avx512(pub(super) __m512);

impl Lanes for Avx512 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn splat(value: f32) -> Self {
        Self(_mm512_set1_ps(value))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller promises `LANES` readable floats.
        Self(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load_half(from: *const f16) -> Self {
        // SAFETY: the caller promises `LANES` readable halves.
        Self(_mm512_cvtph_ps(unsafe { _mm256_loadu_si256(from.cast()) }))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load_brain(from: *const bf16) -> Self {
        // SAFETY: the caller promises `LANES` readable floats.
        let upper_halves = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(from.cast()) });
        Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(upper_halves)))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load_bytes(from: *const i8) -> Self {
        // SAFETY: the caller promises `LANES` readable bytes.
        Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(from.cast()) })))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn splat_half(from: *const f16) -> Self {
        // SAFETY: the caller promises a readable half.
        let bits = unsafe { from.cast::<i16>().read_unaligned() };
        Self(_mm512_cvtph_ps(_mm256_set1_epi16(bits)))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller promises `LANES` writable floats.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store_half(self, to: *mut f16) {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: the caller promises `LANES` writable halves.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<NEAREST>(self.0)) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store_brain(self, to: *mut bf16) {
        let bits = _mm512_castps_si512(self.0);
        let upper = _mm512_srli_epi32::<16>(bits);
        // Just below half of the last place, and one more where that is odd.
        let is_odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
        let nudged = _mm512_add_epi32(bits, _mm512_add_epi32(is_odd, _mm512_set1_epi32(0x7fff)));
        let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
        let quiet = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
        let rounded = _mm512_mask_mov_epi32(_mm512_srli_epi32::<16>(nudged), is_nan, quiet);
        // SAFETY: the caller promises `LANES` writable elements.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(rounded)) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store_bytes(self, to: *mut i8) {
        // SAFETY: the caller promises `LANES` writable bytes.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(self.0))) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn add(self, other: Self) -> Self {
        Self(_mm512_add_ps(self.0, other.0))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn sub(self, other: Self) -> Self {
        Self(_mm512_sub_ps(self.0, other.0))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn mul(self, other: Self) -> Self {
        Self(_mm512_mul_ps(self.0, other.0))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(_mm512_fmadd_ps(self.0, factor.0, addend.0))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn max(self, other: Self) -> Self {
        Self(_mm512_max_ps(self.0, other.0))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn min(self, other: Self) -> Self {
        Self(_mm512_min_ps(self.0, other.0))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn round(self) -> Self {
        Self(_mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(self.0))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn scale(self, power: Self) -> Self {
        Self(_mm512_scalef_ps(self.0, power.0))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn zero_below(self, condition: Self, limit: Self) -> Self {
        Self(_mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(condition.0, limit.0), self.0))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn keep(self, first: usize, end: usize) -> Self {
        let below = |count: usize| if count < LANES { (1_u16 << count) - 1 } else { u16::MAX };
        let kept = below(end) & !below(first);
        Self(_mm512_mask_blend_ps(kept, _mm512_set1_ps(f32::NEG_INFINITY), self.0))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn max_lane(self) -> f32 {
        _mm512_reduce_max_ps(self.0)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn prefetch<T>(address: *const T) {
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
}

/// Two 256-bit registers.
#[derive(Clone, Copy)]
struct Avx2(__m256, __m256);

const HALF: usize = LANES / 2;

impl Lanes for Avx2 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn splat(value: f32) -> Self {
        Self(_mm256_set1_ps(value), _mm256_set1_ps(value))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller promises `LANES` readable floats.
        unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(HALF))) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load_half(from: *const f16) -> Self {
        // SAFETY: the caller promises `LANES` readable halves.
        let (low, high) = unsafe { (_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(HALF).cast())) };
        Self(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load_brain(from: *const bf16) -> Self {
        #[inline]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn widen(upper_halves: __m128i) -> __m256 {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(upper_halves)))
        }
        // SAFETY: the caller promises `LANES` readable floats.
        let (low, high) = unsafe { (_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(HALF).cast())) };
        Self(widen(low), widen(high))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load_bytes(from: *const i8) -> Self {
        // SAFETY: the caller promises `LANES` readable bytes.
        let (low, high) = unsafe { (_mm_loadl_epi64(from.cast()), _mm_loadl_epi64(from.add(HALF).cast())) };
        Self(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn splat_half(from: *const f16) -> Self {
        // SAFETY: the caller promises a readable half.
        let bits = unsafe { from.cast::<i16>().read_unaligned() };
        let all = _mm256_cvtph_ps(_mm_set1_epi16(bits));
        Self(all, all)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller promises `LANES` writable floats.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(HALF), self.1);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn store_half(self, to: *mut f16) {
        let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0);
        let high = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1);
        // SAFETY: the caller promises `LANES` writable halves.
        unsafe {
            _mm_storeu_si128(to.cast(), low);
            _mm_storeu_si128(to.add(HALF).cast(), high);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn store_brain(self, to: *mut bf16) {
        #[inline]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn narrow(value: __m256) -> __m256i {
            let bits = _mm256_castps_si256(value);
            let upper = _mm256_srli_epi32::<16>(bits);
            // Just below half of the last place, and one more where that is odd.
            let is_odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
            let nudged = _mm256_add_epi32(bits, _mm256_add_epi32(is_odd, _mm256_set1_epi32(0x7fff)));
            let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(value, value));
            let quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
            _mm256_blendv_epi8(_mm256_srli_epi32::<16>(nudged), quiet, is_nan)
        }
        // Packing takes turns between its operands' quarters: put them in order.
        let packed = _mm256_packus_epi32(narrow(self.0), narrow(self.1));
        // SAFETY: the caller promises `LANES` writable elements.
        unsafe { _mm256_storeu_si256(to.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed)) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn store_bytes(self, to: *mut i8) {
        let packed = _mm256_packs_epi32(_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1));
        let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
        let bytes = _mm_packs_epi16(_mm256_castsi256_si128(packed), _mm256_extracti128_si256::<1>(packed));
        // SAFETY: the caller promises `LANES` writable bytes.
        unsafe { _mm_storeu_si128(to.cast(), bytes) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add(self, other: Self) -> Self {
        Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sub(self, other: Self) -> Self {
        Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn mul(self, other: Self) -> Self {
        Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(_mm256_fmadd_ps(self.0, factor.0, addend.0), _mm256_fmadd_ps(self.1, factor.1, addend.1))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn max(self, other: Self) -> Self {
        Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn min(self, other: Self) -> Self {
        Self(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        Self(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scale(self, power: Self) -> Self {
        #[inline]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn scale(value: __m256, power: __m256) -> __m256 {
            let shifted = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(power));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(value), shifted))
        }
        Self(scale(self.0, power.0), scale(self.1, power.1))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn zero_below(self, condition: Self, limit: Self) -> Self {
        let low = _mm256_cmp_ps::<_CMP_NLT_UQ>(condition.0, limit.0);
        let high = _mm256_cmp_ps::<_CMP_NLT_UQ>(condition.1, limit.1);
        Self(_mm256_and_ps(low, self.0), _mm256_and_ps(high, self.1))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn keep(self, first: usize, end: usize) -> Self {
        #[inline]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn keep(value: __m256, first: i32, end: i32) -> __m256 {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let (before, from) = (_mm256_cmpgt_epi32(_mm256_set1_epi32(first), lanes), _mm256_set1_epi32(end));
            let kept = _mm256_castsi256_ps(_mm256_andnot_si256(before, _mm256_cmpgt_epi32(from, lanes)));
            _mm256_blendv_ps(_mm256_set1_ps(f32::NEG_INFINITY), value, kept)
        }
        let (first, end, half) = (first as i32, end as i32, HALF as i32);
        Self(keep(self.0, first, end), keep(self.1, first - half, end - half))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn max_lane(self) -> f32 {
        let mut lanes = [0.0; HALF];
        // SAFETY: the array has room for one register.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_max_ps(self.0, self.1)) };
        lanes.into_iter().fold(f32::NEG_INFINITY, |highest, lane| if lane > highest { lane } else { highest })
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn prefetch<T>(address: *const T) {
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
}
