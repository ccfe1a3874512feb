//! Is a forward pass bound by memory in decode and by arithmetic in prefill? Budget for SmolLM2's shapes on two cores with
//! AVX-512: 250 tokens/s for one decode in Q4_1 (4 ms), 600 for eight together, 800 tokens/s of prefill.
//!
//! The model has SmolLM2-135M's shapes and made-up weights, so that no download is needed; elements are tokens.

use std::hint::black_box;
use std::path::Path;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mistralrs_core::LoadError;
use mistralrs_core::layers::{HeadCounts, RotaryConfig, RotaryPairing, RotaryScaling};
use mistralrs_core::loader::progress::LoadProgress;
use mistralrs_core::loader::weights::{Naming, StoredTensor, WeightFiles, Weights};
use mistralrs_core::models::config::{AttentionBias, Presence};
use mistralrs_core::models::{CausalLm, DecoderConfig, StepBatch, llama};
use mistralrs_paged_attn::{KvCache, KvDType, KvLayout, RaggedBatch};
use mistralrs_quant::{BlockFormat, FloatFormat, WeightFormat};

const BLOCK_SIZE: usize = 32;
/// Blocks of each sequence: 512 tokens.
const BLOCKS_PER_SEQUENCE: usize = 16;
/// Tokens a decode attends to.
const DECODE_CONTEXT: usize = 256;

fn smollm2() -> DecoderConfig {
    DecoderConfig {
        hidden_size: 576,
        intermediate_size: 1536,
        num_layers: 30,
        heads: HeadCounts { num_heads: 9, num_kv_heads: 3, head_size: 64 },
        rms_norm_eps: 1e-5,
        vocab_size: 49_152,
        max_position_embeddings: 8192,
        rotary: RotaryConfig {
            theta: 100_000.0,
            size: 64,
            pairing: RotaryPairing::Interleaved,
            scaling: RotaryScaling::None,
        },
        sliding_window: None,
        attention_bias: AttentionBias::uniform(Presence::Absent),
        mlp_bias: Presence::Absent,
        output_matrix: Presence::Absent,
    }
}

/// Every tensor the model asks for, of one type; its values are arbitrary but small.
struct MadeUpWeights {
    dtype: WeightFormat,
    config: DecoderConfig,
    /// As long as the largest tensor.
    bytes: Vec<u8>,
    shapes: Vec<(&'static str, Vec<usize>)>,
}

impl MadeUpWeights {
    fn new(dtype: WeightFormat, config: DecoderConfig) -> Self {
        let DecoderConfig { hidden_size: hidden, intermediate_size: inner, vocab_size, .. } = config;
        let HeadCounts { num_heads, num_kv_heads, head_size } = config.heads;
        let (query, kv) = (num_heads * head_size, num_kv_heads * head_size);
        let shapes = vec![
            ("token_embd", vec![vocab_size, hidden]),
            ("norm", vec![hidden]),
            ("attn_q", vec![query, hidden]),
            ("attn_k", vec![kv, hidden]),
            ("attn_v", vec![kv, hidden]),
            ("attn_output", vec![hidden, query]),
            ("ffn_gate", vec![inner, hidden]),
            ("ffn_up", vec![inner, hidden]),
            ("ffn_down", vec![hidden, inner]),
        ];
        // 0x2222 is a scale of 0.01 in f16, and nibbles of 2 elsewhere.
        Self { dtype, bytes: vec![0x22; 4 * vocab_size * hidden], shapes, config }
    }

    fn model(&self) -> Box<dyn CausalLm> {
        let progress = LoadProgress::hidden();
        (llama::ARCHITECTURE.build)(&self.config, &mut Weights::new(self, &progress)).expect("all tensors are there")
    }
}

impl WeightFiles for MadeUpWeights {
    fn naming(&self) -> Naming {
        Naming::Gguf
    }

    fn path(&self) -> &Path {
        Path::new("made up")
    }

    fn find(&self, name: &str) -> Result<Option<StoredTensor<'_>>, LoadError> {
        let Some((_, shape)) = self.shapes.iter().find(|(part, _)| name.contains(part)) else { return Ok(None) };
        let dtype = if shape.len() == 1 { FloatFormat::F32.into() } else { self.dtype };
        let num_bytes = shape.iter().product::<usize>() / dtype.block_len() * dtype.block_bytes();
        Ok(Some(StoredTensor { dtype, shape, data: &self.bytes[..num_bytes] }))
    }

    fn release(&self, _bytes: &[u8]) {}
}

/// `num_tokens` of each of `num_sequences`, after `num_computed` that have KV.
fn batch(num_sequences: usize, num_computed: usize, num_tokens: usize) -> StepBatch {
    let mut batch = StepBatch::default();
    batch.ragged.max_blocks = BLOCKS_PER_SEQUENCE;
    // One token of each is what it generated last.
    batch.ragged.num_generated_sequences = if num_tokens == 1 { num_sequences } else { 0 };
    let RaggedBatch { query_offsets, context_lens, slot_mapping, block_tables, .. } = &mut batch.ragged;
    query_offsets.push(0);
    for sequence in 0..num_sequences {
        let first_block = (sequence * BLOCKS_PER_SEQUENCE) as u32;
        let positions = num_computed as u32..(num_computed + num_tokens) as u32;
        batch.token_ids.extend(positions.clone());
        slot_mapping.extend(positions.clone().map(|position| first_block * BLOCK_SIZE as u32 + position));
        batch.positions.extend(positions);
        batch.logit_rows.push(batch.token_ids.len() as u32 - 1);
        query_offsets.push(batch.token_ids.len() as u32);
        context_lens.push((num_computed + num_tokens) as u32);
        block_tables.extend(first_block..first_block + BLOCKS_PER_SEQUENCE as u32);
    }
    batch
}

fn bench_forward(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("forward");
    group.sample_size(10);
    for dtype in [BlockFormat::Q4_1.into(), BlockFormat::Q8_0.into(), FloatFormat::F16.into()] {
        let mut model = MadeUpWeights::new(dtype, smollm2()).model();
        let shape = model.shape();
        let layout = KvLayout {
            num_layers: shape.num_layers,
            num_kv_heads: shape.num_kv_heads,
            head_size: shape.head_size,
            block_size: BLOCK_SIZE,
            dtype: KvDType::F16,
        };
        let mut kv = KvCache::new(layout, 8 * BLOCKS_PER_SEQUENCE).expect("a cache of a few megabytes");
        // Decodes read what these wrote.
        model.forward(&batch(8, 0, DECODE_CONTEXT), &mut kv).expect("the batch fits the cache");
        for (name, batch) in [
            ("prefill 512", batch(1, 0, 512)),
            ("decode 1", batch(1, DECODE_CONTEXT, 1)),
            ("decode 8", batch(8, DECODE_CONTEXT, 1)),
        ] {
            group.throughput(Throughput::Elements(batch.token_ids.len() as u64));
            group.bench_function(BenchmarkId::new(dtype.name(), name), |bencher| {
                let mut forward = || black_box(model.forward(&batch, &mut kv).expect("the batch fits the cache"));
                bencher.iter_batched(|| (), |()| forward(), BatchSize::PerIteration);
            });
        }
    }
    group.finish();
}

criterion_group!(benches, bench_forward);
criterion_main!(benches);
