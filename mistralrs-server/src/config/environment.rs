//! The process environment: read once, here and nowhere else.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::ConfigError;
use super::layers::set;

/// A copy of the environment, taken at start. Tests build their own.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Copies this process's environment; names and values that are not UTF-8 cannot be configuration and are left out.
    pub fn from_process() -> Self {
        let pairs = std::env::vars_os();
        Self(pairs.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect())
    }

    /// The value of `name`; an empty one counts as unset.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The same with `name` set to `value` where it is unset.
    #[cfg(feature = "http-mcp-stream")]
    #[must_use]
    pub fn or(mut self, name: &str, value: &str) -> Self {
        if self.get(name).is_none() {
            self.0.insert(name.to_owned(), value.to_owned());
        }
        self
    }

    /// The configuration file that the environment names.
    pub fn config_file(&self) -> Option<PathBuf> {
        self.get("MISTRALRS_CONFIG").map(PathBuf::from)
    }

    /// What the environment says about configuration keys, in the shape of the file.
    pub(super) fn overlay(&self) -> Result<Value, ConfigError> {
        let mut overlay = json!({});
        set(&mut overlay, "http_mcp.port", self.number::<u16>("MISTRALRS_HTTP_MCP_PORT", "a port number")?);
        if self.get("MISTRALRS_HTTP_MCP_PORT").is_some() {
            set(&mut overlay, "http_mcp.enabled", Some(true));
        }
        let keys = self.get("MISTRALRS_HTTP_MCP_AUTH_KEY");
        let keys = keys.map(|keys| keys.split(',').map(|key| key.trim().to_owned()).collect::<Vec<_>>());
        set(&mut overlay, "http_mcp.api_keys", keys);
        let rate = self.number::<u32>("MISTRALRS_HTTP_MCP_RATE_LIMIT", "requests a second, as a whole number")?;
        set(&mut overlay, "http_mcp.rate_limit.global", rate);
        set(&mut overlay, "server.log", self.get("RUST_LOG"));
        // 0 means the default, as it does to rayon.
        let threads = self.number::<usize>("RAYON_NUM_THREADS", "a number of threads")?.filter(|threads| *threads > 0);
        set(&mut overlay, "server.threads", threads);
        Ok(overlay)
    }

    /// Where and how the model hub is reached.
    pub(super) fn hub(&self) -> HubEnvironment {
        let home = self.get("HOME").map(PathBuf::from).unwrap_or_default();
        let cache = self.get("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
        let hf_home = self.get("HF_HOME").map_or_else(|| cache.join("huggingface"), PathBuf::from);
        let cache_dir = self.get("HF_HUB_CACHE").or_else(|| self.get("HUGGINGFACE_HUB_CACHE"));
        HubEnvironment {
            cache_dir: cache_dir.map_or_else(|| hf_home.join("hub"), PathBuf::from),
            token_file: self.get("HF_TOKEN_PATH").map_or_else(|| hf_home.join("token"), PathBuf::from),
            token: self.get("HF_TOKEN").map(str::to_owned),
            endpoint: self.get("HF_ENDPOINT").map(str::to_owned),
            offline: self.get("HF_HUB_OFFLINE").is_some_and(is_truthy),
        }
    }

    fn number<T: std::str::FromStr>(&self, name: &'static str, wanted: &str) -> Result<Option<T>, ConfigError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        text.trim()
            .parse()
            .map(Some)
            .map_err(|_| ConfigError::Environment { variable: name, message: format!("`{text}` is not {wanted}") })
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

/// The environment variables of the model hub, as its own tools read them.
#[derive(Debug, Clone)]
pub(super) struct HubEnvironment {
    pub cache_dir: PathBuf,
    pub token_file: PathBuf,
    pub token: Option<String>,
    pub endpoint: Option<String>,
    pub offline: bool,
}

/// The words that the hub's Python library takes for true.
fn is_truthy(value: &str) -> bool {
    ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str())
}
