//! The decoder that architectures share: token table, pre-norm layers of attention and a gated block, head.

use std::num::NonZeroUsize;
use std::sync::Arc;

use candle_core::Error;
use mistralrs_paged_attn::KvCache;
use mistralrs_quant::Precision;

use crate::error::LoadError;
use crate::layers::{
    Attention, AttentionStep, Epilogue, FusedLinear, Linear, Pass, Prologue, RmsNorm, RotaryEmbedding, SwiGluMlp,
    WeightMatrix, copy_rows,
};
use crate::loader::weights::{Part, Role, Weights};
use crate::models::config::Presence;
use crate::models::workspace::{StepViews, Workspace, WorkspaceShape};
use crate::models::{CausalLm, DecoderConfig, ModelShape, StepBatch, StepOutput};

/// A decoder-only transformer.
#[derive(Debug)]
pub struct Decoder {
    shape: ModelShape,
    token_table: Arc<WeightMatrix>,
    rotary: RotaryEmbedding,
    layers: Vec<DecoderLayer>,
    output_norm: RmsNorm,
    /// Shares the token table's memory when the model ties them.
    head: Linear,
    workspace: Workspace,
}

#[derive(Debug)]
struct DecoderLayer {
    attention: Attention,
    mlp: SwiGluMlp,
}

impl Decoder {
    /// Takes what `config` describes out of `weights`.
    pub fn load(config: &DecoderConfig, weights: &mut Weights<'_>) -> Result<Self, LoadError> {
        let token_table = weights.matrix(Role::TokenTable.part(config.vocab_size), config.hidden_size)?;
        let layers: Vec<_> =
            (0..config.num_layers).map(|layer| DecoderLayer::load(config, weights, layer)).collect::<Result<_, _>>()?;
        let output_norm = RmsNorm::new(weights.vector(Role::OutputNorm, config.hidden_size)?, config.rms_norm_eps);
        let output = Role::Output.part(config.vocab_size);
        let head = match config.output_matrix {
            Presence::Required => weights.matrix(output, config.hidden_size)?,
            Presence::IfPresent if weights.has(Role::Output) => weights.matrix(output, config.hidden_size)?,
            Presence::IfPresent | Presence::Absent => Arc::clone(&token_table),
        };
        let rotary = RotaryEmbedding::new(&config.rotary)?;
        let workspace = WorkspaceShape {
            hidden_size: config.hidden_size,
            heads: config.heads,
            intermediate_size: config.intermediate_size,
            vocab_size: config.vocab_size,
            windows: windows_of(&layers),
            computes_prompts_apart: computes_prompts_apart(&layers),
        };
        Ok(Self {
            shape: config.shape(),
            token_table,
            workspace: Workspace::new(workspace, rotary.angles())?,
            rotary,
            layers,
            output_norm,
            head: Linear::new(head, None),
        })
    }

    /// Makes `views.hidden` what it is after the last layer.
    fn run_layers(&mut self, batch: &StepBatch, views: &StepViews, kv: &mut KvCache) -> candle_core::Result<()> {
        let Workspace { scratch, angles, plans, .. } = &mut self.workspace;
        self.rotary.fill(angles, &batch.positions);
        self.token_table.rows(&batch.token_ids, &views.hidden)?;
        let Some(first) = self.layers.first() else { return Ok(()) };
        for plan in plans.iter_mut() {
            kv.plan(plan, &batch.ragged, first.attention.heads.num_heads).map_err(Error::wrap)?;
        }
        let pass = Pass { scratch, num_generated_rows: batch.ragged.num_generated_tokens() };
        let (buffers, batch) = (&views.attention, &batch.ragged);
        let mut step = AttentionStep { buffers, angles, batch, plans, kv, pass };
        for layer in &self.layers {
            layer.attention.forward(&views.hidden, &mut step)?;
            layer.mlp.forward(&views.hidden, &views.gate_up, pass)?;
        }
        Ok(())
    }

    /// Makes `views.logits` those of the rows that are asked for.
    fn run_head(&self, batch: &StepBatch, views: &StepViews) -> candle_core::Result<()> {
        if batch.logit_rows.is_empty() {
            return Ok(());
        }
        let normed = (Prologue::Norm(&self.output_norm), Epilogue::Store);
        // Few rows, by the largest matrix: all in the way that takes the fewest bytes.
        let pass = Pass { scratch: &self.workspace.scratch, num_generated_rows: batch.logit_rows.len() };
        // Every row ends a sequence in a step of decodes alone: nothing to pick.
        if batch.logit_rows.len() == batch.token_ids.len() {
            return self.head.forward(&views.hidden, &views.logits, normed, pass);
        }
        copy_rows(&views.hidden, &batch.logit_rows, &views.logit_states)?;
        self.head.forward(&views.logit_states, &views.logits, normed, pass)
    }

    /// Makes `views.normed_states` the hidden states that are asked for.
    fn run_output_norm(&self, batch: &StepBatch, views: &StepViews) -> candle_core::Result<()> {
        if batch.hidden_rows.is_empty() {
            return Ok(());
        }
        copy_rows(&views.hidden, &batch.hidden_rows, &views.chosen_states)?;
        self.output_norm.forward(&views.chosen_states, &views.normed_states)
    }
}

/// What the layers see, each once.
fn windows_of(layers: &[DecoderLayer]) -> Vec<Option<NonZeroUsize>> {
    let mut windows: Vec<_> = layers.iter().map(|layer| layer.attention.window).collect();
    windows.sort_unstable();
    windows.dedup();
    windows
}

/// See [`CausalLm::computes_prompts_apart`].
fn computes_prompts_apart(layers: &[DecoderLayer]) -> bool {
    layers.iter().any(DecoderLayer::computes_prompts_apart)
}

impl DecoderLayer {
    fn load(config: &DecoderConfig, weights: &mut Weights<'_>, layer: usize) -> Result<Self, LoadError> {
        let hidden = config.hidden_size;
        let heads = config.heads;
        let (query_size, kv_size) = (heads.query_size(), heads.kv_size());
        let norm = |weights: &mut Weights<'_>, role: Role| {
            Ok::<_, LoadError>(RmsNorm::new(weights.vector(role, hidden)?, config.rms_norm_eps))
        };
        let of = |role: fn(usize) -> Role, size: usize| -> Part { role(layer).part(size) };
        Ok(Self {
            attention: Attention {
                norm: norm(weights, Role::AttentionNorm(layer))?,
                // Softmax makes much of little: rounding these activations to 8 bits moves a model's distributions as
                // far as all its other projections together, and they are a sixth of its weights.
                query_key_value: weights
                    .fused(
                        &[of(Role::Query, query_size), of(Role::Key, kv_size), of(Role::Value, kv_size)],
                        hidden,
                        config.attention_bias.query_key_value,
                    )?
                    .with_precision(Precision::Bits16),
                output: weights.linear(of(Role::AttentionOutput, hidden), query_size, config.attention_bias.output)?,
                heads,
                window: config.window(layer),
                layer,
            },
            mlp: SwiGluMlp {
                norm: norm(weights, Role::MlpNorm(layer))?,
                gate_up: weights.fused(
                    &[of(Role::Gate, config.intermediate_size), of(Role::Up, config.intermediate_size)],
                    hidden,
                    config.mlp_bias,
                )?,
                down: weights.linear(of(Role::Down, hidden), config.intermediate_size, config.mlp_bias)?,
            },
        })
    }
}

impl DecoderLayer {
    fn computes_prompts_apart(&self) -> bool {
        let Self { attention, mlp } = self;
        [&attention.query_key_value, &mlp.gate_up].into_iter().any(FusedLinear::computes_prompts_apart)
            || [&attention.output, &mlp.down].into_iter().any(Linear::computes_prompts_apart)
    }
}

impl CausalLm for Decoder {
    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn computes_prompts_apart(&self) -> bool {
        computes_prompts_apart(&self.layers)
    }

    fn forward(&mut self, batch: &StepBatch, kv: &mut KvCache) -> candle_core::Result<StepOutput> {
        let num_tokens = batch.token_ids.len();
        if batch.positions.len() != num_tokens {
            candle_core::bail!("{num_tokens} tokens with {} positions", batch.positions.len())
        }
        let views = self.workspace.begin_step(batch)?;
        self.run_layers(batch, &views, kv)?;
        self.run_head(batch, &views)?;
        self.run_output_norm(batch, &views)?;
        self.workspace.end_step();
        Ok(StepOutput { logits: views.logits, hidden: views.normed_states })
    }
}
