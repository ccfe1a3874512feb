//! A token is picked without allocating: the buffers are lent, and keep their size.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use super::*;

/// The system's allocator, counting per thread.
struct Counting;

thread_local! {
    static NUM_ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator with its arguments as they are; counting touches no memory that
// the allocator hands out, and a constant thread-local without a destructor allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        NUM_ALLOCATIONS.set(NUM_ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        NUM_ALLOCATIONS.set(NUM_ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[test]
fn a_token_is_picked_without_allocating() {
    const VOCAB_SIZE: usize = 5000;
    let params = SamplingParams {
        top_k: Some(200),
        top_p: 0.95,
        min_p: 0.01,
        top_n_sigma: Some(3.0),
        typical_p: 0.9,
        xtc: Some(XtcParams { probability: 0.5, threshold: 0.1 }),
        repetition_penalty: 1.1,
        repetition_window: Some(64),
        frequency_penalty: 0.1,
        dry: Some(DryParams { window: 256, ..DryParams::default() }),
        logit_bias: BTreeMap::from([(3, 1.0)]),
        ..SamplingParams::default()
    };
    let history = History { stop_token_ids: BTreeSet::from([1]), min_tokens: 10_000, ..History::default() };
    for params in [params, SamplingParams { top_p: 0.9, ..SamplingParams::default() }, greedy()] {
        let mut sampler = sampler(&params, &history);
        let mut scratch = SamplerScratch::default();
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut logits = vec![0.0; VOCAB_SIZE];
        let mut pick = || {
            // Few tokens, so that all of them have been seen when counting begins.
            for (token_id, logit) in logits.iter_mut().enumerate() {
                *logit = rng.random_range(if token_id < 50 { 0.0..3.0 } else { -30.0..-20.0 });
            }
            sampler.sample(&mut logits, &mut scratch).unwrap();
        };
        (0..2000).for_each(|_| pick());
        let before = NUM_ALLOCATIONS.get();
        (0..200).for_each(|_| pick());
        assert_eq!(NUM_ALLOCATIONS.get() - before, 0, "{params:?}");
    }
}
