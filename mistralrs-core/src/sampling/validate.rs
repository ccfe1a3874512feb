//! Ranges of sampling parameters, checked once, before a request is submitted.

use std::ops::RangeInclusive;

use super::MAX_DRY_WINDOW;
use crate::error::RequestError;
use crate::request::{DryParams, SamplingParams};

/// OpenAI's limit; each costs a lookup and a line of JSON per token.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// Over 2, OpenAI's limit, text is noise, but local models are asked for it; over this nothing changes any more.
const MAX_TEMPERATURE: f32 = 100.0;
/// A factor beyond which a repeated token is as good as banned.
const MAX_REPETITION_PENALTY: f32 = 100.0;
/// OpenAI's range for `frequency_penalty` and `presence_penalty`.
const PENALTY_RANGE: RangeInclusive<f32> = -2.0..=2.0;
/// Sequence breakers of DRY: each is compared with every byte of prompt and output.
pub const MAX_DRY_BREAKERS: usize = 64;
/// Length of one sequence breaker: more than any role marker of a chat template.
pub const MAX_DRY_BREAKER_BYTES: usize = 256;
/// Factors of DRY beyond which a repetition is as good as banned.
const MAX_DRY_FACTOR: f32 = 100.0;
/// Standard deviations: beyond this no logit is.
const MAX_SIGMAS: f32 = 1e6;
/// OpenAI's range: its ends ban or force a token.
const BIAS_RANGE: RangeInclusive<f32> = -100.0..=100.0;

impl SamplingParams {
    /// Checks every parameter for a model of `vocab_size` tokens.
    ///
    /// # Errors
    /// [`RequestError::Invalid`] for the first that is out of its range, with its name, value and range.
    pub fn validate(&self, vocab_size: usize) -> Result<(), RequestError> {
        check_range("temperature", self.temperature, 0.0..=MAX_TEMPERATURE)?;
        if self.top_k == Some(0) {
            return Err(invalid("top_k", "0", "at least 1"));
        }
        check_positive("top_p", self.top_p, 1.0)?;
        check_range("min_p", self.min_p, 0.0..=1.0)?;
        if let Some(num_deviations) = self.top_n_sigma {
            check_positive("top_n_sigma", num_deviations, MAX_SIGMAS)?;
        }
        check_positive("typical_p", self.typical_p, 1.0)?;
        if let Some(xtc) = self.xtc {
            check_range("xtc_probability", xtc.probability, 0.0..=1.0)?;
            check_range("xtc_threshold", xtc.threshold, 0.0..=1.0)?;
        }
        check_positive("repetition_penalty", self.repetition_penalty, MAX_REPETITION_PENALTY)?;
        check_range("frequency_penalty", self.frequency_penalty, PENALTY_RANGE)?;
        check_range("presence_penalty", self.presence_penalty, PENALTY_RANGE)?;
        self.dry.as_ref().map_or(Ok(()), DryParams::validate)?;
        for (&token_id, &bias) in &self.logit_bias {
            if token_id as usize >= vocab_size {
                let expected = format!("a token id below {vocab_size}");
                return Err(invalid("logit_bias", &format!("token {token_id}"), &expected));
            }
            check_range("logit_bias", bias, BIAS_RANGE)?;
        }
        Ok(())
    }
}

impl DryParams {
    fn validate(&self) -> Result<(), RequestError> {
        check_range("dry_multiplier", self.multiplier, 0.0..=MAX_DRY_FACTOR)?;
        check_range("dry_base", self.base, 1.0..=MAX_DRY_FACTOR)?;
        for (param, tokens) in [("dry_allowed_length", self.allowed_length), ("dry_penalty_last_n", self.window)] {
            if !(1..=MAX_DRY_WINDOW).contains(&tokens) {
                return Err(invalid(param, &tokens.to_string(), &format!("between 1 and {MAX_DRY_WINDOW} tokens")));
            }
        }
        let num_breakers = self.sequence_breakers.len();
        if num_breakers > MAX_DRY_BREAKERS {
            let expected = format!("at most {MAX_DRY_BREAKERS}");
            return Err(invalid("dry_sequence_breakers", &format!("{num_breakers} strings"), &expected));
        }
        let mut lengths = self.sequence_breakers.iter().map(String::len);
        match lengths.find(|length| !(1..=MAX_DRY_BREAKER_BYTES).contains(length)) {
            None => Ok(()),
            Some(length) => {
                let expected = format!("of 1 to {MAX_DRY_BREAKER_BYTES} bytes each");
                Err(invalid("dry_sequence_breakers", &format!("a string of {length} bytes"), &expected))
            }
        }
    }
}

/// Checks how many likeliest tokens a request wants reported at each position.
///
/// # Errors
/// [`RequestError::Invalid`] over [`MAX_TOP_LOGPROBS`].
pub fn validate_logprobs(num_top_logprobs: Option<usize>) -> Result<(), RequestError> {
    match num_top_logprobs {
        Some(num) if num > MAX_TOP_LOGPROBS => {
            Err(invalid("top_logprobs", &num.to_string(), &format!("at most {MAX_TOP_LOGPROBS}")))
        }
        _ => Ok(()),
    }
}

fn check_range(param: &'static str, value: f32, range: RangeInclusive<f32>) -> Result<(), RequestError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(invalid(param, &value.to_string(), &format!("between {} and {}", range.start(), range.end())))
}

fn check_positive(param: &'static str, value: f32, max: f32) -> Result<(), RequestError> {
    if value > 0.0 && value <= max {
        return Ok(());
    }
    Err(invalid(param, &value.to_string(), &format!("greater than 0 and at most {max}")))
}

fn invalid(param: &'static str, found: &str, expected: &str) -> RequestError {
    RequestError::Invalid { param, message: format!("`{param}` is {found}; it must be {expected}") }
}
