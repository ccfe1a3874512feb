//! Plain `f32` slices behind tensors, and loops over rows on candle's barrier pool.
//!
//! Every operation here works row by row with a fixed order of sums, so a token's values do not depend on
//! which other tokens are in the batch.

use std::ops::Range;

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};
use mistralrs_quant::Threads;

use super::pool::Pool;

/// Below this many elements a loop runs on the calling thread: waking the pool costs more than it saves.
const MIN_PARALLEL_ELEMENTS: usize = 16 * 1024;

/// A contiguous `[rows, columns]` f32 tensor's elements, in order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) values: &'a [f32],
    pub(super) num_rows: usize,
    pub(super) num_columns: usize,
}

/// A [`Matrix`] to write to.
#[derive(Debug)]
pub(super) struct MatrixMut<'a> {
    pub(super) values: &'a mut [f32],
    pub(super) num_rows: usize,
    pub(super) num_columns: usize,
}

fn elements(layout: &Layout) -> Result<(Range<usize>, usize, usize)> {
    let (num_rows, num_columns) = layout.shape().dims2()?;
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("expected a contiguous tensor, got {layout:?}")
    };
    Ok((start..end, num_rows, num_columns))
}

impl<'a> Matrix<'a> {
    /// # Errors
    /// The tensor is not f32, not contiguous or not two-dimensional.
    pub(super) fn of(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let (range, num_rows, num_columns) = elements(layout)?;
        Ok(Self { values: &storage.as_slice::<f32>()?[range], num_rows, num_columns })
    }
}

impl<'a> MatrixMut<'a> {
    /// # Errors
    /// As [`Matrix::of`]'s.
    pub(super) fn of(storage: &'a mut CpuStorage, layout: &Layout) -> Result<Self> {
        let (range, num_rows, num_columns) = elements(layout)?;
        let CpuStorage::F32(values) = storage else {
            candle_core::bail!("activations on the CPU are f32, got {layout:?}")
        };
        Ok(Self { values: &mut values[range], num_rows, num_columns })
    }

    /// Calls `work(row, values)` once per row, in parallel where it pays.
    pub(super) fn for_each(self, work: impl Fn(usize, &mut [f32]) + Sync) {
        let Self { values, num_rows, num_columns } = self;
        if values.len() < MIN_PARALLEL_ELEMENTS {
            for (row, values) in values.chunks_exact_mut(num_columns.max(1)).enumerate() {
                work(row, values);
            }
            return;
        }
        let start = SendPointer(values.as_mut_ptr());
        Pool.run(num_rows, &|range| {
            for row in range {
                // SAFETY: `row < num_rows`, so the slice is inside `values`; the pool hands every row to exactly
                // one worker and returns only after all of them are done.
                let values = unsafe { std::slice::from_raw_parts_mut(start.at(row * num_columns), num_columns) };
                work(row, values);
            }
        });
    }
}

/// A pointer that workers may copy; each use says why its writes do not overlap.
#[derive(Clone, Copy)]
struct SendPointer(*mut f32);

// SAFETY: sending the address is harmless; dereferencing it is `unsafe` where it happens.
unsafe impl Send for SendPointer {}
// SAFETY: as above.
unsafe impl Sync for SendPointer {}

impl SendPointer {
    /// The address `offset` elements on; a method, so that closures capture the wrapper and not the raw pointer.
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

/// Copies rows `indices` of `input` `[T, columns]` to `out` `[indices, columns]`.
///
/// # Errors
/// An index of T or more, or sizes that differ.
pub fn copy_rows(input: &Tensor, indices: &[u32], out: &Tensor) -> Result<()> {
    out.inplace_op2(input, &CopyRows(indices))
}

struct CopyRows<'a>(&'a [u32]);

impl InplaceOp2 for CopyRows<'_> {
    fn name(&self) -> &'static str {
        "copy-rows"
    }

    fn cpu_fwd(
        &self,
        out: &mut CpuStorage,
        out_layout: &Layout,
        from: &CpuStorage,
        from_layout: &Layout,
    ) -> Result<()> {
        let (out, from) = (MatrixMut::of(out, out_layout)?, Matrix::of(from, from_layout)?);
        if (out.num_rows, out.num_columns) != (self.0.len(), from.num_columns) {
            candle_core::bail!("{} rows of {} columns into {out_layout:?}", self.0.len(), from.num_columns)
        }
        for (index, out) in self.0.iter().zip(out.values.chunks_exact_mut(from.num_columns.max(1))) {
            let Some(row) = from.values.chunks_exact(from.num_columns.max(1)).nth(*index as usize) else {
                candle_core::bail!("row {index} of {}", from.num_rows)
            };
            out.copy_from_slice(row);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn rows_are_copied_in_the_order_asked_for() {
        let input = Tensor::new(&[[1f32, 2.], [3., 4.], [5., 6.]], &Device::Cpu).unwrap();
        let out = Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
        copy_rows(&input, &[2, 0], &out).unwrap();
        assert_eq!(out.to_vec2::<f32>().unwrap(), [[5., 6.], [1., 2.]]);
        let error = copy_rows(&input, &[0, 3], &out).unwrap_err().to_string();
        assert!(error.starts_with("row 3 of 3"), "{error}");
        let error = copy_rows(&input, &[0], &out).unwrap_err().to_string();
        assert!(error.starts_with("1 rows of 2 columns"), "{error}");
    }
}
