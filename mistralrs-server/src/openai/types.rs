//! What clients read: objects, ids and usage in OpenAI's shapes.

use std::time::{SystemTime, UNIX_EPOCH};

use mistralrs_core::request::Usage;
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

use super::labels::ServiceTier;

/// Tells clients that two answers came from the same build.
const SYSTEM_FINGERPRINT: &str = concat!("mistralrs-", env!("CARGO_PKG_VERSION"));

/// A random id such as `msg_…`.
pub(crate) fn fresh_id(prefix: &str) -> String {
    format!("{prefix}_{}", Uuid::new_v4().simple())
}

/// Seconds since 1970, now.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// What every object of one answer begins with.
#[derive(Debug, Clone)]
pub(super) struct AnswerId {
    pub id: String,
    pub created: u64,
    pub model: String,
    /// Told if the request named one.
    pub service_tier: Option<ServiceTier>,
}

impl AnswerId {
    /// A fresh id such as `chatcmpl-…`, made now.
    pub fn new(prefix: &str, model: &str) -> Self {
        Self {
            id: format!("{prefix}-{}", Uuid::new_v4().simple()),
            created: unix_seconds(),
            model: model.to_owned(),
            service_tier: None,
        }
    }

    /// An object of this answer, whole or one chunk.
    pub fn object<C: Serialize>(
        &self,
        object: &'static str,
        choices: Vec<C>,
        usage: UsageField,
    ) -> AnswerObject<'_, C> {
        AnswerObject {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            service_tier: self.service_tier,
            system_fingerprint: SYSTEM_FINGERPRINT,
            choices,
            usage,
        }
    }
}

/// An answer, or one chunk of it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "{C}Answer")]
pub(super) struct AnswerObject<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tier: Option<ServiceTier>,
    system_fingerprint: &'static str,
    choices: Vec<C>,
    #[serde(skip_serializing_if = "UsageField::is_absent")]
    #[schemars(with = "Option<UsageObject>")]
    usage: UsageField,
}

impl<C: Serialize> AnswerObject<'_, C> {
    /// The object as JSON text. Not by way of `Value`: that would widen the floats of log-probabilities.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("objects of answers are plain JSON")
    }
}

/// The `usage` key of an object.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
pub(super) enum UsageField {
    /// Not there at all.
    Absent,
    /// `null`: a chunk of a stream whose last chunk has it.
    Later,
    /// What was used.
    Known(UsageObject),
}

impl UsageField {
    fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

/// What an answer used, in tokens.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub(super) struct UsageObject {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptTokensDetails,
}

#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
struct PromptTokensDetails {
    cached_tokens: usize,
}

impl From<Usage> for UsageObject {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.num_prompt_tokens,
            completion_tokens: usage.num_completion_tokens,
            total_tokens: usage.num_prompt_tokens + usage.num_completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens: usage.num_cached_tokens },
        }
    }
}
