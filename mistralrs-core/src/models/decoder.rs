//! The decoder that architectures share: token table, pre-norm layers of attention and a gated block, head.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use mistralrs_paged_attn::KvCache;
use mistralrs_quant::Precision;

use crate::error::LoadError;
use crate::layers::{Attention, Linear, RmsNorm, RotaryEmbedding, SwiGluMlp, WeightMatrix};
use crate::loader::weights::{Part, Role, Weights};
use crate::models::config::Presence;
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
}

#[derive(Debug)]
struct DecoderLayer {
    attention_norm: RmsNorm,
    attention: Attention,
    mlp_norm: RmsNorm,
    mlp: SwiGluMlp,
}

impl Decoder {
    /// Takes what `config` describes out of `weights`.
    pub fn load(config: &DecoderConfig, weights: &mut Weights<'_>) -> Result<Self, LoadError> {
        let token_table = weights.matrix(Role::TokenTable.part(config.vocab_size), config.hidden_size)?;
        let layers =
            (0..config.num_layers).map(|layer| DecoderLayer::load(config, weights, layer)).collect::<Result<_, _>>()?;
        let output_norm = RmsNorm::new(weights.vector(Role::OutputNorm, config.hidden_size)?, config.rms_norm_eps);
        let output = Role::Output.part(config.vocab_size);
        let head = match config.output_matrix {
            Presence::Required => weights.matrix(output, config.hidden_size)?,
            Presence::IfPresent if weights.has(Role::Output) => weights.matrix(output, config.hidden_size)?,
            Presence::IfPresent | Presence::Absent => Arc::clone(&token_table),
        };
        let rotary = RotaryEmbedding::new(&config.rotary)?;
        Ok(Self { shape: config.shape(), token_table, rotary, layers, output_norm, head: Linear::new(head, None) })
    }

    /// Hidden states `[T, hidden]` after the last layer.
    fn hidden_states(&self, batch: &StepBatch, kv: &mut KvCache) -> candle_core::Result<Tensor> {
        let angles = self.rotary.angles(&batch.positions);
        let mut hidden = self.token_table.rows(&batch.token_ids)?;
        for layer in &self.layers {
            let normed = layer.attention_norm.forward(&hidden)?;
            hidden = (hidden + layer.attention.forward(&normed, &angles, &batch.ragged, kv)?)?;
            let normed = layer.mlp_norm.forward(&hidden)?;
            hidden = (hidden + layer.mlp.forward(&normed)?)?;
        }
        Ok(hidden)
    }

    /// The chosen rows of `hidden` after the last norm; `None` where none are chosen.
    fn normed_rows(&self, hidden: &Tensor, rows: &[u32]) -> candle_core::Result<Option<Tensor>> {
        if rows.is_empty() {
            return Ok(None);
        }
        // Every row ends a sequence in a step of decodes alone: nothing to pick.
        if rows.len() == hidden.dim(0)? {
            return self.output_norm.forward(hidden).map(Some);
        }
        let rows = hidden.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?;
        self.output_norm.forward(&rows).map(Some)
    }
}

/// `[0, columns]`: nothing was asked for.
fn empty(columns: usize) -> candle_core::Result<Tensor> {
    Tensor::zeros((0, columns), DType::F32, &Device::Cpu)
}

impl DecoderLayer {
    fn load(config: &DecoderConfig, weights: &mut Weights<'_>, layer: usize) -> Result<Self, LoadError> {
        let hidden = config.hidden_size;
        let heads = config.heads;
        let (query_size, kv_size) = (heads.num_heads * heads.head_size, heads.num_kv_heads * heads.head_size);
        let norm = |weights: &mut Weights<'_>, role: Role| {
            Ok::<_, LoadError>(RmsNorm::new(weights.vector(role, hidden)?, config.rms_norm_eps))
        };
        let of = |role: fn(usize) -> Role, size: usize| -> Part { role(layer).part(size) };
        Ok(Self {
            attention_norm: norm(weights, Role::AttentionNorm(layer))?,
            attention: Attention {
                // Softmax makes much of little: rounding these activations to 8 bits moves a model's distributions as
                // far as all its other projections together, and they are a sixth of its weights.
                query_key_value: weights
                    .fused(
                        &[of(Role::Query, query_size), of(Role::Key, kv_size), of(Role::Value, kv_size)],
                        hidden,
                        config.attention_bias,
                    )?
                    .with_precision(Precision::Bits16),
                output: weights.linear(of(Role::AttentionOutput, hidden), query_size, config.attention_bias)?,
                heads,
                layer,
            },
            mlp_norm: norm(weights, Role::MlpNorm(layer))?,
            mlp: SwiGluMlp {
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

impl CausalLm for Decoder {
    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn forward(&self, batch: &StepBatch, kv: &mut KvCache) -> candle_core::Result<StepOutput> {
        let num_tokens = batch.token_ids.len();
        if batch.positions.len() != num_tokens {
            candle_core::bail!("{num_tokens} tokens with {} positions", batch.positions.len())
        }
        let hidden = self.hidden_states(batch, kv)?;
        let logits = match self.normed_rows(&hidden, &batch.logit_rows)? {
            Some(rows) => self.head.forward(&rows)?,
            None => empty(self.shape.vocab_size)?,
        };
        let hidden = match self.normed_rows(&hidden, &batch.hidden_rows)? {
            Some(rows) => rows,
            None => empty(self.shape.hidden_size)?,
        };
        Ok(StepOutput { logits, hidden })
    }
}
