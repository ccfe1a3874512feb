//! Plain `f32` slices behind tensors, and loops over rows on candle's barrier pool.
//!
//! Every operation here works row by row with a fixed order of sums, so a token's values do not depend on
//! which other tokens are in the batch.

use std::ops::Range;

use candle_core::{CpuStorage, DType, Layout, Result, Shape, utils::barrier_pool};
use mistralrs_quant::Threads;

/// Below this many elements a loop runs on the calling thread: waking the pool costs more than it saves.
const MIN_PARALLEL_ELEMENTS: usize = 16 * 1024;

/// candle's threads, which wait at a barrier: they are there within a microsecond.
pub(super) struct Pool;

impl Threads for Pool {
    fn run(&self, num_units: usize, work: &(dyn Fn(Range<usize>) + Sync)) {
        barrier_pool().execute_chunked(num_units, work);
    }
}

/// Checks that `layout` is a contiguous `[rows, columns]` f32 tensor; its elements, in order.
pub(super) fn contiguous_rows<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<(&'a [f32], usize, usize)> {
    let (rows, columns) = layout.shape().dims2()?;
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("expected a contiguous tensor, got {layout:?}")
    };
    Ok((&storage.as_slice::<f32>()?[start..end], rows, columns))
}

/// Makes a `[rows, columns]` tensor's storage by calling `fill(row, values)` once per row, in parallel where it pays.
pub(super) fn build_rows(
    (rows, columns): (usize, usize),
    fill: impl Fn(usize, &mut [f32]) + Sync,
) -> (CpuStorage, Shape) {
    let mut values = vec![0f32; rows * columns];
    if values.len() < MIN_PARALLEL_ELEMENTS {
        for (row, values) in values.chunks_exact_mut(columns.max(1)).enumerate() {
            fill(row, values);
        }
    } else {
        let start = SendPointer(values.as_mut_ptr());
        barrier_pool().execute_chunked(rows, |range: Range<usize>| {
            for row in range {
                // SAFETY: `row < rows`, so the slice is inside `values`; the pool hands every row to exactly
                // one worker and returns only after all of them are done.
                let values = unsafe { std::slice::from_raw_parts_mut(start.at(row * columns), columns) };
                fill(row, values);
            }
        });
    }
    (CpuStorage::F32(values), Shape::from((rows, columns)))
}

/// A pointer that workers may copy; each use says why its writes do not overlap.
#[derive(Clone, Copy)]
pub(super) struct SendPointer(pub *mut f32);

// SAFETY: sending the address is harmless; dereferencing it is `unsafe` where it happens.
unsafe impl Send for SendPointer {}
// SAFETY: as above.
unsafe impl Sync for SendPointer {}

impl SendPointer {
    /// The address `offset` elements on; a method, so that closures capture the wrapper and not the raw pointer.
    pub(super) fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

/// Fails unless `dtype` is what CPU layers compute in.
pub(super) fn expect_f32(dtype: DType) -> Result<()> {
    if dtype != DType::F32 {
        candle_core::bail!("activations on the CPU are f32, got {dtype:?}")
    }
    Ok(())
}
