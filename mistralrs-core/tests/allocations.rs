//! A step's memory is that of the steps before it.

#![expect(clippy::unwrap_used, reason = "what a test cannot set up fails it")]

use std::alloc::System;

use mistralrs_core::config::ModelSource;
use mistralrs_core::loader;
use mistralrs_core::models::{CausalLm, StepBatch};
use mistralrs_paged_attn::{KvCache, KvDType, KvLayout, RaggedBatch};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, Stats, StatsAlloc};

/// The system's allocator, counting over all threads: the pool's work too.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const BLOCK_SIZE: usize = 16;
const BLOCKS_PER_SEQUENCE: usize = 8;
const NUM_SEQUENCES: usize = 4;

/// candle lists the axes of every tensor that is written in place: one vector of 64 bytes an operation.
const BYTES_PER_OPERATION: usize = 64;
/// Projections to q, k and v, rotation, attention, output, gate and up, down.
const OPERATIONS_PER_LAYER: usize = 6;
/// Token table, the rows that logits are made of, head.
const OPERATIONS_PER_STEP: usize = 3;

/// A thread of the pool makes room for its work when it first gets some, which on a busy machine may be late.
const MAX_STEPS: usize = 200;
/// Steps after one another that must do with what there is.
const STEADY_STEPS: usize = 10;

fn load(fixture: &str) -> (Box<dyn CausalLm>, KvCache) {
    let path = format!("{}/tests/fixtures/{fixture}", env!("CARGO_MANIFEST_DIR")).into();
    let model = loader::load(&ModelSource { path, id: None, chat_template: None, packed_cache: None }).unwrap().model;
    let shape = model.shape();
    let layout = KvLayout {
        num_layers: shape.num_layers,
        num_kv_heads: shape.num_kv_heads,
        head_size: shape.head_size,
        block_size: BLOCK_SIZE,
        dtype: KvDType::F16,
    };
    let kv = KvCache::new(layout, NUM_SEQUENCES * BLOCKS_PER_SEQUENCE).unwrap();
    (model, kv)
}

/// Tokens `first..first + len` of all sequences, with logits after the last of each.
fn batch(first: usize, len: usize) -> StepBatch {
    let mut batch = StepBatch {
        ragged: RaggedBatch {
            query_offsets: vec![0],
            max_blocks: BLOCKS_PER_SEQUENCE,
            num_generated_sequences: if len == 1 { NUM_SEQUENCES } else { 0 },
            ..RaggedBatch::default()
        },
        ..StepBatch::default()
    };
    for sequence in 0..NUM_SEQUENCES {
        let first_block = (sequence * BLOCKS_PER_SEQUENCE) as u32;
        for position in (first..first + len).map(|position| position as u32) {
            batch.token_ids.push(position % 300 + sequence as u32);
            batch.positions.push(position);
            batch.ragged.slot_mapping.push(first_block * BLOCK_SIZE as u32 + position);
        }
        let num_tokens = batch.token_ids.len() as u32;
        batch.ragged.query_offsets.push(num_tokens);
        batch.ragged.context_lens.push((first + len) as u32);
        batch.ragged.block_tables.extend(first_block..first_block + BLOCKS_PER_SEQUENCE as u32);
        batch.logit_rows.push(num_tokens - 1);
    }
    batch
}

fn allocated(model: &mut dyn CausalLm, kv: &mut KvCache, batch: &StepBatch) -> Stats {
    let region = Region::new(ALLOCATOR);
    model.forward(batch, kv).unwrap();
    region.change()
}

// One test: another one beside it would be counted too.
#[test]
fn steps_like_those_before_allocate_nothing_but_candles_lists_of_axes() {
    for fixture in ["tiny-llama", "tiny-llama-bf16", "tiny-qwen2-window", "tiny-llama-256-q4_k_m.gguf"] {
        let (mut model, mut kv) = load(fixture);
        let most = OPERATIONS_PER_STEP + OPERATIONS_PER_LAYER * model.shape().num_layers;
        // A prefill, then decodes.
        for batch in [batch(0, 40), batch(40, 1)] {
            let is_steady = |found: &Stats| {
                found.allocations + found.reallocations <= most && found.bytes_allocated <= most * BYTES_PER_OPERATION
            };
            let mut num_steady = 0;
            for _ in 0..MAX_STEPS {
                num_steady = if is_steady(&allocated(&mut *model, &mut kv, &batch)) { num_steady + 1 } else { 0 };
                if num_steady == STEADY_STEPS {
                    break;
                }
            }
            assert_eq!(num_steady, STEADY_STEPS, "{fixture}, {} tokens", batch.token_ids.len());
        }
    }
}
