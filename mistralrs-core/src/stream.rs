//! The response side of a request: token events in, text out. Runs on the task that serves the client.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use tokio::sync::mpsc;

use crate::admission::Admission;
use crate::detokenizer::{Detokenizer, Piece, Vocabulary};
use crate::generation::SequenceEvent;
use crate::request::{FinishReason, TextEvent, TokenLogprob, Usage};
use crate::sampling::Sampled;

/// The answer as it grows. Dropping it cancels the request; its blocks are free within a step.
pub struct TextStream {
    choices: Vec<ChoiceStream>,
    ready: VecDeque<TextEvent>,
    usage: Usage,
    /// Where the next poll begins, so that a busy choice does not starve the others.
    next_choice: usize,
    admission: Arc<Admission>,
    vocabulary: Arc<Vocabulary>,
}

/// One choice of a stream.
pub(crate) struct ChoiceStream {
    pub events: mpsc::Receiver<SequenceEvent>,
    pub cancelled: Arc<AtomicBool>,
    pub detokenizer: Detokenizer,
    num_tokens: usize,
    has_ended: bool,
}

impl ChoiceStream {
    pub fn new(events: mpsc::Receiver<SequenceEvent>, cancelled: Arc<AtomicBool>, detokenizer: Detokenizer) -> Self {
        Self { events, cancelled, detokenizer, num_tokens: 0, has_ended: false }
    }

    /// Tells the engine that nobody reads any more.
    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }
}

/// Why a choice ended.
struct Ending {
    reason: FinishReason,
    stop_string: Option<String>,
}

impl Ending {
    fn at(stop_string: String) -> Self {
        Self { reason: FinishReason::Stop, stop_string: Some(stop_string) }
    }
}

impl TextStream {
    pub(crate) fn new(
        choices: Vec<ChoiceStream>,
        num_prompt_tokens: usize,
        admission: Arc<Admission>,
        vocabulary: Arc<Vocabulary>,
    ) -> Self {
        let usage = Usage { num_prompt_tokens, ..Usage::default() };
        Self { choices, ready: VecDeque::new(), usage, next_choice: 0, admission, vocabulary }
    }

    /// The next event; `None` after every choice has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<TextEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            let (choice, event) = self.receive().await?;
            self.accept(choice, event);
        }
    }

    /// What was used so far; final after `next` returned `None`.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// An event of any live choice; an event of `None` says that the engine is gone.
    async fn receive(&mut self) -> Option<(usize, Option<SequenceEvent>)> {
        let num_choices = self.choices.len();
        poll_fn(|context| {
            let mut is_any_live = false;
            for offset in 0..num_choices {
                let index = (self.next_choice + offset) % num_choices;
                let choice = &mut self.choices[index];
                if choice.has_ended {
                    continue;
                }
                is_any_live = true;
                if let Poll::Ready(event) = choice.events.poll_recv(context) {
                    self.next_choice = (index + 1) % num_choices;
                    return Poll::Ready(Some((index, event)));
                }
            }
            if is_any_live { Poll::Pending } else { Poll::Ready(None) }
        })
        .await
    }

    /// Turns an engine event into what the client sees of it.
    fn accept(&mut self, choice: usize, event: Option<SequenceEvent>) {
        match event {
            Some(SequenceEvent::Started { num_cached_tokens }) => {
                // Later choices reuse what the first one computed: only the first one's hits were there before.
                if choice == 0 {
                    self.usage.num_cached_tokens = num_cached_tokens;
                }
            }
            Some(SequenceEvent::Token(sampled)) => self.accept_token(choice, &sampled),
            // Someone reads this stream, so it was the engine's shutdown that cancelled.
            Some(SequenceEvent::Finished { reason: FinishReason::Cancelled, .. }) | None => {
                self.fail(choice, "the server is shutting down".to_owned());
            }
            Some(SequenceEvent::Finished { reason, num_completion_tokens }) => {
                let (rest, ending) = match self.choices[choice].detokenizer.finish() {
                    Piece::Text(text) => (text, Ending { reason, stop_string: None }),
                    Piece::Stop { text, stop_string } => (text, Ending::at(stop_string)),
                };
                self.push_delta(choice, rest, Vec::new());
                self.end(choice, ending, num_completion_tokens);
            }
            Some(SequenceEvent::Refused { error }) => {
                self.choices[choice].has_ended = true;
                self.ready.push_back(TextEvent::Refused { choice, error });
            }
            Some(SequenceEvent::Failed { message }) => self.fail(choice, message),
            Some(SequenceEvent::Vector(_)) => unreachable!("a choice is text"),
        }
    }

    fn accept_token(&mut self, choice: usize, sampled: &Sampled) {
        let logprobs = self.token_logprob(sampled).into_iter().collect();
        let state = &mut self.choices[choice];
        state.num_tokens += 1;
        let num_tokens = state.num_tokens;
        match state.detokenizer.push(sampled.token_id) {
            Piece::Text(text) => self.push_delta(choice, text, logprobs),
            Piece::Stop { text, stop_string } => {
                state.cancel();
                self.admission.wake();
                self.push_delta(choice, text, logprobs);
                self.end(choice, Ending::at(stop_string), num_tokens);
            }
        }
    }

    fn push_delta(&mut self, choice: usize, text: String, logprobs: Vec<TokenLogprob>) {
        if !text.is_empty() || !logprobs.is_empty() {
            self.ready.push_back(TextEvent::Delta { choice, text, logprobs });
        }
    }

    fn end(&mut self, choice: usize, ending: Ending, num_completion_tokens: usize) {
        let Ending { reason, stop_string } = ending;
        self.choices[choice].has_ended = true;
        self.usage.num_completion_tokens += num_completion_tokens;
        self.ready.push_back(TextEvent::Finished { choice, reason, stop_string, num_completion_tokens });
    }

    fn fail(&mut self, choice: usize, message: String) {
        let state = &mut self.choices[choice];
        state.has_ended = true;
        self.usage.num_completion_tokens += state.num_tokens;
        self.ready.push_back(TextEvent::Failed { choice, message });
    }

    fn token_logprob(&self, sampled: &Sampled) -> Option<TokenLogprob> {
        let describe = |token_id: u32, logprob: f32, top: Vec<TokenLogprob>| {
            let (text, bytes) = self.vocabulary.token_text(token_id);
            TokenLogprob { token_id, text, bytes, logprob, top }
        };
        let top = sampled.top.iter().map(|&(token_id, logprob)| describe(token_id, logprob, Vec::new())).collect();
        Some(describe(sampled.token_id, sampled.logprob?, top))
    }
}

impl Drop for TextStream {
    fn drop(&mut self) {
        let mut is_any_live = false;
        for choice in self.choices.iter().filter(|choice| !choice.has_ended) {
            choice.cancel();
            is_any_live = true;
        }
        if is_any_live {
            self.admission.wake();
        }
    }
}
