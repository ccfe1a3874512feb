//! A message as events: its start, one block of text piece by piece, how it ended and what it used, its stop.

use axum::response::sse::Event;
use mistralrs_core::request::Usage;
use schemars::JsonSchema;
use serde::Serialize;

use super::error::ErrorObject;
use super::message::{Ending, Message, MessageUsage, TextBlock};
use crate::error::ApiError;
use crate::openai::generation::Piece;
use crate::openai::sse::EventRenderer;

/// The only block of a message.
const INDEX: usize = 0;

/// Renders a message as events.
pub(super) struct MessageEvents {
    message: Message,
    block: Block,
    ending: Ending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    /// No text has come; there may be none.
    Absent,
    Open,
}

/// What [`MessageEvent`] looks like to clients.
pub(super) type EventSchema = MessageEvent<'static>;

/// One event, as its data.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum MessageEvent<'a> {
    MessageStart { message: &'a Message },
    ContentBlockStart { index: usize, content_block: TextBlock },
    Ping,
    ContentBlockDelta { index: usize, delta: TextDelta },
    ContentBlockStop { index: usize },
    MessageDelta { delta: &'a Ending, usage: MessageUsage },
    MessageStop,
    Error { error: ErrorObject },
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename = "text_delta")]
pub(super) struct TextDelta {
    text: String,
}

impl MessageEvent<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::Ping => "ping",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
            Self::Error { .. } => "error",
        }
    }
}

impl From<MessageEvent<'_>> for Event {
    fn from(event: MessageEvent<'_>) -> Self {
        let data = serde_json::to_string(&event).expect("events are plain JSON");
        Self::default().event(event.name()).data(data)
    }
}

impl MessageEvents {
    /// `message` has no content yet.
    pub fn new(message: Message) -> Self {
        Self { message, block: Block::Absent, ending: Ending { stop_reason: None, stop_sequence: None } }
    }

    fn text(&mut self, text: String) -> Vec<Event> {
        let mut events = Vec::new();
        if std::mem::replace(&mut self.block, Block::Open) == Block::Absent {
            let content_block = TextBlock::new(String::new());
            events.push(MessageEvent::ContentBlockStart { index: INDEX, content_block }.into());
        }
        events.push(MessageEvent::ContentBlockDelta { index: INDEX, delta: TextDelta { text } }.into());
        events
    }
}

impl EventRenderer for MessageEvents {
    fn begin(&mut self) -> Vec<Event> {
        vec![MessageEvent::MessageStart { message: &self.message }.into(), MessageEvent::Ping.into()]
    }

    fn piece(&mut self, piece: Piece) -> Vec<Event> {
        match piece {
            Piece::Text { text, .. } if text.is_empty() => Vec::new(),
            Piece::Text { text, .. } => self.text(text),
            Piece::End { reason, stop_string, .. } => {
                self.ending = Ending::new(reason, stop_string);
                Vec::new()
            }
        }
    }

    fn end(&mut self, usage: Usage) -> Vec<Event> {
        let mut events = Vec::new();
        if self.block == Block::Open {
            events.push(MessageEvent::ContentBlockStop { index: INDEX }.into());
        }
        events.push(MessageEvent::MessageDelta { delta: &self.ending, usage: usage.into() }.into());
        events.push(MessageEvent::MessageStop.into());
        events
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Event> {
        vec![MessageEvent::Error { error: error.into() }.into()]
    }

    fn idle(&self) -> Event {
        MessageEvent::Ping.into()
    }
}
