//! Configuration: defaults, then the file, then the environment, then flags; the later wins.
//!
//! [`Configuration::load`] reads and merges the layers into one [`ConfigFile`], [`Configuration::settings`] checks it as a
//! whole and gives what the process runs with. Nothing is bound or loaded before both have succeeded.

mod environment;
mod error;
mod file;
#[cfg(feature = "http-mcp-stream")]
mod gateway;
mod http_mcp;
mod interpolate;
mod layers;
#[cfg(not(feature = "http-mcp-stream"))]
mod no_gateway;
mod print;
mod settings;
mod source;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde_json::Value;

use source::SourceFile;

pub use environment::Environment;
pub use error::ConfigError;
#[cfg(feature = "http-mcp-stream")]
pub(crate) use error::nearest;
pub use file::{ConfigFile, KvCacheType, LogFormat, ModelFormat, PagedAttention, PoolingType, TokenSource};
pub use http_mcp::{HttpMcpConfig, RateLimitConfig};
#[cfg(feature = "http-mcp-stream")]
pub(crate) use interpolate::unset_variables;
pub(crate) use layers::set;
pub use print::json_schema;
#[cfg(feature = "http-mcp-stream")]
pub use settings::McpSettings;
pub use settings::{Cors, HubSettings, ModelSelector, ModelSettings, ServerSettings, Settings, StoreLimits};

/// Where configuration comes from besides the environment.
#[derive(Debug, Default)]
pub struct Sources {
    /// The configuration file (`--config`); otherwise the environment may name one.
    pub config: Option<PathBuf>,
    /// A file of upstream MCP servers in any of the known formats (`--mcp-config`).
    pub mcp_config: Option<PathBuf>,
    /// What the flags say, in the shape of the file.
    pub flags: Value,
}

/// All layers, merged and typed, not yet checked against each other.
#[derive(Debug)]
pub struct Configuration {
    file: ConfigFile,
    /// Where `file` was read, if it was: named in errors about its gateway.
    #[cfg_attr(not(feature = "http-mcp-stream"), expect(dead_code, reason = "there is no gateway"))]
    source: Option<SourceFile>,
    /// Whether keys of the MCP endpoint were given as flags, which would be in vain without the endpoint.
    has_key_flag: bool,
    /// The file of `--mcp-config`, parsed and interpolated.
    mcp_config: Option<(SourceFile, Value)>,
    hub: environment::HubEnvironment,
    environment: Environment,
    /// Names and values of variables that strings were filled with, to be hidden when printing.
    interpolated: Vec<(String, String)>,
}

impl Configuration {
    /// Reads and merges all layers.
    ///
    /// # Errors
    /// A file that cannot be read or parsed, an unknown key (with the nearest known one), a wrong type, a variable that is
    /// not set: each with the file and the key, or the variable, that it is about.
    pub fn load(sources: Sources, environment: Environment) -> Result<Self, ConfigError> {
        let mut interpolated = Vec::new();
        let mut layers = serde_json::to_value(ConfigFile::default()).expect("the defaults are plain values");
        let mut source = None;
        if let Some(path) = sources.config.or_else(|| environment.config_file()) {
            let (file, layer) = read_layer(&path, &environment, &mut interpolated)?;
            // On its own first, so that a complaint is about this file and nothing else.
            let _: ConfigFile = deserialize(|key| file.place(key), layer.clone())?;
            layers::merge(&mut layers, layer);
            source = Some(file);
        }
        layers::merge(&mut layers, environment.overlay()?);
        let has_key_flag = sources.flags.pointer("/http_mcp/api_keys").is_some();
        layers::merge(&mut layers, sources.flags);
        let mcp_config = match sources.mcp_config {
            Some(path) => Some(read_layer(&path, &environment, &mut interpolated)?),
            None => None,
        };
        Ok(Self {
            file: deserialize(|_| "flags and environment".to_owned(), layers)?,
            source,
            has_key_flag,
            mcp_config,
            hub: environment.hub(),
            environment,
            interpolated,
        })
    }
}

fn read_layer(
    path: &Path,
    environment: &Environment,
    interpolated: &mut Vec<(String, String)>,
) -> Result<(SourceFile, Value), ConfigError> {
    let (source, mut layer) = layers::read_file(path)?;
    let used = interpolate::interpolate(&mut layer, environment, &path.display().to_string());
    interpolated.extend(used.map_err(|error| match error {
        ConfigError::Interpolation { key, problem, .. } => {
            ConfigError::Interpolation { origin: source.place(&key), key, problem }
        }
        error => error,
    })?);
    Ok((source, layer))
}

/// Types a layer, turning what does not fit into an error with the key's path, after where `origin` says that it stands.
fn deserialize<T: serde::de::DeserializeOwned>(
    origin: impl Fn(&str) -> String,
    layer: Value,
) -> Result<T, ConfigError> {
    serde_path_to_error::deserialize(layer).map_err(|error| {
        let path = error.path().to_string();
        ConfigError::key(origin, &path, &error.into_inner().to_string())
    })
}
