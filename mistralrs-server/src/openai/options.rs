//! The fields that chat and text completions share: how much, how sampled, when stopped.

use std::collections::BTreeMap;

use mistralrs_core::model::MAX_CHOICES;
use mistralrs_core::request::MAX_CACHE_SALT_BYTES;
use mistralrs_core::sampling::{MAX_DRY_BREAKER_BYTES, MAX_DRY_BREAKERS, MAX_DRY_WINDOW};
use mistralrs_core::{Priority, SamplingParams, StopConditions};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::sampling_options::{MAX_DRY_FACTOR, look_back};
use crate::error::ApiError;
use crate::extract::Object;

/// Stop strings of one request: each is looked for in every piece of text.
pub(crate) const MAX_STOP_STRINGS: usize = 16;

/// Bytes of one stop string: that much text may have to be held back.
pub(crate) const MAX_STOP_STRING_BYTES: usize = 1024;

/// Stop tokens of one request.
const MAX_STOP_TOKEN_IDS: usize = 256;

/// Likeliest tokens that can be asked for at each position, as many as OpenAI gives.
pub(super) const MAX_TOP_LOGPROBS: usize = 20;

/// Entries of a logit bias; OpenAI's limit.
const MAX_LOGIT_BIAS: usize = 1024;

/// What both endpoints take. Limits stand here as clients read them in the API's document; the methods below hold to them.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct GenerateOptions {
    /// A name of `GET /v1/models`, or `default`.
    pub model: Option<String>,
    /// Whether the answer comes as server-sent events.
    pub stream: Option<bool>,
    /// For streams only.
    pub stream_options: Option<Object<StreamOptions>>,
    /// Answers per prompt.
    #[schemars(range(min = 1, max = MAX_CHOICES))]
    pub n: Option<usize>,
    /// Tokens of an answer at most.
    #[schemars(range(min = 1))]
    pub max_tokens: Option<usize>,
    /// The newer name of `max_tokens`; it wins where both are given.
    #[schemars(range(min = 1))]
    pub max_completion_tokens: Option<usize>,
    /// Tokens before the answer may end.
    pub min_tokens: Option<usize>,
    /// 0: always the likeliest token.
    #[schemars(range(min = 0.0))]
    pub temperature: Option<f32>,
    /// The likeliest tokens whose probabilities add up to this.
    #[schemars(extend("exclusiveMinimum" = 0), range(max = 1.0))]
    pub top_p: Option<f32>,
    /// That many of the likeliest tokens; 0 and -1: all.
    #[schemars(range(min = -1))]
    pub top_k: Option<i64>,
    /// Tokens at least this likely, relative to the likeliest.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_p: Option<f32>,
    /// Tokens within that many standard deviations of the best logit; 0 and less: off.
    pub top_n_sigma: Option<f32>,
    /// Tokens of about the expected surprise, whose probabilities add up to this.
    #[schemars(extend("exclusiveMinimum" = 0), range(max = 1.0))]
    pub typical_p: Option<f32>,
    /// How often all but the least likely of the tokens above `xtc_threshold` are left out.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub xtc_probability: Option<f32>,
    /// See `xtc_probability`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub xtc_threshold: Option<f32>,
    /// Divides the logits of tokens that are there already; 1: off.
    #[serde(alias = "repeat_penalty")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub repetition_penalty: Option<f32>,
    /// Tokens that `repetition_penalty` looks back; -1: all.
    #[schemars(range(min = -1))]
    pub repeat_last_n: Option<i64>,
    /// Taken off a token's logit for each time it is there.
    #[schemars(range(min = -2.0, max = 2.0))]
    pub frequency_penalty: Option<f32>,
    /// Taken off the logit of a token that is there.
    #[schemars(range(min = -2.0, max = 2.0))]
    pub presence_penalty: Option<f32>,
    /// How strongly DRY keeps sequences from being repeated; 0: off.
    #[schemars(range(min = 0.0, max = MAX_DRY_FACTOR))]
    pub dry_multiplier: Option<f32>,
    /// By how much DRY grows with each repeated token.
    #[schemars(range(min = 1.0, max = MAX_DRY_FACTOR))]
    pub dry_base: Option<f32>,
    /// Repeated tokens that DRY lets pass.
    #[schemars(range(min = 1, max = MAX_DRY_WINDOW))]
    pub dry_allowed_length: Option<usize>,
    /// Tokens that DRY looks back; 0: off; -1: its own limit.
    #[schemars(range(min = -1, max = MAX_DRY_WINDOW))]
    pub dry_penalty_last_n: Option<i64>,
    /// Strings that no repetition reaches across.
    #[schemars(length(max = MAX_DRY_BREAKERS), inner(length(min = 1, max = MAX_DRY_BREAKER_BYTES)))]
    pub dry_sequence_breakers: Option<Vec<String>>,
    /// Token ids with what is added to their logits, -100 to 100.
    #[schemars(extend("maxProperties" = MAX_LOGIT_BIAS))]
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// The same seed, the same answer.
    pub seed: Option<Seed>,
    /// Texts that end the answer, themselves left out.
    pub stop: Option<Stop>,
    /// Tokens that end the answer.
    #[schemars(length(max = MAX_STOP_TOKEN_IDS))]
    pub stop_token_ids: Option<Vec<u32>>,
    /// Goes on where the model would end.
    pub ignore_eos: Option<bool>,
    /// Smaller numbers are served first.
    #[schemars(range(min = Priority::MIN, max = Priority::MAX))]
    pub priority: Option<i64>,
    /// Keeps the prompt's cached blocks apart from those of requests with another salt.
    #[schemars(length(min = 1, max = MAX_CACHE_SALT_BYTES))]
    pub cache_salt: Option<String>,
    /// Whether the answer is kept; chat and text completions never are.
    pub store: Option<bool>,
    /// Everything else in the body.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// What a stream carries besides text.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct StreamOptions {
    /// Whether the last chunk tells what was used.
    #[serde(default)]
    pub include_usage: Option<bool>,
}

/// Whether the last chunk of a stream tells what was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UsageReport {
    Omit,
    Include,
}

/// A whole number; negative ones count as well.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a whole number of at most 64 bits")]
pub(crate) enum Seed {
    Unsigned(u64),
    Signed(i64),
}

/// One stop string or several.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub(crate) enum Stop {
    One(#[schemars(length(min = 1, max = MAX_STOP_STRING_BYTES))] String),
    Many(#[schemars(length(max = MAX_STOP_STRINGS), inner(length(min = 1, max = MAX_STOP_STRING_BYTES)))] Vec<String>),
}

/// Fields that would change the answer and that this version does not serve. Taking them in silence would be a lie.
pub(crate) const REFUSED: &[(&str, &str)] = &[
    ("grammar", "grammars are not supported yet"),
    ("guided_json", "constrained decoding is not supported yet"),
    ("guided_regex", "constrained decoding is not supported yet"),
    ("guided_choice", "constrained decoding is not supported yet"),
    ("guided_grammar", "constrained decoding is not supported yet"),
    ("structured_outputs", "constrained decoding is not supported yet"),
    ("adapter", "adapters are not supported yet"),
    ("adapters", "adapters are not supported yet"),
    ("best_of", "only /v1/completions ranks its choices"),
    ("use_beam_search", "beam search is not supported"),
    ("modalities", "only text is supported"),
    ("audio", "only text is supported"),
    ("functions", "function calling is not supported yet"),
    ("web_search_options", "web search is not supported"),
    ("suffix", "filling in the middle is not supported yet"),
];

impl GenerateOptions {
    /// Refuses what no endpoint can honour. `unread_elsewhere` is the rest of the endpoint's own fields.
    pub fn check_rest(&self, unread_elsewhere: &Map<String, Value>) -> Result<(), ApiError> {
        // What the endpoint itself reads is its own to check.
        for (name, value) in self.rest.iter().filter(|(name, _)| unread_elsewhere.contains_key(*name)) {
            match REFUSED.iter().find(|(refused, _)| refused == name) {
                Some((_, reason)) if !is_neutral(name, value) => {
                    return Err(ApiError::invalid(name.as_str(), format!("`{name}`: {reason}")));
                }
                Some(_) => {}
                // As with OpenAI's, an unknown field is no error.
                None => tracing::debug!(field = name, "an unknown field is ignored"),
            }
        }
        Ok(())
    }

    /// Refuses what the completion endpoints cannot honour.
    pub fn check(&self, unread_elsewhere: &Map<String, Value>) -> Result<(), ApiError> {
        self.check_rest(unread_elsewhere)?;
        if self.stream_options.is_some() && !self.wants_stream() {
            return Err(ApiError::invalid(
                "stream_options",
                "`stream_options` is for requests with `\"stream\": true`",
            ));
        }
        if self.store == Some(true) {
            return Err(ApiError::invalid("store", "`store`: this server keeps no answers"));
        }
        Ok(())
    }

    pub fn wants_stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    pub fn usage_report(&self) -> UsageReport {
        match self.stream_options.as_ref().and_then(|options| options.0.include_usage) {
            Some(true) => UsageReport::Include,
            _ => UsageReport::Omit,
        }
    }

    pub fn num_choices(&self) -> Result<usize, ApiError> {
        let n = self.n.unwrap_or(1);
        if (1..=MAX_CHOICES).contains(&n) {
            Ok(n)
        } else {
            Err(ApiError::invalid("n", format!("`n` is {n}; expected 1 to {MAX_CHOICES}")))
        }
    }

    /// The newer name wins where both are given.
    pub fn max_tokens(&self) -> Result<Option<usize>, ApiError> {
        let (name, value) = match self.max_completion_tokens {
            Some(value) => ("max_completion_tokens", Some(value)),
            None => ("max_tokens", self.max_tokens),
        };
        match value {
            Some(0) => Err(ApiError::invalid(name, format!("`{name}` is 0; expected at least 1"))),
            value => Ok(value),
        }
    }

    pub fn sampling(&self) -> Result<SamplingParams, ApiError> {
        let defaults = SamplingParams::default();
        Ok(SamplingParams {
            temperature: in_range("temperature", self.temperature, 0.0, f32::MAX)?.unwrap_or(defaults.temperature),
            top_k: top_k(self.top_k)?,
            top_p: in_range("top_p", self.top_p, f32::MIN_POSITIVE, 1.0)?.unwrap_or(defaults.top_p),
            min_p: in_range("min_p", self.min_p, 0.0, 1.0)?.unwrap_or(defaults.min_p),
            top_n_sigma: self.top_n_sigma()?,
            typical_p: in_range("typical_p", self.typical_p, f32::MIN_POSITIVE, 1.0)?.unwrap_or(defaults.typical_p),
            xtc: self.xtc()?,
            repetition_penalty: in_range("repetition_penalty", self.repetition_penalty, f32::MIN_POSITIVE, f32::MAX)?
                .unwrap_or(defaults.repetition_penalty),
            repetition_window: look_back("repeat_last_n", self.repeat_last_n)?,
            frequency_penalty: in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?
                .unwrap_or(defaults.frequency_penalty),
            presence_penalty: in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)?
                .unwrap_or(defaults.presence_penalty),
            dry: self.dry()?,
            logit_bias: self.logit_bias.as_ref().map_or_else(|| Ok(BTreeMap::new()), logit_bias)?,
            seed: self.seed.map(|seed| match seed {
                Seed::Unsigned(seed) => seed,
                Seed::Signed(seed) => seed.cast_unsigned(),
            }),
        })
    }

    /// As the engine's own type, which knows the range.
    pub fn priority(&self) -> Result<Priority, ApiError> {
        Ok(Priority::new(self.priority.unwrap_or_default())?)
    }

    pub fn stop(&self) -> Result<StopConditions, ApiError> {
        let strings = match &self.stop {
            None => Vec::new(),
            Some(Stop::One(string)) => vec![string.clone()],
            Some(Stop::Many(strings)) => strings.clone(),
        };
        check_stop_strings("stop", &strings)?;
        let token_ids = self.stop_token_ids.clone().unwrap_or_default();
        if token_ids.len() > MAX_STOP_TOKEN_IDS {
            return Err(ApiError::invalid(
                "stop_token_ids",
                format!("`stop_token_ids` has {} ids; the limit is {MAX_STOP_TOKEN_IDS}", token_ids.len()),
            ));
        }
        Ok(StopConditions {
            strings,
            token_ids,
            ignore_eos: self.ignore_eos.unwrap_or(false),
            min_tokens: self.min_tokens()?,
        })
    }
}

/// Refuses the fields of `rest` that are in `refused` (name and reason) and ask for something.
pub(crate) fn refuse(rest: &Map<String, Value>, refused: &[(&str, &str)]) -> Result<(), ApiError> {
    for (name, value) in rest {
        if let Some((_, reason)) = refused.iter().find(|(refused, _)| refused == name)
            && !is_neutral(name, value)
        {
            return Err(ApiError::invalid(name.as_str(), format!("`{name}`: {reason}")));
        }
    }
    Ok(())
}

/// Refuses too many stop strings, empty ones and long ones; `name` is the field they are in.
pub(crate) fn check_stop_strings(name: &str, strings: &[String]) -> Result<(), ApiError> {
    if strings.len() > MAX_STOP_STRINGS {
        let message = format!("`{name}` has {} strings; the limit is {MAX_STOP_STRINGS}", strings.len());
        return Err(ApiError::invalid(name, message));
    }
    if strings.iter().any(|string| string.is_empty() || string.len() > MAX_STOP_STRING_BYTES) {
        return Err(ApiError::invalid(name, format!("`{name}`: each string has 1 to {MAX_STOP_STRING_BYTES} bytes")));
    }
    Ok(())
}

/// Values that ask for nothing: clients fill in every field they know.
fn is_neutral(name: &str, value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty() || (name == "modalities" && items.iter().all(|item| item == "text")),
        Value::Object(entries) => entries.is_empty(),
        Value::Number(number) => number.as_f64() == Some(if name == "best_of" { 1.0 } else { 0.0 }),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) => false,
    }
}

pub(super) fn in_range(name: &'static str, value: Option<f32>, min: f32, max: f32) -> Result<Option<f32>, ApiError> {
    let Some(value) = value else { return Ok(None) };
    if value.is_finite() && (min..=max).contains(&value) {
        return Ok(Some(value));
    }
    let expected = match (min, max) {
        (f32::MIN_POSITIVE, f32::MAX) => "more than 0".to_owned(),
        (f32::MIN, max) => format!("at most {max}"),
        (f32::MIN_POSITIVE, max) => format!("more than 0 and at most {max}"),
        (min, f32::MAX) => format!("at least {min}"),
        (min, max) => format!("{min} to {max}"),
    };
    Err(ApiError::invalid(name, format!("`{name}` is {value}; expected {expected}")))
}

/// 0 and -1 are how clients of other servers write "all".
fn top_k(value: Option<i64>) -> Result<Option<usize>, ApiError> {
    match value {
        None | Some(0 | -1) => Ok(None),
        Some(k) => usize::try_from(k).map(Some).map_err(|_| {
            ApiError::invalid("top_k", format!("`top_k` is {k}; expected at least 1, or 0 or -1 for all"))
        }),
    }
}

fn logit_bias(biases: &BTreeMap<String, f32>) -> Result<BTreeMap<u32, f32>, ApiError> {
    if biases.len() > MAX_LOGIT_BIAS {
        return Err(ApiError::invalid(
            "logit_bias",
            format!("`logit_bias` has {} entries; the limit is {MAX_LOGIT_BIAS}", biases.len()),
        ));
    }
    let entries = biases.iter().map(|(token, bias)| {
        let token_id = token
            .parse()
            .map_err(|_| ApiError::invalid("logit_bias", format!("`logit_bias`: `{token}` is not a token id")))?;
        if (-100.0..=100.0).contains(bias) {
            Ok((token_id, *bias))
        } else {
            Err(ApiError::invalid("logit_bias", format!("`logit_bias.{token}` is {bias}; expected -100 to 100")))
        }
    });
    entries.collect()
}
