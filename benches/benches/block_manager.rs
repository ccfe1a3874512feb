//! Is keeping the books of KV blocks cheap beside the step they serve? Budget: 50 ns for a decode that stays in its
//! block, 50 ns per block taken or given back (evicting or not), 200 ns per block hashed, 100 ns per block adopted,
//! 100 ns for the counts a scrape reads.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mistralrs_paged_attn::{BlockManager, BlockTable, PrefixSalt};

const BLOCK_SIZE: usize = 16;
/// A prompt of 4096 tokens.
const NUM_BLOCKS: usize = 256;
const NUM_TOKENS: usize = NUM_BLOCKS * BLOCK_SIZE;

fn tokens(seed: u32) -> Vec<u32> {
    (0..NUM_TOKENS as u32).map(|position| position ^ seed).collect()
}

/// Takes room for a prompt, publishes it under `seed`'s hashes and gives it back, so that all of it is cached.
fn cache_prompt(manager: &BlockManager, seed: u32) {
    let mut table = BlockTable::default();
    manager.grow(&mut table, NUM_TOKENS).expect("there is room for one prompt");
    for (index, hash) in manager.hash_blocks(&tokens(seed), &PrefixSalt::default()).into_iter().enumerate() {
        manager.publish(&table, index, hash);
    }
    manager.release(table);
}

fn grow(criterion: &mut Criterion) {
    let manager = BlockManager::new(NUM_BLOCKS, BLOCK_SIZE, true);
    let mut table = BlockTable::default();
    manager.grow(&mut table, BLOCK_SIZE).expect("a block is free");
    criterion.bench_function("grow/within_the_block", |bencher| {
        bencher.iter(|| manager.grow(&mut table, BLOCK_SIZE));
    });
    manager.release(table);

    let mut group = criterion.benchmark_group("grow");
    group.throughput(Throughput::Elements(NUM_BLOCKS as u64));
    group.bench_function("take_and_release", |bencher| {
        bencher.iter(|| {
            let mut table = BlockTable::default();
            manager.grow(&mut table, NUM_TOKENS).expect("all blocks are free");
            manager.release(table);
        });
    });
    let mut seed = 0;
    group.bench_function("evict_and_release", |bencher| {
        bencher.iter_batched(
            || {
                seed += 1;
                cache_prompt(&manager, seed);
            },
            |()| {
                let mut table = BlockTable::default();
                manager.grow(&mut table, NUM_TOKENS).expect("all blocks are evictable");
                manager.release(table);
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn prefix(criterion: &mut Criterion) {
    let manager = BlockManager::new(NUM_BLOCKS, BLOCK_SIZE, true);
    cache_prompt(&manager, 0);
    let (tokens, salt) = (tokens(0), PrefixSalt::default());
    let hashes = manager.hash_blocks(&tokens, &salt);

    let mut group = criterion.benchmark_group("prefix");
    group.throughput(Throughput::Elements(NUM_BLOCKS as u64));
    group.bench_function("hash", |bencher| bencher.iter(|| manager.hash_blocks(&tokens, &salt)));
    group.bench_function("adopt_and_release", |bencher| {
        bencher.iter(|| manager.release(manager.adopt_prefix(&hashes)));
    });
    group.finish();
    criterion.bench_function("usage", |bencher| bencher.iter(|| manager.usage()));
}

criterion_group!(benches, grow, prefix);
criterion_main!(benches);
