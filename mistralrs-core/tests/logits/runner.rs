//! A model run without an engine: sequences in blocks of their own, batches as the test composes them.

use std::path::{Path, PathBuf};

use mistralrs_core::config::ModelSource;
use mistralrs_core::loader::{self, LoadedModel};
use mistralrs_core::models::{CausalLm, StepBatch};
use mistralrs_paged_attn::{KvCache, KvDType, KvLayout, RaggedBatch};

const BLOCK_SIZE: usize = 16;
/// Blocks of each sequence: 512 tokens, as long as any test's.
const BLOCKS_PER_SEQUENCE: usize = 32;

/// A model with KV in f32 for a few sequences.
pub struct Runner {
    pub model: Box<dyn CausalLm>,
    kv: KvCache,
}

/// Tokens of one sequence that a step computes.
pub struct Chunk<'a> {
    pub sequence: usize,
    /// Tokens whose KV earlier steps wrote.
    pub num_computed: usize,
    pub tokens: &'a [u32],
}

pub fn load(path: &Path) -> LoadedModel {
    let source = ModelSource { path: path.to_owned(), id: None, chat_template: None, packed_cache: None };
    loader::load(&source).unwrap_or_else(|error| panic!("{error}"))
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

impl Runner {
    pub fn new(path: &Path) -> Self {
        Self::with_sequences(path, 1)
    }

    pub fn with_sequences(path: &Path, num_sequences: usize) -> Self {
        Self::of(load(path).model, num_sequences)
    }

    pub fn of(model: Box<dyn CausalLm>, num_sequences: usize) -> Self {
        let shape = model.shape();
        let layout = KvLayout {
            num_layers: shape.num_layers,
            num_kv_heads: shape.num_kv_heads,
            head_size: shape.head_size,
            block_size: BLOCK_SIZE,
            dtype: KvDType::F32,
        };
        let kv = KvCache::new(layout, num_sequences * BLOCKS_PER_SEQUENCE).unwrap();
        Self { model, kv }
    }

    /// Logits after every token of `chunks`, which are parts of prompts, in their order.
    pub fn step(&mut self, chunks: &[Chunk<'_>]) -> Vec<Vec<f32>> {
        self.step_from(chunks, 0)
    }

    /// Logits after every token of the chunks, in their order: tokens that were generated, then some of prompts.
    pub fn mixed_step(&mut self, generated: &[Chunk<'_>], prompts: &[Chunk<'_>]) -> Vec<Vec<f32>> {
        self.forward(generated.iter().chain(prompts), generated.len(), 0)
    }

    /// Logits after the tokens of `chunks`, all of prompts, without the first `num_skipped` of them all.
    fn step_from(&mut self, chunks: &[Chunk<'_>], num_skipped: usize) -> Vec<Vec<f32>> {
        self.forward(chunks, 0, num_skipped)
    }

    fn forward<'a>(
        &mut self,
        chunks: impl IntoIterator<Item = &'a Chunk<'a>>,
        num_generated: usize,
        num_skipped: usize,
    ) -> Vec<Vec<f32>> {
        let mut batch = StepBatch::default();
        batch.ragged.query_offsets.push(0);
        batch.ragged.max_blocks = BLOCKS_PER_SEQUENCE;
        for chunk in chunks {
            add(&mut batch, chunk);
        }
        batch.ragged.num_generated_sequences = num_generated;
        batch.logit_rows = (num_skipped as u32..batch.token_ids.len() as u32).collect();
        self.model.forward(&batch, &mut self.kv).unwrap().logits.to_vec2().unwrap()
    }

    /// Logits after every token of a sequence that starts with `tokens`.
    pub fn logits(&mut self, tokens: &[u32]) -> Vec<Vec<f32>> {
        self.step(&[Chunk { sequence: 0, num_computed: 0, tokens }])
    }

    /// Logits after `tokens[first]` and each token behind it, of a sequence that starts with `tokens`.
    pub fn logits_from(&mut self, tokens: &[u32], first: usize) -> Vec<Vec<f32>> {
        self.step_from(&[Chunk { sequence: 0, num_computed: 0, tokens }], first)
    }

    /// The likeliest `num_tokens` tokens after `prompt`, one by one.
    pub fn greedy(&mut self, prompt: &[u32], num_tokens: usize) -> Vec<u32> {
        let mut out = Vec::new();
        let mut last = self.logits(prompt).pop().unwrap();
        while out.len() < num_tokens {
            let token = argmax(&last);
            let chunk = Chunk { sequence: 0, num_computed: prompt.len() + out.len(), tokens: &[token] };
            last = self.mixed_step(&[chunk], &[]).pop().unwrap();
            out.push(token);
        }
        out
    }
}

fn add(batch: &mut StepBatch, chunk: &Chunk<'_>) {
    let first_block = (chunk.sequence * BLOCKS_PER_SEQUENCE) as u32;
    let end = chunk.num_computed + chunk.tokens.len();
    assert!(end <= BLOCKS_PER_SEQUENCE * BLOCK_SIZE, "a sequence of {end} tokens does not fit its blocks");
    let RaggedBatch { query_offsets, context_lens, slot_mapping, block_tables, .. } = &mut batch.ragged;
    batch.token_ids.extend_from_slice(chunk.tokens);
    query_offsets.push(batch.token_ids.len() as u32);
    context_lens.push(end as u32);
    block_tables.extend((0..BLOCKS_PER_SEQUENCE as u32).map(|block| first_block + block));
    for position in chunk.num_computed as u32..end as u32 {
        batch.positions.push(position);
        slot_mapping.push(first_block * BLOCK_SIZE as u32 + position);
    }
}

pub fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|(_, one), (_, other)| one.total_cmp(other));
    best.expect("a vocabulary is not empty").0 as u32
}
