//! [`LANES`] floats at once: what kernels are written in, and its plain form for any CPU.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::LANES;

/// A vector of [`LANES`] f32, in one register or several.
///
/// Operations are `unsafe` for one reason: the CPU must have the features that the implementation names. They are
/// inlined into a function with `#[target_feature]`, where the compiler may use them.
pub(crate) trait Lanes: Copy {
    /// All lanes `value`.
    unsafe fn splat(value: f32) -> Self;
    /// # Safety
    /// `from` must be readable for [`LANES`] floats, and the CPU have the features.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// `from` must be readable for [`LANES`] floats, and the CPU have the features.
    unsafe fn load_half(from: *const f16) -> Self;
    /// # Safety
    /// `from` must be readable for [`LANES`] floats, and the CPU have the features.
    unsafe fn load_brain(from: *const bf16) -> Self;
    /// # Safety
    /// `from` must be readable for [`LANES`] bytes, and the CPU have the features.
    unsafe fn load_bytes(from: *const i8) -> Self;
    /// All lanes the value at `from`.
    /// # Safety
    /// `from` must be readable, and the CPU have the features.
    unsafe fn splat_half(from: *const f16) -> Self;
    /// # Safety
    /// `to` must be writable for [`LANES`] floats, and the CPU have the features.
    unsafe fn store(self, to: *mut f32);
    /// Nearest halves, ties to even.
    /// # Safety
    /// `to` must be writable for [`LANES`] halves, and the CPU have the features.
    unsafe fn store_half(self, to: *mut f16);
    /// Nearest upper halves, ties to even.
    /// # Safety
    /// `to` must be writable for [`LANES`] elements, and the CPU have the features.
    unsafe fn store_brain(self, to: *mut bf16);
    /// Nearest integers, ties to even; lanes are within a byte's range.
    /// # Safety
    /// `to` must be writable for [`LANES`] bytes, and the CPU have the features.
    unsafe fn store_bytes(self, to: *mut i8);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self * factor + addend`.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// The larger of each lane; `other` where either is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller of each lane; `other` where either is NaN.
    unsafe fn min(self, other: Self) -> Self;
    /// Nearest integers, ties to even.
    unsafe fn round(self) -> Self;
    /// `self * 2^power`; `power` is an integer and the result a normal number.
    unsafe fn scale(self, power: Self) -> Self;
    /// `self` where `condition >= limit` or `condition` is NaN, else 0.
    unsafe fn zero_below(self, condition: Self, limit: Self) -> Self;
    /// Lanes `first..end`; -inf in the others.
    unsafe fn keep(self, first: usize, end: usize) -> Self;
    /// The largest lane.
    unsafe fn max_lane(self) -> f32;
    /// Starts to bring the cache line of `address` near; any address will do, and nothing may happen.
    unsafe fn prefetch<T>(address: *const T);
}

/// Plain arrays: the compiler vectorizes them as far as the target's baseline goes (SSE2, NEON).
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, combine: impl Fn(f32, f32) -> f32) -> Self {
        let mut lanes = self.0;
        for (lane, other) in lanes.iter_mut().zip(other.0) {
            *lane = combine(*lane, other);
        }
        Self(lanes)
    }
}

/// The value of a half, without a branch, so that a row of them vectorizes where there is no conversion instruction.
#[inline(always)]
fn widen_half(half: u16) -> f32 {
    let (sign, magnitude) = (u32::from(half & 0x8000) << 16, u32::from(half & 0x7fff) << 13);
    // Moved into f32's fields the exponent is 112 too small; the multiplication also makes subnormals exact.
    let finite = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
    let bits = if half & 0x7c00 == 0x7c00 { magnitude | 0x7f80_0000 } else { finite };
    f32::from_bits(bits | sign)
}

impl Lanes for Portable {
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller promises `LANES` readable floats; arrays need no more alignment than their elements.
        Self(unsafe { *from.cast::<[f32; LANES]>() })
    }

    #[inline(always)]
    unsafe fn load_half(from: *const f16) -> Self {
        // SAFETY: the caller promises `LANES` readable halves; f16 is a transparent u16.
        Self(unsafe { *from.cast::<[u16; LANES]>() }.map(widen_half))
    }

    #[inline(always)]
    unsafe fn load_brain(from: *const bf16) -> Self {
        // SAFETY: the caller promises `LANES` readable floats; bf16 is a transparent u16, the upper half of an f32.
        Self(unsafe { *from.cast::<[u16; LANES]>() }.map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }

    #[inline(always)]
    unsafe fn load_bytes(from: *const i8) -> Self {
        // SAFETY: the caller promises `LANES` readable bytes.
        Self(unsafe { *from.cast::<[i8; LANES]>() }.map(f32::from))
    }

    #[inline(always)]
    unsafe fn splat_half(from: *const f16) -> Self {
        // SAFETY: the caller promises a readable half; f16 is a transparent u16.
        Self([widen_half(unsafe { *from.cast::<u16>() }); LANES])
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller promises `LANES` writable floats; arrays need no more alignment than their elements.
        unsafe { *to.cast::<[f32; LANES]>() = self.0 }
    }

    #[inline(always)]
    unsafe fn store_half(self, to: *mut f16) {
        // SAFETY: the caller promises `LANES` writable halves.
        let to = unsafe { &mut *to.cast::<[f16; LANES]>() };
        to.convert_from_f32_slice(&self.0);
    }

    #[inline(always)]
    unsafe fn store_brain(self, to: *mut bf16) {
        // SAFETY: the caller promises `LANES` writable elements.
        unsafe { *to.cast::<[bf16; LANES]>() = self.0.map(bf16::from_f32) }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut i8) {
        // SAFETY: the caller promises `LANES` writable bytes; rounding needs no feature here.
        unsafe { *to.cast::<[i8; LANES]>() = self.round().0.map(|lane| lane as i8) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    /// Rounds twice: a fused operation is a slow library call where the baseline has none.
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        self.zip(factor, |a, b| a * b).zip(addend, |product, addend| product + addend)
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        // Above 2^23 floats are integers: adding pushes the fraction out, to the nearest even.
        const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23
        self.zip(self, |a, _| (a + SHIFT) - SHIFT)
    }

    #[inline(always)]
    unsafe fn scale(self, power: Self) -> Self {
        self.zip(power, |a, power| f32::from_bits(a.to_bits().wrapping_add_signed((power as i32) << 23)))
    }

    #[inline(always)]
    unsafe fn zero_below(self, condition: Self, limit: Self) -> Self {
        let mut lanes = self.0;
        for (lane, (condition, limit)) in lanes.iter_mut().zip(condition.0.into_iter().zip(limit.0)) {
            *lane = if condition < limit { 0.0 } else { *lane };
        }
        Self(lanes)
    }

    #[inline(always)]
    unsafe fn keep(self, first: usize, end: usize) -> Self {
        let mut lanes = self.0;
        for (index, lane) in lanes.iter_mut().enumerate() {
            *lane = if index >= first && index < end { *lane } else { f32::NEG_INFINITY };
        }
        Self(lanes)
    }

    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, |highest, lane| if lane > highest { lane } else { highest })
    }

    #[inline(always)]
    unsafe fn prefetch<T>(_address: *const T) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_converts_exactly() {
        for first in (0..=u16::MAX).step_by(LANES) {
            let halves: [f16; LANES] = std::array::from_fn(|lane| f16::from_bits(first + lane as u16));
            // SAFETY: the array has `LANES` halves, and `Portable` needs no feature.
            let lanes = unsafe { Portable::load_half(halves.as_ptr()) };
            for (lane, half) in lanes.0.into_iter().zip(halves) {
                assert!(lane.to_bits() == half.to_f32().to_bits() || lane.is_nan() && half.is_nan(), "{half:?} {lane}");
            }
        }
    }
}
