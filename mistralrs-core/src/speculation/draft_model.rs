//! A smaller model that guesses: its own KV in blocks of its own, run on the engine's thread before the model's step.
//!
//! It is greedy: guesses are verified by equality, so its likeliest token is right most often. For each sequence it first
//! computes the tokens it does not know, within a budget per step; whoever has caught up gets a guess from the same
//! forward pass, and one more from each that follows, all sequences in one batch.
//!
//! Its KV is a convenience: blocks that are not there mean that a sequence is not guessed for, never that it waits.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Instant;

use candle_core::{Error, Result};
use mistralrs_paged_attn::{BlockManager, BlockTable, KvCache, PrefixHash};

use super::StepCost;
use crate::host_copy::read_into;
use crate::models::CausalLm;
use crate::packing::{self, PackedChunk};
use crate::sampling::likeliest;
use crate::sequence::{Sequence, SequenceId};

/// What bounds a draft model's work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DraftLimits {
    /// Its context length, or the model's if that is shorter.
    pub max_len: usize,
    /// Token ids below this are known to both models.
    pub vocab_size: usize,
    /// Tokens it may compute in one step before the first guesses.
    pub max_catch_up_tokens: usize,
}

/// The model with its KV.
pub(crate) struct DraftModel {
    model: Box<dyn CausalLm>,
    kv: KvCache,
    blocks: BlockManager,
    limits: DraftLimits,
    /// A block that belongs to no sequence, for [`Self::measure`] to write to.
    probe: BlockTable,
    progress: HashMap<SequenceId, Progress>,
    /// What its steps took.
    cost: StepCost,
    /// Logits of the last step.
    host_logits: Vec<f32>,
}

/// How far its KV of one sequence has come.
#[derive(Default)]
struct Progress {
    block_table: BlockTable,
    /// Of the sequence's tokens, how many have KV here; less than all of them.
    num_computed: usize,
    /// How many blocks are in the prefix cache.
    num_published: usize,
    /// Guesses whose KV follows: those that come true need not be computed again.
    guesses: Vec<u32>,
}

impl Progress {
    /// How many of `token_ids` have KV, the guesses that came true included. The newest is always computed: its logits
    /// are the first guess.
    fn num_confirmed(&self, token_ids: &[u32]) -> usize {
        let max_confirmed = token_ids.len() - 1;
        let since = token_ids.get(self.num_computed..max_confirmed).unwrap_or_default();
        let num_true = self.guesses.iter().zip(since).take_while(|(guess, token_id)| guess == token_id).count();
        (self.num_computed + num_true).min(max_confirmed)
    }

    /// Keeps the KV of guesses that came true; that of the others is overwritten.
    fn confirm(&mut self, token_ids: &[u32]) {
        self.num_computed = self.num_confirmed(token_ids);
        self.guesses.clear();
    }
}

/// A sequence to guess for.
pub(crate) struct Wanted<'a> {
    /// Whose `draft` gets the guesses.
    pub sequence: &'a mut Sequence,
    /// How many at most.
    pub num_guesses: usize,
    /// What [`DraftModel::num_missing`] says of it.
    pub num_missing: usize,
}

/// A sequence in this step's forward passes.
struct Run<'a> {
    sequence: &'a mut Sequence,
    num_guesses: usize,
    /// Which tokens, known or guessed, the next pass computes; empty if there is no next one.
    positions: Range<usize>,
}

impl Run<'_> {
    /// Whether the next pass tells what follows all that is known or guessed.
    fn reaches_end(&self) -> bool {
        self.positions.end == self.sequence.token_ids.len() + self.sequence.draft.len()
    }
}

impl DraftModel {
    /// Warms the model up and measures its first step. One of the cache's blocks is kept for that.
    pub fn new(model: Box<dyn CausalLm>, kv: KvCache, blocks: BlockManager, limits: DraftLimits) -> Result<Self> {
        let mut probe = BlockTable::default();
        blocks.grow(&mut probe, 1).map_err(Error::wrap)?;
        let (progress, cost) = (HashMap::new(), StepCost::default());
        let mut draft = Self { model, kv, blocks, limits, probe, progress, cost, host_logits: Vec::new() };
        draft.run_probe()?;
        draft.measure()?;
        Ok(draft)
    }

    /// What its steps took.
    pub fn cost(&self) -> &StepCost {
        &self.cost
    }

    /// Blocks that sequences hold.
    pub fn num_blocks_used(&self) -> usize {
        self.blocks.usage().num_used - self.probe.blocks().len()
    }

    /// Tokens of `sequence` that it would have to compute before a guess; `None` if it cannot guess for it: the text is
    /// longer than its context, or has a token that it does not know.
    pub fn num_missing(&self, sequence: &Sequence) -> Option<usize> {
        let token_ids = &sequence.token_ids;
        let num_computed = match self.progress.get(&sequence.id) {
            Some(progress) => progress.num_confirmed(token_ids),
            None => {
                self.blocks.find_prefix(reusable_hashes(sequence, &self.blocks)).num_blocks * self.blocks.block_size()
            }
        };
        let missing = &token_ids[num_computed..];
        let is_known = |token_id: &u32| (*token_id as usize) < self.limits.vocab_size;
        (token_ids.len() <= self.limits.max_len && missing.iter().all(is_known)).then_some(missing.len())
    }

    /// Writes guesses to the sequences' drafts: of those that are behind, only those it can catch up with in this step.
    pub fn draft(&mut self, mut wanted: Vec<Wanted<'_>>) -> Result<()> {
        // Whoever keeps up comes first: a long prompt has what they leave.
        wanted.sort_by_key(|wanted| wanted.num_missing);
        let mut budget = self.limits.max_catch_up_tokens;
        let mut runs = Vec::with_capacity(wanted.len());
        for Wanted { sequence, num_guesses, .. } in wanted {
            // The last guess is not computed here, so it may be the first token beyond the context.
            let num_guesses = num_guesses.min((self.limits.max_len + 1).saturating_sub(sequence.token_ids.len()));
            if budget == 0 || num_guesses == 0 {
                continue;
            }
            let Some(positions) = self.prepare(sequence, num_guesses, budget) else { continue };
            budget -= positions.len();
            runs.push(Run { sequence, num_guesses, positions });
        }
        while !runs.is_empty() {
            self.forward(&mut runs)?;
            runs.retain(|run| !run.positions.is_empty() && run.sequence.draft.len() < run.num_guesses);
        }
        Ok(())
    }

    /// Times a step of one token. What was measured before counts half: it may have been another time.
    pub fn measure(&mut self) -> Result<()> {
        let started_at = Instant::now();
        self.run_probe()?;
        self.cost.fade();
        self.cost.observe(1, started_at.elapsed());
        Ok(())
    }

    fn run_probe(&mut self) -> Result<()> {
        let batch = packing::single_token(self.probe.blocks()[0], self.blocks.block_size());
        self.model.forward(&batch, &mut self.kv).map(drop)
    }

    /// Gives back the blocks of all sequences that `is_running` does not name.
    pub fn release_ended(&mut self, is_running: impl Fn(SequenceId) -> bool) {
        for (_, progress) in self.progress.extract_if(|id, _| !is_running(*id)) {
            self.blocks.release(progress.block_table);
        }
    }

    fn release(&mut self, id: SequenceId) {
        if let Some(progress) = self.progress.remove(&id) {
            self.blocks.release(progress.block_table);
        }
    }

    /// Takes blocks for all of `sequence` and its guesses; which tokens to compute first, at most `budget`. `None` without
    /// blocks: what it held goes to the others, since half a text is of no use.
    fn prepare(&mut self, sequence: &Sequence, num_guesses: usize, budget: usize) -> Option<Range<usize>> {
        let num_tokens = sequence.token_ids.len();
        let progress = self.progress.entry(sequence.id).or_insert_with(|| adopt_prefix(sequence, &self.blocks));
        progress.confirm(&sequence.token_ids);
        let num_computed = progress.num_computed;
        if self.blocks.grow(&mut progress.block_table, num_tokens + num_guesses - 1).is_err() {
            self.release(sequence.id);
            return None;
        }
        Some(num_computed..num_tokens.min(num_computed + budget))
    }

    /// One forward pass over all `runs`, and a guess for each that reaches its end. A run over the end of a prompt counts as
    /// generated, and so do those before it: a guess may depend on that, an answer never does.
    fn forward(&mut self, runs: &mut [Run<'_>]) -> Result<()> {
        let started_at = Instant::now();
        let chunks: Vec<_> = runs
            .iter()
            .map(|run| PackedChunk {
                sequence: run.sequence,
                blocks: self.progress[&run.sequence.id].block_table.blocks(),
                positions: run.positions.clone(),
                num_logit_rows: usize::from(run.reaches_end()),
                pooled: 0..0,
            })
            .collect();
        let batch = packing::pack(&chunks, self.blocks.block_size());
        let logits = self.model.forward(&batch, &mut self.kv)?.logits;
        let vocab_size = logits.dim(1)?;
        let mut values = std::mem::take(&mut self.host_logits);
        read_into(&logits, &mut values)?;
        let mut rows = values.chunks_exact(vocab_size.max(1));
        for run in runs {
            self.record(run);
            let end = run.positions.end;
            run.positions = end..end;
            if run.reaches_end() {
                let row = rows.next().ok_or_else(|| Error::Msg("the draft model's logits are too few".into()))?;
                let row = &row[..self.limits.vocab_size.min(row.len())];
                run.sequence.draft.push(likeliest(row).map_err(Error::wrap)?);
                run.positions = end..end + 1;
            }
        }
        self.host_logits = values;
        self.cost.observe(batch.token_ids.len(), started_at.elapsed());
        Ok(())
    }

    /// What `run` has computed has KV now; blocks that known tokens filled can be found by others.
    fn record(&mut self, run: &Run<'_>) {
        let Run { sequence, positions, .. } = run;
        let Some(progress) = self.progress.get_mut(&sequence.id) else { return };
        if positions.end > sequence.token_ids.len() {
            progress.guesses.push(sequence.token_at(positions.start));
            return;
        }
        progress.num_computed = positions.end;
        let num_full = (progress.num_computed / self.blocks.block_size()).min(sequence.block_hashes.len());
        for index in progress.num_published..num_full {
            self.blocks.publish(&progress.block_table, index, sequence.block_hashes[index]);
        }
        progress.num_published = progress.num_published.max(num_full);
    }
}

impl Drop for DraftModel {
    fn drop(&mut self) {
        self.release_ended(|_| false);
        self.blocks.release(std::mem::take(&mut self.probe));
    }
}

/// Hashes of the blocks that a sequence can take over, the newest token's not being among them.
fn reusable_hashes<'a>(sequence: &'a Sequence, blocks: &BlockManager) -> &'a [PrefixHash] {
    let num_full = (sequence.token_ids.len() - 1) / blocks.block_size();
    &sequence.block_hashes[..num_full.min(sequence.block_hashes.len())]
}

/// A sequence's beginning, as far as it was computed for another.
fn adopt_prefix(sequence: &Sequence, blocks: &BlockManager) -> Progress {
    let block_table = blocks.adopt_prefix(reusable_hashes(sequence, blocks));
    let num_published = block_table.blocks().len();
    Progress { block_table, num_computed: num_published * blocks.block_size(), num_published, guesses: Vec::new() }
}
