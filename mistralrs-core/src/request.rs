//! What a caller asks for and what comes back: checked types, no tensors.

use std::collections::BTreeMap;

use crate::error::RequestError;
use crate::sampling::MAX_DRY_WINDOW;

/// One request for text: a prompt, how to sample, when to stop.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// What to continue.
    pub prompt: Prompt,
    /// How many independent continuations (`n`), each its own sequence. At least 1.
    pub num_choices: usize,
    /// Limit of generated tokens per choice; `None`: up to the model's context length.
    pub max_tokens: Option<usize>,
    /// How each token is picked.
    pub sampling: SamplingParams,
    /// What ends a choice besides its length.
    pub stop: StopConditions,
    /// `Some(k)`: report each token's log-probability and those of the k likeliest tokens.
    pub logprobs: Option<usize>,
    /// Where it stands in line.
    pub priority: Priority,
    /// Keeps its prompt's KV from being shared with requests of another salt: a tenant's name or a secret. `None`: shared
    /// with all that have none. At most [`MAX_CACHE_SALT_BYTES`].
    pub cache_salt: Option<String>,
}

/// One request for vectors: texts, and how long the vectors are.
#[derive(Debug, Clone)]
pub struct EmbedRequest {
    /// What to embed, each by itself: 1 to [`MAX_EMBED_INPUTS`](crate::MAX_EMBED_INPUTS).
    pub inputs: Vec<Prompt>,
    /// Numbers that are left of each vector, of the first ones; `None`: all. For models trained so that this is of use.
    pub dimensions: Option<usize>,
    /// Where its texts stand in line.
    pub priority: Priority,
    /// As in [`GenerateRequest::cache_salt`].
    pub cache_salt: Option<String>,
}

/// Bytes of a [`GenerateRequest::cache_salt`]: room for any id or digest, and no more to hash.
pub const MAX_CACHE_SALT_BYTES: usize = 256;

/// A request's class: lower is served earlier, 0 is where requests stand that say nothing.
///
/// Classes age, so that the lowest is served in the end: see
/// [`EngineConfig::priority_aging`](crate::EngineConfig::priority_aging).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Priority(i8);

impl Priority {
    /// The most urgent class. The range bounds how long the least urgent one can wait for it.
    pub const MIN: i64 = -100;
    /// The least urgent class.
    pub const MAX: i64 = 100;

    /// The class of this number.
    ///
    /// # Errors
    /// [`RequestError::Invalid`] outside of [`Self::MIN`] to [`Self::MAX`].
    pub fn new(priority: i64) -> Result<Self, RequestError> {
        match i8::try_from(priority) {
            Ok(class) if (Self::MIN..=Self::MAX).contains(&priority) => Ok(Self(class)),
            _ => Err(RequestError::Invalid {
                param: "priority",
                message: format!(
                    "`priority` is {priority}; expected {} to {}, where lower is served earlier",
                    Self::MIN,
                    Self::MAX
                ),
            }),
        }
    }

    /// Its number.
    pub fn get(self) -> i64 {
        self.0.into()
    }
}

/// The text or tokens to continue.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// Plain text; tokenized with the tokenizer's own special tokens (BOS).
    Text(String),
    /// Token ids, used as they are.
    Tokens(Vec<u32>),
    /// Chat messages, rendered by the model's own template.
    Chat(ChatPrompt),
}

/// Chat messages and what the template may want to know beside them.
#[derive(Debug, Clone, Default)]
pub struct ChatPrompt {
    /// OpenAI-shaped messages (`role`, `content`, …), passed to the template as they are.
    pub messages: Vec<serde_json::Value>,
    /// OpenAI-shaped tool definitions, for templates that render them.
    pub tools: Vec<serde_json::Value>,
    /// Further template variables (`enable_thinking`, …).
    pub template_kwargs: BTreeMap<String, serde_json::Value>,
}

/// How a token is picked from the logits. `Default` is the plain distribution (temperature 1).
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the k likeliest tokens; `None`: all.
    pub top_k: Option<usize>,
    /// Keep the smallest set whose probability reaches this; 1: all.
    pub top_p: f32,
    /// Drop tokens less likely than this fraction of the likeliest one's probability; 0: none.
    pub min_p: f32,
    /// Drop tokens whose logit is more than this many standard deviations below the largest one; `None`: none.
    pub top_n_sigma: Option<f32>,
    /// Keep the tokens that surprise as much as is to be expected, until their probability reaches this; 1: all.
    pub typical_p: f32,
    /// Now and then leave out the likeliest tokens.
    pub xtc: Option<XtcParams>,
    /// Divides (or multiplies, when negative) the logits of tokens seen in prompt or output; 1: off.
    pub repetition_penalty: f32,
    /// How many tokens of prompt and output `repetition_penalty` looks back; `None`: all.
    pub repetition_window: Option<usize>,
    /// Subtracted once per earlier occurrence in the output; 0: off.
    pub frequency_penalty: f32,
    /// Subtracted if the token occurred in the output; 0: off.
    pub presence_penalty: f32,
    /// Penalizes what would continue a repetition of several tokens.
    pub dry: Option<DryParams>,
    /// Added to the logits of single tokens.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Reproduces the request; `None`: a fresh random seed.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            top_n_sigma: None,
            typical_p: 1.0,
            xtc: None,
            repetition_penalty: 1.0,
            repetition_window: None,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            dry: None,
            logit_bias: BTreeMap::new(),
            seed: None,
        }
    }
}

/// XTC, "exclude top choices": of the tokens that are all likely enough, only the least likely one stays.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct XtcParams {
    /// How often that happens, 0 to 1.
    pub probability: f32,
    /// What is likely enough, as a probability.
    pub threshold: f32,
}

impl Default for XtcParams {
    fn default() -> Self {
        Self { probability: 0.5, threshold: 0.1 }
    }
}

/// DRY, "don't repeat yourself": a token that would make a repetition of `n` tokens one longer loses
/// `multiplier` · `base` ^ (`n` − `allowed_length`) from its logit.
#[derive(Debug, Clone, PartialEq)]
pub struct DryParams {
    /// The penalty at the allowed length.
    pub multiplier: f32,
    /// How it grows with each token, at least 1.
    pub base: f32,
    /// Repetitions of fewer tokens cost nothing.
    pub allowed_length: usize,
    /// How many tokens of prompt and output are searched for repetitions.
    pub window: usize,
    /// Text over which no repetition reaches.
    pub sequence_breakers: Vec<String>,
}

impl Default for DryParams {
    fn default() -> Self {
        Self {
            multiplier: 0.8,
            base: 1.75,
            allowed_length: 2,
            window: MAX_DRY_WINDOW,
            sequence_breakers: ["\n", ":", "\"", "*"].map(str::to_owned).into(),
        }
    }
}

/// What ends a choice besides its length.
#[derive(Debug, Clone, Default)]
pub struct StopConditions {
    /// Output ends before the first of these; none of it is sent.
    pub strings: Vec<String>,
    /// Output ends before the first of these tokens, besides the model's own end tokens.
    pub token_ids: Vec<u32>,
    /// Generate past the model's end tokens.
    pub ignore_eos: bool,
    /// Nothing but its length ends a choice before it has this many tokens: end and stop tokens are not picked, and
    /// stop strings that are complete by then are ordinary text.
    pub min_tokens: usize,
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// An end token, stop token or stop string.
    Stop,
    /// `max_tokens` or the model's context length.
    Length,
    /// The client left or cancelled.
    Cancelled,
    /// The engine failed this sequence; the message went out with [`TextEvent::Failed`].
    Error,
}

impl FinishReason {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 4] = [Self::Stop, Self::Length, Self::Cancelled, Self::Error];

    /// The metric label and, for `stop` and `length`, OpenAI's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Error => "error",
        }
    }
}

/// A token with its log-probability, natural logarithm, before temperature and truncation.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token_id: u32,
    /// Its text, lossy where the token is part of a character.
    pub text: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its log-probability.
    pub logprob: f32,
    /// The likeliest tokens at this position, likeliest first.
    pub top: Vec<TokenLogprob>,
}

/// What a [`TextStream`] yields. Every choice ends in `Finished`, `Refused` or `Failed`, exactly once.
#[derive(Debug, Clone)]
pub enum TextEvent {
    /// More text of one choice. `text` may be empty where only logprobs or token counts advance.
    Delta {
        /// Which of the `num_choices`.
        choice: usize,
        /// Complete characters only.
        text: String,
        /// Present if the request asked for logprobs: the tokens this text is made of.
        logprobs: Vec<TokenLogprob>,
    },
    /// The choice is complete.
    Finished {
        /// Which of the `num_choices`.
        choice: usize,
        /// Why.
        reason: FinishReason,
        /// The stop string that ended it, if one did.
        stop_string: Option<String>,
        /// Tokens generated, an end token included.
        num_completion_tokens: usize,
    },
    /// The choice was refused after it had waited: nothing of it ran.
    Refused {
        /// Which of the `num_choices`.
        choice: usize,
        /// Why.
        error: RequestError,
    },
    /// The choice failed; the message is fit for the client.
    Failed {
        /// Which of the `num_choices`.
        choice: usize,
        /// What happened.
        message: String,
    },
}

/// What the request used; complete after the last event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt, counted once.
    pub num_prompt_tokens: usize,
    /// Of these, how many came from the prefix cache.
    pub num_cached_tokens: usize,
    /// Tokens generated over all choices.
    pub num_completion_tokens: usize,
}

pub use crate::stream::TextStream;
