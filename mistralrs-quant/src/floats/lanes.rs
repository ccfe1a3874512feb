//! Sixteen f32 values at once: the operations kernels are written in, and their plain definition.

use half::{bf16, f16};

use crate::tile::TILE;

/// Sixteen f32 values in registers. Methods are `inline(always)`: they become part of a caller compiled for the
/// instruction set, which is why only the entry points of [`super::x86`] carry `target_feature`.
///
/// # Safety
/// Every method needs the CPU feature of its implementor; loads read the 16 values they name, `store` writes 16.
pub(super) unsafe trait Lanes: Copy {
    /// How many of these fit in the register file.
    const NUM_IN_REGISTERS: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load_f32(at: *const f32) -> Self;
    unsafe fn load_f16(at: *const f16) -> Self;
    unsafe fn load_bf16(at: *const bf16) -> Self;
    /// `self + addend`.
    unsafe fn add(self, addend: Self) -> Self;
    /// `self * factor + addend`, rounded once.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    unsafe fn store(self, at: *mut f32);
}

/// Sixteen values without intrinsics: the definition of the answer, and the path of CPUs without AVX2.
#[derive(Clone, Copy)]
pub(super) struct PlainLanes([f32; TILE]);

impl PlainLanes {
    #[inline(always)]
    fn map<T>(values: [T; TILE], widen: impl Fn(T) -> f32) -> Self {
        Self(values.map(widen))
    }
}

// SAFETY: needs no CPU feature; loads and stores touch 16 values.
unsafe impl Lanes for PlainLanes {
    // As many as NEON holds (32 registers of 4); elsewhere more spills.
    const NUM_IN_REGISTERS: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; TILE])
    }

    #[inline(always)]
    unsafe fn load_f32(at: *const f32) -> Self {
        // SAFETY: the caller's promise: 16 values.
        unsafe { Self(at.cast::<[f32; TILE]>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self {
        // SAFETY: the caller's promise: 16 values.
        unsafe { Self::map(at.cast::<[f16; TILE]>().read_unaligned(), f16::to_f32) }
    }

    #[inline(always)]
    unsafe fn load_bf16(at: *const bf16) -> Self {
        // SAFETY: the caller's promise: 16 values.
        unsafe { Self::map(at.cast::<[bf16; TILE]>().read_unaligned(), bf16::to_f32) }
    }

    #[inline(always)]
    unsafe fn add(self, addend: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] + addend.0[lane]))
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane].mul_add(factor.0[lane], addend.0[lane])))
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller's promise: 16 values.
        unsafe { at.cast::<[f32; TILE]>().write_unaligned(self.0) }
    }
}
