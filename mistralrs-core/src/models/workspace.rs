//! Memory that all steps of a decoder share: it grows to the largest step's and stays.

use std::num::NonZeroUsize;

use candle_core::{DType, Device, Result, Tensor};
use mistralrs_paged_attn::AttentionPlan;

use crate::layers::{AttentionBuffers, HeadCounts, RotaryAngles, Scratch};
use crate::models::StepBatch;

/// Columns of what is held, and what attention is planned for.
#[derive(Debug, Clone)]
pub struct WorkspaceShape {
    /// Of hidden states.
    pub hidden_size: usize,
    /// Of queries, keys and values.
    pub heads: HeadCounts,
    /// Of the gate, and of what is gated.
    pub intermediate_size: usize,
    /// Of logits.
    pub vocab_size: usize,
    /// What attention layers see, each once: the last tokens, or all.
    pub windows: Vec<Option<NonZeroUsize>>,
    /// See [`CausalLm::computes_prompts_apart`](super::CausalLm::computes_prompts_apart).
    pub computes_prompts_apart: bool,
}

impl WorkspaceShape {
    fn plan(&self, window: Option<NonZeroUsize>) -> AttentionPlan {
        AttentionPlan::with_window(window).computing_prompts_apart(self.computes_prompts_apart)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Workspace {
    shape: WorkspaceShape,
    /// A step began and did not end: if it panicked, the locks of the tensors it wrote to are poisoned.
    is_suspect: bool,
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
    /// Of the step's attention, one for each of the windows.
    pub plans: Vec<AttentionPlan>,
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
        let WorkspaceShape { hidden_size, heads, intermediate_size, vocab_size, .. } = shape;
        Ok(Self {
            plans: shape.windows.iter().map(|window| shape.plan(*window)).collect(),
            shape,
            is_suspect: false,
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
        })
    }

    /// Room for `batch`, whose step ends with [`Self::end_step`]. What was there before is lost.
    ///
    /// # Errors
    /// The device's.
    pub fn begin_step(&mut self, batch: &StepBatch) -> Result<StepViews> {
        if self.is_suspect {
            *self = Self::new(self.shape.clone(), self.angles.clone())?;
        }
        self.is_suspect = true;
        self.views(batch)
    }

    /// The step ended in order. One that fails is not ended: its memory is not used again either.
    pub fn end_step(&mut self) {
        self.is_suspect = false;
    }

    fn views(&mut self, batch: &StepBatch) -> Result<StepViews> {
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
            attention: AttentionBuffers::new(self.query_key_value.view(rows.tokens)?, attended, self.shape.heads)?,
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
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use candle_core::{CpuStorage, InplaceOp1, Layout, Storage};

    use super::*;
    use crate::layers::{RotaryConfig, RotaryEmbedding, RotaryPairing, RotaryScaling};

    fn workspace() -> Workspace {
        let heads = HeadCounts { num_heads: 2, num_kv_heads: 1, head_size: 4 };
        let shape = WorkspaceShape {
            hidden_size: 8,
            heads,
            intermediate_size: 8,
            vocab_size: 5,
            windows: vec![None],
            computes_prompts_apart: false,
        };
        let rotary =
            RotaryConfig { theta: 1e4, size: 4, pairing: RotaryPairing::HalfSplit, scaling: RotaryScaling::None };
        Workspace::new(shape, RotaryEmbedding::new(&rotary).unwrap().angles()).unwrap()
    }

    fn address(tensor: &Tensor) -> *const f32 {
        let (storage, _) = tensor.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { panic!("a tensor on the CPU") };
        storage.as_slice::<f32>().unwrap().as_ptr()
    }

    /// Panics while it writes to a tensor, whose lock is poisoned then.
    struct Panics;

    impl InplaceOp1 for Panics {
        fn name(&self) -> &'static str {
            "panics"
        }

        fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
            panic!("asked to")
        }
    }

    #[test]
    fn a_step_that_panicked_leaves_nothing_to_the_next() {
        let batch = StepBatch { token_ids: vec![1, 2], logit_rows: vec![1], ..StepBatch::default() };
        let mut workspace = workspace();
        let views = workspace.begin_step(&batch).unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| views.hidden.inplace_op1(&Panics)));
        assert!(panicked.is_err() && catch_unwind(AssertUnwindSafe(|| views.hidden.inplace_op1(&Panics))).is_err());
        let views = workspace.begin_step(&batch).unwrap();
        assert_eq!(views.hidden.to_vec2::<f32>().unwrap(), [[0.0; 8]; 2]);
        workspace.end_step();
        let again = workspace.begin_step(&batch).unwrap();
        assert_eq!(address(&again.hidden), address(&views.hidden), "a step that ended lends its memory");
    }

    #[test]
    fn a_buffer_grows_by_doubling_and_never_shrinks() {
        let mut buffer = Buffer::new(3).unwrap();
        for (num_rows, capacity) in [(0, 0), (1, 1), (5, 8), (2, 8), (8, 8), (9, 16)] {
            assert_eq!(buffer.view(num_rows).unwrap().dims(), [num_rows, 3]);
            assert_eq!(buffer.0.dims(), [capacity, 3], "after {num_rows}");
        }
    }
}
