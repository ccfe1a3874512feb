//! The tool `embed`: texts in, vectors out.

use mistralrs_core::{EmbedError, EmbedRequest, Embeddings, Model, Priority, Prompt};
use mistralrs_mcp::rmcp::model::{CallToolResult, ContentBlock};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::generation::TokenUsage;

/// Texts of one call. Fewer than the HTTP API takes: a tool's result is one message, and it has every vector twice.
const MAX_TEXTS: usize = 128;

/// Arguments of `embed`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EmbedArguments {
    /// The text, or up to 128 texts, each of which gets a vector of its own.
    pub input: Texts,
    /// Which model embeds, by its id from `list_models`; the first one loaded if absent.
    pub model: Option<String>,
    /// How many numbers of each vector to keep, of the first ones; all if absent.
    #[schemars(range(min = 1))]
    pub dimensions: Option<usize>,
}

/// One text or several.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub(super) enum Texts {
    One(String),
    Many(#[schemars(length(min = 1, max = 128))] Vec<String>),
}

/// The result of `embed`.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct EmbeddedTexts {
    /// A vector of length 1 for each text, in order.
    embeddings: Vec<Vec<f32>>,
    /// Numbers in each.
    dimensions: usize,
    /// What was used.
    usage: TokenUsage,
}

impl EmbedArguments {
    fn request(self) -> Result<EmbedRequest, Failure> {
        let texts = match self.input {
            Texts::One(text) => vec![text],
            Texts::Many(texts) => texts,
        };
        if texts.len() > MAX_TEXTS {
            let message = format!("`input` has {} texts; a call embeds at most {MAX_TEXTS}", texts.len());
            return Err(Failure::Arguments(message));
        }
        Ok(EmbedRequest {
            inputs: texts.into_iter().map(Prompt::Text).collect(),
            dimensions: self.dimensions,
            priority: Priority::default(),
            cache_salt: None,
        })
    }
}

/// Calls it.
pub(super) async fn embed(
    model: &Model,
    arguments: EmbedArguments,
    cancellation: CancellationToken,
) -> Result<CallToolResult, Failure> {
    let request = arguments.request()?;
    let embeddings = tokio::select! {
        biased;
        () = cancellation.cancelled() => return Err(Failure::Refused("the call was cancelled".to_owned())),
        embeddings = model.embed(request) => embeddings,
    };
    embeddings.map(render).map_err(|error| match error {
        EmbedError::Request(error) => error.into(),
        EmbedError::Failed(message) => Failure::Refused(message),
    })
}

/// The same JSON as text: clients of revisions before 2025-06-18 read nothing else.
pub(super) fn render(embeddings: Embeddings) -> CallToolResult {
    let Embeddings { vectors, num_prompt_tokens } = embeddings;
    let embedded = EmbeddedTexts {
        dimensions: vectors.first().map_or(0, Vec::len),
        embeddings: vectors,
        usage: TokenUsage { prompt_tokens: num_prompt_tokens, completion_tokens: 0, total_tokens: num_prompt_tokens },
    };
    let json = serde_json::to_string(&embedded).expect("vectors of finite numbers are plain JSON");
    // Out of the text, in which numbers have as many digits as f32 has.
    let structured = serde_json::from_str(&json).ok();
    let mut result = CallToolResult::success(vec![ContentBlock::text(json)]);
    result.structured_content = structured;
    result
}
