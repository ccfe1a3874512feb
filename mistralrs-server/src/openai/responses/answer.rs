//! A response while it grows: pieces in, the object at every stage out.

use mistralrs_core::FinishReason;
use mistralrs_core::request::{TokenLogprob, Usage};

use super::item::{ItemStatus, OutputMessage, OutputText};
use super::object::{IncompleteDetails, ResponseError, ResponseObject, ResponseStatus};
use crate::error::ApiError;
use crate::openai::generation::Piece;
use crate::openai::logprobs::ChatLogprob;
use crate::openai::types::unix_seconds;

/// OpenAI's code for what is the server's fault.
const SERVER_ERROR: &str = "server_error";

/// A response while it grows. Its only output is one message of one text.
pub(super) struct Answer {
    object: ResponseObject,
    message: OutputMessage,
    text: OutputText,
    reason: Option<FinishReason>,
}

/// What a piece added.
pub(super) struct Added {
    pub text: String,
    pub logprobs: Vec<ChatLogprob>,
}

impl Answer {
    /// A response without output.
    pub fn new(object: ResponseObject) -> Self {
        Self { object, message: OutputMessage::new(), text: OutputText::new(String::new()), reason: None }
    }

    /// The response as it stands: output comes into it when it ends.
    pub fn object(&self) -> &ResponseObject {
        &self.object
    }

    /// The message before it begins: an id and no content.
    pub fn message(&self) -> &OutputMessage {
        &self.message
    }

    /// Says that it waits for its first token.
    pub fn queue(&mut self) -> &ResponseObject {
        self.object.status = ResponseStatus::Queued;
        &self.object
    }

    /// Takes a piece in; text and tokens it added, if any.
    pub fn accept(&mut self, piece: Piece) -> Option<Added> {
        match piece {
            Piece::Text { text, logprobs, .. } => self.extend(text, &logprobs),
            Piece::End { reason, .. } => {
                self.reason = Some(reason);
                None
            }
        }
    }

    fn extend(&mut self, text: String, tokens: &[TokenLogprob]) -> Option<Added> {
        let logprobs: Vec<ChatLogprob> = tokens.iter().map(ChatLogprob::from).collect();
        self.text.text.push_str(&text);
        self.text.logprobs.extend(logprobs.iter().cloned());
        (!text.is_empty() || !logprobs.is_empty()).then_some(Added { text, logprobs })
    }

    /// The whole response.
    pub fn end(&mut self, usage: Usage) -> &ResponseObject {
        self.object.usage = Some(usage.into());
        if self.reason == Some(FinishReason::Length) {
            self.object.status = ResponseStatus::Incomplete;
            self.object.incomplete_details = Some(IncompleteDetails { reason: "max_output_tokens" });
            self.put_out(ItemStatus::Incomplete);
        } else {
            self.object.status = ResponseStatus::Completed;
            self.object.completed_at = Some(unix_seconds());
            self.put_out(ItemStatus::Completed);
        }
        &self.object
    }

    /// The response as far as it came.
    pub fn fail(&mut self, error: &ApiError) -> &ResponseObject {
        self.object.fail(error.message());
        if !self.text.text.is_empty() {
            self.put_out(ItemStatus::Incomplete);
        }
        &self.object
    }

    fn put_out(&mut self, status: ItemStatus) {
        let text = std::mem::replace(&mut self.text, OutputText::new(String::new()));
        self.object.output = vec![self.message.with_text(text, status)];
    }
}

impl ResponseObject {
    /// Marks it as failed.
    pub fn fail(&mut self, message: String) {
        self.status = ResponseStatus::Failed;
        self.error = Some(ResponseError { code: SERVER_ERROR, message });
    }
}
