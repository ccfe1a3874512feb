//! KV in 8 bits: runs of 32 dimensions of one head share a scale, as in GGUF's Q8_0, but laid out for whole vectors.
//!
//! A run of a lane group's keys is `[32 dimensions, LANES]` bytes and then `LANES` scales, of a token's values
//! 32 bytes and then a scale: 34 bytes for 32 elements, next to each other, so that reading stays one forward run.

use half::f16;

use super::LANES;
use super::element::KvElement;
use super::lanes::Lanes;
use crate::KvDType;

/// Elements that share a scale.
pub(crate) const RUN_LEN: usize = 32;
/// Vectors of values in a run.
const VECTORS_PER_RUN: usize = RUN_LEN / LANES;
const SCALE_LEN: usize = size_of::<f16>();
/// Bytes of a run of one token's values.
const ROW_RUN_LEN: usize = RUN_LEN + SCALE_LEN;
/// Bytes of a run of a lane group's keys.
const KEY_RUN_LEN: usize = ROW_RUN_LEN * LANES;
/// The largest element: symmetric, so that a sign flip is exact.
const MAX_ELEMENT: f32 = 127.0;

/// A byte of a pool: an element, or half of a scale.
#[derive(Debug, Clone, Copy, Default)]
#[repr(transparent)]
pub(crate) struct Q8(u8);

#[cfg(test)]
impl Q8 {
    pub(crate) fn bits(self) -> u8 {
        self.0
    }
}

// SAFETY: a byte has no invalid bit patterns. Of `head_size / RUN_LEN` runs, which is whole, the last vector and the
// scale behind it end where the run does.
unsafe impl KvElement for Q8 {
    const DTYPE: KvDType = KvDType::Q8_0;
    const DIMS_PER_SCALE: usize = RUN_LEN;
    type Scale<L: Lanes> = L;

    fn keys_len(head_size: usize) -> usize {
        head_size / RUN_LEN * KEY_RUN_LEN
    }

    fn row_len(head_size: usize) -> usize {
        head_size / RUN_LEN * ROW_RUN_LEN
    }

    #[inline(always)]
    fn key_offset(dim: usize) -> usize {
        dim / RUN_LEN * KEY_RUN_LEN + dim % RUN_LEN * LANES
    }

    #[inline(always)]
    fn value_offset(column: usize) -> usize {
        column / VECTORS_PER_RUN * ROW_RUN_LEN + column % VECTORS_PER_RUN * LANES
    }

    #[inline(always)]
    unsafe fn key_scale<L: Lanes>(keys: *const Self, first_dim: usize) -> L {
        // SAFETY: the scales are the last `LANES` halves of the run, in a group of keys by the caller's promise.
        unsafe { L::load_half(keys.add(Self::key_offset(first_dim) + RUN_LEN * LANES).cast()) }
    }

    #[inline(always)]
    unsafe fn load_keys<L: Lanes>(from: *const Self, scale: L) -> L {
        // SAFETY: `LANES` bytes at a key offset, by the caller's promise.
        unsafe { L::load_bytes(from.cast()).mul(scale) }
    }

    #[inline(always)]
    unsafe fn load_values<L: Lanes>(row: *const Self, column: usize) -> L {
        // SAFETY: the run of that column is in the row, by the caller's promise: `LANES` bytes and a scale at its end.
        unsafe {
            let scale = row.add(column / VECTORS_PER_RUN * ROW_RUN_LEN + RUN_LEN);
            L::load_bytes(row.add(Self::value_offset(column)).cast()).mul(L::splat_half(scale.cast()))
        }
    }

    #[inline(always)]
    unsafe fn write_key<L: Lanes>(key: &[f32], keys: &mut [Self], lane: usize) {
        for (key, keys) in key.chunks_exact(RUN_LEN).zip(keys.chunks_exact_mut(KEY_RUN_LEN)) {
            let (elements, scales) = keys.split_at_mut(RUN_LEN * LANES);
            // SAFETY: the features are the caller's promise.
            let run = unsafe { Run::round::<L>(key) };
            for (to, from) in elements[lane..].iter_mut().step_by(LANES).zip(run.elements) {
                *to = from;
            }
            scales[lane * SCALE_LEN..][..SCALE_LEN].copy_from_slice(&run.scale);
        }
    }

    #[inline(always)]
    unsafe fn write_value<L: Lanes>(value: &[f32], row: &mut [Self]) {
        for (value, to) in value.chunks_exact(RUN_LEN).zip(row.chunks_exact_mut(ROW_RUN_LEN)) {
            // SAFETY: the features are the caller's promise.
            let run = unsafe { Run::round::<L>(value) };
            to[..RUN_LEN].copy_from_slice(&run.elements);
            to[RUN_LEN..].copy_from_slice(&run.scale);
        }
    }
}

/// One run as it is stored.
struct Run {
    elements: [Q8; RUN_LEN],
    scale: [Q8; SCALE_LEN],
}

impl Run {
    /// The scale makes the largest magnitude 127; magnitudes above 127 * 65504 are stored as that. Elements are rounded by
    /// the scale as it is stored, so that its own rounding costs nothing more. A NaN makes the whole run NaN: a broken
    /// model is seen, not hidden.
    ///
    /// # Safety
    /// The CPU must have the features of `L`.
    #[inline(always)]
    unsafe fn round<L: Lanes>(from: &[f32]) -> Self {
        // Without their sign, floats are ordered as their bits are, and NaN is above all.
        let largest = from.iter().fold(0, |largest, element| largest.max(element.abs().to_bits()));
        let largest = f32::from_bits(largest);
        let scale = f16::from_f32((largest / MAX_ELEMENT).clamp(0.0, f16::MAX.to_f32_const()));
        let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
        let mut elements = [Q8::default(); RUN_LEN];
        for (from, to) in from.chunks_exact(LANES).zip(elements.chunks_exact_mut(LANES)) {
            // SAFETY: both have `LANES` elements, and a `Q8` is a byte; the features are the caller's promise.
            unsafe {
                let scaled = L::load(from.as_ptr()).mul(L::splat(inverse));
                // What is NaN becomes the smallest: its scale says what it is.
                let bounded = scaled.max(L::splat(-MAX_ELEMENT)).min(L::splat(MAX_ELEMENT));
                bounded.store_bytes(to.as_mut_ptr().cast());
            }
        }
        Self { elements, scale: scale.to_ne_bytes().map(Q8) }
    }
}
