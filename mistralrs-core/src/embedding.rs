//! Texts in, vectors out: one sequence for each text, a window of them at a time.
//!
//! A request of thousands of texts neither needs thousands of places in the queue nor keeps others waiting for all of its
//! tokens: it has a few sequences in flight, and the next one takes its place in line when it is submitted. Whoever comes
//! meanwhile stands behind the window, not behind the request.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use mistralrs_paged_attn::{PrefixHash, PrefixSalt};
use tokio::sync::mpsc;

use crate::admission::{Admission, NewSequence, OpenBatch};
use crate::config::EngineConfig;
use crate::error::{EmbedError, RequestError};
use crate::generation::{Answer, Generation, SequenceEvent, event_channel};
use crate::pooling::{Pooler, Pooling, unit_vector};
use crate::request::{FinishReason, Priority};
use crate::sequence::Sequence;

/// Texts of one request; OpenAI's limit.
pub const MAX_EMBED_INPUTS: usize = 2048;

/// Steps whose token budget the texts in flight may fill: one runs while the next is being submitted.
const WINDOW_STEPS: usize = 2;

/// The vectors of a request's texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// In the order of the texts, each of length 1.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all texts.
    pub num_prompt_tokens: usize,
}

/// A text on its way to the engine.
pub(crate) struct EmbedInput {
    pub token_ids: Vec<u32>,
    pub block_hashes: Vec<PrefixHash>,
}

/// What may be in flight at once for one request. A text that is larger than the window fills it alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// As many as run at once, but no more than half of the places to wait in: the others are for others.
    max_inputs: usize,
    max_tokens: usize,
}

impl Window {
    pub fn new(config: &EngineConfig) -> Self {
        Self {
            max_inputs: config.max_num_seqs.min(config.max_waiting_requests.div_ceil(2)).max(1),
            max_tokens: WINDOW_STEPS * config.max_num_batched_tokens,
        }
    }
}

/// A request for embeddings whose texts are tokens already.
pub(crate) struct EmbeddingBatch {
    pub inputs: VecDeque<EmbedInput>,
    pub pooling: Pooling,
    pub num_dimensions: usize,
    pub priority: Priority,
    pub salt: PrefixSalt,
    pub window: Window,
    pub admission: Arc<Admission>,
}

impl EmbeddingBatch {
    /// Runs all texts. Dropping the future cancels those in flight.
    ///
    /// # Errors
    /// The first text that was refused or failed; the others are cancelled.
    pub async fn run(mut self) -> Result<Embeddings, EmbedError> {
        let num_inputs = self.inputs.len();
        let num_prompt_tokens = self.inputs.iter().map(|input| input.token_ids.len()).sum();
        let mut vectors = Vec::with_capacity(num_inputs);
        let mut in_flight = VecDeque::new();
        let mut batch = Some(self.admission.open_batch()?);
        while vectors.len() < num_inputs {
            if let Some(batch) = &batch {
                self.fill(batch, &mut in_flight)?;
            }
            // What is submitted has places of its own.
            batch = batch.filter(|_| !self.inputs.is_empty());
            // The line is served in order, so the first is the first to be done.
            let mut first: InFlight = in_flight.pop_front().expect("an empty window was filled");
            vectors.push(unit_vector(first.vector().await?, self.num_dimensions));
        }
        Ok(Embeddings { vectors, num_prompt_tokens })
    }

    /// Submits as many texts as the window has room for, at least one where none is in flight.
    ///
    /// # Errors
    /// [`RequestError::ShuttingDown`].
    fn fill(&mut self, batch: &OpenBatch, in_flight: &mut VecDeque<InFlight>) -> Result<(), RequestError> {
        let Window { max_inputs, max_tokens } = self.window;
        while let Some(next) = self.inputs.front() {
            let num_tokens = next.token_ids.len() + in_flight.iter().map(|one| one.num_tokens).sum::<usize>();
            let has_room = in_flight.len() < max_inputs && num_tokens <= max_tokens && batch.has_place();
            if !has_room && !in_flight.is_empty() {
                break;
            }
            let Some(input) = self.inputs.pop_front() else { break };
            in_flight.push_back(self.submit(batch, input)?);
        }
        Ok(())
    }

    fn submit(&self, batch: &OpenBatch, input: EmbedInput) -> Result<InFlight, RequestError> {
        let id = self.admission.reserve_ids(1);
        let num_tokens = input.token_ids.len();
        let sequence = Sequence {
            priority: self.priority,
            salt: self.salt.clone(),
            prefix_sharing: self.pooling.prefix_sharing(),
            max_num_tokens: num_tokens,
            ..Sequence::new(id, None, input.token_ids, input.block_hashes)
        };
        let (events, receiver) = event_channel(1);
        let cancelled = Arc::new(AtomicBool::new(false));
        let generation = Generation {
            answer: Answer::Vector(Pooler::new(self.pooling)),
            events,
            cancelled: Arc::clone(&cancelled),
            arrived_at: Instant::now(),
            has_started: false,
        };
        batch.submit(NewSequence { sequence, generation })?;
        let admission = Arc::clone(&self.admission);
        Ok(InFlight { num_tokens, events: receiver, cancelled, admission, has_ended: false })
    }
}

/// One text that the engine has. Dropping it cancels.
struct InFlight {
    num_tokens: usize,
    events: mpsc::Receiver<SequenceEvent>,
    cancelled: Arc<AtomicBool>,
    admission: Arc<Admission>,
    has_ended: bool,
}

impl InFlight {
    async fn vector(&mut self) -> Result<Vec<f32>, EmbedError> {
        let mut vector = Err(EmbedError::Request(RequestError::ShuttingDown));
        loop {
            let event = self.events.recv().await;
            self.has_ended =
                matches!(event, None | Some(SequenceEvent::Finished { .. } | SequenceEvent::Refused { .. }));
            match event {
                Some(SequenceEvent::Started { .. } | SequenceEvent::Token(_)) => {}
                Some(SequenceEvent::Vector(pooled)) => vector = Ok(pooled),
                Some(SequenceEvent::Failed { message }) => vector = Err(EmbedError::Failed(message)),
                Some(SequenceEvent::Refused { error }) => return Err(error.into()),
                // Someone waits for it, so where there is none it was the engine's shutdown that cancelled.
                Some(SequenceEvent::Finished { reason: FinishReason::Cancelled, .. }) | None => {
                    return Err(RequestError::ShuttingDown.into());
                }
                Some(SequenceEvent::Finished { .. }) => return vector,
            }
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.has_ended {
            self.cancelled.store(true, Ordering::Release);
            self.admission.wake();
        }
    }
}
