//! Does decode attention read KV as fast as memory gives it, and does prefill attention compute as fast as the cores do?
//! Budget on two cores with AVX-512 (84 GB/s read, 200 GB/s from the last-level cache): one decode of one layer at
//! 512 tokens of context in 10 µs for SmolLM2's heads; 60 GB/s of KV read once it fits no cache; a prefill of 512
//! tokens in 2 ms per layer, which is 150 Gflop/s, and 1.2 ms by the matrix unit. A plan, made once per step for all layers: less than
//! one of them.
//!
//! Elements are query tokens, bytes are KV read. `reference` is the definition; `memory` is the same threads only
//! reading, forwards, as many bytes as the largest decode: what no attention can beat.

use std::hint::black_box;

use candle_core::utils::barrier_pool;
use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mistralrs_paged_attn::reference::ReferenceCache;
use mistralrs_paged_attn::{AttentionPlan, KvCache, KvDType, KvLayout, RaggedBatch};

const BLOCK_SIZE: usize = 16;

/// Query heads, KV heads, head size.
#[derive(Clone, Copy)]
struct Heads(usize, usize, usize);

const SMOLLM2_135M: Heads = Heads(9, 3, 64);
const LLAMA_1B: Heads = Heads(32, 8, 64);

/// Sequences of equal length, each about to compute its last `num_queries` tokens.
#[derive(Clone, Copy)]
struct Load {
    num_sequences: usize,
    context_len: usize,
    num_queries: usize,
}

impl Load {
    fn num_blocks(self) -> usize {
        self.num_sequences * self.context_len.div_ceil(BLOCK_SIZE)
    }

    /// The sequences' blocks alternate, as they do after growing side by side.
    fn batch(self) -> RaggedBatch {
        let max_blocks = self.context_len.div_ceil(BLOCK_SIZE);
        let mut batch = RaggedBatch { query_offsets: vec![0], max_blocks, ..RaggedBatch::default() };
        batch.num_generated_sequences = if self.num_queries == 1 { self.num_sequences } else { 0 };
        for sequence in 0..self.num_sequences {
            let block = |index: usize| (index * self.num_sequences + sequence) as u32;
            let slot =
                |position: usize| block(position / BLOCK_SIZE) * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32;
            batch.slot_mapping.extend((self.context_len - self.num_queries..self.context_len).map(slot));
            batch.query_offsets.push(batch.slot_mapping.len() as u32);
            batch.context_lens.push(self.context_len as u32);
            batch.block_tables.extend((0..max_blocks).map(block));
        }
        batch
    }

    fn name(self, Heads(num_heads, num_kv_heads, head_size): Heads) -> String {
        let Self { num_sequences, context_len, num_queries } = self;
        format!("{num_heads}x{num_kv_heads}x{head_size}/{num_sequences}x{num_queries}of{context_len}")
    }

    fn throughput(self, Heads(_, num_kv_heads, head_size): Heads) -> Throughput {
        let num_bytes = self.num_sequences * self.context_len * num_kv_heads * head_size * 2 * 2;
        Throughput::ElementsAndBytes {
            elements: (self.num_sequences * self.num_queries) as u64,
            bytes: num_bytes as u64,
        }
    }
}

fn layout(Heads(_, num_kv_heads, head_size): Heads) -> KvLayout {
    KvLayout { num_layers: 1, num_kv_heads, head_size, block_size: BLOCK_SIZE, dtype: KvDType::F16 }
}

fn random(num_tokens: usize, num_heads: usize, head_size: usize) -> Tensor {
    Tensor::rand(-1.0_f32, 1.0, (num_tokens, num_heads * head_size), &Device::Cpu).expect("there is memory")
}

fn bench_attend(criterion: &mut Criterion, group: &str, heads: Heads, load: Load) {
    let Heads(num_heads, num_kv_heads, head_size) = heads;
    let mut cache = KvCache::new(layout(heads), load.num_blocks()).expect("there is memory");
    let prompt = Load { num_queries: load.context_len, ..load };
    let rows = random(load.num_sequences * load.context_len, num_kv_heads, head_size);
    cache.write(0, &rows, &rows, &prompt.batch()).expect("the batch is valid");

    let query = random(load.num_sequences * load.num_queries, num_heads, head_size);
    let output = query.zeros_like().expect("there is memory");
    let (batch, mut plan) = (load.batch(), AttentionPlan::default());
    let mut group = criterion.benchmark_group(group);
    group.throughput(load.throughput(heads));
    // By the CPU's matrix unit, if it has one; generated tokens are the same in both.
    let ways =
        if load.num_queries == 1 { &[("attend", false)][..] } else { &[("attend", false), ("attend, apart", true)] };
    for &(name, computes_prompts_apart) in ways {
        plan = AttentionPlan::default().computing_prompts_apart(computes_prompts_apart);
        cache.plan(&mut plan, &batch, num_heads).expect("the batch is valid");
        group.bench_function(BenchmarkId::new(name, load.name(heads)), |bencher| {
            bencher.iter(|| cache.attend(0, &query, &plan, 0.125, &output).expect("the plan is valid"));
        });
    }
    group.bench_function(BenchmarkId::new("plan", load.name(heads)), |bencher| {
        bencher.iter(|| cache.plan(&mut plan, &batch, num_heads).expect("the batch is valid"));
    });
    group.finish();
}

fn decode(criterion: &mut Criterion) {
    for heads in [SMOLLM2_135M, LLAMA_1B] {
        for context_len in [512, 4096] {
            for num_sequences in [1, 8, 32] {
                bench_attend(criterion, "decode", heads, Load { num_sequences, context_len, num_queries: 1 });
            }
        }
    }
}

fn prefill(criterion: &mut Criterion) {
    for heads in [SMOLLM2_135M, LLAMA_1B] {
        for (context_len, num_queries) in [(512, 512), (4096, 512), (4096, 16)] {
            bench_attend(criterion, "prefill", heads, Load { num_sequences: 1, context_len, num_queries });
        }
    }
}

fn write(criterion: &mut Criterion) {
    let load = Load { num_sequences: 1, context_len: 512, num_queries: 512 };
    let mut group = criterion.benchmark_group("write");
    for heads in [SMOLLM2_135M, LLAMA_1B] {
        let mut cache = KvCache::new(layout(heads), load.num_blocks()).expect("there is memory");
        let (rows, batch) = (random(load.num_queries, heads.1, heads.2), load.batch());
        group.throughput(load.throughput(heads));
        group.bench_function(load.name(heads), |bencher| {
            bencher.iter(|| cache.write(0, &rows, &rows, &batch).expect("the batch is valid"));
        });
    }
    group.finish();
}

fn memory(criterion: &mut Criterion) {
    let num_bytes = 32 * 4096 * LLAMA_1B.1 * LLAMA_1B.2 * 2 * 2;
    let words = vec![1_u64; num_bytes / size_of::<u64>()];
    let mut group = criterion.benchmark_group("memory");
    group.throughput(Throughput::Bytes(num_bytes as u64));
    group.bench_function("read", |bencher| {
        bencher.iter(|| {
            barrier_pool().execute_chunked(words.len(), |range| {
                black_box(words[range].iter().fold(0_u64, |sum, word| sum.wrapping_add(*word)));
            });
        });
    });
    group.finish();
}

fn reference(criterion: &mut Criterion) {
    let Heads(num_heads, num_kv_heads, head_size) = SMOLLM2_135M;
    let load = Load { num_sequences: 1, context_len: 512, num_queries: 1 };
    let floats = |num_tokens: usize, num_heads: usize| {
        let rows = random(num_tokens, num_heads, head_size).flatten_all().and_then(|rows| rows.to_vec1::<f32>());
        rows.expect("f32 rows")
    };
    let mut cache = ReferenceCache::new(&layout(SMOLLM2_135M), load.num_blocks());
    let rows = floats(load.context_len, num_kv_heads);
    cache.write(&rows, &rows, &Load { num_queries: load.context_len, ..load }.batch());
    let (query, batch) = (floats(load.num_queries, num_heads), load.batch());

    let mut group = criterion.benchmark_group("decode");
    group.throughput(load.throughput(SMOLLM2_135M));
    group.bench_function(BenchmarkId::new("reference", load.name(SMOLLM2_135M)), |bencher| {
        bencher.iter(|| cache.attend(&query, num_heads, &batch, 0.125));
    });
    group.finish();
}

criterion_group!(benches, memory, decode, prefill, write, reference);
criterion_main!(benches);
