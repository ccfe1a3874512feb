//! Memory that kernels work on: zeroed pools, and one buffer written by many threads.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::MmapMut;

use super::KvElement;

/// Zeroes, page-aligned, backed by memory only where touched: a cache takes what is used, not what is configured.
pub(crate) struct LazyPool<E> {
    pages: MmapMut,
    len: usize,
    element: PhantomData<E>,
}

impl<E: KvElement> LazyPool<E> {
    /// `len` zeroes; `None` where the system refuses so much.
    pub(crate) fn new(len: usize) -> Option<Self> {
        let num_bytes = len.checked_mul(size_of::<E>())?;
        // A mapping cannot be empty.
        let pages = MmapMut::map_anon(num_bytes.max(1)).ok()?;
        // Attention walks block tables: with 4 KiB pages each block waits for an address translation of its own. A
        // system without huge pages refuses, and reads more slowly.
        #[cfg(target_os = "linux")]
        let _ = pages.advise(memmap2::Advice::HugePage);
        Some(Self { pages, len, element: PhantomData })
    }

    pub(crate) fn as_slice(&self) -> &[E] {
        // SAFETY: the mapping is page-aligned and has `len` elements; `KvElement` promises that zeroes, and anything
        // written since, are values.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [E] {
        // SAFETY: as above, and `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), self.len) }
    }
}

/// A buffer in chunks of equal length that threads take, each chunk once.
pub(crate) struct ClaimedChunks<'a> {
    start: *mut f32,
    chunk_len: usize,
    /// By chunk: whether it was taken.
    claimed: Vec<AtomicBool>,
    buffer: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer is used by `take` only, which gives each chunk to one caller.
unsafe impl Sync for ClaimedChunks<'_> {}

impl<'a> ClaimedChunks<'a> {
    /// # Panics
    /// If `buffer` is not whole chunks.
    pub(crate) fn new(buffer: &'a mut [f32], chunk_len: usize) -> Self {
        assert!(chunk_len > 0 && buffer.len().is_multiple_of(chunk_len));
        let claimed = std::iter::repeat_with(AtomicBool::default).take(buffer.len() / chunk_len).collect();
        Self { start: buffer.as_mut_ptr(), chunk_len, claimed, buffer: PhantomData }
    }

    /// # Panics
    /// If the chunk was taken before, or there is no such chunk.
    pub(crate) fn take(&self, index: usize) -> &'a mut [f32] {
        // Relaxed: the flag only counts; threads start and end at the pool's barrier.
        assert!(!self.claimed[index].swap(true, Ordering::Relaxed), "chunk {index} is taken");
        // SAFETY: in bounds, as `claimed` has an entry per chunk; this caller alone found it unclaimed, and the buffer
        // is borrowed for `'a`.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(index * self.chunk_len), self.chunk_len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_zeroed_and_an_impossible_one_refused() {
        let mut pool = LazyPool::<f32>::new(1000).unwrap();
        assert_eq!(pool.as_slice(), [0.0; 1000]);
        pool.as_mut_slice()[999] = 1.0;
        assert_eq!(pool.as_slice()[999].to_bits(), 1.0_f32.to_bits());
        assert!(LazyPool::<f32>::new(usize::MAX / 4).is_none());
        assert!(LazyPool::<f32>::new(0).unwrap().as_slice().is_empty());
    }

    #[test]
    fn each_chunk_is_written_by_who_took_it() {
        let mut buffer = vec![0.0; 6];
        let chunks = ClaimedChunks::new(&mut buffer, 2);
        std::thread::scope(|scope| {
            for index in 0..3 {
                let chunks = &chunks;
                scope.spawn(move || chunks.take(index).fill(index as f32));
            }
        });
        assert_eq!(buffer, [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]);
    }

    #[test]
    #[should_panic(expected = "chunk 1 is taken")]
    fn a_chunk_is_not_given_twice() {
        let mut buffer = vec![0.0; 4];
        let chunks = ClaimedChunks::new(&mut buffer, 2);
        let _ = chunks.take(1);
        let _ = chunks.take(1);
    }
}
