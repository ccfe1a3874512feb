//! Memory of weights: zeroed, aligned to cache lines, in huge pages where the system has them.
//!
//! Every token reads all weights from end to end. With pages of 4 KiB a fifth of that time goes into translating
//! addresses. Matrices of small models are smaller than a huge page, so they share mappings.

use std::cell::RefCell;
use std::sync::Arc;

use memmap2::MmapMut;

/// Bytes of a mapping that matrices share. What no matrix has touched yet takes no memory.
const SHARED_BYTES: usize = 32 << 20;
/// A larger matrix has a mapping of its own.
const MAX_SHARING_BYTES: usize = SHARED_BYTES / 4;

/// Aligned so that no load straddles two cache lines where rows of bytes are as long.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct CacheLine([u8; 64]);

/// Zeroes for one matrix.
pub(crate) struct Storage {
    mapping: Arc<Mapping>,
    start: usize,
    len: usize,
}

/// Pages that live as long as the last matrix in them.
struct Mapping {
    /// Where `pages` are; they do not move.
    start: *mut u8,
    pages: MmapMut,
}

// SAFETY: pages are reached through `Storage` only, and no two of them overlap.
unsafe impl Send for Mapping {}
// SAFETY: as above: shared references read, and only a storage's owner has a mutable one.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// # Panics
    /// If the system has no such memory, as any allocation would end.
    fn new(num_bytes: usize) -> Arc<Self> {
        // A mapping cannot be empty.
        let mut pages = MmapMut::map_anon(num_bytes.max(1)).expect("memory for weights");
        // A system without huge pages refuses, and reads more slowly.
        #[cfg(target_os = "linux")]
        let _ = pages.advise(memmap2::Advice::HugePage);
        Arc::new(Self { start: pages.as_mut_ptr(), pages })
    }
}

impl Storage {
    /// Zeroes for `num_bytes`.
    pub(crate) fn zeroed(num_bytes: usize) -> Self {
        thread_local! {
            /// The mapping that this thread's next small matrix shares, and what is taken of it.
            static OPEN: RefCell<Option<(Arc<Mapping>, usize)>> = const { RefCell::new(None) };
        }
        if num_bytes > MAX_SHARING_BYTES {
            return Self { mapping: Mapping::new(num_bytes), start: 0, len: num_bytes };
        }
        OPEN.with_borrow_mut(|open| {
            if open.as_ref().is_none_or(|(mapping, taken)| taken + num_bytes > mapping.pages.len()) {
                *open = Some((Mapping::new(SHARED_BYTES), 0));
            }
            let (mapping, taken) = open.as_mut().expect("a mapping was just opened");
            let start = *taken;
            *taken += num_bytes.next_multiple_of(align_of::<CacheLine>());
            Self { mapping: Arc::clone(mapping), start, len: num_bytes }
        })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the range is inside the mapping, initialized, and nobody else's.
        unsafe { std::slice::from_raw_parts(self.mapping.start.add(self.start), self.len) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.start.add(self.start), self.len) }
    }
}

/// Zeroes for what is not kept, `num_bytes` or a few more.
pub(crate) fn zeroed_lines(num_bytes: usize) -> Vec<CacheLine> {
    vec![CacheLine([0; 64]); num_bytes.div_ceil(size_of::<CacheLine>())]
}

pub(crate) fn line_bytes(lines: &[CacheLine]) -> &[u8] {
    // SAFETY: a `CacheLine` is 64 initialized bytes without padding.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
}

pub(crate) fn line_bytes_mut(lines: &mut [CacheLine]) -> &mut [u8] {
    // SAFETY: a `CacheLine` is 64 initialized bytes without padding; every bit pattern is a valid one.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_are_zeroed_aligned_and_apart_whatever_their_sizes() {
        let sizes = [1, 64, 100, 0, MAX_SHARING_BYTES, MAX_SHARING_BYTES, MAX_SHARING_BYTES, MAX_SHARING_BYTES + 1, 7];
        let mut all: Vec<Storage> = sizes.into_iter().map(Storage::zeroed).collect();
        for (index, storage) in all.iter_mut().enumerate() {
            assert!(storage.bytes().iter().all(|byte| *byte == 0), "matrix {index}");
            assert_eq!(storage.bytes().as_ptr().align_offset(align_of::<CacheLine>()), 0, "matrix {index}");
            storage.bytes_mut().fill(index as u8 + 1);
        }
        for (index, (storage, size)) in all.iter().zip(sizes).enumerate() {
            assert_eq!(storage.bytes().len(), size);
            assert!(storage.bytes().iter().all(|byte| *byte == index as u8 + 1), "matrix {index}");
        }
    }

    #[test]
    fn what_is_dropped_leaves_its_neighbours_alone() {
        let mut first = Storage::zeroed(1000);
        let second = std::thread::spawn(|| Storage::zeroed(1000)).join().unwrap();
        drop(Storage::zeroed(MAX_SHARING_BYTES + 1));
        first.bytes_mut().fill(3);
        drop(second);
        assert!(first.bytes().iter().all(|byte| *byte == 3));
    }
}
