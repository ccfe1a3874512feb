//! A loaded model as a server holds it: text in, text out.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mistralrs_paged_attn::{BlockId, BlockManager, PrefixHash, PrefixSalt};
use tokenizers::Tokenizer;
use tokio::sync::{Semaphore, watch};

use crate::admission::{Admission, NewSequence, QueueLimits};
use crate::config::{EngineConfig, ModelSource};
use crate::detokenizer::{Detokenizer, TextStart, Vocabulary};
use crate::embedding::{EmbedInput, EmbeddingBatch, Embeddings, MAX_EMBED_INPUTS, Window};
use crate::engine::Engine;
use crate::error::{EmbedError, LoadError, RequestError};
use crate::generation::{Answer, Continuation, Generation, event_channel};
use crate::kv_budget::KvPlan;
use crate::loader::{self, LoadedModel, ModelDescription, chat_template::ChatTemplate};
use crate::metrics::{EngineMetrics, ModelMetrics, Rejection};
use crate::models::ModelShape;
use crate::pooling::DeclaredPooling;
use crate::prefill_pace::PrefillPace;
use crate::request::{ChatPrompt, EmbedRequest, GenerateRequest, MAX_CACHE_SALT_BYTES, Priority, Prompt};
use crate::sampling::{ChoiceSeed, Sampler, SamplerSetup, validate_logprobs};
use crate::scheduler::{Scheduler, SchedulerConfig};
use crate::sequence::{PrefixSharing, Sequence, SequenceId};
use crate::speculation::{Draft, Guesser, Speculation};
use crate::stream::{ChoiceStream, TextStream};
use crate::token_width::TokenWidth;
use crate::{free_memory, packing};

pub use crate::admission::EngineStatus;

/// Choices (`n`) of one request: each costs a sequence.
pub const MAX_CHOICES: usize = 64;

/// After the drain timeout everything is cancelled; a step that runs is waited for this long.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);

/// A loaded model with its engine thread. Cheap to clone.
#[derive(Clone)]
pub struct Model {
    inner: Arc<ModelInner>,
}

struct ModelInner {
    info: ModelInfo,
    shape: ModelShape,
    config: EngineConfig,
    tokenizer: Tokenizer,
    vocabulary: Arc<Vocabulary>,
    token_width: Option<TokenWidth>,
    /// One for each text that may be tokenized at once: more would only take the processors from one another, and from
    /// the engine. Who waits for one has a connection, and those are limited.
    tokenizing: Arc<Semaphore>,
    chat_template: Option<ChatTemplate>,
    eos_token_ids: BTreeSet<u32>,
    pooling: DeclaredPooling,
    admission: Arc<Admission>,
    metrics: ModelMetrics,
    /// Closed when the engine thread has ended.
    engine_ended: watch::Receiver<()>,
}

/// What `/v1/models` tells of a model.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// The name clients use.
    pub id: String,
    /// Seconds since the epoch when it was loaded.
    pub created: u64,
    /// Context length in tokens.
    pub max_model_len: usize,
    /// Tokens that the KV cache can hold over all sequences.
    pub num_kv_tokens: usize,
    /// Whether chat requests can be rendered.
    pub has_chat_template: bool,
    /// Architecture, quantization, sizes.
    pub description: ModelDescription,
}

/// Whether tokenizing adds the tokenizer's own special tokens (BOS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// As for a prompt.
    Add,
    /// The text alone.
    Omit,
}

/// A request after everything that needs no engine: tokens, hashes, samplers, limits.
struct Prepared {
    token_ids: Vec<u32>,
    block_hashes: Vec<PrefixHash>,
    salt: PrefixSalt,
    priority: Priority,
    samplers: Vec<Sampler>,
    max_new_tokens: usize,
    min_tokens: usize,
    stop_token_ids: Arc<BTreeSet<u32>>,
    stop_strings: Vec<String>,
    text_start: TextStart,
}

impl Model {
    /// Loads the files and starts the engine. `metrics` are registered once per process and shared by all
    /// models. Blocks: call it from a blocking thread.
    ///
    /// # Errors
    /// [`LoadError`], with the file and what would be right.
    pub fn load(source: &ModelSource, config: &EngineConfig, metrics: &EngineMetrics) -> Result<Self, LoadError> {
        let id = source.id.clone().unwrap_or_else(|| default_id(&source.path));
        let loaded = loader::load(source)?;
        let load_draft = |path| Draft::load(path, source.packed_cache.as_ref());
        let draft = config.draft_model.as_deref().map(load_draft).transpose()?;
        Self::start_with_draft(id, loaded, draft, config, metrics)
    }

    /// Starts the engine of a model that is in memory already, under the name `id`.
    ///
    /// # Errors
    /// [`LoadError`], where `config` does not fit the model or memory.
    pub fn start(
        id: String,
        loaded: LoadedModel,
        config: &EngineConfig,
        metrics: &EngineMetrics,
    ) -> Result<Self, LoadError> {
        Self::start_with_draft(id, loaded, None, config, metrics)
    }

    /// The same, with a draft model in memory beside it; that of `config` is not looked at.
    ///
    /// # Errors
    /// As [`Self::start`], and if the draft model does not fit the model.
    pub fn start_with_draft(
        id: String,
        mut loaded: LoadedModel,
        draft: Option<Draft>,
        config: &EngineConfig,
        metrics: &EngineMetrics,
    ) -> Result<Self, LoadError> {
        let vocabulary = Vocabulary::from_tokenizer(&loaded.tokenizer)
            .map_err(|reason| LoadError::Tokenizer { path: PathBuf::from(&id), reason })?;
        if let Some(draft) = &draft {
            draft.check_vocabulary(&vocabulary)?;
        }
        let shape = loaded.model.shape().clone();
        let max_model_len = max_model_len(config, &shape)?;
        let draft_shape = draft.as_ref().map(|draft| draft.loaded.model.shape());
        let memory = KvPlan::new(config, max_model_len, (&shape, draft_shape), free_memory::free_bytes())?;
        let num_blocks = memory.own.num_blocks;
        let mut kv = memory.own.allocate()?;
        // So that pages are mapped and weights packed before the first request measures it. Whoever gets the block overwrites it.
        loaded.model.forward(&packing::single_token(BlockId(0), config.block_size), &mut kv)?;

        let model_metrics = metrics.for_model(&id);
        model_metrics.sequences_capacity.set(config.max_num_seqs as i64);
        model_metrics.blocks_total.set(num_blocks as i64);
        model_metrics.kv_capacity_bytes.set(memory.own.num_bytes() as i64);
        let mut guesser = Guesser::new(config.max_draft_tokens, model_metrics.speculation.clone());
        if let (Some(draft), Some(memory)) = (draft, memory.draft) {
            let cost = draft.cost;
            guesser = guesser.with_draft_model(draft.start(&memory, &shape, config)?, cost);
        }
        let admission = Arc::new(new_admission(config, num_blocks));
        let (shared, scheduler) = (Arc::clone(&admission), new_scheduler(config));
        let scheduler = scheduler.keeping_generated_apart(loaded.model.computes_prompts_apart());
        let engine = Engine::new(loaded.model, kv, scheduler, shared, model_metrics.clone(), guesser)
            .with_pace(PrefillPace::new(config.max_decode_stall));
        let engine_ended = spawn_engine(engine, &admission)?;
        let info = ModelInfo {
            id,
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs()),
            max_model_len,
            num_kv_tokens: num_blocks * config.block_size,
            has_chat_template: loaded.chat_template.is_some(),
            description: loaded.description,
        };
        let inner = ModelInner {
            info,
            shape,
            config: config.clone(),
            token_width: TokenWidth::of(&loaded.tokenizer, &vocabulary),
            tokenizing: Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, NonZeroUsize::get))),
            vocabulary: Arc::new(vocabulary),
            tokenizer: loaded.tokenizer,
            chat_template: loaded.chat_template,
            eos_token_ids: loaded.eos_token_ids,
            pooling: loaded.pooling,
            admission,
            metrics: model_metrics,
            engine_ended,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Its description.
    pub fn info(&self) -> &ModelInfo {
        &self.inner.info
    }

    /// Counts as of the last step; never waits for one.
    pub fn status(&self) -> EngineStatus {
        self.inner.admission.status()
    }

    /// Renders, tokenizes (on a blocking thread) and submits. Dropping the stream, or this future, cancels.
    ///
    /// # Errors
    /// [`RequestError`]; nothing was started then.
    pub async fn generate(&self, request: GenerateRequest) -> Result<TextStream, RequestError> {
        let inner = &self.inner;
        if !(1..=MAX_CHOICES).contains(&request.num_choices) {
            return Err(invalid("n", format!("n is {}; it must be between 1 and {MAX_CHOICES}", request.num_choices)));
        }
        // Before the work of tokenizing, not only after it: a full queue answers fast.
        let outcome = match inner.admission.check_room(request.num_choices) {
            Ok(()) => {
                inner.blocking(move |inner| inner.prepare(request)).await.and_then(|prepared| inner.submit(prepared))
            }
            Err(refused) => Err(refused),
        };
        if let Err(error) = &outcome {
            inner.count_rejection(error);
        }
        outcome
    }

    /// The vectors of the request's texts. Tokenizes all of them (on a blocking thread) before the first is submitted, and
    /// has a window of them in flight at a time. Dropping this future cancels.
    ///
    /// # Errors
    /// [`EmbedError`]; no text is left running then.
    pub async fn embed(&self, request: EmbedRequest) -> Result<Embeddings, EmbedError> {
        let inner = &self.inner;
        let outcome = match inner.admission.check_room(1) {
            Ok(()) => match inner.blocking(move |inner| inner.prepare_embeddings(request)).await {
                Ok(batch) => batch.run().await,
                Err(refused) => Err(refused.into()),
            },
            Err(refused) => Err(refused.into()),
        };
        if let Err(EmbedError::Request(error)) = &outcome {
            inner.count_rejection(error);
        }
        outcome
    }

    /// Token ids of `text`.
    ///
    /// # Errors
    /// [`RequestError::Invalid`] if the tokenizer refuses the text.
    pub async fn tokenize(&self, text: String, special_tokens: SpecialTokens) -> Result<Vec<u32>, RequestError> {
        self.inner.blocking(move |inner| inner.encode(text, special_tokens)).await
    }

    /// Token ids of chat messages after the template.
    ///
    /// # Errors
    /// [`RequestError::NoChatTemplate`], [`RequestError::Template`].
    pub async fn tokenize_chat(&self, prompt: ChatPrompt) -> Result<Vec<u32>, RequestError> {
        self.inner.blocking(move |inner| inner.encode(inner.render(&prompt)?, SpecialTokens::Omit)).await
    }

    /// The text of chat messages after the template, as the model reads it.
    ///
    /// # Errors
    /// As [`Self::tokenize_chat`].
    pub async fn render_chat(&self, prompt: ChatPrompt) -> Result<String, RequestError> {
        self.inner.blocking(move |inner| inner.render(&prompt)).await
    }

    /// The source of its chat template, if it has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.inner.chat_template.as_ref().map(ChatTemplate::source)
    }

    /// Text of token ids, special ones included.
    ///
    /// # Errors
    /// [`RequestError::Invalid`] for ids outside the vocabulary.
    pub async fn detokenize(&self, token_ids: Vec<u32>) -> Result<String, RequestError> {
        self.inner
            .blocking(move |inner| {
                inner.check_token_ids("tokens", &token_ids)?;
                let text = inner.tokenizer.decode(&token_ids, false);
                text.map_err(|error| invalid("tokens", format!("the tokenizer cannot decode these ids: {error}")))
            })
            .await
    }

    /// No new requests; running ones finish within the drain timeout, then are cancelled. Waits for the engine
    /// thread to end.
    pub async fn shutdown(&self) {
        let admission = &self.inner.admission;
        admission.close();
        let mut ended = self.inner.engine_ended.clone();
        if tokio::time::timeout(self.inner.config.drain_timeout, ended.changed()).await.is_err() {
            let status = self.status();
            tracing::warn!(running = status.num_running, waiting = status.num_waiting, "drain timeout: cancelling");
            admission.cancel_all();
            if tokio::time::timeout(CANCEL_TIMEOUT, ended.changed()).await.is_err() {
                tracing::error!("the engine thread did not end; leaving it behind");
            }
        }
    }
}

impl ModelInner {
    /// Runs `work` where it may block: tokenizing 100k tokens takes long enough to delay other clients' streams.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, RequestError> + Send + 'static,
    ) -> Result<T, RequestError> {
        let inner = Arc::clone(self);
        let permit = Arc::clone(&self.tokenizing).acquire_owned().await.expect("the semaphore is never closed");
        let work = move || {
            // Held by the work, not by who waits for it: a client that leaves does not end it.
            let _permit = permit;
            work(&inner)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(RequestError::ShuttingDown),
        }
    }

    /// Everything a request needs before the engine sees it.
    fn prepare(&self, request: GenerateRequest) -> Result<Prepared, RequestError> {
        request.sampling.validate(self.shape.vocab_size)?;
        request.stop.validate()?;
        validate_logprobs(request.logprobs)?;
        validate_cache_salt(request.cache_salt.as_deref())?;
        let text_start = match request.prompt {
            Prompt::Chat(_) => TextStart::Beginning,
            Prompt::Text(_) | Prompt::Tokens(_) => TextStart::AfterPrompt,
        };
        let token_ids = self.encode_prompt(request.prompt)?;
        let max_new_tokens = self.max_new_tokens(token_ids.len(), request.max_tokens)?;
        let salt = PrefixSalt { tenant: request.cache_salt.unwrap_or_default(), ..PrefixSalt::default() };
        let block_hashes = self.admission.blocks.hash_blocks(&token_ids, &salt);
        let mut stop_token_ids: BTreeSet<u32> = request.stop.token_ids.into_iter().collect();
        if !request.stop.ignore_eos {
            stop_token_ids.extend(&self.eos_token_ids);
        }
        let stop_token_ids = Arc::new(stop_token_ids);
        let min_tokens = request.stop.min_tokens;
        check_min_tokens(min_tokens, max_new_tokens)?;
        let seed = request.sampling.seed.or(self.config.seed).unwrap_or_else(rand::random);
        let setup = SamplerSetup {
            params: &request.sampling,
            num_top_logprobs: request.logprobs,
            prompt_token_ids: &token_ids,
            vocabulary: &self.vocabulary,
            stop_token_ids: &stop_token_ids,
            min_tokens,
        };
        let choices = 0..request.num_choices as u64;
        let samplers = choices.map(|choice| Sampler::new(&setup, ChoiceSeed { seed, choice })).collect();
        let stop_strings = request.stop.strings;
        let priority = request.priority;
        Ok(Prepared {
            token_ids,
            block_hashes,
            salt,
            priority,
            samplers,
            max_new_tokens,
            min_tokens,
            stop_token_ids,
            stop_strings,
            text_start,
        })
    }

    /// Hands the choices to the engine and keeps their ends of the channels.
    fn submit(&self, prepared: Prepared) -> Result<TextStream, RequestError> {
        let num_prompt_tokens = prepared.token_ids.len();
        let leader = self.admission.reserve_ids(prepared.samplers.len());
        let arrived_at = Instant::now();
        let mut choices = Vec::with_capacity(prepared.samplers.len());
        let mut sequences = Vec::with_capacity(prepared.samplers.len());
        for (index, sampler) in prepared.samplers.into_iter().enumerate() {
            let (sender, receiver) = event_channel(prepared.max_new_tokens);
            let cancelled = Arc::new(AtomicBool::new(false));
            let detokenizer =
                Detokenizer::new(Arc::clone(&self.vocabulary), &prepared.stop_strings, prepared.text_start)
                    .with_min_tokens(prepared.min_tokens);
            choices.push(ChoiceStream::new(receiver, Arc::clone(&cancelled), detokenizer));
            let sequence = Sequence {
                priority: prepared.priority,
                salt: prepared.salt.clone(),
                max_num_tokens: num_prompt_tokens + prepared.max_new_tokens,
                ..Sequence::new(
                    SequenceId(leader.0 + index as u64),
                    (index > 0).then_some(leader),
                    prepared.token_ids.clone(),
                    prepared.block_hashes.clone(),
                )
            };
            let continuation = Continuation {
                sampler,
                max_new_tokens: prepared.max_new_tokens,
                stop_token_ids: Arc::clone(&prepared.stop_token_ids),
                last_token_at: None,
                speculation: Speculation::default(),
            };
            let answer = Answer::Text(Box::new(continuation));
            let generation = Generation { answer, events: sender, cancelled, arrived_at, has_started: false };
            sequences.push(NewSequence { sequence, generation });
        }
        self.admission.submit(sequences)?;
        Ok(TextStream::new(choices, num_prompt_tokens, Arc::clone(&self.admission), Arc::clone(&self.vocabulary)))
    }

    /// Everything that embedding needs before the engine sees the first text.
    fn prepare_embeddings(&self, request: EmbedRequest) -> Result<EmbeddingBatch, RequestError> {
        let num_inputs = request.inputs.len();
        if !(1..=MAX_EMBED_INPUTS).contains(&num_inputs) {
            return Err(invalid("input", format!("`input` has {num_inputs} texts; expected 1 to {MAX_EMBED_INPUTS}")));
        }
        validate_cache_salt(request.cache_salt.as_deref())?;
        let hidden_size = self.shape.hidden_size;
        let num_dimensions = request.dimensions.unwrap_or(hidden_size);
        if !(1..=hidden_size).contains(&num_dimensions) {
            let message =
                format!("`dimensions` is {num_dimensions}; expected 1 to {hidden_size}, all that the model has");
            return Err(invalid("dimensions", message));
        }
        let pooling = self.pooling.resolve(self.config.pooling);
        let pooling = pooling.map_err(|name| RequestError::UnsupportedPooling { pooling: name.to_owned() })?;
        let salt = PrefixSalt { tenant: request.cache_salt.unwrap_or_default(), ..PrefixSalt::default() };
        let inputs = request.inputs.into_iter().enumerate().map(|(index, input)| {
            let token_ids = self.encode_input(index, input)?;
            let block_hashes = match pooling.prefix_sharing() {
                PrefixSharing::Shared => self.admission.blocks.hash_blocks(&token_ids, &salt),
                PrefixSharing::Private => Vec::new(),
            };
            Ok(EmbedInput { token_ids, block_hashes })
        });
        Ok(EmbeddingBatch {
            inputs: inputs.collect::<Result<_, RequestError>>()?,
            pooling,
            num_dimensions,
            priority: request.priority,
            salt,
            window: Window::new(&self.config),
            admission: Arc::clone(&self.admission),
        })
    }

    /// Tokens of a text to embed, as many as fit.
    fn encode_input(&self, index: usize, input: Prompt) -> Result<Vec<u32>, RequestError> {
        let token_ids = self.encode_prompt(input).map_err(|error| match error {
            RequestError::Invalid { message, .. } => invalid("input", format!("`input[{index}]`: {message}")),
            other => other,
        })?;
        let num_tokens = token_ids.len();
        for (limit_name, limit) in
            [("the context length", self.info.max_model_len), ("the KV cache", self.info.num_kv_tokens)]
        {
            if num_tokens > limit {
                return Err(RequestError::InputTooLong { index, num_tokens, limit_name, limit });
            }
        }
        Ok(token_ids)
    }

    fn encode_prompt(&self, prompt: Prompt) -> Result<Vec<u32>, RequestError> {
        let token_ids = match prompt {
            Prompt::Text(text) => {
                self.check_text_fits(&text)?;
                self.encode(text, SpecialTokens::Add)?
            }
            // Templates write their own BOS.
            Prompt::Chat(chat) => {
                let text = self.render(&chat)?;
                self.check_text_fits(&text)?;
                self.encode(text, SpecialTokens::Omit)?
            }
            Prompt::Tokens(token_ids) => {
                self.check_token_ids("prompt", &token_ids)?;
                token_ids
            }
        };
        if token_ids.is_empty() {
            return Err(invalid("prompt", "the prompt is empty; it must have at least one token".to_owned()));
        }
        Ok(token_ids)
    }

    fn render(&self, chat: &ChatPrompt) -> Result<String, RequestError> {
        self.chat_template.as_ref().ok_or(RequestError::NoChatTemplate)?.render(chat)
    }

    /// Refuses a text that is too long for the context, however few tokens it becomes.
    fn check_text_fits(&self, text: &str) -> Result<(), RequestError> {
        let Some(width) = &self.token_width else { return Ok(()) };
        let (num_bytes, min_tokens) = (text.len(), width.min_tokens(text));
        // One more token is generated at least.
        match self.limits().into_iter().find(|(_, limit)| min_tokens >= *limit) {
            Some((limit_name, limit)) => Err(RequestError::TextTooLong { num_bytes, min_tokens, limit_name, limit }),
            None => Ok(()),
        }
    }

    /// What prompt and answer together must fit, in tokens.
    fn limits(&self) -> [(&'static str, usize); 2] {
        // The last token generated needs no KV of its own.
        [("the context length", self.info.max_model_len), ("the KV cache", self.info.num_kv_tokens + 1)]
    }

    fn encode(&self, text: String, special_tokens: SpecialTokens) -> Result<Vec<u32>, RequestError> {
        let encoding = self.tokenizer.encode_fast(text, special_tokens == SpecialTokens::Add);
        let encoding =
            encoding.map_err(|error| invalid("prompt", format!("the tokenizer refused the text: {error}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn check_token_ids(&self, param: &'static str, token_ids: &[u32]) -> Result<(), RequestError> {
        let vocab_size = self.shape.vocab_size;
        match token_ids.iter().find(|&&token_id| token_id as usize >= vocab_size) {
            None => Ok(()),
            Some(token_id) => {
                Err(invalid(param, format!("token id {token_id} is outside the vocabulary of {vocab_size} tokens")))
            }
        }
    }

    /// How many tokens may be generated: what was asked for, or what context and KV cache leave.
    fn max_new_tokens(&self, num_prompt_tokens: usize, requested: Option<usize>) -> Result<usize, RequestError> {
        if requested == Some(0) {
            return Err(invalid("max_tokens", "max_tokens is 0; it must be at least 1".to_owned()));
        }
        let num_new_tokens = requested.unwrap_or(1);
        for (limit_name, limit) in self.limits() {
            if num_prompt_tokens.saturating_add(num_new_tokens) > limit {
                return Err(RequestError::TooLong { num_prompt_tokens, num_new_tokens, limit_name, limit });
            }
        }
        let num_left = self.info.max_model_len.min(self.info.num_kv_tokens + 1) - num_prompt_tokens;
        Ok(requested.unwrap_or(num_left))
    }

    fn count_rejection(&self, error: &RequestError) {
        let reason = match error {
            RequestError::QueueFull { .. } => Rejection::QueueFull,
            RequestError::TooLong { .. } | RequestError::TextTooLong { .. } | RequestError::InputTooLong { .. } => {
                Rejection::TooLong
            }
            RequestError::ShuttingDown => Rejection::ShuttingDown,
            // `QueueTimeout` is counted by the engine: it comes after submission.
            _ => return,
        };
        self.metrics.rejected(reason).inc();
    }
}

fn validate_cache_salt(salt: Option<&str>) -> Result<(), RequestError> {
    match salt.map(str::len) {
        None | Some(1..=MAX_CACHE_SALT_BYTES) => Ok(()),
        Some(num_bytes) => Err(invalid(
            "cache_salt",
            format!("`cache_salt` has {num_bytes} bytes; expected 1 to {MAX_CACHE_SALT_BYTES}, or none at all"),
        )),
    }
}

fn invalid(param: &'static str, message: String) -> RequestError {
    RequestError::Invalid { param, message }
}

fn check_min_tokens(min_tokens: usize, max_new_tokens: usize) -> Result<(), RequestError> {
    if min_tokens <= max_new_tokens {
        return Ok(());
    }
    let message = format!("min_tokens is {min_tokens}; it must be at most max_tokens, which is {max_new_tokens} here");
    Err(invalid("min_tokens", message))
}

/// What clients call a model that nobody named: its directory, or its file without `.gguf`.
fn default_id(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The context length: the model's own, or less if so configured.
fn max_model_len(config: &EngineConfig, shape: &ModelShape) -> Result<usize, LoadError> {
    let own = shape.max_position_embeddings;
    match config.max_model_len {
        Some(0) => Err(LoadError::Config("--max-model-len is 0; it must be at least 1".to_owned())),
        Some(asked) if asked > own => Err(LoadError::Config(format!(
            "--max-model-len is {asked}, but the model's context length is {own} tokens"
        ))),
        asked => Ok(asked.unwrap_or(own)),
    }
}

fn new_admission(config: &EngineConfig, num_blocks: usize) -> Admission {
    let blocks = Arc::new(BlockManager::new(num_blocks, config.block_size, config.enable_prefix_cache));
    let limits = QueueLimits {
        max_waiting: config.max_waiting_requests,
        max_num_seqs: config.max_num_seqs,
        timeout: config.queue_timeout,
    };
    Admission::new(blocks, limits)
}

fn new_scheduler(config: &EngineConfig) -> Scheduler {
    Scheduler::new(SchedulerConfig {
        max_num_seqs: config.max_num_seqs,
        max_num_batched_tokens: config.max_num_batched_tokens,
        priority_aging: config.priority_aging,
    })
}

/// Starts the engine's thread; the receiver closes when it has ended.
fn spawn_engine(engine: Engine, admission: &Admission) -> Result<watch::Receiver<()>, LoadError> {
    let (ending, engine_ended) = watch::channel(());
    let thread = std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || {
            let _ending = ending;
            engine.run();
        })
        .map_err(|error| LoadError::Config(format!("cannot start the engine thread: {error}")))?;
    admission.attach(thread.thread().clone());
    Ok(engine_ended)
}
