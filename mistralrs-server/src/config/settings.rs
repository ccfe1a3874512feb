//! From what people wrote to what the process runs with: everything that needs more than one key is checked here.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use mistralrs_core::config::{KvDType, PackedCacheConfig};
use mistralrs_core::{EngineConfig, Pooling};

use super::environment::HubEnvironment;
use super::file::{
    AuthMethod, CorsSection, DEFAULT_HTTP_MCP_PORT, EngineSection, HttpMcpSection, LogFormat, ModelFormat,
    PagedAttention, PoolingType, RateLimitSection, TokenSource,
};
use super::{ConfigError, Configuration, HttpMcpConfig, KvCacheType, RateLimitConfig};
use crate::listener::ConnectionLimits;

/// KV blocks larger than this waste more memory on the last block of each sequence than they save in bookkeeping.
const MAX_BLOCK_SIZE: usize = 256;

/// Guesses per sequence and step: each is a row of logits, and chains of right ones are rarely longer.
const MAX_DRAFT_TOKENS: usize = 64;

/// Each MCP session is two tasks and a few small queues; a client that wants more is better served without.
const DEFAULT_MAX_SESSIONS: usize = 1_024;

/// An MCP client that thinks for longer opens a new session without a word.
const DEFAULT_SESSION_IDLE: Duration = Duration::from_mins(30);

#[cfg(feature = "http-mcp-stream")]
const NOTHING_TO_SERVE: &str =
    "nothing to serve: name a model (`run -m MODEL`), or a port for the MCP gateway alone (`--http-mcp-port PORT`)";
#[cfg(not(feature = "http-mcp-stream"))]
const NOTHING_TO_SERVE: &str = "nothing to serve: name a model (`run -m MODEL`)";

/// What the process runs with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The main port and what is true of every port.
    pub server: ServerSettings,
    /// What is loaded; `None`: nothing, the gateway alone.
    pub model: Option<ModelSettings>,
    /// Whether lock metrics are collected.
    pub lock_metrics: bool,
    /// The MCP endpoint with its gateway.
    #[cfg(feature = "http-mcp-stream")]
    pub mcp: Option<McpSettings>,
}

/// The main port and what is true of every port.
#[derive(Clone)]
pub struct ServerSettings {
    /// Where the OpenAI API listens.
    pub addr: SocketAddr,
    /// Bearer tokens; empty: no authentication.
    pub api_keys: Vec<String>,
    /// Filter directives.
    pub log: String,
    /// Form of log lines.
    pub log_format: LogFormat,
    /// Threads that compute; `None`: one per physical core.
    pub threads: Option<NonZeroUsize>,
    /// Bytes of one request body.
    pub max_body_bytes: usize,
    /// What connections of one port may take.
    pub connections: ConnectionLimits,
    /// From a request's arrival to its last byte; `None`: no limit.
    pub request_timeout: Option<Duration>,
    /// How long running requests may go on after a signal.
    pub drain_timeout: Duration,
    /// Browsers of other origins; `None`: refused by the browser.
    pub cors: Option<Cors>,
    /// Path of the metrics page.
    pub metrics_endpoint: String,
    /// Which responses are kept.
    pub responses: StoreLimits,
}

/// Which responses are kept.
#[derive(Debug, Clone, Copy)]
pub struct StoreLimits {
    /// How many; 0: none.
    pub max_stored: usize,
    /// Bytes of all together.
    pub max_stored_bytes: usize,
    /// How long, after they have ended.
    pub ttl: Duration,
    /// How many may run in the background.
    pub max_background: usize,
}

impl std::fmt::Debug for ServerSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerSettings")
            .field("addr", &self.addr)
            .field("num_api_keys", &self.api_keys.len())
            .finish_non_exhaustive()
    }
}

/// Which browsers of other origins may call.
#[derive(Debug, Clone)]
pub struct Cors {
    /// Origins, or `*`.
    pub allow_origins: Vec<http::HeaderValue>,
    /// Methods; empty: those that the routes have.
    pub allow_methods: Vec<http::Method>,
}

/// What is loaded and how it runs.
#[derive(Debug, Clone)]
pub struct ModelSettings {
    /// Where the model is.
    pub selector: ModelSelector,
    /// A smaller model that guesses for it.
    pub draft: Option<ModelSelector>,
    /// The name clients use; `None`: the hub id, or the file's or directory's name.
    pub served_model_name: Option<String>,
    /// A Jinja file that replaces the template in the model's files.
    pub chat_template: Option<PathBuf>,
    /// Where packed weights are kept for the next start.
    pub packed_cache: Option<PackedCacheConfig>,
    /// How a hub is reached, should it be needed.
    pub hub: HubSettings,
    /// How the engine runs.
    pub engine: EngineConfig,
}

/// A model as it was named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSelector {
    /// What its files must be.
    pub format: ModelFormat,
    /// A path or a hub id.
    pub model_id: String,
    /// The GGUF file in it.
    pub file: Option<String>,
}

/// How a model hub is reached.
#[derive(Clone)]
pub struct HubSettings {
    /// Where downloads are kept.
    pub cache_dir: PathBuf,
    /// Base URL; `None`: the public one.
    pub endpoint: Option<String>,
    /// Sent as a bearer token.
    pub token: Option<String>,
    /// Use what is in the cache and never the network.
    pub offline: bool,
}

impl std::fmt::Debug for HubSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubSettings")
            .field("cache_dir", &self.cache_dir)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// The MCP endpoint with its gateway.
#[cfg(feature = "http-mcp-stream")]
#[derive(Debug, Clone)]
pub struct McpSettings {
    /// The endpoint.
    pub http: HttpMcpConfig,
    /// Upstream servers, names, policy.
    pub gateway: mistralrs_mcp::config::GatewayConfig,
}

impl Settings {
    /// Refuses a process that would have nothing to do.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if neither a model nor the MCP endpoint is configured.
    pub fn check_serves_something(&self) -> Result<(), ConfigError> {
        #[cfg(feature = "http-mcp-stream")]
        if self.model.is_some() || self.mcp.is_some() {
            return Ok(());
        }
        #[cfg(not(feature = "http-mcp-stream"))]
        if self.model.is_some() {
            return Ok(());
        }
        Err(ConfigError::Invalid(NOTHING_TO_SERVE.to_owned()))
    }
}

impl Configuration {
    /// Checks the layers as a whole.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with the keys that contradict each other or that this build or version cannot honour.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let server = self.server()?;
        let http_mcp = self.http_mcp(&server)?;
        let settings = Settings {
            model: self.model(server.drain_timeout)?,
            lock_metrics: self.file.prometheus_locks.enabled,
            #[cfg(feature = "http-mcp-stream")]
            mcp: self.mcp(http_mcp)?,
            server,
        };
        #[cfg(not(feature = "http-mcp-stream"))]
        self.refuse_mcp(http_mcp.as_ref())?;
        Ok(settings)
    }

    /// The hub as the environment describes it, for commands that name no model.
    pub fn hub(&self) -> Result<HubSettings, ConfigError> {
        let HubEnvironment { cache_dir, token_file, token, endpoint, offline } = &self.hub;
        let token = match &self.file.model.token_source {
            TokenSource::Cache => token.clone().or_else(|| std::fs::read_to_string(token_file).ok()),
            TokenSource::Env(name) => Some(self.environment.get(name).map(str::to_owned).ok_or_else(|| {
                ConfigError::Invalid(format!("--token-source env:{name}: the environment variable is not set"))
            })?),
            TokenSource::Path(path) => {
                Some(std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.clone(), source })?)
            }
            TokenSource::Literal(token) => Some(token.clone()),
            TokenSource::None => None,
        };
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        Ok(HubSettings { cache_dir: cache_dir.clone(), endpoint: endpoint.clone(), token, offline: *offline })
    }

    fn server(&self) -> Result<ServerSettings, ConfigError> {
        let section = &self.file.server;
        tracing_subscriber::EnvFilter::try_new(&section.log)
            .map_err(|error| ConfigError::Invalid(format!("--log `{}` is not a log filter: {error}", section.log)))?;
        let metrics_endpoint = &self.file.prometheus_locks.metrics_endpoint;
        if !is_plain_path(metrics_endpoint) || crate::app::is_taken(metrics_endpoint) {
            return Err(ConfigError::Invalid(format!(
                "`prometheus_locks.metrics_endpoint` is `{metrics_endpoint}`, but must be an unused path such as `/metrics`"
            )));
        }
        check_keys("server.api_keys", &section.api_keys)?;
        Ok(ServerSettings {
            addr: SocketAddr::new(section.serve_ip, section.port),
            api_keys: section.api_keys.clone(),
            log: section.log.clone(),
            log_format: section.log_format,
            threads: section.threads,
            max_body_bytes: section.max_body_bytes.get(),
            connections: ConnectionLimits {
                max_connections: section.max_connections.get(),
                write_timeout: seconds(section.write_timeout_secs),
            },
            request_timeout: seconds(section.request_timeout_secs),
            drain_timeout: Duration::from_secs(section.drain_timeout_secs),
            cors: cors("server.cors", &section.cors)?,
            metrics_endpoint: metrics_endpoint.clone(),
            responses: StoreLimits {
                max_stored: section.responses.max_stored,
                max_stored_bytes: section.responses.max_stored_bytes,
                ttl: Duration::from_secs(section.responses.ttl_secs.get().into()),
                max_background: section.responses.max_background,
            },
        })
    }

    fn model(&self, drain_timeout: Duration) -> Result<Option<ModelSettings>, ConfigError> {
        let section = &self.file.model;
        let Some(model_id) = section.model_id.clone() else {
            return match &section.file {
                Some(_) => Err(ConfigError::Invalid(
                    "`model.file` needs `model.model_id`: the directory or hub id it is in".into(),
                )),
                None if self.file.engine.draft_model.is_some() => Err(ConfigError::Invalid(
                    "--draft-model guesses for a model, and none is named (`run -m MODEL`)".into(),
                )),
                None => Ok(None),
            };
        };
        if section.file.is_some() && section.format != ModelFormat::Gguf {
            return Err(ConfigError::Invalid("`model.file` is for `model.format = \"gguf\"`".into()));
        }
        let chat_template = section.jinja_explicit.clone().or_else(|| section.chat_template.clone());
        if let Some(path) = chat_template.as_ref().filter(|path| !path.is_file()) {
            return Err(ConfigError::Invalid(format!("--chat-template `{}`: there is no such file", path.display())));
        }
        Ok(Some(ModelSettings {
            selector: ModelSelector { format: section.format, model_id, file: section.file.clone() },
            draft: draft(&self.file.engine)?,
            served_model_name: section.served_model_name.clone(),
            chat_template,
            packed_cache: packed_cache(&self.file.engine),
            hub: self.hub()?,
            engine: EngineConfig {
                pooling: section.pooling.map(|pooling| match pooling {
                    PoolingType::Mean => Pooling::Mean,
                    PoolingType::Last => Pooling::Last,
                    PoolingType::Cls => Pooling::Cls,
                }),
                ..engine(&self.file.engine, drain_timeout)?
            },
        }))
    }

    /// `None` if the endpoint is not wanted.
    fn http_mcp(&self, server: &ServerSettings) -> Result<Option<HttpMcpConfig>, ConfigError> {
        let section = &self.file.http_mcp;
        if !section.is_wanted() {
            return if self.has_key_flag {
                Err(ConfigError::Invalid(
                    "--http-mcp-auth-key is for the MCP endpoint, which is off: give --http-mcp-port PORT too".into(),
                ))
            } else {
                Ok(None)
            };
        }
        let ip = section.serve_ip.unwrap_or(server.addr.ip());
        check_authentication(section, ip)?;
        let port = section.port.or(section.mcp_port).unwrap_or(DEFAULT_HTTP_MCP_PORT);
        let older_port = section.mcp_port.filter(|older| section.port.is_some_and(|port| port != *older || port == 0));
        for mcp_port in [Some(port), older_port].into_iter().flatten() {
            if mcp_port != 0 && SocketAddr::new(ip, mcp_port) == server.addr {
                return Err(ConfigError::Invalid(format!(
                    "port {mcp_port} is wanted for the OpenAI API and for the MCP endpoint; give them different ports (--port, --http-mcp-port)"
                )));
            }
        }
        let cors = cors("http_mcp.cors", &section.cors)?;
        Ok(Some(HttpMcpConfig {
            addr: SocketAddr::new(ip, port),
            older_addr: older_port.map(|port| SocketAddr::new(ip, port)),
            api_keys: section.api_keys.clone(),
            allowed_origins: section.cors.allow_origins.clone(),
            allowed_methods: cors
                .map_or_else(Vec::new, |cors| cors.allow_methods.iter().map(http::Method::to_string).collect()),
            allowed_hosts: section.allowed_hosts.clone(),
            rate_limit: rate_limit(section.rate_limit),
            max_body_bytes: section.max_body_bytes.map_or(server.max_body_bytes, NonZeroUsize::get),
            max_sessions: section.max_sessions.map_or(DEFAULT_MAX_SESSIONS, NonZeroUsize::get),
            session_idle_limit: section
                .session_idle_secs
                .map_or(DEFAULT_SESSION_IDLE, |seconds| Duration::from_secs(seconds.get().into())),
            paths: vec!["/mcp/stream".to_owned(), "/mcp".to_owned()],
        }))
    }
}

fn draft(section: &EngineSection) -> Result<Option<ModelSelector>, ConfigError> {
    let Some(model_id) = section.draft_model.clone() else { return Ok(None) };
    if section.max_draft_tokens == 0 {
        return Err(ConfigError::Invalid("--draft-model is of no use with --max-draft-tokens 0: remove one".into()));
    }
    Ok(Some(ModelSelector { format: ModelFormat::Auto, model_id, file: None }))
}

fn packed_cache(section: &EngineSection) -> Option<PackedCacheConfig> {
    let max_bytes = (section.packed_cache_size.get() as u64).saturating_mul(1 << 30);
    section.packed_cache_dir.clone().map(|directory| PackedCacheConfig { directory, max_bytes })
}

fn engine(section: &EngineSection, drain_timeout: Duration) -> Result<EngineConfig, ConfigError> {
    let block_size = section.pa_block_size.get();
    if !block_size.is_power_of_two() || block_size > MAX_BLOCK_SIZE {
        return Err(ConfigError::Invalid(format!(
            "--pa-block-size {block_size}: expected a power of two up to {MAX_BLOCK_SIZE}, in tokens"
        )));
    }
    if section.paged_attn == PagedAttention::Off {
        return Err(ConfigError::Invalid(
            "--paged-attn off: this engine's KV cache is always paged, on the CPU too; use `auto` or `on`".into(),
        ));
    }
    let kv_memory_bytes = match section.pa_memory_mb {
        Some(mib) => Some(mib.get().checked_mul(1 << 20).ok_or_else(|| {
            ConfigError::Invalid(format!("--pa-memory-mb {mib}: more than this machine can address"))
        })?),
        None => None,
    };
    if section.max_draft_tokens > MAX_DRAFT_TOKENS {
        return Err(ConfigError::Invalid(format!(
            "--max-draft-tokens {}: expected at most {MAX_DRAFT_TOKENS}, or 0 for none",
            section.max_draft_tokens
        )));
    }
    Ok(EngineConfig {
        max_num_seqs: section.max_seqs.get(),
        max_num_batched_tokens: section.max_num_batched_tokens.get(),
        max_decode_stall: Some(Duration::from_millis(section.max_decode_stall_ms)).filter(|stall| !stall.is_zero()),
        max_waiting_requests: section.max_waiting_requests,
        queue_timeout: seconds(section.queue_timeout_secs),
        priority_aging: section.priority_aging_requests,
        block_size,
        kv_memory_bytes,
        kv_dtype: match section.pa_cache_type {
            KvCacheType::Auto | KvCacheType::F16 => KvDType::F16,
            KvCacheType::Bf16 => KvDType::Bf16,
            KvCacheType::F32 => KvDType::F32,
            KvCacheType::Q8_0 => KvDType::Q8_0,
        },
        enable_prefix_cache: section.prefix_cache_n > 0,
        max_draft_tokens: section.max_draft_tokens,
        // Known once it is on this machine.
        draft_model: None,
        pooling: None,
        max_model_len: section.max_model_len.map(NonZeroUsize::get),
        seed: section.seed,
        drain_timeout,
    })
}

/// 0 is no limit.
fn seconds(number: u64) -> Option<Duration> {
    (number > 0).then(|| Duration::from_secs(number))
}

/// Who may call the MCP endpoint: tools act on this machine, so an open port without a key is never bound.
fn check_authentication(section: &HttpMcpSection, ip: IpAddr) -> Result<(), ConfigError> {
    let invalid = |message: &str| Err(ConfigError::Invalid(message.to_owned()));
    check_keys("http_mcp.api_keys", &section.api_keys)?;
    match (section.auth_method, section.api_keys.is_empty()) {
        (Some(AuthMethod::Jwt), _) => {
            invalid("`http_mcp.auth_method = \"jwt\"` is not supported by this version; use \"api_key\"")
        }
        (Some(AuthMethod::Mtls), _) => {
            invalid("`http_mcp.auth_method = \"mtls\"` is not supported by this version; use \"api_key\"")
        }
        (Some(AuthMethod::ApiKey), true) => {
            invalid("`http_mcp.auth_method = \"api_key\"` needs `http_mcp.api_keys` or --http-mcp-auth-key")
        }
        (Some(AuthMethod::None), false) => {
            invalid("`http_mcp.auth_method = \"none\"` contradicts `http_mcp.api_keys`; remove one of them")
        }
        (_, true) if !ip.is_loopback() => Err(ConfigError::Invalid(format!(
            "the MCP endpoint would listen on {ip} without a key, and its tools act on this machine: \
             give --http-mcp-auth-key KEY, or bind it to this machine with --serve-ip 127.0.0.1"
        ))),
        _ => Ok(()),
    }
}

fn check_keys(name: &str, keys: &[String]) -> Result<(), ConfigError> {
    if keys.iter().any(|key| key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic())) {
        Err(ConfigError::Invalid(format!(
            "`{name}`: a key must be visible ASCII characters without spaces, at least one"
        )))
    } else {
        Ok(())
    }
}

fn cors(name: &str, section: &CorsSection) -> Result<Option<Cors>, ConfigError> {
    let invalid = |key: &str, value: &str, wanted: &str| {
        ConfigError::Invalid(format!("`{name}.{key}`: `{value}` is not {wanted}"))
    };
    if section.allow_origins.is_empty() {
        return if section.allow_methods.is_empty() {
            Ok(None)
        } else {
            Err(ConfigError::Invalid(format!("`{name}.allow_methods` needs `{name}.allow_origins`")))
        };
    }
    let origins = section.allow_origins.iter().map(|origin| match origin.parse() {
        Ok(value) if is_origin(origin) => Ok(value),
        _ => Err(invalid("allow_origins", origin, "an origin such as `http://localhost:3000`, without a path, or `*`")),
    });
    let methods = section.allow_methods.iter().map(|method| {
        method.to_ascii_uppercase().parse().map_err(|_| invalid("allow_methods", method, "an HTTP method"))
    });
    Ok(Some(Cors {
        allow_origins: origins.collect::<Result<_, _>>()?,
        allow_methods: methods.collect::<Result<_, _>>()?,
    }))
}

fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    text == "*" || host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', '*', ' ']))
}

fn is_plain_path(path: &str) -> bool {
    path.len() > 1 && path.starts_with('/') && !path.contains(['{', '}', '*', '?', '#', ' '])
}

fn rate_limit(section: RateLimitSection) -> Option<RateLimitConfig> {
    let RateLimitSection { global, per_key, per_ip } = section;
    let limit = RateLimitConfig { global, per_key, per_ip };
    (limit != RateLimitConfig::default()).then_some(limit)
}
