//! What can go wrong, as data: loading a model, and serving a request.

use std::path::PathBuf;

/// Why a model could not be loaded. Each says which file and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file or directory is not there or cannot be read.
    #[error("cannot read `{path}`: {source}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what its name or header says, or ends early.
    #[error("`{path}` is damaged or not a model file: {reason}", path = path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The architecture is none that this build knows.
    #[error("architecture `{found}` in `{path}` is not supported; supported: {supported}", path = path.display())]
    UnsupportedArchitecture {
        /// Where it was read.
        path: PathBuf,
        /// What it names.
        found: String,
        /// What would work, comma separated.
        supported: String,
    },
    /// A tensor, key or file that the architecture needs is absent or has a wrong shape.
    #[error("`{path}`: {reason}", path = path.display())]
    Incomplete {
        /// Where it was looked for.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The tokenizer cannot be built.
    #[error("tokenizer of `{path}`: {reason}", path = path.display())]
    Tokenizer {
        /// Where it was read.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The chat template does not compile.
    #[error("chat template of `{path}`: {reason}", path = path.display())]
    ChatTemplate {
        /// Where it was read.
        path: PathBuf,
        /// The template engine's message.
        reason: String,
    },
    /// Memory or configuration does not allow what was asked.
    #[error("{0}")]
    Config(String),
    /// The draft model's files cannot be loaded, or it cannot run.
    #[error("--draft-model: {0}")]
    Draft(Box<LoadError>),
    /// The draft model has other tokens than the model that it is to guess for.
    #[error("--draft-model: its vocabulary is not the model's: {reason}")]
    DraftVocabulary {
        /// What differs.
        reason: String,
    },
    /// A tensor operation failed.
    #[error("tensor operation failed while loading: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// Why a request was not accepted, or not served after all. Nothing was started.
#[derive(Debug, Clone, thiserror::Error, PartialEq)]
pub enum RequestError {
    /// A parameter is out of its range.
    #[error("{message}")]
    Invalid {
        /// The parameter's name in the API.
        param: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
    /// Prompt and output cannot fit the context length or the KV cache, ever.
    #[error(
        "the prompt has {num_prompt_tokens} tokens and {num_new_tokens} more were asked for, but {limit_name} is {limit} tokens"
    )]
    TooLong {
        /// Tokens of the prompt.
        num_prompt_tokens: usize,
        /// Tokens asked for.
        num_new_tokens: usize,
        /// Which limit: the model's context length or the KV cache.
        limit_name: &'static str,
        /// Its size in tokens.
        limit: usize,
    },
    /// A text to embed does not fit the context length or the KV cache.
    #[error("`input[{index}]` has {num_tokens} tokens, but {limit_name} is {limit} tokens")]
    InputTooLong {
        /// Which of the request's texts.
        index: usize,
        /// Its tokens.
        num_tokens: usize,
        /// Which limit: the model's context length or the KV cache.
        limit_name: &'static str,
        /// Its size in tokens.
        limit: usize,
    },
    /// The prompt's text is so long that it cannot fit, whatever the tokenizer makes of it. It was not tokenized.
    #[error(
        "the prompt has {num_bytes} bytes of text, which are at least {min_tokens} tokens, but {limit_name} is {limit} tokens"
    )]
    TextTooLong {
        /// Bytes of the text, the chat template's included.
        num_bytes: usize,
        /// Tokens they become at least.
        min_tokens: usize,
        /// Which limit: the model's context length or the KV cache.
        limit_name: &'static str,
        /// Its size in tokens.
        limit: usize,
    },
    /// The model's files ask for a pooling of hidden states that this engine has not.
    #[error(
        "this model's embeddings are made by `{pooling}` pooling, which is not supported; start with --pooling to use another one"
    )]
    UnsupportedPooling {
        /// What they ask for.
        pooling: String,
    },
    /// The chat template refused the messages.
    #[error("the chat template refused the messages: {0}")]
    Template(String),
    /// The model has no chat template.
    #[error("this model has no chat template; use /v1/completions or start with --chat-template")]
    NoChatTemplate,
    /// The admission queue is at its limit.
    #[error("{num_waiting} requests are waiting, which is the limit; try again in {retry_after_seconds} s")]
    QueueFull {
        /// Requests waiting.
        num_waiting: usize,
        /// A guess when there will be room.
        retry_after_seconds: u64,
    },
    /// Its turn did not come within the queue's deadline.
    #[error(
        "the request waited {waited_seconds} s for its turn, which is the limit; try again in {retry_after_seconds} s"
    )]
    QueueTimeout {
        /// How long it waited.
        waited_seconds: u64,
        /// A guess when there will be room.
        retry_after_seconds: u64,
    },
    /// The engine is draining or has stopped.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// No model has this name.
    #[error("the model `{requested}` does not exist; loaded: {available}")]
    UnknownModel {
        /// What was asked for.
        requested: String,
        /// What is there, comma separated.
        available: String,
    },
}

/// Why a text got no vector.
#[derive(Debug, Clone, thiserror::Error, PartialEq)]
pub enum EmbedError {
    /// Refused, before or after it had waited for its turn.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The engine failed on it; the message is fit for the client.
    #[error("{0}")]
    Failed(String),
}
