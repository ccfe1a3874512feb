//! Where the two halves of the process meet: the model, as what the MCP gateway has of its own: tools, resources, prompts, and
//! answers for upstreams.
//!
//! A process without a model has no native tools at all: a tool that can only fail teaches a model to fail.

mod arguments;
mod embedding;
mod generation;
mod offers;
mod resource_uri;
mod sampler;
mod schema;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use mistralrs_core::model::{Model, SpecialTokens};
use mistralrs_core::{GenerateRequest, ModelRouter, RequestError, TextStream};
use mistralrs_mcp::rmcp::model::{CallToolResult, ContentBlock, JsonObject};
use mistralrs_mcp::{LocalTool, LocalToolError, LocalTools, ProgressSink};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use self::arguments::{ChatArguments, DEFAULT_MAX_TOKENS, GenerateArguments, ListModelsArguments, TokenizeArguments};
use self::embedding::{EmbedArguments, EmbeddedTexts};
use self::generation::{GeneratedText, collect};
pub use self::offers::ServerOffers;
pub use self::sampler::ModelSampler;
use self::schema::json_schema;

/// The loaded models as MCP tools: `generate`, `chat`, `embed`, `tokenize`, `list_models`.
pub struct ModelTools {
    models: Arc<ModelRouter>,
}

impl ModelTools {
    /// Tools over `models`; the first one loaded answers where a call names none.
    pub fn new(models: Arc<ModelRouter>) -> Self {
        Self { models }
    }
}

/// What went wrong with a native call: the caller's arguments, or the attempt.
enum Failure {
    Arguments(String),
    /// An answer that says so: the calling model can read it and try something else.
    Refused(String),
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Invalid { param, message } if message.contains(param) => Self::Arguments(message),
            RequestError::Invalid { param, message } => Self::Arguments(format!("`{param}`: {message}")),
            other => Self::Refused(other.to_string()),
        }
    }
}

#[async_trait]
impl LocalTools for ModelTools {
    fn tools(&self) -> Vec<LocalTool> {
        vec![
            tool::<GenerateArguments, GeneratedText>(
                "generate",
                "Continues a text with the local language model. The prompt is taken as it is, without a chat \
                 template; to ask a question or hold a conversation use `chat`.",
            ),
            tool::<ChatArguments, GeneratedText>(
                "chat",
                "Answers a conversation with the local language model, in the model's own chat format.",
            ),
            tool::<EmbedArguments, EmbeddedTexts>(
                "embed",
                "Turns texts into vectors with the local language model, to compare them by meaning: the closer to 1 the \
                 dot product of two vectors, the more alike the texts.",
            ),
            tool::<TokenizeArguments, Tokenized>(
                "tokenize",
                "Turns text into the token ids of the local language model, and counts them.",
            ),
            tool::<ListModelsArguments, ModelList>("list_models", "Lists the language models that are loaded here."),
        ]
    }

    async fn call(
        &self,
        name: &str,
        arguments: JsonObject,
        progress: Option<&dyn ProgressSink>,
        cancellation: CancellationToken,
    ) -> Result<CallToolResult, LocalToolError> {
        let outcome = match name {
            "generate" => self.generate(arguments, progress, cancellation).await,
            "chat" => self.chat(arguments, progress, cancellation).await,
            "embed" => self.embed(arguments, cancellation).await,
            "tokenize" => self.tokenize(arguments).await,
            "list_models" => self.list_models(arguments),
            _ => return Err(LocalToolError::Unknown(name.to_owned())),
        };
        match outcome {
            Ok(result) => Ok(result),
            Err(Failure::Arguments(message)) => Err(LocalToolError::InvalidArguments(message)),
            Err(Failure::Refused(message)) => Ok(CallToolResult::error(vec![ContentBlock::text(message)])),
        }
    }
}

impl ModelTools {
    async fn generate(
        &self,
        arguments: JsonObject,
        progress: Option<&dyn ProgressSink>,
        cancellation: CancellationToken,
    ) -> Result<CallToolResult, Failure> {
        let arguments: GenerateArguments = parse(arguments)?;
        let model = self.route(arguments.model.as_deref())?;
        self.run(&model, arguments.into(), progress, cancellation).await
    }

    async fn chat(
        &self,
        arguments: JsonObject,
        progress: Option<&dyn ProgressSink>,
        cancellation: CancellationToken,
    ) -> Result<CallToolResult, Failure> {
        let arguments: ChatArguments = parse(arguments)?;
        let model = self.route(arguments.model.as_deref())?;
        self.run(&model, arguments.into(), progress, cancellation).await
    }

    fn route(&self, requested: Option<&str>) -> Result<Model, Failure> {
        route(Some(&self.models), requested)
    }

    async fn run(
        &self,
        model: &Model,
        mut request: GenerateRequest,
        progress: Option<&dyn ProgressSink>,
        cancellation: CancellationToken,
    ) -> Result<CallToolResult, Failure> {
        let submit = async {
            if request.max_tokens.is_some() {
                return model.generate(request).await;
            }
            request.max_tokens = Some(DEFAULT_MAX_TOKENS);
            generate_within_context(model, request).await
        };
        let mut events = tokio::select! {
            biased;
            () = cancellation.cancelled() => return Err(Failure::Refused("the call was cancelled".to_owned())),
            events = submit => events?,
        };
        let text = collect(&mut events, progress, cancellation).await.map_err(Failure::Refused)?;
        Ok(structured(text.text.clone(), &text))
    }

    async fn embed(&self, arguments: JsonObject, cancellation: CancellationToken) -> Result<CallToolResult, Failure> {
        let arguments: EmbedArguments = parse(arguments)?;
        let model = self.route(arguments.model.as_deref())?;
        embedding::embed(&model, arguments, cancellation).await
    }

    async fn tokenize(&self, arguments: JsonObject) -> Result<CallToolResult, Failure> {
        let arguments: TokenizeArguments = parse(arguments)?;
        let model = self.route(arguments.model.as_deref())?;
        let special = if arguments.add_special_tokens { SpecialTokens::Add } else { SpecialTokens::Omit };
        let token_ids = model.tokenize(arguments.text, special).await?;
        let tokenized = Tokenized { count: token_ids.len(), token_ids };
        Ok(structured(format!("{} tokens: {:?}", tokenized.count, tokenized.token_ids), &tokenized))
    }

    fn list_models(&self, arguments: JsonObject) -> Result<CallToolResult, Failure> {
        let ListModelsArguments {} = parse(arguments)?;
        let models = self.models.models().iter().map(LoadedModel::from).collect::<Vec<_>>();
        let names = models.iter().map(|model| model.id.as_str()).collect::<Vec<_>>().join("\n");
        Ok(structured(names, &ModelList { models }))
    }
}

/// The model of this id, or the first one loaded.
fn route(models: Option<&ModelRouter>, requested: Option<&str>) -> Result<Model, Failure> {
    let Some(models) = models else { return Err(Failure::Refused("this process has no model".to_owned())) };
    models.route(requested.unwrap_or_default()).map_err(|error| match error {
        // The endpoint answers while the model is being read from disk.
        RequestError::UnknownModel { available, .. } if available.is_empty() => {
            Failure::Refused("no model is loaded yet; try again in a moment".to_owned())
        }
        error => error.into(),
    })
}

/// Starts a request whose limit of tokens is not its author's: it must not refuse a long prompt, for which what is left of
/// the context will do.
async fn generate_within_context(model: &Model, request: GenerateRequest) -> Result<TextStream, RequestError> {
    match model.generate(request.clone()).await {
        Err(RequestError::TooLong { .. }) => model.generate(GenerateRequest { max_tokens: None, ..request }).await,
        outcome => outcome,
    }
}

/// Token ids of a text.
#[derive(Debug, Serialize, JsonSchema)]
struct Tokenized {
    /// The token ids, in order.
    token_ids: Vec<u32>,
    /// How many there are.
    count: usize,
}

/// The models that are loaded.
#[derive(Debug, Serialize, JsonSchema)]
struct ModelList {
    /// In the order of loading; the first is the default.
    models: Vec<LoadedModel>,
}

/// A loaded model.
#[derive(Debug, Serialize, JsonSchema)]
struct LoadedModel {
    /// The name to give as `model`.
    id: String,
    /// Context length in tokens.
    max_model_len: usize,
    /// Whether `chat` works with it.
    has_chat_template: bool,
    /// Model architecture, such as `llama`.
    architecture: String,
    /// How its weights are stored, such as `Q4_1`.
    quantization: String,
    /// Number of parameters.
    num_parameters: u64,
}

impl From<&Model> for LoadedModel {
    fn from(model: &Model) -> Self {
        let info = model.info();
        Self {
            id: info.id.clone(),
            max_model_len: info.max_model_len,
            has_chat_template: info.has_chat_template,
            architecture: info.description.architecture.clone(),
            quantization: info.description.quantization.clone(),
            num_parameters: info.description.num_parameters,
        }
    }
}

fn tool<Arguments: JsonSchema, Output: JsonSchema>(name: &'static str, description: &str) -> LocalTool {
    LocalTool {
        name,
        description: description.to_owned(),
        input_schema: json_schema::<Arguments>(),
        output_schema: Some(json_schema::<Output>()),
        is_read_only: true,
    }
}

/// Names the argument that is wrong.
fn parse<Arguments: DeserializeOwned>(arguments: JsonObject) -> Result<Arguments, Failure> {
    serde_path_to_error::deserialize(serde_json::Value::Object(arguments)).map_err(|error| {
        let path = error.path().to_string();
        Failure::Arguments(match path.as_str() {
            "." => error.inner().to_string(),
            path => format!("`{path}`: {}", error.inner()),
        })
    })
}

/// `text` for models and people, `output` for programs.
fn structured(text: String, output: &impl Serialize) -> CallToolResult {
    let mut result = CallToolResult::success(vec![ContentBlock::text(text)]);
    result.structured_content = serde_json::to_value(output).ok();
    result
}
