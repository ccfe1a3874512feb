//! What clients say of a request besides what it asks for: labels for OpenAI's dashboards and billing. They are checked,
//! change nothing here, and are told back where OpenAI tells them back.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::ApiError;

/// Pairs of metadata, and characters of their keys and values: OpenAI's limits. Responses keep them.
const MAX_METADATA_PAIRS: usize = 16;
const MAX_METADATA_KEY_CHARS: usize = 64;
const MAX_METADATA_VALUE_CHARS: usize = 512;

/// Whoever asked, in the client's words.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Labels {
    /// Who the client asks for.
    pub user: Option<String>,
    /// The newer name of `user`.
    pub safety_identifier: Option<String>,
    /// Prompts are found in the cache by what they say, whatever this is; `cache_salt` keeps them apart.
    pub prompt_cache_key: Option<String>,
    /// Pairs of the client's own: keys of at most 64 characters, values of at most 512.
    #[schemars(extend("maxProperties" = MAX_METADATA_PAIRS))]
    pub metadata: Option<BTreeMap<String, String>>,
    /// There is one tier, which answers call `default`.
    pub service_tier: Option<ServiceTier>,
}

/// The tiers that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ServiceTier {
    Auto,
    Default,
    Flex,
    Scale,
    Priority,
}

impl Labels {
    /// # Errors
    /// [`ApiError::Invalid`] for metadata beyond the limits.
    pub fn check(&self) -> Result<(), ApiError> {
        let Some(metadata) = &self.metadata else { return Ok(()) };
        if metadata.len() > MAX_METADATA_PAIRS {
            let message = format!("`metadata` has {} pairs; the limit is {MAX_METADATA_PAIRS}", metadata.len());
            return Err(ApiError::invalid("metadata", message));
        }
        let is_long = |(key, value): (&String, &String)| {
            key.chars().count() > MAX_METADATA_KEY_CHARS || value.chars().count() > MAX_METADATA_VALUE_CHARS
        };
        if metadata.iter().any(is_long) {
            return Err(ApiError::invalid(
                "metadata",
                format!(
                    "`metadata`: keys have at most {MAX_METADATA_KEY_CHARS} characters and values \
                     {MAX_METADATA_VALUE_CHARS}"
                ),
            ));
        }
        Ok(())
    }

    /// The tier that served the request, for answers to clients who asked for one.
    pub fn served_tier(&self) -> Option<ServiceTier> {
        self.service_tier.map(|_| ServiceTier::Default)
    }
}
