//! What attention and the KV cache refuse.

/// Why an attention call or a cache could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AttentionError {
    /// Query heads are not a multiple of KV heads.
    #[error("{num_heads} query heads are not a multiple of {num_kv_heads} KV heads")]
    HeadMismatch {
        /// Query heads.
        num_heads: usize,
        /// KV heads.
        num_kv_heads: usize,
    },
    /// A tensor is not one row of the right length for each token of the batch.
    #[error("`{tensor}` has shape {found:?}, the batch and the cache need {expected:?}")]
    Shape {
        /// `key`, `value`, `query` or `output`.
        tensor: &'static str,
        /// `[T, K · D]` or `[T, H · D]`.
        expected: Vec<usize>,
        /// What came.
        found: Vec<usize>,
    },
    /// Columns are not neighbours in memory, or rows of the output are not.
    #[error("`{tensor}` has strides {found:?}: the last must be 1, and `output` without gaps")]
    Strides {
        /// `key`, `value`, `query` or `output`.
        tensor: &'static str,
        /// What came.
        found: Vec<usize>,
    },
    /// A tensor is not f32.
    #[error("`{tensor}` is {found:?}, attention takes f32")]
    DType {
        /// `key`, `value`, `query` or `output`.
        tensor: &'static str,
        /// What came.
        found: candle_core::DType,
    },
    /// A plan that was made for another cache, or for none.
    #[error("the attention plan was not made for this KV cache")]
    Plan,
    /// The model has no such layer.
    #[error("layer {layer} of a cache with {num_layers} layers")]
    Layer {
        /// Asked for.
        layer: usize,
        /// Of the cache.
        num_layers: usize,
    },
    /// The batch description contradicts itself or the cache.
    #[error("ragged batch: {0}")]
    Batch(#[from] BatchError),
    /// Heads of this size cannot be stored in elements of this type.
    #[error("KV in {} needs a head size that is a multiple of 32, the model's is {head_size}; it can have {}", dtype.as_str(), types_for(*head_size))]
    HeadSize {
        /// Asked for.
        dtype: crate::KvDType,
        /// The model's.
        head_size: usize,
    },
    /// A copy names a block that the cache does not have.
    #[error("copy of {:?} to {:?} in a cache of {num_blocks} blocks", copy.from, copy.to)]
    Copy {
        /// Asked for.
        copy: crate::BlockCopy,
        /// Of the cache.
        num_blocks: usize,
    },
    /// The cache's shape has a zero in it, or more slots than a slot number can say.
    #[error("a KV cache cannot have {num_blocks} blocks of {layout:?}")]
    Layout {
        /// The shape of a block.
        layout: crate::KvLayout,
        /// Blocks asked for.
        num_blocks: usize,
    },
    /// The KV cache does not fit in memory.
    #[error("cannot allocate {num_bytes} bytes of KV cache")]
    OutOfMemory {
        /// Asked for.
        num_bytes: usize,
    },
    /// The device's.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// How a [`RaggedBatch`](crate::RaggedBatch) contradicts itself or the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// `query_offsets` do not rise from 0 to the number of tokens, one step per sequence.
    #[error("query offsets of {num_sequences} sequences do not rise from 0 to {num_tokens} tokens")]
    QueryOffsets {
        /// By `context_lens`.
        num_sequences: usize,
        /// By `slot_mapping`.
        num_tokens: usize,
    },
    /// More sequences are said to have generated tokens than there are.
    #[error("{num_generated} of {num_sequences} sequences have generated tokens")]
    Generated {
        /// As the batch says.
        num_generated: usize,
        /// By `context_lens`.
        num_sequences: usize,
    },
    /// `block_tables` is not `max_blocks` columns for each sequence.
    #[error("{num_entries} block table entries are not {max_blocks} for each of {num_sequences} sequences")]
    BlockTables {
        /// Of `block_tables`.
        num_entries: usize,
        /// Columns.
        max_blocks: usize,
        /// By `context_lens`.
        num_sequences: usize,
    },
    /// A sequence reads fewer tokens than it computes, or more than its row of the block tables holds.
    #[error("sequence {sequence} reads {context_len} tokens, computes {num_queries}, and its table holds {num_held}")]
    ContextLen {
        /// Its row.
        sequence: usize,
        /// Tokens it reads.
        context_len: usize,
        /// Tokens it computes this step.
        num_queries: usize,
        /// Tokens that fit the row's blocks.
        num_held: usize,
    },
    /// A block table names a block that the cache does not have.
    #[error("sequence {sequence} names block {block} of {num_blocks}")]
    Block {
        /// Its row.
        sequence: usize,
        /// The id.
        block: u32,
        /// Of the cache.
        num_blocks: usize,
    },
    /// A token's KV would be written where the block table does not read it.
    #[error("token {token} writes slot {slot}, its block table reads {expected}")]
    Slot {
        /// Index in the batch.
        token: usize,
        /// By the slot mapping.
        slot: usize,
        /// By the block table, or the end of the cache if the slot is past it.
        expected: usize,
    },
}

/// The element types that store heads of `head_size`.
fn types_for(head_size: usize) -> String {
    let fitting = crate::KvDType::ALL.into_iter().filter(|dtype| dtype.fits(head_size));
    fitting.map(crate::KvDType::as_str).collect::<Vec<_>>().join(", ")
}
