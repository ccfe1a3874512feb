//! [`Lanes`] in NEON, with and without dot products of bytes. Four registers are 16 lanes.

use core::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, uint8x16_t, uint32x4_t, vaddlvq_s8, vaddq_f32, vandq_u8, vandq_u32,
    vcvt_f32_f16, vcvtq_f32_s32, vdupq_laneq_s32, vdupq_n_f32, vdupq_n_s32, vdupq_n_u8, vdupq_n_u32, veorq_u8,
    vfmaq_f32, vget_low_s8, vget_low_s16, vget_low_u8, vget_low_u16, vld1_u16, vld1q_f32, vld1q_s8, vld1q_u8,
    vmaxq_u32, vmaxvq_u32, vmovl_high_s8, vmovl_high_s16, vmovl_high_u8, vmovl_high_u16, vmovl_s8, vmovl_s16, vmovl_u8,
    vmovl_u16, vmull_high_s8, vmull_s8, vmulq_f32, vorrq_u8, vpadalq_s16, vpaddq_s16, vqtbl1q_u8, vreinterpret_f16_u16,
    vreinterpretq_f32_s32, vreinterpretq_f32_u32, vreinterpretq_s8_s16, vreinterpretq_s8_s32, vreinterpretq_s8_u8,
    vreinterpretq_s16_f32, vreinterpretq_s32_s8, vreinterpretq_u32_f32, vshlq_n_u8, vshlq_n_u32, vshrq_n_u8, vst1q_f32,
    vst1q_s8, vst1q_u8, vsubq_f32, vuzp1q_s8, vuzp1q_s16,
};
use core::arch::asm;
use std::marker::PhantomData;

use half::f16;

use super::elementwise;
use super::lanes::Lanes;
use super::product::{self, RowPointers, Target, TileGroups};
use super::weights::{self, ExpandedWeights, Weights};
use crate::activations::{RowSlots, SUM_ORIGIN, scale_and_factor};
use crate::format::{BLOCK, SMALLEST_POWER};

/// The value at each of the four registers. Written out: a closure that is not inlined would keep them in memory.
macro_rules! each {
    ($part:ident => $value:expr) => {{
        let first = {
            let $part = 0;
            $value
        };
        let second = {
            let $part = 1;
            $value
        };
        let third = {
            let $part = 2;
            $value
        };
        let fourth = {
            let $part = 3;
            $value
        };
        [first, second, third, fourth]
    }};
}

/// [`RowSlots::fill`] with NEON.
///
/// # Safety
/// As there.
#[target_feature(enable = "neon")]
pub(super) unsafe fn quantize(values: &[f32], slots: RowSlots) {
    // SAFETY: the caller's promise.
    unsafe { slots.fill(values, |values, quants| quantize_block(values, quants)) }
}

/// [`RowSlots::subtract`] with NEON.
///
/// # Safety
/// As there.
#[target_feature(enable = "neon")]
pub(super) unsafe fn subtract(slots: RowSlots, values: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe { slots.subtract(values) }
}

/// [`elementwise::rms_norm`] with NEON.
#[target_feature(enable = "neon")]
pub(super) fn rms_norm(input: &[f32], norm: (&[f32], f32), out: &mut [f32]) {
    elementwise::rms_norm(input, norm, out);
}

/// [`elementwise::swiglu`] with NEON.
#[target_feature(enable = "neon")]
pub(super) fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    elementwise::swiglu(gate, up, out);
}

/// [`activations::quantize_block`](crate::activations::quantize_block).
#[inline]
#[target_feature(enable = "neon")]
fn quantize_block(values: &[f32; BLOCK], quants: &mut [i8; BLOCK]) -> (f32, [i32; 2]) {
    let at = values.as_ptr();
    // SAFETY: a block is two halves of four registers.
    let (low, high) = unsafe { (load_quarters(at), load_quarters(at.add(16))) };
    let reach = vmaxvq_u32(vmaxq_u32(largest(low), largest(high)));
    let (scale, factor) = scale_and_factor(f32::from_bits(reach));
    let (low, high) = (rounded(low, factor), rounded(high, factor));
    // SAFETY: half a block of quants is one register.
    unsafe {
        vst1q_s8(quants.as_mut_ptr(), low);
        vst1q_s8(quants.as_mut_ptr().add(16), high);
    }
    (scale, [vaddlvq_s8(low).into(), vaddlvq_s8(high).into()])
}

/// 16 floats.
///
/// # Safety
/// They may be read.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load_quarters(at: *const f32) -> [float32x4_t; 4] {
    // SAFETY: the caller's promise.
    unsafe { each!(part => vld1q_f32(at.add(4 * part))) }
}

/// The bits of the largest magnitudes.
#[inline]
#[target_feature(enable = "neon")]
fn largest(values: [float32x4_t; 4]) -> uint32x4_t {
    let bits = each!(part => vandq_u32(vreinterpretq_u32_f32(values[part]), vdupq_n_u32(0x7fff_ffff)));
    vmaxq_u32(vmaxq_u32(bits[0], bits[1]), vmaxq_u32(bits[2], bits[3]))
}

/// 16 quants.
#[inline]
#[target_feature(enable = "neon")]
fn rounded(values: [float32x4_t; 4], factor: f32) -> int8x16_t {
    let (factor, origin) = (vdupq_n_f32(factor), vdupq_n_f32(SUM_ORIGIN));
    let lanes = each!(part => vreinterpretq_s16_f32(vaddq_f32(vmulq_f32(values[part], factor), origin)));
    // The lowest byte of each lane.
    let (low, high) = (vuzp1q_s16(lanes[0], lanes[1]), vuzp1q_s16(lanes[2], lanes[3]));
    vuzp1q_s8(vreinterpretq_s8_s16(low), vreinterpretq_s8_s16(high))
}

/// How four outputs' quads are multiplied.
///
/// # Safety
/// Implementations document the CPU features they need.
pub(super) unsafe trait ByteDot: Copy {
    /// Rows that have room in 32 registers.
    const MAX_ROWS: usize;

    /// Adds the products with quad `PLACE` of four.
    unsafe fn dot<const PLACE: i32>(sums: int32x4_t, weights: int8x16_t, quads: int8x16_t) -> int32x4_t;
    /// See [`Lanes::multiply`].
    unsafe fn multiply<W: Weights, const R: usize, const V: usize>(
        tiles: &TileGroups<V>,
        rows: &RowPointers,
        target: &Target,
    );
    /// See [`Lanes::expand`].
    unsafe fn expand<S: Weights, E: ExpandedWeights>(tile: *const u8, num_groups: usize, out: *mut u8);
}

pub(super) type NeonLanes = Lanes128<Widening>;
pub(super) type DotProdLanes = Lanes128<DotProd>;

/// By way of sums of two products in 16 bits.
#[derive(Clone, Copy)]
pub(super) struct Widening;

// SAFETY: needs NEON, which `multiply` and `expand` have.
unsafe impl ByteDot for Widening {
    const MAX_ROWS: usize = 2;

    #[inline(always)]
    unsafe fn dot<const PLACE: i32>(sums: int32x4_t, weights: int8x16_t, quads: int8x16_t) -> int32x4_t {
        // Activations are never -128: two products of -128 · 127 fit 16 bits.
        // SAFETY: the trait's promise.
        unsafe {
            let quad = vreinterpretq_s8_s32(vdupq_laneq_s32::<PLACE>(vreinterpretq_s32_s8(quads)));
            let low = vmull_s8(vget_low_s8(weights), vget_low_s8(quad));
            vpadalq_s16(sums, vpaddq_s16(low, vmull_high_s8(weights, quad)))
        }
    }

    #[target_feature(enable = "neon")]
    unsafe fn multiply<W: Weights, const R: usize, const V: usize>(
        tiles: &TileGroups<V>,
        rows: &RowPointers,
        target: &Target,
    ) {
        // SAFETY: the trait's promise.
        unsafe { product::multiply::<NeonLanes, W, R, V>(tiles, rows, target) }
    }

    #[target_feature(enable = "neon")]
    unsafe fn expand<S: Weights, E: ExpandedWeights>(tile: *const u8, num_groups: usize, out: *mut u8) {
        // SAFETY: the trait's promise.
        unsafe { weights::expand::<NeonLanes, S, E>(tile, num_groups, out) }
    }
}

/// By the instruction made for it.
#[derive(Clone, Copy)]
pub(super) struct DotProd;

/// Adds the dot products of four outputs' weights with quad `PLACE` of `quads`: what `vdotq_laneq_s32` does, which is
/// not stable.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot<const PLACE: i32>(mut sums: int32x4_t, weights: int8x16_t, quads: int8x16_t) -> int32x4_t {
    // SAFETY: computes a register from registers.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {weights:v}.16b, {quads:v}.4b[{place}]",
            sums = inlateout(vreg) sums,
            weights = in(vreg) weights,
            quads = in(vreg) quads,
            place = const PLACE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

// SAFETY: needs NEON and the dot product instructions, which `multiply` and `expand` have.
unsafe impl ByteDot for DotProd {
    const MAX_ROWS: usize = 3;

    #[inline(always)]
    unsafe fn dot<const PLACE: i32>(sums: int32x4_t, weights: int8x16_t, quads: int8x16_t) -> int32x4_t {
        // SAFETY: the trait's promise.
        unsafe { sdot::<PLACE>(sums, weights, quads) }
    }

    #[target_feature(enable = "neon,dotprod")]
    unsafe fn multiply<W: Weights, const R: usize, const V: usize>(
        tiles: &TileGroups<V>,
        rows: &RowPointers,
        target: &Target,
    ) {
        // SAFETY: the trait's promise.
        unsafe { product::multiply::<DotProdLanes, W, R, V>(tiles, rows, target) }
    }

    #[target_feature(enable = "neon,dotprod")]
    unsafe fn expand<S: Weights, E: ExpandedWeights>(tile: *const u8, num_groups: usize, out: *mut u8) {
        // SAFETY: the trait's promise.
        unsafe { weights::expand::<DotProdLanes, S, E>(tile, num_groups, out) }
    }
}

/// 16 lanes as four quarters.
#[derive(Clone, Copy)]
pub(super) struct Lanes128<D>([float32x4_t; 4], PhantomData<D>);

impl<D> Lanes128<D> {
    /// All quarters.
    #[inline(always)]
    fn of(quarters: [float32x4_t; 4]) -> Self {
        Self(quarters, PhantomData)
    }

    /// 16 bytes with sign as floats.
    #[inline(always)]
    unsafe fn widened(bytes: int8x16_t) -> Self {
        // SAFETY: called from methods of `Lanes` only, which need NEON.
        unsafe {
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            let quarters = [
                vmovl_s16(vget_low_s16(low)),
                vmovl_high_s16(low),
                vmovl_s16(vget_low_s16(high)),
                vmovl_high_s16(high),
            ];
            Self::of(each!(part => vcvtq_f32_s32(quarters[part])))
        }
    }
}

/// Flips the highest bit of each byte: codes, whose zero is 128, become integers with sign.
#[inline(always)]
unsafe fn flipped(bytes: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
    // SAFETY: called from methods of `Lanes` only, which need NEON.
    unsafe { each!(part => veorq_u8(bytes[part], vdupq_n_u8(0x80))) }
}

// SAFETY: needs what `D` needs, NEON at least; loads and stores touch what they name.
unsafe impl<D: ByteDot> Lanes for Lanes128<D> {
    type Bytes = [uint8x16_t; 4];
    type Weights = [int8x16_t; 4];
    type Quads = int8x16_t;
    type Sums = [int32x4_t; 4];
    type Scale = Self;

    // A row of one tile takes eight of 32 registers: four of sums, four of results.
    const IS_WIDE: bool = false;
    const MAX_ROWS: usize = D::MAX_ROWS;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self::of([vdupq_n_f32(value); 4]) }
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self::of(load_quarters(at)) }
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self {
        // SAFETY: the trait's promise; a half is a u16.
        unsafe { Self::of(each!(part => vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at.add(4 * part).cast()))))) }
    }

    #[inline(always)]
    unsafe fn load_i8(at: *const i8) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self::widened(vld1q_s8(at)) }
    }

    #[inline(always)]
    unsafe fn load_exponents(at: *const u8) -> Self {
        // SAFETY: the trait's promise.
        unsafe {
            let bytes = vld1q_u8(at);
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            let quarters = [
                vmovl_u16(vget_low_u16(low)),
                vmovl_high_u16(low),
                vmovl_u16(vget_low_u16(high)),
                vmovl_high_u16(high),
            ];
            let smallest = vdupq_n_u32(SMALLEST_POWER);
            Self::of(each!(part => vreinterpretq_f32_u32(vmaxq_u32(vshlq_n_u32::<23>(quarters[part]), smallest))))
        }
    }

    #[inline(always)]
    unsafe fn load_low_nibbles(at: *const u8) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self::widened(vreinterpretq_s8_u8(vandq_u8(vld1q_u8(at), vdupq_n_u8(15)))) }
    }

    #[inline(always)]
    unsafe fn load_high_nibbles(at: *const u8) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self::widened(vreinterpretq_s8_u8(vshrq_n_u8::<4>(vld1q_u8(at)))) }
    }

    #[inline(always)]
    unsafe fn mul(self, factor: Self) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self::of(each!(part => vmulq_f32(self.0[part], factor.0[part]))) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self::of(each!(part => vfmaq_f32(addend.0[part], self.0[part], factor.0[part]))) }
    }

    #[inline(always)]
    unsafe fn add(self, addend: Self) -> Self {
        // SAFETY: the trait's promise.
        unsafe { Self::of(each!(part => vaddq_f32(self.0[part], addend.0[part]))) }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the trait's promise.
        unsafe {
            each!(part => vst1q_f32(at.add(4 * part), self.0[part]));
        }
    }

    #[inline(always)]
    fn prefetch(at: *const u8) {
        // SAFETY: a hint, which reads nothing.
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) at, options(readonly, nostack, preserves_flags)) }
    }

    #[inline(always)]
    fn prefetch_far(at: *const u8) {
        // SAFETY: as above.
        unsafe { asm!("prfm pldl2keep, [{}]", in(reg) at, options(readonly, nostack, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn load_bytes(at: *const u8) -> Self::Bytes {
        // SAFETY: the trait's promise.
        unsafe { each!(part => vld1q_u8(at.add(16 * part))) }
    }

    #[inline(always)]
    unsafe fn store_bytes(bytes: Self::Bytes, at: *mut u8) {
        // SAFETY: the trait's promise.
        unsafe {
            each!(part => vst1q_u8(at.add(16 * part), bytes[part]));
        }
    }

    #[inline(always)]
    unsafe fn mask(bytes: Self::Bytes, mask: u8) -> Self::Bytes {
        // SAFETY: the trait's promise.
        unsafe { each!(part => vandq_u8(bytes[part], vdupq_n_u8(mask))) }
    }

    #[inline(always)]
    unsafe fn or(one: Self::Bytes, other: Self::Bytes) -> Self::Bytes {
        // SAFETY: the trait's promise.
        unsafe { each!(part => vorrq_u8(one[part], other[part])) }
    }

    #[inline(always)]
    unsafe fn look_up(book: &[u8; 16], places: Self::Bytes) -> Self::Bytes {
        // SAFETY: the trait's promise; a book is one register.
        unsafe {
            let book = vld1q_u8(book.as_ptr());
            each!(part => vqtbl1q_u8(book, places[part]))
        }
    }

    #[inline(always)]
    unsafe fn shift_left<const BY: u32>(bytes: Self::Bytes) -> Self::Bytes {
        // SAFETY: the trait's promise.
        unsafe {
            match BY {
                1 => each!(part => vshlq_n_u8::<1>(bytes[part])),
                2 => each!(part => vshlq_n_u8::<2>(bytes[part])),
                3 => each!(part => vshlq_n_u8::<3>(bytes[part])),
                4 => each!(part => vshlq_n_u8::<4>(bytes[part])),
                _ => unreachable!("no format needs a shift by {BY}"),
            }
        }
    }

    #[inline(always)]
    unsafe fn shift_right<const BY: u32>(bytes: Self::Bytes) -> Self::Bytes {
        // SAFETY: the trait's promise.
        unsafe {
            match BY {
                1 => each!(part => vshrq_n_u8::<1>(bytes[part])),
                2 => each!(part => vshrq_n_u8::<2>(bytes[part])),
                4 => each!(part => vshrq_n_u8::<4>(bytes[part])),
                _ => unreachable!("no format needs a shift by {BY}"),
            }
        }
    }

    #[inline(always)]
    unsafe fn weights(codes: Self::Bytes) -> Self::Weights {
        // SAFETY: the trait's promise.
        unsafe { Self::expanded_weights(flipped(codes)) }
    }

    #[inline(always)]
    unsafe fn expanded(codes: Self::Bytes) -> Self::Bytes {
        // SAFETY: the trait's promise.
        unsafe { flipped(codes) }
    }

    #[inline(always)]
    unsafe fn expanded_weights(bytes: Self::Bytes) -> Self::Weights {
        // SAFETY: the trait's promise.
        unsafe { each!(part => vreinterpretq_s8_u8(bytes[part])) }
    }

    #[inline(always)]
    unsafe fn quads(at: *const i8) -> Self::Quads {
        // SAFETY: the trait's promise.
        unsafe { vld1q_s8(at) }
    }

    #[inline(always)]
    unsafe fn start(_base: *const i32) -> Self::Sums {
        // SAFETY: the trait's promise.
        unsafe { [vdupq_n_s32(SUM_ORIGIN.to_bits().cast_signed()); 4] }
    }

    #[inline(always)]
    unsafe fn dot<const PLACE: i32>(sums: Self::Sums, weights: Self::Weights, quads: Self::Quads) -> Self::Sums {
        // SAFETY: the trait's promise.
        unsafe { each!(part => D::dot::<PLACE>(sums[part], weights[part], quads)) }
    }

    #[inline(always)]
    unsafe fn scale(self) -> Self::Scale {
        self
    }

    #[inline(always)]
    unsafe fn scaled(sums: Self::Sums, scale: Self::Scale) -> Self {
        // The bits are those of `SUM_ORIGIN` plus the sum as a float. Taking the origin away is exact, and takes no longer
        // than a conversion anywhere.
        // SAFETY: the trait's promise.
        unsafe {
            let origin = vdupq_n_f32(SUM_ORIGIN);
            Self::of(each!(part => vsubq_f32(vreinterpretq_f32_s32(sums[part]), origin))).mul(scale)
        }
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
