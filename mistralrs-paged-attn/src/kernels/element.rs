//! How KV is stored: where elements lie in a pool, how they are rounded, and how kernels read them.

use half::{bf16, f16};

use super::lanes::Lanes;
use super::{LANES, padded};
use crate::KvDType;

/// A storage type of KV. Pools are made of *units* of this type; for floats a unit is an element.
///
/// Kernels read whole vectors of [`LANES`] elements: one dimension of the keys of a lane group, or neighbouring
/// dimensions of one token's values.
///
/// # Safety
/// Every bit pattern, all zeroes included, must be a valid value: pools start as zeroed pages. Vectors that
/// [`Self::key_offset`] and [`Self::value_offset`] name for the dimensions of a head must lie, with all that loading
/// them reads, within [`Self::keys_len`] and [`Self::row_len`].
pub(crate) unsafe trait KvElement: Copy + Default + Send + Sync + 'static {
    /// Its name in a layout.
    const DTYPE: KvDType;
    /// Neighbouring dimensions of a key that have one [`Self::Scale`].
    const DIMS_PER_SCALE: usize;
    /// What the keys of a lane group are multiplied by, by lane; nothing for floats.
    type Scale<L: Lanes>: Copy;

    /// Units of a lane group's keys; `head_size` is one that [`KvDType::fits`].
    fn keys_len(head_size: usize) -> usize;

    /// Units of one token's values.
    fn row_len(head_size: usize) -> usize;

    /// Where dimension `dim` of a lane group's keys begins.
    fn key_offset(dim: usize) -> usize;

    /// Where vector `column` of a row of values begins.
    fn value_offset(column: usize) -> usize;

    /// The scale of dimensions `first_dim..first_dim + DIMS_PER_SCALE`.
    ///
    /// # Safety
    /// `keys` must be a lane group's, and the CPU must have the features of `L`.
    unsafe fn key_scale<L: Lanes>(keys: *const Self, first_dim: usize) -> Self::Scale<L>;

    /// Loads the keys at an offset as f32.
    ///
    /// # Safety
    /// `from` must be a lane group's keys at a [`Self::key_offset`], and the CPU must have the features of `L`.
    unsafe fn load_keys<L: Lanes>(from: *const Self, scale: Self::Scale<L>) -> L;

    /// Loads vector `column` of a row of values as f32.
    ///
    /// # Safety
    /// `row` must be a token's values with that column, and the CPU must have the features of `L`.
    unsafe fn load_values<L: Lanes>(row: *const Self, column: usize) -> L;

    /// Rounds `key` into lane `lane` of the lane group `keys`.
    ///
    /// # Safety
    /// The CPU must have the features of `L`.
    unsafe fn write_key<L: Lanes>(key: &[f32], keys: &mut [Self], lane: usize);

    /// Rounds `value` into `row`.
    ///
    /// # Safety
    /// The CPU must have the features of `L`.
    unsafe fn write_value<L: Lanes>(value: &[f32], row: &mut [Self]);
}

/// Storage types without scales: keys are `[D, LANES]`, a row of values is `[padded D]`.
///
/// # Safety
/// Every bit pattern must be a valid value.
pub(crate) unsafe trait KvFloat: Copy + Default + Send + Sync + 'static {
    /// Its name in a layout.
    const DTYPE: KvDType;

    /// Loads [`LANES`] elements as f32.
    ///
    /// # Safety
    /// `from` must be readable for [`LANES`] elements, and the CPU must have the features of `L`.
    unsafe fn load<L: Lanes>(from: *const Self) -> L;

    /// Stores the nearest elements. Saturates: an infinity here would turn every later weight of the sequence into NaN.
    ///
    /// # Safety
    /// `to` must be writable for [`LANES`] elements, and the CPU must have the features of `L`.
    unsafe fn store<L: Lanes>(values: L, to: *mut Self);
}

// SAFETY: bit patterns by the promise of `KvFloat`; the last key vector ends at `D * LANES`, the last of a row at the
// padded head size.
unsafe impl<F: KvFloat> KvElement for F {
    const DTYPE: KvDType = <F as KvFloat>::DTYPE;
    const DIMS_PER_SCALE: usize = usize::MAX;
    type Scale<L: Lanes> = ();

    fn keys_len(head_size: usize) -> usize {
        head_size * LANES
    }

    fn row_len(head_size: usize) -> usize {
        padded(head_size)
    }

    #[inline(always)]
    fn key_offset(dim: usize) -> usize {
        dim * LANES
    }

    #[inline(always)]
    fn value_offset(column: usize) -> usize {
        column * LANES
    }

    #[inline(always)]
    unsafe fn key_scale<L: Lanes>(_keys: *const Self, _first_dim: usize) {}

    #[inline(always)]
    unsafe fn load_keys<L: Lanes>(from: *const Self, (): ()) -> L {
        // SAFETY: the caller's promises are those of `KvFloat::load`.
        unsafe { F::load(from) }
    }

    #[inline(always)]
    unsafe fn load_values<L: Lanes>(row: *const Self, column: usize) -> L {
        // SAFETY: the caller's promises are those of `KvFloat::load`.
        unsafe { F::load(row.add(Self::value_offset(column))) }
    }

    #[inline(always)]
    unsafe fn write_key<L: Lanes>(key: &[f32], keys: &mut [Self], lane: usize) {
        let mut column = keys[lane..].iter_mut().step_by(LANES);
        for key in key.chunks(LANES) {
            let mut piece = [F::default(); LANES];
            // SAFETY: the piece has `LANES` elements; the features are the caller's promise.
            unsafe { F::store(load_padded::<L>(key), piece.as_mut_ptr()) };
            // The piece first: it is what ends, and what comes second in a zip is asked for one less.
            for (from, to) in piece[..key.len()].iter().zip(column.by_ref()) {
                *to = *from;
            }
        }
    }

    #[inline(always)]
    unsafe fn write_value<L: Lanes>(value: &[f32], row: &mut [Self]) {
        for (value, to) in value.chunks(LANES).zip(row.chunks_exact_mut(LANES)) {
            // SAFETY: the chunk has `LANES` elements; the features are the caller's promise.
            unsafe { F::store(load_padded::<L>(value), to.as_mut_ptr()) };
        }
    }
}

/// Up to [`LANES`] floats, then zeroes.
#[inline(always)]
unsafe fn load_padded<L: Lanes>(from: &[f32]) -> L {
    let mut padded = [0.0; LANES];
    let whole = if from.len() < LANES {
        padded[..from.len()].copy_from_slice(from);
        &padded
    } else {
        from
    };
    // SAFETY: `LANES` floats or more; the features are the caller's promise.
    unsafe { L::load(whole.as_ptr()) }
}

/// `values` within ±`max`; what is NaN stays NaN.
#[inline(always)]
unsafe fn saturated<L: Lanes>(values: L, max: f32) -> L {
    // SAFETY: the features are the caller's promise.
    unsafe { L::splat(max).min(L::splat(-max).max(values)) }
}

// SAFETY: f32 has no invalid bit patterns.
unsafe impl KvFloat for f32 {
    const DTYPE: KvDType = KvDType::F32;

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller's promises are those of `Lanes::load`.
        unsafe { L::load(from) }
    }

    #[inline(always)]
    unsafe fn store<L: Lanes>(values: L, to: *mut Self) {
        // SAFETY: the caller's promises are those of `Lanes::store`.
        unsafe { values.store(to) }
    }
}

// SAFETY: f16 has no invalid bit patterns.
unsafe impl KvFloat for f16 {
    const DTYPE: KvDType = KvDType::F16;

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller's promises are those of `Lanes::load_half`.
        unsafe { L::load_half(from) }
    }

    #[inline(always)]
    unsafe fn store<L: Lanes>(values: L, to: *mut Self) {
        // SAFETY: the caller's promises are those of `Lanes::store_half`.
        unsafe { saturated(values, f16::MAX.to_f32_const()).store_half(to) }
    }
}

// SAFETY: bf16 has no invalid bit patterns.
unsafe impl KvFloat for bf16 {
    const DTYPE: KvDType = KvDType::Bf16;

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller's promises are those of `Lanes::load_brain`.
        unsafe { L::load_brain(from) }
    }

    #[inline(always)]
    unsafe fn store<L: Lanes>(values: L, to: *mut Self) {
        // SAFETY: the caller's promises are those of `Lanes::store_brain`.
        unsafe { saturated(values, bf16::MAX.to_f32_const()).store_brain(to) }
    }
}
