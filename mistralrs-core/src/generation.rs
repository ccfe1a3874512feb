//! The part of a sequence that the scheduler never sees: what it is computed for, and who listens.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::mpsc;

use crate::error::RequestError;
use crate::pooling::{Pooler, Pooling};
use crate::request::FinishReason;
use crate::sampling::{Sampled, Sampler};
use crate::speculation::Speculation;

/// What the engine tells the response task of one choice. Ends with `Finished`, `Refused` or `Failed`.
#[derive(Debug)]
pub(crate) enum SequenceEvent {
    /// The sequence was admitted for the first time.
    Started { num_cached_tokens: usize },
    /// A token that belongs to the output.
    Token(Sampled),
    /// The pooled hidden state of an embedding, its length as it came.
    Vector(Vec<f32>),
    /// The end; an end token is counted but not sent.
    Finished { reason: FinishReason, num_completion_tokens: usize },
    /// The end of one that never ran.
    Refused { error: RequestError },
    /// The end, by a fault.
    Failed { message: String },
}

/// Events besides tokens that one sequence can send.
const NUM_CONTROL_EVENTS: usize = 2;

/// The channel of one sequence. Room for its whole life, so that the step never waits for a reader: a slow one
/// fills its own channel, which is as long as the answer it asked for.
pub(crate) fn event_channel(max_new_tokens: usize) -> (mpsc::Sender<SequenceEvent>, mpsc::Receiver<SequenceEvent>) {
    mpsc::channel(max_new_tokens + NUM_CONTROL_EVENTS)
}

/// The engine's side of one sequence.
pub(crate) struct Generation {
    /// What it is computed for.
    pub answer: Answer,
    /// Where its events go.
    pub events: mpsc::Sender<SequenceEvent>,
    /// Set by whoever no longer wants it.
    pub cancelled: Arc<AtomicBool>,
    /// When it was submitted.
    pub arrived_at: Instant,
    /// Whether it has ever been admitted.
    pub has_started: bool,
}

/// What a sequence is computed for.
pub(crate) enum Answer {
    /// The text that continues it.
    Text(Box<Continuation>),
    /// One vector for all of it. It only prefills.
    Vector(Pooler),
}

/// The text of one choice as it grows.
pub(crate) struct Continuation {
    /// Picks its tokens; its state is this sequence's alone.
    pub sampler: Sampler,
    /// At most this many tokens are generated.
    pub max_new_tokens: usize,
    /// Tokens that end it.
    pub stop_token_ids: Arc<BTreeSet<u32>>,
    /// When its newest token was sampled; `None` before the first.
    pub last_token_at: Option<Instant>,
    /// What is known about guessing its tokens.
    pub speculation: Speculation,
}

impl Generation {
    /// Its text, if that is what it is computed for.
    pub fn text_mut(&mut self) -> Option<&mut Continuation> {
        match &mut self.answer {
            Answer::Text(text) => Some(text),
            Answer::Vector(_) => None,
        }
    }

    /// Which of its hidden states make its vector, if that is what it is computed for.
    pub fn pooling(&self) -> Option<Pooling> {
        match &self.answer {
            Answer::Text(_) => None,
            Answer::Vector(pooler) => Some(pooler.pooling()),
        }
    }

    /// Whether someone gave it up.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Sends an event. The channel has room for all a sequence can send, so the only failure is a reader that
    /// left, and that one has set the cancel flag.
    pub fn send(&self, event: SequenceEvent) {
        if self.events.try_send(event).is_err() {
            self.cancelled.store(true, Ordering::Release);
        }
    }
}

impl Continuation {
    /// Why the sequence ends with `token_id` as its `num_output_tokens`-th token, if it does.
    pub fn finish_reason(&self, token_id: u32, num_output_tokens: usize) -> Option<FinishReason> {
        if self.stop_token_ids.contains(&token_id) {
            Some(FinishReason::Stop)
        } else if num_output_tokens >= self.max_new_tokens {
            Some(FinishReason::Length)
        } else {
            None
        }
    }
}
