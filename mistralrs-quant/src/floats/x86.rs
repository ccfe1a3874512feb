//! [`Lanes`] in AVX-512 and AVX2.

use core::arch::x86_64::{
    __m256, __m512, _mm_loadu_si128, _mm256_add_ps, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps,
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_set1_ps, _mm256_slli_epi32, _mm256_storeu_ps,
    _mm512_add_ps, _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_set1_ps, _mm512_slli_epi32, _mm512_storeu_ps,
};

use half::{bf16, f16};

use super::kernel::{Panel, Widening, by_format, widen_by_format};
use super::lanes::Lanes;

#[target_feature(enable = "avx512f")]
pub(super) unsafe fn run_avx512(panel: &Panel<'_>) {
    // SAFETY: the caller's promise is the callee's, and this function has the feature of its lanes.
    unsafe { by_format::<Avx512Lanes>(panel) }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run_avx2(panel: &Panel<'_>) {
    // SAFETY: the caller's promise is the callee's, and this function has the features of its lanes.
    unsafe { by_format::<Avx2Lanes>(panel) }
}

#[target_feature(enable = "avx512f")]
pub(super) unsafe fn widen_avx512(widening: &mut Widening<'_>) {
    // SAFETY: as above.
    unsafe { widen_by_format::<Avx512Lanes>(widening) }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn widen_avx2(widening: &mut Widening<'_>) {
    // SAFETY: as above.
    unsafe { widen_by_format::<Avx2Lanes>(widening) }
}

#[derive(Clone, Copy)]
struct Avx512Lanes(__m512);

// SAFETY: needs AVX-512F, which `run_avx512` has; loads and stores touch the 16 values they name.
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
    unsafe fn add(self, addend: Self) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self(_mm512_add_ps(self.0, addend.0)) }
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

impl Avx2Lanes {
    /// Two halves of eight values, each made by `half` from its first lane.
    #[inline(always)]
    unsafe fn from_halves(half: impl Fn(usize) -> __m256) -> Self {
        Self(half(0), half(8))
    }
}

// SAFETY: needs AVX2, FMA and F16C, which `run_avx2` has; loads and stores touch the 16 values they name.
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
        unsafe { Self::from_halves(|lane| _mm256_loadu_ps(at.add(lane))) }
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self::from_halves(|lane| _mm256_cvtph_ps(_mm_loadu_si128(at.add(lane).cast()))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(at: *const bf16) -> Self {
        // SAFETY: the trait's promise.
        unsafe {
            Self::from_halves(|lane| {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.add(lane).cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            })
        }
    }

    #[inline(always)]
    unsafe fn add(self, addend: Self) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self(_mm256_add_ps(self.0, addend.0), _mm256_add_ps(self.1, addend.1)) }
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
