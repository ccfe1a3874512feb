//! What kernels ask of an instruction set.

use std::array::from_fn;

use half::f16;

use super::product::{self, RowPointers, Target, TileGroups};
use super::weights::{self, ExpandedWeights, Weights};
use crate::format::SMALLEST_POWER;
use crate::tile::{PLANE_BYTES, QUAD, TILE};

/// 16 values of f32, one per output of a tile, and the integers that go with them.
///
/// # Safety
/// Implementations document the CPU features they need; methods may be called only where the CPU has them, with
/// pointers that may be read, or written, as far as a method says. Results have the same bits in all implementations.
pub(super) unsafe trait Lanes: Copy {
    /// A quad of codes of all outputs: 64 bytes.
    type Bytes: Copy;
    /// The same, ready to be multiplied.
    type Weights: Copy;
    /// Activations of four quads.
    type Quads: Copy;
    /// Integer sums by output.
    type Sums: Copy;
    /// What integer sums are multiplied by.
    type Scale: Copy;

    /// Whether registers hold 32 of these: room for more rows, and two tiles at once.
    const IS_WIDE: bool;
    /// Rows that have room in the registers, of two tiles if they are wide.
    const MAX_ROWS: usize;

    /// `value` in every lane.
    unsafe fn splat(value: f32) -> Self;
    /// 16 floats.
    unsafe fn load(at: *const f32) -> Self;
    /// 16 halves.
    unsafe fn load_f16(at: *const f16) -> Self;
    /// 16 bytes with sign.
    unsafe fn load_i8(at: *const i8) -> Self;
    /// Powers of two by 16 exponents, zero at 127, in a byte each.
    unsafe fn load_exponents(at: *const u8) -> Self;
    /// The low halves of 16 bytes.
    unsafe fn load_low_nibbles(at: *const u8) -> Self;
    /// The high halves of 16 bytes.
    unsafe fn load_high_nibbles(at: *const u8) -> Self;
    /// `self · factor`.
    unsafe fn mul(self, factor: Self) -> Self;
    /// `self · factor + addend`, rounded once.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// `self + addend`.
    unsafe fn add(self, addend: Self) -> Self;
    /// Writes 16 floats.
    unsafe fn store(self, at: *mut f32);

    /// Asks for a cache line that will be read soon; any address will do.
    fn prefetch(at: *const u8);
    /// The same for one that will be read later: it need not come nearer than the second-level cache.
    fn prefetch_far(at: *const u8);
    /// 64 bytes.
    unsafe fn load_bytes(at: *const u8) -> Self::Bytes;
    /// Writes 64 bytes.
    unsafe fn store_bytes(bytes: Self::Bytes, at: *mut u8);
    /// The bits of `mask`, in every byte.
    unsafe fn mask(bytes: Self::Bytes, mask: u8) -> Self::Bytes;
    /// Bits of both.
    unsafe fn or(one: Self::Bytes, other: Self::Bytes) -> Self::Bytes;
    /// What `book` has at the places that bytes, under 16, name.
    unsafe fn look_up(book: &[u8; 16], places: Self::Bytes) -> Self::Bytes;
    /// Bytes, shifted left by 1 to 4. Bits may cross from one byte into the next: callers mask them away.
    unsafe fn shift_left<const BY: u32>(bytes: Self::Bytes) -> Self::Bytes;
    /// The same to the right, by 1, 2 or 4.
    unsafe fn shift_right<const BY: u32>(bytes: Self::Bytes) -> Self::Bytes;

    /// Codes as factors.
    unsafe fn weights(codes: Self::Bytes) -> Self::Weights;
    /// What expanded tiles hold of codes.
    #[inline(always)]
    unsafe fn expanded(codes: Self::Bytes) -> Self::Bytes {
        codes
    }
    /// What [`Self::expanded`] made, as factors.
    #[inline(always)]
    unsafe fn expanded_weights(bytes: Self::Bytes) -> Self::Weights {
        // SAFETY: the caller's promise.
        unsafe { Self::weights(bytes) }
    }
    /// 16 activations.
    unsafe fn quads(at: *const i8) -> Self::Quads;
    /// What a sum over a span starts from; `base` is [`base`](crate::activations::base) of the span's activations.
    unsafe fn start(base: *const i32) -> Self::Sums;
    /// Adds the products with quad `PLACE` of the four.
    unsafe fn dot<const PLACE: i32>(sums: Self::Sums, weights: Self::Weights, quads: Self::Quads) -> Self::Sums;
    /// Prepares a scale of at most 22 significant bits.
    unsafe fn scale(self) -> Self::Scale;
    /// The sum of `(code - 128) · activation` since `start`, times the scale, rounded once.
    unsafe fn scaled(sums: Self::Sums, scale: Self::Scale) -> Self;

    /// [`product::multiply`], compiled with this instruction set.
    unsafe fn multiply<W: Weights, const R: usize, const V: usize>(
        tiles: &TileGroups<V>,
        rows: &RowPointers,
        target: &Target,
    );
    /// [`weights::expand`], compiled with this instruction set.
    unsafe fn expand<S: Weights, E: ExpandedWeights>(tile: *const u8, num_groups: usize, out: *mut u8);
}

/// No intrinsics: what every CPU can do, and the definition of what the others do.
#[derive(Clone, Copy)]
pub(super) struct PlainLanes([f32; TILE]);

#[inline(never)]
fn shifted(bytes: [u8; PLANE_BYTES], shift: impl Fn(u16) -> u16) -> [u8; PLANE_BYTES] {
    let mut out = bytes;
    for pair in out.chunks_exact_mut(2) {
        pair.copy_from_slice(&shift(u16::from_le_bytes([pair[0], pair[1]])).to_le_bytes());
    }
    out
}

// SAFETY: needs no CPU feature; loads and stores touch what they name.
unsafe impl Lanes for PlainLanes {
    type Bytes = [u8; PLANE_BYTES];
    type Weights = [u8; PLANE_BYTES];
    type Quads = [[i8; QUAD]; 4];
    type Sums = [i32; TILE];
    type Scale = Self;

    const IS_WIDE: bool = false;
    const MAX_ROWS: usize = 1;

    unsafe fn splat(value: f32) -> Self {
        Self([value; TILE])
    }

    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the trait's promise.
        Self(unsafe { at.cast::<[f32; TILE]>().read_unaligned() })
    }

    unsafe fn load_f16(at: *const f16) -> Self {
        // SAFETY: the trait's promise.
        Self(unsafe { at.cast::<[f16; TILE]>().read_unaligned() }.map(f16::to_f32))
    }

    unsafe fn load_i8(at: *const i8) -> Self {
        // SAFETY: the trait's promise.
        Self(unsafe { at.cast::<[i8; TILE]>().read_unaligned() }.map(f32::from))
    }

    unsafe fn load_exponents(at: *const u8) -> Self {
        let power = |exponent: u8| f32::from_bits((u32::from(exponent) << 23).max(SMALLEST_POWER));
        // SAFETY: the trait's promise.
        Self(unsafe { at.cast::<[u8; TILE]>().read_unaligned() }.map(power))
    }

    unsafe fn load_low_nibbles(at: *const u8) -> Self {
        // SAFETY: the trait's promise.
        Self(unsafe { at.cast::<[u8; TILE]>().read_unaligned() }.map(|byte| f32::from(byte & 15)))
    }

    unsafe fn load_high_nibbles(at: *const u8) -> Self {
        // SAFETY: the trait's promise.
        Self(unsafe { at.cast::<[u8; TILE]>().read_unaligned() }.map(|byte| f32::from(byte >> 4)))
    }

    unsafe fn mul(self, factor: Self) -> Self {
        Self(from_fn(|lane| self.0[lane] * factor.0[lane]))
    }

    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(from_fn(|lane| self.0[lane].mul_add(factor.0[lane], addend.0[lane])))
    }

    unsafe fn add(self, addend: Self) -> Self {
        Self(from_fn(|lane| self.0[lane] + addend.0[lane]))
    }

    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the trait's promise.
        unsafe { at.cast::<[f32; TILE]>().write_unaligned(self.0) }
    }

    fn prefetch(_: *const u8) {}

    fn prefetch_far(_: *const u8) {}

    unsafe fn load_bytes(at: *const u8) -> Self::Bytes {
        // SAFETY: the trait's promise.
        unsafe { at.cast::<Self::Bytes>().read_unaligned() }
    }

    unsafe fn store_bytes(bytes: Self::Bytes, at: *mut u8) {
        // SAFETY: the trait's promise.
        unsafe { at.cast::<Self::Bytes>().write_unaligned(bytes) }
    }

    #[inline(never)]
    unsafe fn mask(bytes: Self::Bytes, mask: u8) -> Self::Bytes {
        bytes.map(|byte| byte & mask)
    }

    #[inline(never)]
    unsafe fn or(one: Self::Bytes, other: Self::Bytes) -> Self::Bytes {
        from_fn(|index| one[index] | other[index])
    }

    #[inline(never)]
    unsafe fn look_up(book: &[u8; 16], places: Self::Bytes) -> Self::Bytes {
        places.map(|place| book[usize::from(place)])
    }

    unsafe fn shift_left<const BY: u32>(bytes: Self::Bytes) -> Self::Bytes {
        shifted(bytes, |pair| pair << BY)
    }

    unsafe fn shift_right<const BY: u32>(bytes: Self::Bytes) -> Self::Bytes {
        shifted(bytes, |pair| pair >> BY)
    }

    unsafe fn weights(codes: Self::Bytes) -> Self::Weights {
        codes
    }

    unsafe fn quads(at: *const i8) -> Self::Quads {
        // SAFETY: the trait's promise.
        unsafe { at.cast::<Self::Quads>().read_unaligned() }
    }

    unsafe fn start(_base: *const i32) -> Self::Sums {
        [0; TILE]
    }

    // Inlined and unrolled it would make kernels of a megabyte.
    #[inline(never)]
    unsafe fn dot<const PLACE: i32>(sums: Self::Sums, weights: Self::Weights, quads: Self::Quads) -> Self::Sums {
        let quad = quads[PLACE as usize];
        from_fn(|lane| {
            let codes = &weights[lane * QUAD..][..QUAD];
            let products = codes.iter().zip(quad).map(|(code, value)| (i32::from(*code) - 128) * i32::from(value));
            sums[lane] + products.sum::<i32>()
        })
    }

    unsafe fn scale(self) -> Self::Scale {
        self
    }

    unsafe fn scaled(sums: Self::Sums, scale: Self::Scale) -> Self {
        // A sum has 20 bits at most: exact.
        Self(from_fn(|lane| sums[lane] as f32 * scale.0[lane]))
    }

    unsafe fn multiply<W: Weights, const R: usize, const V: usize>(
        tiles: &TileGroups<V>,
        rows: &RowPointers,
        target: &Target,
    ) {
        // SAFETY: the trait's promise.
        unsafe { product::multiply::<Self, W, R, V>(tiles, rows, target) }
    }

    unsafe fn expand<S: Weights, E: ExpandedWeights>(tile: *const u8, num_groups: usize, out: *mut u8) {
        // SAFETY: the trait's promise.
        unsafe { weights::expand::<Self, S, E>(tile, num_groups, out) }
    }
}
