//! KV memory in blocks, the prefix cache, and attention over block tables.
//!
//! Two halves that meet in a block id. [`BlockManager`] decides who holds which block and never sees a tensor;
//! [`KvCache`] holds the tensors, writes one step's keys and values to slots and attends over block tables, and never
//! sees who holds what. A [`RaggedBatch`], which the engine builds once per step, tells the second what the first
//! decided; an [`AttentionPlan`], made of it once per step too, says how threads share the work of each layer and
//! keeps their buffers: writing and attending allocate nothing.
//!
//! A token's attention has the same bits alone or in any batch, prefilled at once or in chunks, on any number of
//! threads (of one machine), and as a token of a prompt or a generated one, if a plan tells these apart: a seed or a greedy request reproduces whatever else runs. `reference` defines the
//! answer, `kernels` makes it fast.
//!
//! **Never** here: requests, queues, priorities, waiting, a clock, HTTP; positions or rotary embedding (keys arrive
//! rotated); copying of KV when a batch changes; a choice of which sequence gives up its blocks (the scheduler's).

pub mod attention;
pub mod block_manager;
pub mod cache;
mod cpu_storage;
pub mod error;
mod kernels;
pub mod prefix_cache;
pub mod reference;
mod rows;

pub use attention::{AttentionPlan, RaggedBatch};
pub use block_manager::{BlockCopy, BlockId, BlockManager, BlockTable, BlockUsage, CachedPrefix, OutOfBlocks};
pub use cache::{KvCache, KvDType, KvLayout};
pub use error::{AttentionError, BatchError};
pub use prefix_cache::{PrefixHash, PrefixSalt};
