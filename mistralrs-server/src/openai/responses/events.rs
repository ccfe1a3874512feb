//! A response as events: created, in progress, the item and its part, their text piece by piece, each of them done, and
//! the whole response as its last event, which says whether it is complete, incomplete or failed.

use axum::response::sse::Event;
use mistralrs_core::request::Usage;
use schemars::JsonSchema;
use serde::Serialize;

use super::answer::{Added, Answer};
use super::item::{OutputMessage, OutputText};
use super::object::{ResponseObject, ResponseStatus};
use super::store::Keeping;
use crate::error::ApiError;
use crate::openai::generation::Piece;
use crate::openai::logprobs::ChatLogprob;
use crate::openai::sse::{self, EventRenderer};

/// The only item of an answer, and the only part of that item.
const INDEX: usize = 0;

/// Renders a response as events.
pub(super) struct ResponseEvents {
    answer: Answer,
    keeping: Keeping,
    numbers: EventNumbers,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No text has come.
    Announced,
    /// Clients know the item and its part.
    Begun,
}

/// Numbers the events of one stream.
#[derive(Debug, Default)]
struct EventNumbers(u64);

/// What [`ResponseEvent`] looks like to clients.
pub(super) type EventSchema = ResponseEvent<'static>;

/// One event, as its data.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ResponseEvent<'a> {
    r#type: &'static str,
    sequence_number: u64,
    #[serde(flatten)]
    body: EventBody<'a>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
enum EventBody<'a> {
    Response { response: &'a ResponseObject },
    Item { output_index: usize, item: &'a OutputMessage },
    Part { item_id: &'a str, output_index: usize, content_index: usize, part: &'a OutputText },
    Delta { item_id: &'a str, output_index: usize, content_index: usize, delta: &'a str, logprobs: &'a [ChatLogprob] },
    Text { item_id: &'a str, output_index: usize, content_index: usize, text: &'a str, logprobs: &'a [ChatLogprob] },
}

impl EventNumbers {
    fn event(&mut self, r#type: &'static str, body: EventBody<'_>) -> Event {
        let event = ResponseEvent { r#type, sequence_number: self.0, body };
        self.0 += 1;
        // Not by way of `Value`: that would widen the floats of log-probabilities.
        let data = serde_json::to_string(&event).expect("events are plain JSON");
        Event::default().event(r#type).data(data)
    }
}

impl ResponseEvents {
    pub fn new(answer: Answer, keeping: Keeping) -> Self {
        Self { answer, keeping, numbers: EventNumbers::default(), stage: Stage::Announced }
    }

    /// Announces the item and its part, once.
    fn begin_item(&mut self) -> Vec<Event> {
        if std::mem::replace(&mut self.stage, Stage::Begun) == Stage::Begun {
            return Vec::new();
        }
        let item = self.answer.message();
        let part = &OutputText::new(String::new());
        let part = EventBody::Part { item_id: &item.id, output_index: INDEX, content_index: INDEX, part };
        let item = EventBody::Item { output_index: INDEX, item };
        vec![
            self.numbers.event("response.output_item.added", item),
            self.numbers.event("response.content_part.added", part),
        ]
    }

    /// What is said of the item and its part when they are whole.
    fn end_item(numbers: &mut EventNumbers, item: &OutputMessage) -> Vec<Event> {
        let mut events = Vec::new();
        let item_id = &item.id;
        for part in &item.content {
            let OutputText { text, logprobs, .. } = part;
            let text = EventBody::Text { item_id, output_index: INDEX, content_index: INDEX, text, logprobs };
            events.push(numbers.event("response.output_text.done", text));
            let part = EventBody::Part { item_id, output_index: INDEX, content_index: INDEX, part };
            events.push(numbers.event("response.content_part.done", part));
        }
        events.push(numbers.event("response.output_item.done", EventBody::Item { output_index: INDEX, item }));
        events
    }
}

impl EventRenderer for ResponseEvents {
    fn begin(&mut self) -> Vec<Event> {
        let mut event = |name| self.numbers.event(name, EventBody::Response { response: self.answer.object() });
        vec![event("response.created"), event("response.in_progress")]
    }

    fn piece(&mut self, piece: Piece) -> Vec<Event> {
        let Some(Added { text, logprobs }) = self.answer.accept(piece) else { return Vec::new() };
        let mut events = self.begin_item();
        let delta = EventBody::Delta {
            item_id: &self.answer.message().id,
            output_index: INDEX,
            content_index: INDEX,
            delta: &text,
            logprobs: &logprobs,
        };
        events.push(self.numbers.event("response.output_text.delta", delta));
        events
    }

    fn end(&mut self, usage: Usage) -> Vec<Event> {
        let mut events = self.begin_item();
        let response = self.answer.end(usage);
        // Before the client can read of its end, so that it can ask for it at once.
        self.keeping.keep(response);
        for item in &response.output {
            events.extend(Self::end_item(&mut self.numbers, item));
        }
        let name = match response.status {
            ResponseStatus::Incomplete => "response.incomplete",
            _ => "response.completed",
        };
        events.push(self.numbers.event(name, EventBody::Response { response }));
        events.push(sse::done());
        events
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Event> {
        let response = self.answer.fail(error);
        self.keeping.keep(response);
        vec![self.numbers.event("response.failed", EventBody::Response { response }), sse::done()]
    }
}
