//! Rows of f32 inside tensors, as they lie: checked by name, never copied.

use candle_core::{DType, Layout, Tensor};

use crate::AttentionError;

/// `[rows, row_len]` floats. A row is one piece of memory, the next one lies `stride` further on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StridedRows<'a> {
    elements: &'a [f32],
    row_len: usize,
    stride: usize,
}

impl<'a> StridedRows<'a> {
    /// Rows without gaps.
    #[cfg(test)]
    pub(crate) fn dense(elements: &'a [f32], row_len: usize) -> Self {
        Self { elements, row_len, stride: row_len }
    }

    /// The rows of a tensor that [`check_rows`] let through.
    pub(crate) fn of_tensor(elements: &'a [f32], layout: &Layout) -> Self {
        Self { elements: &elements[layout.start_offset()..], row_len: layout.dims()[1], stride: layout.stride()[0] }
    }

    pub(crate) fn row(&self, index: usize) -> &'a [f32] {
        &self.elements[index * self.stride..][..self.row_len]
    }

    /// Columns `column..column + len` of the rows from `row` on, of which there is one at least.
    pub(crate) fn part(&self, row: usize, column: usize, len: usize) -> Self {
        Self { elements: &self.elements[row * self.stride + column..], row_len: len, stride: self.stride }
    }
}

/// `tensor` must be `[rows, columns]` as `expected`, f32, its columns neighbours.
pub(crate) fn check_rows(name: &'static str, tensor: &Tensor, expected: [usize; 2]) -> Result<(), AttentionError> {
    if tensor.dims() != expected {
        return Err(AttentionError::Shape { tensor: name, expected: expected.to_vec(), found: tensor.dims().to_vec() });
    }
    if tensor.dtype() != DType::F32 {
        return Err(AttentionError::DType { tensor: name, found: tensor.dtype() });
    }
    if tensor.stride()[1] != 1 && expected[1] > 1 {
        return Err(AttentionError::Strides { tensor: name, found: tensor.stride().to_vec() });
    }
    Ok(())
}

/// As [`check_rows`], and the rows must be neighbours too.
pub(crate) fn check_dense_rows(
    name: &'static str,
    tensor: &Tensor,
    expected: [usize; 2],
) -> Result<(), AttentionError> {
    check_rows(name, tensor, expected)?;
    if tensor.is_contiguous() {
        return Ok(());
    }
    Err(AttentionError::Strides { tensor: name, found: tensor.stride().to_vec() })
}
