//! The sampling fields that OpenAI does not have: names and "off" values are those that clients of other servers write.

use mistralrs_core::request::{DryParams, XtcParams};
use mistralrs_core::sampling::{MAX_DRY_BREAKER_BYTES, MAX_DRY_BREAKERS, MAX_DRY_WINDOW};

use super::options::{GenerateOptions, in_range};
use crate::error::ApiError;

/// Factors of DRY beyond which a repetition is as good as banned.
pub(super) const MAX_DRY_FACTOR: f32 = 100.0;

impl GenerateOptions {
    /// At most `max_tokens`, where the request says how many these are; else the model's limits decide.
    pub(super) fn min_tokens(&self) -> Result<usize, ApiError> {
        match (self.min_tokens.unwrap_or(0), self.max_tokens()?) {
            (min_tokens, Some(max_tokens)) if min_tokens > max_tokens => Err(ApiError::invalid(
                "min_tokens",
                format!("`min_tokens` is {min_tokens}; expected 0 to `max_tokens`, which is {max_tokens}"),
            )),
            (min_tokens, _) => Ok(min_tokens),
        }
    }

    /// 0 and less are how clients of other servers write "off".
    pub(super) fn top_n_sigma(&self) -> Result<Option<f32>, ApiError> {
        let num_deviations = in_range("top_n_sigma", self.top_n_sigma, f32::MIN, 1e6)?;
        Ok(num_deviations.filter(|&num_deviations| num_deviations > 0.0))
    }

    pub(super) fn xtc(&self) -> Result<Option<XtcParams>, ApiError> {
        let defaults = XtcParams::default();
        let probability = in_range("xtc_probability", self.xtc_probability, 0.0, 1.0)?.unwrap_or(0.0);
        let threshold = in_range("xtc_threshold", self.xtc_threshold, 0.0, 1.0)?.unwrap_or(defaults.threshold);
        Ok((probability > 0.0).then_some(XtcParams { probability, threshold }))
    }

    /// On if `dry_multiplier` is more than 0.
    pub(super) fn dry(&self) -> Result<Option<DryParams>, ApiError> {
        let defaults = DryParams::default();
        let params = DryParams {
            multiplier: in_range("dry_multiplier", self.dry_multiplier, 0.0, MAX_DRY_FACTOR)?.unwrap_or(0.0),
            base: in_range("dry_base", self.dry_base, 1.0, MAX_DRY_FACTOR)?.unwrap_or(defaults.base),
            allowed_length: dry_tokens("dry_allowed_length", self.dry_allowed_length)?
                .unwrap_or(defaults.allowed_length),
            window: dry_tokens("dry_penalty_last_n", look_back("dry_penalty_last_n", self.dry_penalty_last_n)?)?
                .unwrap_or(defaults.window),
            sequence_breakers: self.dry_sequence_breakers()?.unwrap_or(defaults.sequence_breakers),
        };
        Ok((params.multiplier > 0.0 && self.dry_penalty_last_n != Some(0)).then_some(params))
    }

    fn dry_sequence_breakers(&self) -> Result<Option<Vec<String>>, ApiError> {
        let Some(breakers) = &self.dry_sequence_breakers else { return Ok(None) };
        let invalid = |message| Err(ApiError::invalid("dry_sequence_breakers", message));
        if breakers.len() > MAX_DRY_BREAKERS {
            let found = breakers.len();
            return invalid(format!("`dry_sequence_breakers` has {found} strings; the limit is {MAX_DRY_BREAKERS}"));
        }
        if breakers.iter().any(|breaker| breaker.is_empty() || breaker.len() > MAX_DRY_BREAKER_BYTES) {
            return invalid(format!("`dry_sequence_breakers`: each string has 1 to {MAX_DRY_BREAKER_BYTES} bytes"));
        }
        Ok(Some(breakers.clone()))
    }
}

/// A number of tokens to look back; -1 is how clients of other servers write "all".
pub(super) fn look_back(name: &'static str, value: Option<i64>) -> Result<Option<usize>, ApiError> {
    match value {
        None | Some(-1) => Ok(None),
        Some(tokens) => usize::try_from(tokens).map(Some).map_err(|_| {
            ApiError::invalid(name, format!("`{name}` is {tokens}; expected at least 0, or -1 for all tokens"))
        }),
    }
}

fn dry_tokens(name: &'static str, value: Option<usize>) -> Result<Option<usize>, ApiError> {
    match value {
        // For the window 0 means "off", which the caller knows.
        Some(0) if name == "dry_penalty_last_n" => Ok(None),
        Some(tokens) if !(1..=MAX_DRY_WINDOW).contains(&tokens) => {
            Err(ApiError::invalid(name, format!("`{name}` is {tokens}; expected 1 to {MAX_DRY_WINDOW} tokens")))
        }
        value => Ok(value),
    }
}
