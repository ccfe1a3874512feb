//! Is one scheduling decision cheap beside one 10 ms decode step? Budget: 100 µs at 512 sequences.
//!
//! A decision is what [`Scheduler::schedule`] does with a full batch of decodes, blocks granted; `finish` adds the
//! bookkeeping after the step, hashing and publishing the blocks that became full included.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mistralrs_core::scheduler::{Scheduler, SchedulerConfig};
use mistralrs_core::sequence::{Sequence, SequenceId};
use mistralrs_paged_attn::{BlockManager, PrefixSalt};

const BLOCK_SIZE: usize = 32;
const NUM_PROMPT_TOKENS: u32 = 200;

/// A scheduler whose `num_sequences` prompts are computed, each about to decode.
fn warm_engine(num_sequences: usize) -> (Scheduler, BlockManager) {
    let blocks = BlockManager::new(num_sequences * 16, BLOCK_SIZE, true);
    let max_num_batched_tokens = num_sequences * NUM_PROMPT_TOKENS as usize;
    let config = SchedulerConfig { max_num_seqs: num_sequences, max_num_batched_tokens, priority_aging: 32 };
    let mut scheduler = Scheduler::new(config);
    for id in 0..num_sequences as u64 {
        let prompt: Vec<u32> = (0..NUM_PROMPT_TOKENS).map(|token| token + id as u32).collect();
        let hashes = blocks.hash_blocks(&prompt, &PrefixSalt::default());
        scheduler.enqueue(Sequence::new(SequenceId(id), None, prompt, hashes));
    }
    finish_step(&mut scheduler, &blocks);
    (scheduler, blocks)
}

fn finish_step(scheduler: &mut Scheduler, blocks: &BlockManager) {
    let plan = scheduler.schedule(blocks);
    for chunk in &plan.chunks {
        scheduler.complete(chunk, blocks);
        if let Some(sequence) = scheduler.running_mut(chunk.id) {
            sequence.token_ids.push(7);
        }
    }
}

fn scheduling(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler");
    for num_sequences in [8, 64, 512] {
        group.throughput(Throughput::Elements(num_sequences as u64));
        group.bench_function(BenchmarkId::new("schedule", num_sequences), |bencher| {
            let (mut scheduler, blocks) = warm_engine(num_sequences);
            bencher.iter(|| scheduler.schedule(&blocks));
            scheduler.clear(&blocks);
        });
        group.bench_function(BenchmarkId::new("schedule_and_finish", num_sequences), |bencher| {
            bencher.iter_batched_ref(
                || Warm(warm_engine(num_sequences)),
                |Warm((scheduler, blocks))| finish_step(scheduler, blocks),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

/// Gives the blocks back when Criterion is done with it.
struct Warm((Scheduler, BlockManager));

impl Drop for Warm {
    fn drop(&mut self) {
        let (scheduler, blocks) = &mut self.0;
        scheduler.clear(blocks);
    }
}

criterion_group!(benches, scheduling);
criterion_main!(benches);
