//! From a stream of text events to one tool result, with progress on the way.

use futures::FutureExt;
use mistralrs_core::request::Usage;
use mistralrs_core::{FinishReason, TextEvent, TextStream};
use mistralrs_mcp::ProgressSink;
use schemars::JsonSchema;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

/// The result of `generate` and `chat`.
#[derive(Debug, Serialize, JsonSchema, PartialEq)]
pub(super) struct GeneratedText {
    /// The whole text.
    pub text: String,
    /// Why it ended: `stop` (an end token or a stop string) or `length` (the limit of tokens).
    #[schemars(extend("enum" = ["stop", "length"]))]
    pub finish_reason: &'static str,
    /// What was used.
    pub usage: TokenUsage,
    /// Of the request's stop strings, the one that ended it.
    #[serde(skip)]
    pub stop_string: Option<String>,
}

/// Token counts of one call, by OpenAI's names.
#[expect(clippy::struct_field_names, reason = "names of the wire")]
#[derive(Debug, Serialize, JsonSchema, PartialEq)]
pub(super) struct TokenUsage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub completion_tokens: usize,
    /// Both together.
    pub total_tokens: usize,
}

/// What text comes from: the engine's stream, or a script in tests.
pub(super) trait TextSource: Send {
    /// The next event; cancel-safe.
    fn next(&mut self) -> impl Future<Output = Option<TextEvent>> + Send;
    fn usage(&self) -> Usage;
}

impl TextSource for TextStream {
    async fn next(&mut self) -> Option<TextEvent> {
        Self::next(self).await
    }

    fn usage(&self) -> Usage {
        Self::usage(self)
    }
}

/// Reads `events` to the end. Each piece of text goes to `progress` as it comes; while a reader is slow, pieces are put
/// together, so that it gets fewer and longer ones and never falls behind.
///
/// # Errors
/// A sentence for the caller, if the generation failed or was cancelled. The caller drops `events`, which frees
/// what the engine holds for it.
pub(super) async fn collect(
    events: &mut impl TextSource,
    progress: Option<&dyn ProgressSink>,
    cancellation: CancellationToken,
) -> Result<GeneratedText, String> {
    let mut text = String::new();
    let mut reporter = Reporter { progress, num_reports: 0.0 };
    let end = loop {
        let event = tokio::select! {
            biased;
            () = cancellation.cancelled() => return Err("the call was cancelled".to_owned()),
            event = events.next() => event,
        };
        let reported = text.len();
        let mut ended = accept(event, &mut text)?;
        while ended.is_none()
            && let Some(event) = events.next().now_or_never()
        {
            ended = accept(event, &mut text)?;
        }
        tokio::select! {
            biased;
            () = cancellation.cancelled() => return Err("the call was cancelled".to_owned()),
            () = reporter.report(&text[reported..]) => {}
        }
        if let Some(end) = ended {
            break end;
        }
    };
    // The usage is final once the stream is.
    while events.next().await.is_some() {}
    let usage = events.usage();
    Ok(GeneratedText {
        text,
        finish_reason: end.reason.as_str(),
        stop_string: end.stop_string,
        usage: TokenUsage {
            prompt_tokens: usage.num_prompt_tokens,
            completion_tokens: usage.num_completion_tokens,
            total_tokens: usage.num_prompt_tokens + usage.num_completion_tokens,
        },
    })
}

/// How a text ended.
struct TextEnd {
    reason: FinishReason,
    stop_string: Option<String>,
}

/// Adds a piece, or says how the text ended.
fn accept(event: Option<TextEvent>, text: &mut String) -> Result<Option<TextEnd>, String> {
    match event {
        Some(TextEvent::Delta { text: piece, .. }) => {
            text.push_str(&piece);
            Ok(None)
        }
        Some(TextEvent::Finished { reason, stop_string, .. }) => Ok(Some(TextEnd { reason, stop_string })),
        Some(TextEvent::Refused { error, .. }) => Err(error.to_string()),
        Some(TextEvent::Failed { message, .. }) => Err(message),
        None => Err("the generation ended without a reason".to_owned()),
    }
}

struct Reporter<'a> {
    /// `None` if nobody asked, or who asked has left; the call itself goes on until it is cancelled.
    progress: Option<&'a dyn ProgressSink>,
    num_reports: f64,
}

impl Reporter<'_> {
    async fn report(&mut self, piece: &str) {
        let Some(progress) = self.progress.filter(|_| !piece.is_empty()) else { return };
        self.num_reports += 1.0;
        if !progress.send(self.num_reports, piece.to_owned()).await {
            self.progress = None;
        }
    }
}
