//! Memory of weights, in whole cache lines.

/// Aligned so that no load straddles two cache lines where rows of bytes are as long.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct CacheLine([u8; 64]);

/// Zeroes, `num_bytes` or a few more.
pub(crate) fn zeroed(num_bytes: usize) -> Vec<CacheLine> {
    vec![CacheLine([0; 64]); num_bytes.div_ceil(size_of::<CacheLine>())]
}

pub(crate) fn bytes(lines: &[CacheLine]) -> &[u8] {
    // SAFETY: a `CacheLine` is 64 initialized bytes without padding.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
}

pub(crate) fn bytes_mut(lines: &mut [CacheLine]) -> &mut [u8] {
    // SAFETY: as in `bytes`; every bit pattern is a valid `CacheLine`.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
}
