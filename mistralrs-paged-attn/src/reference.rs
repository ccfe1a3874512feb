//! Attention as it is defined: nested loops, f64 sums, no tiles, no threads. Tests hold every fast path to this.

use std::num::NonZeroUsize;

use crate::RaggedBatch;

/// One layer's KV by slot, and attention over it: the plain form of [`KvCache`](crate::KvCache).
pub struct ReferenceCache {
    num_kv_heads: usize,
    head_size: usize,
    block_size: usize,
    window: usize,
    /// `[slot, K, D]`.
    keys: Vec<f32>,
    /// `[slot, K, D]`.
    values: Vec<f32>,
}

impl ReferenceCache {
    /// Zeroes in the shape of one layer of `layout`; its element type plays no part.
    pub fn new(layout: &crate::KvLayout, num_blocks: usize) -> Self {
        let len = num_blocks * layout.block_size * layout.num_kv_heads * layout.head_size;
        Self {
            num_kv_heads: layout.num_kv_heads,
            head_size: layout.head_size,
            block_size: layout.block_size,
            window: usize::MAX,
            keys: vec![0.0; len],
            values: vec![0.0; len],
        }
    }

    /// The same cache for tokens that see the last `window` tokens only, themselves included; all, where there is none.
    #[must_use]
    pub fn with_window(self, window: Option<NonZeroUsize>) -> Self {
        Self { window: window.map_or(usize::MAX, NonZeroUsize::get), ..self }
    }

    /// Stores `key` and `value` `[T, K, D]` at the batch's slot mapping.
    pub fn write(&mut self, key: &[f32], value: &[f32], batch: &RaggedBatch) {
        let row_len = self.num_kv_heads * self.head_size;
        for (token, slot) in batch.slot_mapping.iter().enumerate() {
            let (from, to) = (token * row_len, *slot as usize * row_len);
            self.keys[to..to + row_len].copy_from_slice(&key[from..from + row_len]);
            self.values[to..to + row_len].copy_from_slice(&value[from..from + row_len]);
        }
    }

    /// `query` `[T, H, D]` → `[T, H, D]`: for a token at position p and each head,
    /// sum over p - window < i <= p of softmax(scale * q . k_i) v_i.
    pub fn attend(&self, query: &[f32], num_heads: usize, batch: &RaggedBatch, scale: f32) -> Vec<f32> {
        let head_size = self.head_size;
        let group_size = num_heads / self.num_kv_heads;
        let mut output = vec![0.0; query.len()];
        for sequence in 0..batch.num_sequences() {
            let queries = batch.queries(sequence);
            let first_position = batch.context_len(sequence) - queries.len();
            for (position, token) in (first_position..).zip(queries) {
                for head in 0..num_heads {
                    let at = (token * num_heads + head) * head_size..(token * num_heads + head + 1) * head_size;
                    let first = (position + 1).saturating_sub(self.window);
                    let rows: Vec<_> =
                        (first..=position).map(|seen| self.row(batch, sequence, seen, head / group_size)).collect();
                    let weights = self.weights(&query[at.clone()], &rows, f64::from(scale));
                    for (dim, element) in output[at].iter_mut().enumerate() {
                        let weighted = rows.iter().zip(&weights).map(|(row, w)| w * f64::from(self.values[row + dim]));
                        *element = weighted.sum::<f64>() as f32;
                    }
                }
            }
        }
        output
    }

    /// Where the KV of `position` begins.
    fn row(&self, batch: &RaggedBatch, sequence: usize, position: usize, kv_head: usize) -> usize {
        let block = batch.block_table(sequence)[position / self.block_size] as usize;
        let slot = block * self.block_size + position % self.block_size;
        (slot * self.num_kv_heads + kv_head) * self.head_size
    }

    fn weights(&self, query: &[f32], rows: &[usize], scale: f64) -> Vec<f64> {
        let scores: Vec<f64> = rows
            .iter()
            .map(|row| {
                let key = &self.keys[*row..row + self.head_size];
                scale * query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>()
            })
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / sum).collect()
    }
}
