//! Do logits, greedy continuations and perplexity agree with llama.cpp and transformers, embeddings with sentence-transformers,
//! and does a damaged file end in an error? Are weights that were kept on disk those that were packed?
//!
//! `tests/fixtures/README.md` says what the references are and how they were made.

#![expect(clippy::unwrap_used, reason = "what a test cannot set up fails it")]

mod damaged_files;
mod embeddings;
mod packed_cache;
mod perplexity;
mod qwen2;
mod reference;
mod requantize;
mod runner;
mod smollm2;
mod tiny;
