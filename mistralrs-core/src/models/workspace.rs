//! Memory that all steps of a decoder share: it grows to the largest step's and stays.

use candle_core::{DType, Device, Result, Tensor};
use mistralrs_paged_attn::AttentionPlan;

use crate::layers::{AttentionBuffers, HeadCounts, RotaryAngles, Scratch};
use crate::models::StepBatch;

/// Columns of what is held.
#[derive(Debug, Clone, Copy)]
pub struct WorkspaceShape {
    /// Of hidden states.
    pub hidden_size: usize,
    /// Of queries, keys and values.
    pub heads: HeadCounts,
    /// Of the gate, and of what is gated.
    pub intermediate_size: usize,
    /// Of logits.
    pub vocab_size: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Workspace {
    heads: HeadCounts,
    hidden: Buffer,
    query_key_value: Buffer,
    attended: Buffer,
    gate_up: Buffer,
    logit_states: Buffer,
    logits: Buffer,
    chosen_states: Buffer,
    normed_states: Buffer,
    /// Of the last step: most steps are shaped as the one before.
    views: Option<StepViews>,
    /// Of projections.
    pub scratch: Scratch,
    /// Of the step's positions.
    pub angles: RotaryAngles,
    /// Of the step's attention.
    pub plan: AttentionPlan,
}

/// As many rows of each buffer as a step has.
#[derive(Debug, Clone)]
pub struct StepViews {
    rows: StepRows,
    /// `[T, hidden]`.
    pub hidden: Tensor,
    /// Between an attention layer's input and output.
    pub attention: AttentionBuffers,
    /// `[T, 2F]`.
    pub gate_up: Tensor,
    /// `[L, hidden]`, the rows that logits are made of.
    pub logit_states: Tensor,
    /// `[L, V]`.
    pub logits: Tensor,
    /// `[E, hidden]`, the rows whose hidden states are wanted.
    pub chosen_states: Tensor,
    /// `[E, hidden]`, the same after the last norm.
    pub normed_states: Tensor,
}

/// T, L and E of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct StepRows {
    tokens: usize,
    logits: usize,
    hidden: usize,
}

impl Workspace {
    /// Nothing is held yet.
    ///
    /// # Errors
    /// The device's.
    pub fn new(shape: WorkspaceShape, angles: RotaryAngles) -> Result<Self> {
        let WorkspaceShape { hidden_size, heads, intermediate_size, vocab_size } = shape;
        Ok(Self {
            heads,
            hidden: Buffer::new(hidden_size)?,
            query_key_value: Buffer::new(heads.query_size() + 2 * heads.kv_size())?,
            attended: Buffer::new(heads.query_size())?,
            gate_up: Buffer::new(2 * intermediate_size)?,
            logit_states: Buffer::new(hidden_size)?,
            logits: Buffer::new(vocab_size)?,
            chosen_states: Buffer::new(hidden_size)?,
            normed_states: Buffer::new(hidden_size)?,
            views: None,
            scratch: Scratch::default(),
            angles,
            plan: AttentionPlan::default(),
        })
    }

    /// Room for `batch`. What was there before is lost.
    ///
    /// # Errors
    /// The device's.
    pub fn views(&mut self, batch: &StepBatch) -> Result<StepViews> {
        let rows =
            StepRows { tokens: batch.token_ids.len(), logits: batch.logit_rows.len(), hidden: batch.hidden_rows.len() };
        if let Some(views) = self.views.as_ref().filter(|views| views.rows == rows) {
            return Ok(views.clone());
        }
        // Before anything grows: what is viewed cannot be given back.
        self.views = None;
        let attended = self.attended.view(rows.tokens)?;
        let views = StepViews {
            rows,
            hidden: self.hidden.view(rows.tokens)?,
            attention: AttentionBuffers::new(self.query_key_value.view(rows.tokens)?, attended, self.heads)?,
            gate_up: self.gate_up.view(rows.tokens)?,
            logit_states: self.logit_states.view(rows.logits)?,
            logits: self.logits.view(rows.logits)?,
            chosen_states: self.chosen_states.view(rows.hidden)?,
            normed_states: self.normed_states.view(rows.hidden)?,
        };
        Ok(self.views.insert(views).clone())
    }
}

/// A `[rows, columns]` f32 tensor with room for the most rows so far.
#[derive(Debug)]
struct Buffer(Tensor);

impl Buffer {
    fn new(num_columns: usize) -> Result<Self> {
        Ok(Self(Tensor::zeros((0, num_columns), DType::F32, &Device::Cpu)?))
    }

    /// The first `num_rows`.
    fn view(&mut self, num_rows: usize) -> Result<Tensor> {
        let (capacity, num_columns) = self.0.dims2()?;
        if num_rows > capacity {
            let empty = Tensor::zeros((0, num_columns), DType::F32, &Device::Cpu)?;
            // Given back first: the old and the new need not be there together.
            drop(std::mem::replace(&mut self.0, empty));
            self.0 = Tensor::zeros((num_rows.next_power_of_two(), num_columns), DType::F32, &Device::Cpu)?;
        }
        self.0.narrow(0, 0, num_rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_grows_by_doubling_and_never_shrinks() {
        let mut buffer = Buffer::new(3).unwrap();
        for (num_rows, capacity) in [(0, 0), (1, 1), (5, 8), (2, 8), (8, 8), (9, 16)] {
            assert_eq!(buffer.view(num_rows).unwrap().dims(), [num_rows, 3]);
            assert_eq!(buffer.0.dims(), [capacity, 3], "after {num_rows}");
        }
    }
}
