//! Self-attention over the paged KV cache.

use std::num::NonZeroUsize;

use candle_core::{Error, Result, Tensor};
use mistralrs_paged_attn::{AttentionPlan, KvCache, RaggedBatch};

use super::linear::{Epilogue, FusedLinear, Linear, Pass, Prologue};
use super::norm::RmsNorm;
use super::rotary::{HeadColumns, RotaryAngles};

/// Heads of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadCounts {
    /// Query heads (H).
    pub num_heads: usize,
    /// KV heads (K); H is a multiple of K.
    pub num_kv_heads: usize,
    /// Head size (D); H · D need not be the hidden size.
    pub head_size: usize,
}

impl HeadCounts {
    /// Columns of the queries.
    pub fn query_size(&self) -> usize {
        self.num_heads * self.head_size
    }

    /// Columns of the keys, and of the values.
    pub fn kv_size(&self) -> usize {
        self.num_kv_heads * self.head_size
    }
}

/// Room for what is between an attention layer's input and its output.
#[derive(Debug, Clone)]
pub struct AttentionBuffers {
    /// `[T, query + key + value]`.
    pub query_key_value: Tensor,
    /// Its columns of queries.
    query: Tensor,
    /// Its columns of keys.
    key: Tensor,
    /// Its columns of values.
    value: Tensor,
    /// `[T, query]`, what was attended to.
    pub attended: Tensor,
}

impl AttentionBuffers {
    /// `query_key_value` is `[T, query + key + value]`, `attended` `[T, query]`.
    ///
    /// # Errors
    /// They have fewer columns than `heads` need.
    pub fn new(query_key_value: Tensor, attended: Tensor, heads: HeadCounts) -> Result<Self> {
        let (query_size, kv_size) = (heads.query_size(), heads.kv_size());
        Ok(Self {
            query: query_key_value.narrow(1, 0, query_size)?,
            key: query_key_value.narrow(1, query_size, kv_size)?,
            value: query_key_value.narrow(1, query_size + kv_size, kv_size)?,
            query_key_value,
            attended,
        })
    }
}

/// What all attention layers of one step share.
pub struct AttentionStep<'a> {
    /// Room for their results.
    pub buffers: &'a AttentionBuffers,
    /// Of the tokens' positions.
    pub angles: &'a RotaryAngles,
    /// Where tokens read and write KV.
    pub batch: &'a RaggedBatch,
    /// Who reads what, made of `batch`: one for each window that layers have.
    pub plans: &'a [AttentionPlan],
    /// The KV itself.
    pub kv: &'a mut KvCache,
    /// Of projections.
    pub pass: Pass<'a>,
}

/// Grouped-query attention with rotary positions, after a norm and added to its input.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Before query, key and value.
    pub norm: RmsNorm,
    /// Query, key and value, side by side.
    pub query_key_value: FusedLinear,
    /// Back to the hidden size.
    pub output: Linear,
    /// Its heads.
    pub heads: HeadCounts,
    /// Tokens that a token sees, itself included, if not all.
    pub window: Option<NonZeroUsize>,
    /// Which layer of the KV cache is its own.
    pub layer: usize,
}

impl Attention {
    /// Adds the layer's result to `hidden` `[T, hidden]`; stores the tokens' KV, then reads what they see of their
    /// sequences.
    ///
    /// # Errors
    /// Sizes differ, or the batch does not fit the cache.
    pub fn forward(&self, hidden: &Tensor, step: &mut AttentionStep<'_>) -> Result<()> {
        let HeadCounts { num_heads, num_kv_heads, head_size } = self.heads;
        let AttentionBuffers { query_key_value, query, key, value, attended } = step.buffers;
        self.query_key_value.forward(
            hidden,
            query_key_value,
            (Prologue::Norm(&self.norm), Epilogue::Store),
            step.pass,
        )?;
        // Queries and keys are neighbours.
        step.angles.turn(query_key_value, HeadColumns { first: 0, num_heads: num_heads + num_kv_heads, head_size })?;
        step.kv.write(self.layer, key, value, step.batch).map_err(Error::wrap)?;
        let scale = (head_size as f32).sqrt().recip();
        let plan = step.plans.iter().find(|plan| plan.window() == self.window);
        let plan = plan.expect("the step has a plan for each window of its layers");
        step.kv.attend(self.layer, query, plan, scale, attended).map_err(Error::wrap)?;
        self.output.forward(attended, hidden, (Prologue::None, Epilogue::Add), step.pass)
    }
}
