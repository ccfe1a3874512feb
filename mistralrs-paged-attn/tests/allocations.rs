//! Nothing is allocated for a layer's KV and attention once a step of that size was seen.

use std::alloc::System;
use std::num::NonZeroUsize;

use candle_core::{DType, Device, Tensor};
use mistralrs_paged_attn::{AttentionPlan, KvCache, KvDType, KvLayout, RaggedBatch};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

/// The system's allocator, counting over all threads: the pool's work too.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What `work` allocates, on whatever thread.
fn count(work: impl FnOnce()) -> usize {
    let region = Region::new(ALLOCATOR);
    work();
    let change = region.change();
    change.allocations + change.reallocations
}

const BLOCK_SIZE: usize = 16;
const NUM_HEADS: usize = 8;
const LAYOUT: KvLayout =
    KvLayout { num_layers: 1, num_kv_heads: 2, head_size: 64, block_size: BLOCK_SIZE, dtype: KvDType::F16 };

/// `num_sequences` that compute the last `num_queries` of `context_len` tokens.
fn batch(num_sequences: usize, context_len: usize, num_queries: usize) -> RaggedBatch {
    let max_blocks = context_len.div_ceil(BLOCK_SIZE);
    let mut batch = RaggedBatch { query_offsets: vec![0], max_blocks, ..RaggedBatch::default() };
    for sequence in 0..num_sequences {
        let first_slot = sequence * max_blocks * BLOCK_SIZE;
        let positions = context_len - num_queries..context_len;
        batch.slot_mapping.extend(positions.map(|position| (first_slot + position) as u32));
        batch.query_offsets.push(batch.slot_mapping.len() as u32);
        batch.context_lens.push(context_len as u32);
        batch.block_tables.extend((0..max_blocks).map(|index| (sequence * max_blocks + index) as u32));
    }
    batch
}

// One test: another one beside it would be counted too.
#[test]
fn a_layer_allocates_nothing_once_its_step_is_planned() {
    for dtype in KvDType::ALL {
        let mut kv = KvCache::new(KvLayout { dtype, ..LAYOUT }, 400).expect("there is memory");
        // As models with two kinds of layers have them, and ones that compute prompts in a way of their own.
        let plan = |window, is_apart| AttentionPlan::with_window(window).computing_prompts_apart(is_apart);
        let windows = [None, NonZeroUsize::new(700)];
        let mut plans =
            windows.map(|window| [plan(window, false), plan(window, true)]).into_iter().flatten().collect::<Vec<_>>();
        // Decodes of few long sequences, which share spans, and of many; a prefill; a small step.
        for (num_sequences, context_len, num_queries) in
            [(1, 5000, 1), (3, 1900, 1), (32, 180, 1), (1, 512, 512), (1, 1, 1)]
        {
            let batch = batch(num_sequences, context_len, num_queries);
            let (query_size, kv_size) = (NUM_HEADS * LAYOUT.head_size, LAYOUT.num_kv_heads * LAYOUT.head_size);
            let size = (batch.num_tokens(), query_size + 2 * kv_size);
            let projected = Tensor::rand(-1.0_f32, 1.0, size, &Device::Cpu).expect("a tensor");
            let part = |start, len| projected.narrow(1, start, len).expect("columns of it");
            let (query, key, value) =
                (part(0, query_size), part(query_size, kv_size), part(query_size + kv_size, kv_size));
            let output = Tensor::zeros((batch.num_tokens(), query_size), DType::F32, &Device::Cpu).expect("a tensor");
            let write = |kv: &mut KvCache| kv.write(0, &key, &value, &batch).expect("the batch is valid");
            let attend = |kv: &KvCache, plan: &AttentionPlan| {
                kv.attend(0, &query, plan, 0.125, &output).expect("the plan is valid");
            };
            // The first call of all starts the threads.
            write(&mut kv);
            for plan in &mut plans {
                kv.plan(plan, &batch, NUM_HEADS).expect("the batch is valid");
                attend(&kv, plan);
            }

            let what = format!("{dtype:?}, {num_queries} of {context_len} tokens of {num_sequences} sequences");
            assert_eq!(count(|| write(&mut kv)), 0, "written: {what}");
            for plan in &mut plans {
                let planned = count(|| kv.plan(plan, &batch, NUM_HEADS).expect("the batch is valid"));
                assert_eq!(planned, 0, "planned: {what}, window {:?}", plan.window());
                // candle's: `Layout::has_internal_overlap` lists the output's axes in a vector, 64 bytes, whatever the op.
                assert_eq!(count(|| attend(&kv, plan)), 1, "attended: {what}, window {:?}", plan.window());
            }
        }
    }
}
