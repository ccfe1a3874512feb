//! Copies of tensors in host memory that is used again.

use candle_core::{CpuStorage, Result, Storage, Tensor};

/// Makes `values` the elements of `tensor` (f32), in order. Allocates nothing where there is room and the tensor is
/// contiguous on the CPU.
///
/// # Errors
/// The device's, or another dtype.
pub(crate) fn read_into(tensor: &Tensor, values: &mut Vec<f32>) -> Result<()> {
    values.clear();
    let (storage, layout) = tensor.storage_and_layout();
    if let (Storage::Cpu(CpuStorage::F32(elements)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) {
        values.extend_from_slice(&elements[start..end]);
        return Ok(());
    }
    drop(storage);
    values.extend(tensor.flatten_all()?.to_vec1::<f32>()?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn any_layout_is_read_in_order() {
        let tensor = Tensor::new(&[[1f32, 2., 3.], [4., 5., 6.]], &Device::Cpu).unwrap();
        let mut values = vec![9.0; 7];
        read_into(&tensor.narrow(0, 1, 1).unwrap(), &mut values).unwrap();
        assert_eq!(values, [4., 5., 6.]);
        read_into(&tensor.t().unwrap(), &mut values).unwrap();
        assert_eq!(values, [1., 4., 2., 5., 3., 6.]);
        read_into(&tensor.narrow(0, 0, 0).unwrap(), &mut values).unwrap();
        assert!(values.is_empty());
    }
}
