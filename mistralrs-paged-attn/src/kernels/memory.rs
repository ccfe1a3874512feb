//! Memory that kernels work on: zeroed pools, and buffers written by many threads.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use memmap2::MmapMut;

use super::{KvElement, LANES};

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

/// A cache line, at a cache line's address: what loads and stores of whole lines want.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line([f32; LANES]);

impl Line {
    pub(crate) const ZERO: Self = Self([0.0; LANES]);
}

/// The floats of some lines.
pub(crate) fn line_floats(lines: &[Line]) -> &[f32] {
    // SAFETY: a line is `LANES` floats and nothing else.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * LANES) }
}

/// The floats of some lines.
pub(crate) fn line_floats_mut(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: a line is `LANES` floats and nothing else.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LANES) }
}

/// Marks of [`ClaimedChunks`], kept from one use to the next: only larger buffers than before allocate.
#[derive(Debug, Default)]
pub(crate) struct Claims(Vec<AtomicBool>);

impl Claims {
    /// Room for `num_chunks`.
    pub(crate) fn reserve(&mut self, num_chunks: usize) {
        self.0.reserve(num_chunks.saturating_sub(self.0.len()));
    }

    /// `num_chunks` marks, none made.
    fn reset(&mut self, num_chunks: usize) -> &[AtomicBool] {
        self.0.clear();
        self.0.resize_with(num_chunks, AtomicBool::default);
        &self.0
    }
}

/// A buffer in chunks of equal length that threads take, each chunk once.
pub(crate) struct ClaimedChunks<'a, T> {
    start: *mut T,
    chunk_len: usize,
    /// By chunk: whether it was taken.
    claimed: &'a [AtomicBool],
    buffer: PhantomData<&'a mut [T]>,
}

// SAFETY: the pointer is used by `take` only, which gives each chunk to one caller; that moves the chunk to the
// caller's thread, which `T: Send` allows.
unsafe impl<T: Send> Sync for ClaimedChunks<'_, T> {}

impl<'a, T> ClaimedChunks<'a, T> {
    /// # Panics
    /// If `buffer` is not whole chunks.
    pub(crate) fn new(buffer: &'a mut [T], chunk_len: usize, claims: &'a mut Claims) -> Self {
        assert!(chunk_len > 0 && buffer.len().is_multiple_of(chunk_len));
        let claimed = claims.reset(buffer.len() / chunk_len);
        Self { start: buffer.as_mut_ptr(), chunk_len, claimed, buffer: PhantomData }
    }

    /// # Panics
    /// If the chunk was taken before, or there is no such chunk.
    pub(crate) fn take(&self, index: usize) -> &'a mut [T] {
        // Relaxed: the flag only counts; threads start and end at the pool's barrier.
        assert!(!self.claimed[index].swap(true, Ordering::Relaxed), "chunk {index} is taken");
        // SAFETY: in bounds, as `claimed` has an entry per chunk; this caller alone found it unclaimed, and the buffer
        // is borrowed for `'a`.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(index * self.chunk_len), self.chunk_len) }
    }
}

/// A buffer in chunks of equal length that threads share by the chunk's number: of n stripes, stripe i has the chunks
/// i, i + n, i + 2 n and so on. Who writes one chunk twice does it on one thread, in order.
pub(crate) struct Stripes<'a, T> {
    start: *mut T,
    num_chunks: usize,
    chunk_len: usize,
    /// Stripes, and so the distance between a stripe's chunks.
    count: usize,
    /// The first stripe that nobody has.
    next: AtomicUsize,
    buffer: PhantomData<&'a mut [T]>,
}

// SAFETY: the pointer is used through stripes only, whose chunks do not overlap, and `next` gives each stripe to one
// caller; that moves its chunks to the caller's thread, which `T: Send` allows.
unsafe impl<T: Send> Sync for Stripes<'_, T> {}

impl<'a, T> Stripes<'a, T> {
    /// # Panics
    /// If `buffer` is not whole chunks, or there are no stripes.
    pub(crate) fn new(buffer: &'a mut [T], chunk_len: usize, num_stripes: usize) -> Self {
        assert!(chunk_len > 0 && num_stripes > 0 && buffer.len().is_multiple_of(chunk_len));
        let num_chunks = buffer.len() / chunk_len;
        let next = AtomicUsize::new(0);
        Self { start: buffer.as_mut_ptr(), num_chunks, chunk_len, count: num_stripes, next, buffer: PhantomData }
    }

    /// A stripe that nobody had; `None` when all are given.
    pub(crate) fn next(&self) -> Option<Stripe<'_, 'a, T>> {
        // Relaxed: the counter only counts; threads start and end at the pool's barrier.
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        (index < self.count).then_some(Stripe { stripes: self, index })
    }
}

/// Some chunks of a buffer, nobody else's.
pub(crate) struct Stripe<'s, 'a, T> {
    stripes: &'s Stripes<'a, T>,
    index: usize,
}

impl<T> Stripe<'_, '_, T> {
    /// `None` if the chunk is another stripe's.
    ///
    /// # Panics
    /// If there is no such chunk.
    pub(crate) fn chunk_mut(&mut self, chunk: usize) -> Option<&mut [T]> {
        let Stripes { start, num_chunks, chunk_len, count, .. } = self.stripes;
        assert!(chunk < *num_chunks, "chunk {chunk} of {num_chunks}");
        // SAFETY: in bounds; chunks of this stripe are this value's alone, and `&mut self` lends one at a time.
        let own = || unsafe { std::slice::from_raw_parts_mut(start.add(chunk * chunk_len), *chunk_len) };
        (chunk % count == self.index).then(own)
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
        let (mut buffer, mut claims) = (vec![0.0; 6], Claims::default());
        let chunks = ClaimedChunks::new(&mut buffer, 2, &mut claims);
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
        let (mut buffer, mut claims) = (vec![0.0; 4], Claims::default());
        let chunks = ClaimedChunks::new(&mut buffer, 2, &mut claims);
        let _ = chunks.take(1);
        let _ = chunks.take(1);
    }

    #[test]
    fn a_chunk_that_was_taken_can_be_taken_in_the_next_use() {
        let (mut buffer, mut claims) = (vec![0.0; 4], Claims::default());
        for _ in 0..2 {
            ClaimedChunks::new(&mut buffer, 2, &mut claims).take(1)[0] += 1.0;
        }
        assert_eq!(buffer, [0.0, 0.0, 2.0, 0.0]);
    }

    #[test]
    fn stripes_are_given_once_and_have_all_chunks_between_them() {
        let mut buffer = vec![0; 10];
        let stripes = Stripes::new(&mut buffer, 2, 3);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Some(mut stripe) = stripes.next() {
                        for chunk in 0..5 {
                            let own = stripe.chunk_mut(chunk).into_iter().flatten();
                            own.for_each(|element| *element += chunk);
                        }
                    }
                });
            }
        });
        assert_eq!(buffer, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]);
    }

    #[test]
    #[should_panic(expected = "chunk 2 of 2")]
    fn a_stripe_ends_where_its_buffer_does() {
        let mut buffer = vec![0; 4];
        let stripes = Stripes::new(&mut buffer, 2, 2);
        let _ = stripes.next().unwrap().chunk_mut(2);
    }
}
