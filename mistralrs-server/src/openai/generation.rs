//! A running answer: the streams of all its prompts as one, ended by its deadline, cancelled by dropping it.

use futures::StreamExt;
use futures::stream::{self, BoxStream, SelectAll};
use mistralrs_core::request::{TokenLogprob, Usage};
use mistralrs_core::{FinishReason, GenerateRequest, Model, TextEvent};

use crate::app::Deadline;
use crate::error::ApiError;

/// What a choice has to tell.
#[derive(Debug)]
pub(crate) enum Piece {
    /// More text.
    Text { choice: usize, text: String, logprobs: Vec<TokenLogprob> },
    /// The choice is complete; `stop_string` is the one that ended it, if one did.
    End { choice: usize, reason: FinishReason, stop_string: Option<String> },
}

/// The choices of one request, over all its prompts. Dropping it cancels them.
pub(crate) struct Generation {
    streams: SelectAll<BoxStream<'static, Item>>,
    usage: Usage,
    num_prompt_tokens: usize,
    num_choices: usize,
    num_running: usize,
    deadline: Option<Deadline>,
}

enum Item {
    Event(TextEvent),
    Usage(Usage),
}

impl Generation {
    /// Submits `requests`, all or none: choices are numbered through, those of the first prompt first.
    ///
    /// # Errors
    /// The first refusal; what was submitted before it is cancelled.
    pub async fn start(
        model: &Model,
        requests: Vec<GenerateRequest>,
        deadline: Option<Deadline>,
    ) -> Result<Self, ApiError> {
        let mut generation = Self::new(deadline);
        for request in requests {
            let num_choices = request.num_choices;
            let text = model.generate(request).await?;
            generation.num_prompt_tokens += text.usage().num_prompt_tokens;
            let items = stream::unfold(Some(text), |text| async {
                let mut text = text?;
                Some(match text.next().await {
                    Some(event) => (Item::Event(event), Some(text)),
                    None => (Item::Usage(text.usage()), None),
                })
            });
            generation.add(items.boxed(), num_choices);
        }
        Ok(generation)
    }

    /// A finished answer, for tests of what is made of it.
    #[cfg(test)]
    pub fn from_events(num_choices: usize, events: Vec<TextEvent>, usage: Usage) -> Self {
        let mut generation = Self::new(None);
        generation.num_prompt_tokens = usage.num_prompt_tokens;
        let items = events.into_iter().map(Item::Event).chain([Item::Usage(usage)]).collect::<Vec<_>>();
        generation.add(stream::iter(items).boxed(), num_choices);
        generation
    }

    fn new(deadline: Option<Deadline>) -> Self {
        Self {
            streams: SelectAll::new(),
            usage: Usage::default(),
            num_prompt_tokens: 0,
            num_choices: 0,
            num_running: 0,
            deadline,
        }
    }

    fn add(&mut self, items: BoxStream<'static, Item>, num_choices: usize) {
        let first = self.num_choices;
        self.streams.push(items.map(move |item| item.numbered_from(first)).boxed());
        self.num_choices += num_choices;
        self.num_running += num_choices;
    }

    /// How many choices there are.
    pub fn num_choices(&self) -> usize {
        self.num_choices
    }

    /// Tokens of all prompts together, known from the start.
    pub fn num_prompt_tokens(&self) -> usize {
        self.num_prompt_tokens
    }

    /// What was used; complete after [`Self::next`] has returned `None`.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// The next piece of any choice; `None` after all of them have ended.
    ///
    /// # Errors
    /// The answer cannot be completed; nothing comes after that.
    pub async fn next(&mut self) -> Option<Result<Piece, ApiError>> {
        loop {
            match self.next_item().await {
                Ok(Some(Item::Usage(usage))) => self.add_usage(usage),
                Ok(Some(Item::Event(event))) => return Some(self.accept(event)),
                Ok(None) if self.num_running == 0 => return None,
                Ok(None) => {
                    return Some(Err(
                        self.fail(ApiError::Failed("the engine stopped before the answer was complete".into()))
                    ));
                }
                Err(error) => return Some(Err(self.fail(error))),
            }
        }
    }

    async fn next_item(&mut self) -> Result<Option<Item>, ApiError> {
        let Some(Deadline { at, limit }) = self.deadline else { return Ok(self.streams.next().await) };
        tokio::time::timeout_at(at, self.streams.next()).await.map_err(|_| ApiError::Deadline { limit })
    }

    fn accept(&mut self, event: TextEvent) -> Result<Piece, ApiError> {
        match event {
            TextEvent::Delta { choice, text, logprobs } => Ok(Piece::Text { choice, text, logprobs }),
            TextEvent::Finished { reason: FinishReason::Cancelled, .. } => Err(self.fail(ApiError::Interrupted)),
            TextEvent::Finished { reason: FinishReason::Error, .. } => {
                Err(self.fail(ApiError::Failed("the engine failed on this request".to_owned())))
            }
            TextEvent::Finished { choice, reason, stop_string, .. } => {
                self.num_running -= 1;
                Ok(Piece::End { choice, reason, stop_string })
            }
            TextEvent::Refused { error, .. } => Err(self.fail(error.into())),
            TextEvent::Failed { message, .. } => Err(self.fail(ApiError::Failed(message))),
        }
    }

    /// The other choices are of no use without this one: cancels them.
    fn fail(&mut self, error: ApiError) -> ApiError {
        self.streams.clear();
        self.num_running = 0;
        error
    }

    fn add_usage(&mut self, usage: Usage) {
        self.usage.num_prompt_tokens += usage.num_prompt_tokens;
        self.usage.num_cached_tokens += usage.num_cached_tokens;
        self.usage.num_completion_tokens += usage.num_completion_tokens;
    }
}

impl Item {
    fn numbered_from(self, first: usize) -> Self {
        match self {
            Self::Event(TextEvent::Delta { choice, text, logprobs }) => {
                Self::Event(TextEvent::Delta { choice: first + choice, text, logprobs })
            }
            Self::Event(TextEvent::Finished { choice, reason, stop_string, num_completion_tokens }) => {
                Self::Event(TextEvent::Finished { choice: first + choice, reason, stop_string, num_completion_tokens })
            }
            Self::Event(TextEvent::Refused { choice, error }) => {
                Self::Event(TextEvent::Refused { choice: first + choice, error })
            }
            Self::Event(TextEvent::Failed { choice, message }) => {
                Self::Event(TextEvent::Failed { choice: first + choice, message })
            }
            Self::Usage(usage) => Self::Usage(usage),
        }
    }
}
