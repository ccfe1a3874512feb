//! Self-attention over the paged KV cache.

use candle_core::{DType, Error, Result, Tensor};
use mistralrs_paged_attn::{AttentionPlan, KvCache, RaggedBatch};

use super::linear::{FusedLinear, Linear};
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

/// Grouped-query attention with rotary positions.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Query, key and value, side by side.
    pub query_key_value: FusedLinear,
    /// Back to the hidden size.
    pub output: Linear,
    /// Its heads.
    pub heads: HeadCounts,
    /// Which layer of the KV cache is its own.
    pub layer: usize,
}

impl Attention {
    /// `input` `[T, hidden]` → `[T, hidden]`; stores the tokens' KV, then reads all that their sequences have.
    pub fn forward(
        &self,
        input: &Tensor,
        angles: &RotaryAngles,
        batch: &RaggedBatch,
        kv: &mut KvCache,
    ) -> Result<Tensor> {
        let HeadCounts { num_heads, num_kv_heads, head_size } = self.heads;
        let num_tokens = input.dim(0)?;
        let projected = self.query_key_value.forward(input)?;
        let query = HeadColumns { first: 0, num_heads, head_size };
        let key = HeadColumns { first: num_heads * head_size, num_heads: num_kv_heads, head_size };
        let query = angles.turn(&projected, query)?;
        let value = projected.narrow(1, key.first + num_kv_heads * head_size, num_kv_heads * head_size)?;
        kv.write(self.layer, &angles.turn(&projected, key)?, &value, batch).map_err(Error::wrap)?;
        let mut plan = AttentionPlan::default();
        kv.plan(&mut plan, batch, num_heads).map_err(Error::wrap)?;
        let scale = (head_size as f32).sqrt().recip();
        let attended = Tensor::zeros((num_tokens, num_heads * head_size), DType::F32, input.device())?;
        kv.attend(self.layer, &query, &plan, scale, &attended).map_err(Error::wrap)?;
        self.output.forward(&attended)
    }
}
