//! How a model is loaded and how its engine runs; the server fills these from flags and files.

use std::path::PathBuf;
use std::time::Duration;

use crate::pooling::Pooling;

/// Where a model's files are. Always local: fetching from a hub is the server's work.
#[derive(Debug, Clone)]
pub struct ModelSource {
    /// A GGUF file, or a directory of safetensors with `config.json` and `tokenizer.json`.
    pub path: PathBuf,
    /// The name clients use; `None`: the file's or directory's name.
    pub id: Option<String>,
    /// Replaces the template in the files (`--chat-template`): a Jinja file.
    pub chat_template: Option<PathBuf>,
    /// Where packed weights are kept for the next start; `None`: nowhere, they are packed each time.
    pub packed_cache: Option<PackedCacheConfig>,
}

/// Packed weights on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedCacheConfig {
    /// Made if it is not there (`--packed-cache-dir`). Whoever can write to it can change what models answer.
    pub directory: PathBuf,
    /// Bytes that the packed weights of all models may take together (`--packed-cache-size`). Those not used for longest
    /// are deleted first; a model that needs more is not kept.
    pub max_bytes: u64,
}

/// What one engine may use.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Sequences in one step's batch (`--max-seqs`).
    pub max_num_seqs: usize,
    /// Tokens one step may compute over all sequences (`--max-num-batched-tokens`).
    /// More: throughput. Fewer: inter-token latency.
    pub max_num_batched_tokens: usize,
    /// How long a step may take that computes prompts while others wait for their next token: it gets as many of the
    /// prompts' tokens as fit, and 32 at least. `None`: no limit.
    pub max_decode_stall: Option<Duration>,
    /// Requests that may wait for admission; one more is refused with [`crate::RequestError::QueueFull`].
    pub max_waiting_requests: usize,
    /// How long a request may wait for its first step; then it ends with [`crate::RequestError::QueueTimeout`]. `None`:
    /// for as long as its client does.
    pub queue_timeout: Option<Duration>,
    /// Later arrivals that may pass a waiting request for each priority class between them.
    pub priority_aging: usize,
    /// Tokens per KV block (`--pa-block-size`).
    pub block_size: usize,
    /// Bytes for KV blocks (`--pa-memory-mb`); `None`: sized from free memory and `max_num_seqs`.
    pub kv_memory_bytes: Option<usize>,
    /// How KV is stored (`--pa-cache-type`).
    pub kv_dtype: KvDType,
    /// Whether finished prompts stay in the prefix cache (`--prefix-cache-n 0` turns it off).
    pub enable_prefix_cache: bool,
    /// Tokens guessed per sequence and step, from repetitions in its text (prompt lookup) or by the draft model, as long
    /// as that pays; they are verified, so answers do not change. 0 turns it off (`--max-draft-tokens`).
    pub max_draft_tokens: usize,
    /// A smaller model with the same vocabulary that guesses where the text does not repeat itself (`--draft-model`): a
    /// GGUF file, or a directory of safetensors. Its KV is in `kv_memory_bytes` too.
    pub draft_model: Option<PathBuf>,
    /// How hidden states become embeddings (`--pooling`); `None`: as the model's files say, and the last token's if they
    /// do not.
    pub pooling: Option<Pooling>,
    /// Overrides the context length in the model's files downward.
    pub max_model_len: Option<usize>,
    /// Seeds requests that bring no seed, for a reproducible run (`--seed`); `None`: random.
    pub seed: Option<u64>,
    /// How long running requests may go on after [`crate::Model::shutdown`] began.
    pub drain_timeout: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_num_seqs: 32,
            max_num_batched_tokens: 512,
            max_decode_stall: Some(Duration::from_millis(500)),
            max_waiting_requests: 256,
            queue_timeout: Some(Duration::from_mins(5)),
            priority_aging: 32,
            block_size: 32,
            kv_memory_bytes: None,
            kv_dtype: KvDType::F16,
            enable_prefix_cache: true,
            max_draft_tokens: 8,
            draft_model: None,
            pooling: None,
            max_model_len: None,
            seed: None,
            drain_timeout: Duration::from_secs(30),
        }
    }
}

pub use mistralrs_paged_attn::KvDType;
