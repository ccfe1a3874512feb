//! What people write: the keys of the configuration file, their units, effects and defaults.
//! Flags and environment variables are laid over this shape, so a key is described here and nowhere else.

use std::net::{IpAddr, Ipv4Addr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use mistralrs_core::EngineConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Port of the OpenAI API.
pub(super) const DEFAULT_PORT: u16 = 1234;
/// Port of the MCP endpoint where it is enabled without one.
pub(super) const DEFAULT_HTTP_MCP_PORT: u16 = 4322;

/// Packed weights of a few models of eight billion parameters in 4 bits, which have 5 GiB each.
const DEFAULT_PACKED_CACHE_GIB: usize = 16;

/// A configuration file: `mistralrs.toml`, or the same keys in YAML or JSON.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigFile {
    /// The process and its main port.
    pub server: ServerSection,
    /// Which model is loaded.
    pub model: ModelSection,
    /// How its engine runs.
    pub engine: EngineSection,
    /// Lock metrics.
    pub prometheus_locks: PrometheusLocksSection,
    /// The MCP endpoint.
    pub http_mcp: HttpMcpSection,
    /// Upstream MCP servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mcp_client: Option<Map<String, Value>>,
    /// How tools of upstream servers are named, allowed, limited and cached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_forwarding: Option<Map<String, Value>>,
}

/// The process and its main port.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServerSection {
    /// Port of the OpenAI API; 0 takes a free one and logs it. Default 1234.
    pub port: u16,
    /// Address that both ports are bound to. Default 127.0.0.1: this machine only.
    pub serve_ip: IpAddr,
    /// Bearer tokens for the OpenAI API; empty: no authentication.
    pub api_keys: Vec<String>,
    /// What is logged: `info`, `debug`, `warn,mistralrs_core=debug`, … Default `info`.
    pub log: String,
    /// How it is logged. Default `text`.
    pub log_format: LogFormat,
    /// Threads that compute; default: one per physical core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<NonZeroUsize>,
    /// Bytes one request body may have; more is 413. Default 4 MiB.
    pub max_body_bytes: NonZeroUsize,
    /// Connections open at once, for each port; more wait in the kernel's backlog. Default 1024.
    pub max_connections: NonZeroUsize,
    /// Seconds a client may read nothing of what is sent to it before its connection is closed; 0: for ever. Default 60.
    pub write_timeout_secs: u64,
    /// Seconds one request may take in all, its stream included; 0: no limit. Default 3600.
    pub request_timeout_secs: u64,
    /// Seconds running requests may go on after Ctrl-C or SIGTERM. Default 30.
    pub drain_timeout_secs: u64,
    /// Browsers of other origins; off unless origins are named.
    pub cors: CorsSection,
    /// Responses of `/v1/responses` that are kept.
    pub responses: ResponsesSection,
}

impl Default for ServerSection {
    fn default() -> Self {
        Self {
            port: DEFAULT_PORT,
            serve_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            api_keys: Vec::new(),
            log: "info".to_owned(),
            log_format: LogFormat::Text,
            threads: None,
            max_body_bytes: NonZeroUsize::new(4 << 20).expect("not zero"),
            max_connections: NonZeroUsize::new(1024).expect("not zero"),
            write_timeout_secs: 60,
            request_timeout_secs: 3600,
            drain_timeout_secs: 30,
            cors: CorsSection::default(),
            responses: ResponsesSection::default(),
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Browsers of other origins.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CorsSection {
    /// Origins that may call (`http://localhost:3000`), or `*`. Empty: none.
    pub allow_origins: Vec<String>,
    /// Methods they may use. Empty: those that the routes have.
    pub allow_methods: Vec<String>,
}

/// Responses of `/v1/responses` that are kept, in memory, until the first of these limits. The oldest goes first.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResponsesSection {
    /// How many; 0: none, and nothing can be continued by its id or run in the background. Default 1000.
    pub max_stored: usize,
    /// Their bytes together, as JSON with the conversations they continue. Default 64 MiB.
    pub max_stored_bytes: usize,
    /// Seconds a response is kept after it has ended. Default 86400: a day.
    pub ttl_secs: NonZeroU32,
    /// Responses that may run in the background at once; one more is answered 503. Default 32.
    pub max_background: usize,
}

impl Default for ResponsesSection {
    fn default() -> Self {
        Self {
            max_stored: 1000,
            max_stored_bytes: 64 << 20,
            ttl_secs: NonZeroU32::new(24 * 60 * 60).expect("not zero"),
            max_background: 32,
        }
    }
}

/// Which model is loaded.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSection {
    /// What the files are. Default `auto`: looked at and found out.
    pub format: ModelFormat,
    /// A GGUF file, a model directory, or a hub id such as `org/name`. Absent: no model, the MCP gateway alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    /// The GGUF file in that directory or hub repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The name clients use. Default: the hub id, or the file's or directory's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served_model_name: Option<String>,
    /// Replaces the chat template in the model's files: a Jinja file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<PathBuf>,
    /// The same, and wins over `chat_template`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jinja_explicit: Option<PathBuf>,
    /// How the hidden states of a text become its embedding. Default: as the model's files say, and `last` if they do not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooling: Option<PoolingType>,
    /// Where the hub's token comes from: `cache` (`HF_TOKEN`, then the hub's token file), `env:NAME`, `path:FILE`,
    /// `literal:TOKEN` or `none`. Default `cache`.
    pub token_source: TokenSource,
}

/// What a model's files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelFormat {
    /// Either, whichever is there (`run`).
    #[default]
    Auto,
    /// A directory with `config.json` and safetensors (`plain`).
    Safetensors,
    /// One GGUF file (`gguf`).
    Gguf,
}

/// How the hidden states of a text become its embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum PoolingType {
    /// Their mean.
    Mean,
    /// The last token's.
    Last,
    /// The first token's.
    Cls,
}

/// Where the hub's token comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum TokenSource {
    /// `HF_TOKEN`, then the file that the hub's own login writes.
    #[default]
    Cache,
    /// An environment variable.
    Env(String),
    /// A file that holds nothing else.
    Path(PathBuf),
    /// The token itself.
    Literal(String),
    /// No token is sent.
    None,
}

impl std::str::FromStr for TokenSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "cache" => Ok(Self::Cache),
            None if text == "none" => Ok(Self::None),
            Some(("env", name)) if !name.is_empty() => Ok(Self::Env(name.to_owned())),
            Some(("path", path)) if !path.is_empty() => Ok(Self::Path(path.into())),
            Some(("literal", token)) if !token.is_empty() => Ok(Self::Literal(token.to_owned())),
            // What was given may be the token itself, so it is not repeated.
            _ => Err("expected `cache`, `env:NAME`, `path:FILE`, `literal:TOKEN` or `none`".to_owned()),
        }
    }
}

impl TryFrom<String> for TokenSource {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<TokenSource> for String {
    fn from(source: TokenSource) -> Self {
        match source {
            TokenSource::Cache => "cache".to_owned(),
            TokenSource::Env(name) => format!("env:{name}"),
            TokenSource::Path(path) => format!("path:{}", path.display()),
            TokenSource::Literal(token) => format!("literal:{token}"),
            TokenSource::None => "none".to_owned(),
        }
    }
}

/// How the model's engine runs.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EngineSection {
    /// Sequences in one step's batch. Default 32.
    pub max_seqs: NonZeroUsize,
    /// Tokens one step computes at most over all sequences. More: throughput; fewer: smoother streams. Default 512.
    pub max_num_batched_tokens: NonZeroUsize,
    /// Milliseconds that a step may take which computes prompts while others wait for their next token: a shorter part
    /// of the prompts then, of 32 tokens at least; 0: no limit. Default 500.
    pub max_decode_stall_ms: u64,
    /// Requests that may wait for a place; one more is answered 503. Default 256.
    pub max_waiting_requests: usize,
    /// Seconds a request may wait for its first step before it is answered 503; 0: for as long as its client
    /// does. Default 300.
    pub queue_timeout_secs: u64,
    /// Later requests that may pass a waiting one for each number between their priorities; 0: priorities have no
    /// effect. Default 32.
    pub priority_aging_requests: usize,
    /// 0 turns the prefix cache off. Any other number leaves it on; what it keeps is bounded by the KV memory. Default 16.
    pub prefix_cache_n: usize,
    /// The KV cache is always paged, so `auto` and `on` are the same, and `off` is refused. Default `auto`.
    pub paged_attn: PagedAttention,
    /// MiB of memory for the KV cache. Default: sized from free memory, context length and `max_seqs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pa_memory_mb: Option<NonZeroUsize>,
    /// Tokens in one KV block. Default 32.
    pub pa_block_size: NonZeroUsize,
    /// How keys and values are stored. Default `auto`: f16.
    pub pa_cache_type: KvCacheType,
    /// Tokens guessed per sequence and step, where its text repeats itself or by the draft model, as long as that pays;
    /// guesses are verified, so answers stay the same. At most 64; 0 turns it off. Default 8.
    pub max_draft_tokens: usize,
    /// A smaller model with the same vocabulary that guesses where the text does not repeat itself: a GGUF file, a model
    /// directory, or a hub id such as `org/name`. Its KV is taken from the same memory. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draft_model: Option<String>,
    /// A directory in which packed weights are kept, so that the next start reads them instead of packing the model's files
    /// again. Made if it is not there. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packed_cache_dir: Option<PathBuf>,
    /// GiB that the packed weights of all models in that directory may take; those not used for longest are deleted first,
    /// and a model that needs more is not kept. Default 16.
    pub packed_cache_size: NonZeroUsize,
    /// Tokens of prompt and answer together, if fewer than the model's own context length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_model_len: Option<NonZeroUsize>,
    /// Seeds the requests that bring no seed of their own. Default: each gets a random one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Run on the CPU even where there is a GPU that this build could use.
    pub cpu: bool,
}

impl Default for EngineSection {
    fn default() -> Self {
        let engine = EngineConfig::default();
        let not_zero = |number| NonZeroUsize::new(number).expect("the defaults are not zero");
        Self {
            max_seqs: not_zero(engine.max_num_seqs),
            max_num_batched_tokens: not_zero(engine.max_num_batched_tokens),
            max_decode_stall_ms: engine.max_decode_stall.map_or(0, |stall| stall.as_millis() as u64),
            max_waiting_requests: engine.max_waiting_requests,
            queue_timeout_secs: engine.queue_timeout.map_or(0, |timeout| timeout.as_secs()),
            priority_aging_requests: engine.priority_aging,
            prefix_cache_n: 16,
            paged_attn: PagedAttention::Auto,
            pa_memory_mb: None,
            pa_block_size: not_zero(engine.block_size),
            pa_cache_type: KvCacheType::Auto,
            max_draft_tokens: engine.max_draft_tokens,
            draft_model: None,
            packed_cache_dir: None,
            packed_cache_size: not_zero(DEFAULT_PACKED_CACHE_GIB),
            max_model_len: None,
            seed: None,
            cpu: false,
        }
    }
}

/// Whether the KV cache is paged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum PagedAttention {
    /// Whatever the engine has, which is always a paged cache.
    #[default]
    Auto,
    /// Paged.
    On,
    /// Not paged, which is refused: there is no such cache.
    Off,
}

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum KvCacheType {
    /// 16-bit floats.
    #[default]
    Auto,
    /// 16-bit floats: half the memory and bandwidth of 32-bit ones.
    F16,
    /// 16-bit floats with the range of 32-bit ones, and fewer digits.
    Bf16,
    /// 32-bit floats: exact.
    F32,
    /// 8-bit integers with a scale for every 32: about half of f16. The model's head size must be a multiple of 32.
    #[value(name = "q8_0")]
    Q8_0,
}

/// Lock metrics.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PrometheusLocksSection {
    /// Whether wait, hold and contention of each named lock are on the metrics page. Default true.
    pub enabled: bool,
    /// Path of the metrics page on the main port. Default `/metrics`.
    pub metrics_endpoint: String,
}

impl Default for PrometheusLocksSection {
    fn default() -> Self {
        Self { enabled: true, metrics_endpoint: "/metrics".to_owned() }
    }
}

/// The MCP endpoint. It is served if `enabled` is true, or if a port is named and `enabled` is not false.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HttpMcpSection {
    /// Whether the endpoint is served. Default: if a port is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Its port; 0 takes a free one and logs it. Default 4322.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// A second port with the same routes, for configurations of the older spelling (`--mcp-port`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mcp_port: Option<u16>,
    /// Address it is bound to. Default: the server's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serve_ip: Option<IpAddr>,
    /// How callers prove who they are. Default: `api_key` if there are keys, else `none`, which is for loopback only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_method: Option<AuthMethod>,
    /// Bearer tokens that may call.
    pub api_keys: Vec<String>,
    /// Values of the `Host` header that are answered besides loopback and the bound address; `*` allows all.
    pub allowed_hosts: Vec<String>,
    /// Requests a second; absent: no limit.
    pub rate_limit: RateLimitSection,
    /// Browsers of other origins.
    pub cors: CorsSection,
    /// Bytes one request body may have; more is 413. Default: the server's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_body_bytes: Option<NonZeroUsize>,
    /// Sessions at once, of clients of revisions before 2026-07-28; more get 503 unless one has been idle for a minute.
    /// Default 1024.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sessions: Option<NonZeroUsize>,
    /// Seconds after which a session that nobody uses is closed. Default 1800.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_idle_secs: Option<NonZeroU32>,
}

impl HttpMcpSection {
    /// Whether the endpoint is to be served.
    pub(super) fn is_wanted(&self) -> bool {
        self.enabled.unwrap_or(self.port.is_some() || self.mcp_port.is_some())
    }
}

/// How callers of the MCP endpoint prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuthMethod {
    /// A bearer token of `api_keys`.
    ApiKey,
    /// A signed token. Not served by this version.
    Jwt,
    /// A client certificate. Not served by this version.
    Mtls,
    /// Not at all: loopback only.
    None,
}

/// Requests a second; an absent one is unlimited.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimitSection {
    /// Over all callers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global: Option<NonZeroU32>,
    /// For each API key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_key: Option<NonZeroU32>,
    /// For each address, of requests without a key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_ip: Option<NonZeroU32>,
}
