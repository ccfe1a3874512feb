//! Who guesses for whom in each step, and what the engine has learned about it.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::draft_model::Wanted;
use super::pay::{DraftPrice, DraftTask};
use super::{Acceptance, DraftCost, DraftModel, GuessSource, StepCost};
use crate::engine::panic_message;
use crate::generation::{Continuation, Generation};
use crate::metrics::ModelSpeculationMetrics;
use crate::scheduler::Scheduler;
use crate::sequence::{Sequence, SequenceId};

/// Steps without the draft model after which one of its own is timed again: its cost may have been that of a busy
/// moment, and nobody would find out.
const STEPS_BETWEEN_MEASUREMENTS: usize = 256;

/// Tokens that an answer is expected to go on for when it has just begun; later, as many as it has.
const MIN_EXPECTED_TOKENS: usize = 16;

/// All guessing of one engine.
pub(crate) struct Guesser {
    /// Guesses per sequence and step; 0: none.
    max_draft_tokens: usize,
    /// What steps of decodes took.
    step_cost: StepCost,
    drafter: Option<Drafter>,
    /// Time the draft model had in this step.
    drafting: Duration,
    metrics: ModelSpeculationMetrics,
}

/// The draft model, and what is known about it.
struct Drafter {
    model: DraftModel,
    cost: DraftCost,
    /// Over all sequences: where new ones begin.
    acceptance: Acceptance,
    num_idle_steps: usize,
}

/// What became of one sequence's guesses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verified {
    pub source: GuessSource,
    pub num_drafted: usize,
    /// The first so many were right.
    pub num_accepted: usize,
}

/// A sequence without guesses that the draft model could guess for.
struct Candidate<'a> {
    sequence: &'a mut Sequence,
    acceptance: Acceptance,
    task: DraftTask,
}

impl Guesser {
    /// `max_draft_tokens` per sequence and step; 0: no guesses.
    pub fn new(max_draft_tokens: usize, metrics: ModelSpeculationMetrics) -> Self {
        Self { max_draft_tokens, step_cost: StepCost::default(), drafter: None, drafting: Duration::ZERO, metrics }
    }

    /// Asks `model` where the text itself gives no guess.
    pub fn with_draft_model(mut self, model: DraftModel, cost: DraftCost) -> Self {
        self.drafter = Some(Drafter { model, cost, acceptance: Acceptance::over_all(), num_idle_steps: 0 });
        self
    }

    /// Writes guesses of their next tokens into decoding sequences. While prompts wait, what a step can compute is theirs.
    pub fn guess(&mut self, scheduler: &mut Scheduler, generations: &mut HashMap<SequenceId, Generation>) {
        self.drafting = Duration::ZERO;
        if let Some(drafter) = &mut self.drafter {
            drafter.model.release_ended(|id| scheduler.running_sequence(id).is_some());
        }
        let may_guess = self.max_draft_tokens > 0 && scheduler.only_decodes();
        let batch = scheduler.batch_mut();
        let row_share = self.step_cost.row_share(batch.len());
        for sequence in &mut *batch {
            sequence.draft.clear();
            let Some(text) = text_of(generations, sequence.id).filter(|_| may_guess) else { continue };
            let max_tokens = max_guesses(text, sequence, self.max_draft_tokens);
            text.speculation.look_up(&sequence.token_ids, max_tokens, row_share, &mut sequence.draft);
        }
        if may_guess && self.drafter.is_some() {
            self.ask_draft_model(batch, generations);
        }
        let num_blocks_used = self.drafter.as_ref().map_or(0, |drafter| drafter.model.num_blocks_used());
        self.metrics.draft_blocks_used.set(num_blocks_used as i64);
    }

    /// A fault of the draft model costs its guesses and nothing else: it is not asked again. Guesses it has written are
    /// guesses all the same.
    fn ask_draft_model(&mut self, batch: &mut [Sequence], generations: &mut HashMap<SequenceId, Generation>) {
        let Some(drafter) = &mut self.drafter else { return };
        let started_at = Instant::now();
        let asked = catch_unwind(AssertUnwindSafe(|| {
            drafter.draft(batch, generations, &self.step_cost, self.max_draft_tokens)
        }));
        self.drafting = started_at.elapsed();
        self.metrics.drafting_seconds.inc_by(self.drafting.as_secs_f64());
        let fault = match asked {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic_message(&*panic).to_owned(),
        };
        tracing::warn!(fault, "the draft model failed: going on without it until the next start");
        self.drafter = None;
    }

    /// A step of `num_rows` rows, all of decodes, took `elapsed`, the draft model's time included.
    pub fn observe_step(&mut self, num_rows: usize, elapsed: Duration) {
        self.step_cost.observe(num_rows, elapsed.saturating_sub(self.drafting));
    }

    /// What became of guesses; `text` is theirs, unless it has ended.
    pub fn observe(&mut self, verified: Verified, text: Option<&mut Continuation>) {
        let Verified { source, num_drafted, num_accepted } = verified;
        self.metrics.drafted(source).inc_by(num_drafted as u64);
        self.metrics.accepted(source).inc_by(num_accepted as u64);
        if let Some(text) = text {
            text.speculation.observe(source, num_drafted, num_accepted);
        }
        if let Some(drafter) = self.drafter.as_mut().filter(|_| source == GuessSource::DraftModel) {
            drafter.acceptance.observe(num_drafted, num_accepted);
        }
    }
}

impl Drafter {
    /// Guesses for those of `batch` that have none, if and as far as that pays.
    fn draft(
        &mut self,
        batch: &mut [Sequence],
        generations: &mut HashMap<SequenceId, Generation>,
        step_cost: &StepCost,
        max_draft_tokens: usize,
    ) -> candle_core::Result<()> {
        let num_sequences = batch.len();
        let candidates = self.candidates(batch, generations, max_draft_tokens);
        if candidates.is_empty() {
            return Ok(());
        }
        let nums_guesses = self.nums_guesses(&candidates, step_cost, num_sequences);
        let mut wanted = Vec::new();
        for (Candidate { sequence, task, .. }, num_guesses) in candidates.into_iter().zip(nums_guesses) {
            let Some(text) = text_of(generations, sequence.id) else { continue };
            if num_guesses > 0 {
                text.speculation.source = GuessSource::DraftModel;
                wanted.push(Wanted { sequence, num_guesses, num_missing: task.num_missing });
            } else if let Some(acceptance) = &mut text.speculation.draft_acceptance {
                acceptance.recover_towards(&self.acceptance);
            }
        }
        if !wanted.is_empty() {
            self.num_idle_steps = 0;
            return self.model.draft(wanted);
        }
        self.acceptance.recover();
        self.num_idle_steps += 1;
        if self.num_idle_steps.is_multiple_of(STEPS_BETWEEN_MEASUREMENTS) {
            self.model.measure()?;
        }
        Ok(())
    }

    fn candidates<'a>(
        &self,
        batch: &'a mut [Sequence],
        generations: &mut HashMap<SequenceId, Generation>,
        max_draft_tokens: usize,
    ) -> Vec<Candidate<'a>> {
        let mut candidates = Vec::new();
        for sequence in batch.iter_mut().filter(|sequence| sequence.draft.is_empty()) {
            let Some(text) = text_of(generations, sequence.id) else { continue };
            let max_guesses = max_guesses(text, sequence, max_draft_tokens);
            let Some(num_missing) = self.model.num_missing(sequence).filter(|_| max_guesses > 0) else { continue };
            let num_output_tokens = sequence.num_output_tokens();
            let max_left = text.max_new_tokens.saturating_sub(num_output_tokens);
            let num_left = num_output_tokens.max(MIN_EXPECTED_TOKENS).min(max_left);
            let acceptance = text.speculation.draft_acceptance.get_or_insert_with(|| self.acceptance.of_newcomer());
            let task = DraftTask { num_missing, max_guesses, num_left };
            candidates.push(Candidate { sequence, acceptance: *acceptance, task });
        }
        candidates
    }

    /// How many guesses pay for each. Each step of the draft model is shared by those it guesses for, so it is asked twice:
    /// if all took part, and if only those did for whom that would pay.
    fn nums_guesses(&self, candidates: &[Candidate<'_>], step_cost: &StepCost, num_sequences: usize) -> Vec<usize> {
        let mut nums_guesses = vec![1; candidates.len()];
        for _ in 0..2 {
            let num_drafted = nums_guesses.iter().filter(|num_guesses| **num_guesses > 0).count();
            let price = match self.cost {
                DraftCost::Measured => step_cost.draft_price(self.model.cost(), num_sequences, num_drafted),
                DraftCost::Fixed(share) => Some(DraftPrice { guess: share, missing: 0.0 }),
            };
            for (num_guesses, candidate) in nums_guesses.iter_mut().zip(candidates) {
                *num_guesses = price.map_or(0, |price| candidate.acceptance.num_guesses(price, candidate.task));
            }
        }
        nums_guesses
    }
}

/// The text that `id` grows, if it is one.
fn text_of(generations: &mut HashMap<SequenceId, Generation>, id: SequenceId) -> Option<&mut Continuation> {
    generations.get_mut(&id).and_then(Generation::text_mut)
}

/// The last token of an answer is sampled, never guessed; nor is what follows a prompt whose last token is still to be computed,
/// which is one of another kind.
fn max_guesses(text: &Continuation, sequence: &Sequence, max_draft_tokens: usize) -> usize {
    if sequence.is_in_prompt() {
        return 0;
    }
    text.max_new_tokens.saturating_sub(sequence.num_output_tokens() + 1).min(max_draft_tokens)
}
