//! The loop: one thread per loaded model, one packed ragged batch per step.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;
use mistralrs_paged_attn::{BlockUsage, KvCache};

use crate::admission::{Admission, EngineStatus};
use crate::error::RequestError;
use crate::generation::{Answer, Generation, SequenceEvent};
use crate::host_copy::read_into;
use crate::metrics::{ModelMetrics, Rejection};
use crate::models::{CausalLm, StepBatch, StepOutput};
use crate::packing::{self, PackedChunk};
use crate::pooling::Pooling;
use crate::prefill_pace::PrefillPace;
use crate::request::FinishReason;
use crate::sampling::SamplerScratch;
use crate::scheduler::{Phase, ScheduledChunk, Scheduler, StepPlan};
use crate::sequence::SequenceId;
use crate::speculation::{Guesser, Verified};

/// Runs one model. Owns weights, KV tensors, scheduler and sampling state; shares only [`Admission`].
pub(crate) struct Engine {
    model: Box<dyn CausalLm>,
    kv: KvCache,
    scheduler: Scheduler,
    generations: HashMap<SequenceId, Generation>,
    admission: Arc<Admission>,
    metrics: ModelMetrics,
    /// Vocabulary-sized buffers, lent to one sampler after the other.
    scratch: SamplerScratch,
    /// Logits or hidden states of the step, as samplers and poolers read them.
    host_rows: Vec<f32>,
    /// Guesses tokens where that pays.
    guesser: Guesser,
    /// Keeps prompts from holding up decodes.
    pace: PrefillPace,
    last_usage: BlockUsage,
}

/// Whether a step had anything to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StepOutcome {
    Ran,
    Idle,
}

impl Engine {
    pub fn new(
        model: Box<dyn CausalLm>,
        kv: KvCache,
        scheduler: Scheduler,
        admission: Arc<Admission>,
        metrics: ModelMetrics,
        guesser: Guesser,
    ) -> Self {
        Self {
            model,
            kv,
            scheduler,
            generations: HashMap::new(),
            admission,
            metrics,
            scratch: SamplerScratch::default(),
            host_rows: Vec::new(),
            guesser,
            pace: PrefillPace::new(None),
            last_usage: BlockUsage::default(),
        }
    }

    /// Keeps prompts from holding up decodes for longer than `pace` says.
    pub fn with_pace(mut self, pace: PrefillPace) -> Self {
        self.pace = pace;
        self
    }

    /// Steps until [`Admission::close`] and the last sequence's end. Sleeps when idle: the next request wakes it.
    pub fn run(mut self) {
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.checked_step())) {
                Ok(StepOutcome::Ran) => {}
                Ok(StepOutcome::Idle) if self.admission.is_closed() => break,
                Ok(StepOutcome::Idle) => std::thread::park(),
                Err(panic) => self.fail_running(&format!("the engine step panicked: {}", panic_message(&*panic))),
            }
        }
    }

    /// A step; builds with debug assertions, which tests and soaks run, prove after each that every block is accounted for.
    fn checked_step(&mut self) -> StepOutcome {
        let outcome = self.step();
        if cfg!(debug_assertions) {
            self.scheduler.check_invariants(&self.admission.blocks);
            let num_sequences = self.scheduler.running().len() + self.scheduler.waiting().len();
            assert_eq!(self.generations.len(), num_sequences, "every sequence has its generation");
        }
        outcome
    }

    /// One step: drain, refuse, guess, schedule, forward, sample, pool, emit.
    pub fn step(&mut self) -> StepOutcome {
        self.admit_arrivals();
        self.drop_cancelled();
        self.refuse_overdue();
        let started_at = Instant::now();
        self.guesser.guess(&mut self.scheduler, &mut self.generations);
        let plan = self.scheduler.schedule(&self.admission.blocks);
        self.announce(&plan, started_at);
        if plan.chunks.is_empty() {
            self.refuse_unschedulable();
            self.publish_status();
            return StepOutcome::Idle;
        }
        match self.forward(&plan) {
            Ok(output) => self.emit(&plan, &output),
            Err(fault) => self.forward_each(&plan, fault),
        }
        self.observe(&plan, started_at);
        self.publish_status();
        StepOutcome::Ran
    }

    /// Takes in what handlers submitted since the last step.
    fn admit_arrivals(&mut self) {
        let num_backlog = self.scheduler.waiting().len();
        for new in self.admission.drain(num_backlog) {
            self.generations.insert(new.sequence.id, new.generation);
            self.scheduler.enqueue(new.sequence);
        }
    }

    /// Ends sequences whose client left, running or waiting.
    fn drop_cancelled(&mut self) {
        let cancelled: Vec<_> =
            self.generations.iter().filter(|(_, generation)| generation.is_cancelled()).map(|(&id, _)| id).collect();
        for id in cancelled {
            self.finish(id, FinishReason::Cancelled);
        }
    }

    /// Ends sequences whose turn did not come in time. Those that have run are not among them, nor are the later choices
    /// of a request that has: it was served in time.
    fn refuse_overdue(&mut self) {
        let num_waiting = self.scheduler.waiting().len();
        let now = Instant::now();
        let mut overdue = Vec::new();
        for sequence in self.scheduler.waiting() {
            let first = self.generations.get(&sequence.leader.unwrap_or(sequence.id));
            let Some(first) = first.filter(|first| !first.has_started) else { continue };
            if let Some(error) = self.admission.check_wait(now - first.arrived_at, num_waiting) {
                overdue.push((sequence.id, error));
            }
        }
        for (id, error) in overdue {
            self.refuse(id, error);
        }
    }

    /// Tells streams and metrics what the plan decided.
    fn announce(&mut self, plan: &StepPlan, now: Instant) {
        for id in &plan.admitted {
            let Some(sequence) = self.scheduler.running_mut(*id) else { continue };
            let num_cached_tokens = sequence.num_cached;
            let Some(generation) = self.generations.get_mut(id) else { continue };
            if !std::mem::replace(&mut generation.has_started, true) {
                self.metrics.queue_wait.observe((now - generation.arrived_at).as_secs_f64());
                generation.send(SequenceEvent::Started { num_cached_tokens });
            }
        }
        self.metrics.preemptions.inc_by(plan.preempted.len() as u64);
    }

    /// Copies what the plan shares, then runs its chunks as one packed batch; logits of the chunks that end in a token to
    /// sample, hidden states of those that are pooled.
    ///
    /// # Errors
    /// What the model failed or panicked with; nothing counts as computed then.
    fn forward(&mut self, plan: &StepPlan) -> Result<StepOutput, String> {
        self.kv.copy_blocks(&plan.copies).map_err(|error| format!("copying KV blocks failed: {error}"))?;
        let batch = self.pack(plan);
        match catch_unwind(AssertUnwindSafe(|| self.model.forward(&batch, &mut self.kv))) {
            Ok(result) => result.map_err(|error| format!("the model failed: {error}")),
            Err(panic) => Err(format!("the model panicked: {}", panic_message(&*panic))),
        }
    }

    /// After a fault in a batch nobody knows whose it was: each chunk is run by itself, and only those end that fail again.
    /// What the failed batch wrote is written once more, with the same bits.
    fn forward_each(&mut self, plan: &StepPlan, fault: String) {
        if let [only] = plan.chunks.as_slice() {
            return self.fail(only.id, fault);
        }
        tracing::warn!(fault, num_sequences = plan.chunks.len(), "a step failed; running its sequences one by one");
        if let Err(error) = self.kv.copy_blocks(&plan.copies) {
            return self.fail_planned(plan, &format!("copying KV blocks failed: {error}"));
        }
        for chunk in &plan.chunks {
            let alone = StepPlan { chunks: vec![*chunk], ..StepPlan::default() };
            match self.forward(&alone) {
                Ok(output) => self.emit(&alone, &output),
                Err(fault) => self.fail(chunk.id, fault),
            }
        }
    }

    fn pack(&self, plan: &StepPlan) -> StepBatch {
        let packed = |chunk: &ScheduledChunk| {
            let sequence = self.scheduler.running_sequence(chunk.id)?;
            let positions = sequence.num_computed..sequence.num_computed + chunk.num_scheduled;
            let pooling = self.pooling(chunk.id);
            let pooled = pooling.map(|pooling| pooling.needed(positions.clone(), sequence.num_prompt_tokens));
            Some(PackedChunk {
                sequence,
                blocks: sequence.block_table.blocks(),
                num_logit_rows: if chunk.is_last && pooled.is_none() { 1 + chunk.num_drafted } else { 0 },
                pooled: pooled.unwrap_or_default(),
                positions,
            })
        };
        let chunks: Vec<_> = plan.chunks.iter().filter_map(packed).collect();
        let batch = packing::pack(&chunks, self.admission.blocks.block_size());
        debug_assert_eq!(
            batch.ragged.num_generated_tokens(),
            (chunks.iter().filter(|chunk| !chunk.sequence.is_in_prompt()))
                .map(|chunk| chunk.positions.len())
                .sum::<usize>(),
            "prompts stand last, and no chunk is of two kinds"
        );
        batch
    }

    /// Records the computed tokens, and sends what came of them: a token or several of each text, the vectors that are
    /// complete.
    fn emit(&mut self, plan: &StepPlan, output: &StepOutput) {
        for chunk in &plan.chunks {
            self.scheduler.complete(chunk, &self.admission.blocks);
        }
        self.sample_chunks(plan, &output.logits);
        self.pool_chunks(plan, &output.hidden);
    }

    /// Samples and sends a token for each chunk that reached its newest token, and one more for each guess that came true.
    fn sample_chunks(&mut self, plan: &StepPlan, logits: &Tensor) {
        let is_sampled = |chunk: &&ScheduledChunk| chunk.is_last && self.pooling(chunk.id).is_none();
        let last: Vec<_> = plan.chunks.iter().filter(is_sampled).collect();
        let num_rows: usize = last.iter().map(|chunk| 1 + chunk.num_drafted).sum();
        if num_rows == 0 {
            return;
        }
        let mut rows = std::mem::take(&mut self.host_rows);
        if let Err(error) = read_into(logits, &mut rows) {
            return self.fail_planned(plan, &format!("reading the logits failed: {error}"));
        }
        let vocab_size = rows.len() / num_rows;
        let mut rest = rows.as_mut_slice();
        for chunk in last {
            let (rows, others) = rest.split_at_mut((1 + chunk.num_drafted) * vocab_size);
            rest = others;
            // A fault in one request's sampling ends that request, not its neighbours in the batch.
            match catch_unwind(AssertUnwindSafe(|| self.sample_chunk(chunk, rows, vocab_size))) {
                Ok(Ok(())) => {}
                Ok(Err(message)) => self.fail(chunk.id, message),
                Err(panic) => self.fail(chunk.id, format!("sampling panicked: {}", panic_message(&*panic))),
            }
        }
        self.host_rows = rows;
    }

    /// Samples after the chunk's newest token and after each guess, until a guess is wrong or the sequence ends.
    fn sample_chunk(&mut self, chunk: &ScheduledChunk, rows: &mut [f32], vocab_size: usize) -> Result<(), String> {
        let text = self.generations.get_mut(&chunk.id).and_then(Generation::text_mut);
        let source = text.map(|text| text.speculation.source());
        let mut num_accepted = 0;
        for (index, row) in rows.chunks_exact_mut(vocab_size).enumerate() {
            let guess =
                self.scheduler.running_sequence(chunk.id).and_then(|sequence| sequence.draft.get(index)).copied();
            let sampled = self.sample(chunk.id, row)?;
            if sampled.is_none() || sampled != guess {
                break;
            }
            num_accepted += 1;
            self.scheduler.accept_guess(chunk.id, &self.admission.blocks);
        }
        if let Some(source) = source {
            let verified = Verified { source, num_drafted: chunk.num_drafted, num_accepted };
            let text = self.generations.get_mut(&chunk.id).and_then(Generation::text_mut);
            self.guesser.observe(verified, text);
        }
        Ok(())
    }

    /// Picks the next token of `id` from its logits, sends it, and ends the sequence where it ends: `None` then.
    fn sample(&mut self, id: SequenceId, logits: &mut [f32]) -> Result<Option<u32>, String> {
        let (Some(sequence), Some(generation)) = (self.scheduler.running_mut(id), self.generations.get_mut(&id)) else {
            return Ok(None);
        };
        let Answer::Text(text) = &mut generation.answer else { return Ok(None) };
        let sampled = text.sampler.sample(logits, &mut self.scratch).map_err(|error| error.to_string())?;
        let token_id = sampled.token_id;
        sequence.token_ids.push(token_id);
        let num_output_tokens = sequence.num_output_tokens();
        let now = Instant::now();
        match text.last_token_at.replace(now) {
            None => self.metrics.time_to_first_token.observe((now - generation.arrived_at).as_secs_f64()),
            Some(before) => self.metrics.inter_token_latency.observe((now - before).as_secs_f64()),
        }
        let reason = text.finish_reason(token_id, num_output_tokens);
        if reason != Some(FinishReason::Stop) {
            generation.send(SequenceEvent::Token(sampled));
        }
        if let Some(reason) = reason {
            self.finish(id, reason);
            return Ok(None);
        }
        Ok(Some(token_id))
    }

    /// Adds the hidden states of this step's chunks to what earlier ones gave, and sends the vectors that are complete.
    fn pool_chunks(&mut self, plan: &StepPlan, hidden: &Tensor) {
        let mut states = std::mem::take(&mut self.host_rows);
        if let Err(error) = read_into(hidden, &mut states) {
            return self.fail_planned(plan, &format!("reading the hidden states failed: {error}"));
        }
        let mut rest = states.as_slice();
        for chunk in &plan.chunks {
            let num_read = self.pool_chunk(chunk, rest);
            rest = &rest[num_read..];
        }
        self.host_rows = states;
    }

    /// Pools the chunk's part, which `states` begins with; how many numbers that is. None for a chunk of text.
    fn pool_chunk(&mut self, chunk: &ScheduledChunk, states: &[f32]) -> usize {
        let sequence = self.scheduler.running_sequence(chunk.id);
        let (Some(sequence), Some(generation)) = (sequence, self.generations.get_mut(&chunk.id)) else { return 0 };
        let Answer::Vector(pooler) = &mut generation.answer else { return 0 };
        let computed = sequence.num_computed - chunk.num_scheduled..sequence.num_computed;
        let needed = pooler.pooling().needed(computed, sequence.num_prompt_tokens);
        let hidden_size = self.model.shape().hidden_size;
        let num_read = needed.len() * hidden_size;
        pooler.add(needed.start, &states[..num_read], hidden_size);
        if chunk.is_last {
            match pooler.vector() {
                Ok(vector) => {
                    generation.send(SequenceEvent::Vector(vector));
                    self.finish(chunk.id, FinishReason::Stop);
                }
                Err(message) => self.fail(chunk.id, message),
            }
        }
        num_read
    }

    /// How the hidden states of `id` are pooled, if it is an embedding.
    fn pooling(&self, id: SequenceId) -> Option<Pooling> {
        self.generations.get(&id).and_then(Generation::pooling)
    }

    /// Frees the sequence's blocks and tells its stream why it ended.
    fn finish(&mut self, id: SequenceId, reason: FinishReason) {
        let num_completion_tokens =
            self.scheduler.remove(id, &self.admission.blocks).map_or(0, |sequence| sequence.num_output_tokens());
        if let Some(generation) = self.generations.remove(&id) {
            // Counted before anyone can know of it, so that a scrape after an answer has it.
            self.metrics.completed(reason).inc();
            generation.send(SequenceEvent::Finished { reason, num_completion_tokens });
        }
        self.admission.forget(id);
    }

    /// Ends a sequence that never ran.
    fn refuse(&mut self, id: SequenceId, error: RequestError) {
        self.scheduler.remove(id, &self.admission.blocks);
        if let Some(generation) = self.generations.remove(&id) {
            generation.send(SequenceEvent::Refused { error });
            self.metrics.rejected(Rejection::QueueTimeout).inc();
        }
        self.admission.forget(id);
    }

    /// Ends a sequence by a fault; the message reaches its client.
    fn fail(&mut self, id: SequenceId, message: String) {
        tracing::error!(id = id.0, message, "sequence failed");
        if let Some(generation) = self.generations.get(&id) {
            generation.send(SequenceEvent::Failed { message });
        }
        self.finish(id, FinishReason::Error);
    }

    fn fail_planned(&mut self, plan: &StepPlan, message: &str) {
        for ScheduledChunk { id, .. } in &plan.chunks {
            self.fail(*id, message.to_owned());
        }
    }

    /// After a panic nobody knows which sequences were half-way: all running ones end, waiting ones go on.
    fn fail_running(&mut self, message: &str) {
        let running: Vec<_> = self.scheduler.running().iter().map(|sequence| sequence.id).collect();
        for id in running {
            self.fail(id, message.to_owned());
        }
    }

    /// With an empty batch the first in line always fits, since submission checked its size. Should that ever be
    /// wrong, one failed request is better than a queue that stands still for ever.
    fn refuse_unschedulable(&mut self) {
        let first = self.scheduler.waiting().next().map(|sequence| sequence.id);
        if let Some(id) = first {
            self.fail(id, "the sequence does not fit an empty KV cache".to_owned());
            self.admission.wake();
        }
    }

    fn observe(&mut self, plan: &StepPlan, started_at: Instant) {
        let has = |phase| plan.chunks.iter().any(|chunk| chunk.phase == phase);
        let step = match (has(Phase::Prefill), has(Phase::Decode)) {
            (true, true) => &self.metrics.step_mixed,
            (true, false) => &self.metrics.step_prefill,
            _ => &self.metrics.step_decode,
        };
        let elapsed = started_at.elapsed();
        step.observe(elapsed.as_secs_f64());
        if has(Phase::Prefill) {
            self.pace.observe(plan.num_tokens(), elapsed);
            self.scheduler.limit_mixed_steps(self.pace.max_tokens());
        } else {
            self.guesser.observe_step(plan.num_tokens(), elapsed);
        }
        self.metrics.tokens_processed.inc_by(plan.num_tokens() as u64);
    }

    /// What admission and scrapes see until the next step.
    fn publish_status(&mut self) {
        let usage = self.admission.blocks.usage();
        let status = EngineStatus {
            num_running: self.scheduler.running().len(),
            num_waiting: self.scheduler.waiting().len(),
            num_blocks_used: usage.num_used,
            num_blocks_total: usage.num_total,
        };
        self.admission.publish(status);
        self.metrics.sequences_running.set(status.num_running as i64);
        self.metrics.sequences_waiting.set(status.num_waiting as i64);
        self.metrics.blocks_used.set(usage.num_used as i64);
        let block_bytes = self.kv.layout().block_bytes();
        self.metrics.kv_used_bytes.set((usage.num_used * block_bytes) as i64);
        self.metrics.prefix_cached_bytes.set((usage.num_cached * block_bytes) as i64);
        self.metrics.prefix_lookups.inc_by(usage.num_lookups - self.last_usage.num_lookups);
        self.metrics.prefix_hits.inc_by(usage.num_hits - self.last_usage.num_hits);
        self.metrics.prefix_evictions.inc_by(usage.num_evictions - self.last_usage.num_evictions);
        self.last_usage = usage;
    }
}

impl Drop for Engine {
    /// However the thread ends, nobody waits for it: queued and running streams see their channel close.
    fn drop(&mut self) {
        self.scheduler.clear(&self.admission.blocks);
        self.admission.stop();
    }
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
