//! The command line: selectors, flags, subcommands. Flags may stand before or after the selector.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueHint};
use serde_json::{Value, json};

use crate::bench::BenchFlags;
use crate::config::{KvCacheType, LogFormat, PagedAttention, PoolingType, Sources, TokenSource, set};
#[cfg(feature = "http-mcp-stream")]
use crate::mcp_command::{NewServer, Pair, ServerChange};

/// LLM inference server with an OpenAI-compatible API and an MCP gateway inside.
#[derive(Debug, Parser)]
#[command(name = "mistralrs-server", version, max_term_width = 110)]
#[command(after_help = "Precedence: flags, environment, --config file, defaults. `config schema` describes all keys.")]
pub struct Cli {
    #[command(flatten)]
    server: ServerFlags,
    #[command(flatten)]
    engine: EngineFlags,
    #[cfg(feature = "http-mcp-stream")]
    #[command(flatten)]
    mcp: McpFlags,
    #[command(flatten)]
    keys: KeyFlags,
    /// What to load or do; without one, the configuration's model or the MCP gateway alone.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Selectors, which load a model and serve it, and commands, which do one thing and exit.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a GGUF file, a directory of safetensors, or a hub id, whichever it turns out to be.
    Run(ModelFlags),
    /// Serve a directory or hub repository of safetensors with config.json and tokenizer.json.
    Plain(ModelFlags),
    /// Serve a GGUF file.
    Gguf(GgufFlags),
    /// Measure latency and throughput of a model in this process, or of a server over HTTP.
    Bench(Box<BenchFlags>),
    /// Check the configuration, or describe it.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print shell completions.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
    /// What was downloaded from the model hub.
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Serve the MCP gateway alone, or look at the servers behind it.
    #[cfg(feature = "http-mcp-stream")]
    #[command(subcommand)]
    Mcp(McpCommand),
}

/// What `mcp` does. All but `serve`, `add` and `remove` connect the configured servers and print what they find.
#[cfg(feature = "http-mcp-stream")]
#[derive(Debug, Clone, Subcommand)]
pub enum McpCommand {
    /// Serve the gateway without a model.
    Serve {
        /// Port of the MCP endpoint, as --http-mcp-port.
        #[arg(long, default_value_t = 4322)]
        mcp_port: u16,
    },
    /// List the tools of all servers.
    List,
    /// Find tools by words of their names, descriptions and arguments.
    Search {
        /// The words.
        #[arg(required = true)]
        words: Vec<String>,
        /// Print their schemas too, as JSON.
        #[arg(long)]
        full: bool,
    },
    /// Connect each server and tell what became of it; status 1 if any failed.
    #[command(visible_alias = "status")]
    Test,
    /// Connect servers and print what they write to their standard error and log, until Ctrl-C.
    Logs {
        /// Which ones [default: all]
        names: Vec<String>,
    },
    /// Add a server to the file of --mcp-config, else of --config; the file is made if there is none.
    Add(AddFlags),
    /// Remove a server from that file.
    Remove {
        /// Its name.
        name: String,
    },
}

/// A server for `mcp add`.
#[cfg(feature = "http-mcp-stream")]
#[derive(Debug, Clone, Args)]
pub struct AddFlags {
    /// Names it in tool names, logs and metrics: 1 to 32 of A-Z a-z 0-9 _ -
    name: String,
    /// Its MCP endpoint: http://, https://, ws:// or wss://
    #[arg(long, conflicts_with = "command", required_unless_present = "command")]
    url: Option<String>,
    /// How it is reached, where the URL does not say it
    #[arg(long, value_name = "NAME", conflicts_with = "command", value_parser = ["http", "sse", "websocket"])]
    transport: Option<String>,
    /// Header sent with each request; `$NAME` in the value is read from the environment at start; repeatable
    #[arg(long = "header", value_name = "NAME=VALUE", conflicts_with = "command")]
    headers: Vec<Pair>,
    /// Variable of the child process; without a value, ours of that name; repeatable
    #[arg(long, value_name = "NAME[=VALUE]", conflicts_with = "url")]
    env: Vec<Pair>,
    /// What stands before its tool names; may be empty [default: its name]
    #[arg(long)]
    namespace: Option<String>,
    /// Program and arguments of a child process that speaks MCP over its standard input and output
    #[arg(last = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    command: Vec<String>,
}

/// What `config` does.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check file, environment and flags, and print what is in force, without secrets.
    Check(KeyFlags),
    /// Print the JSON Schema of the configuration file.
    Schema,
}

/// What `cache` does.
#[derive(Debug, Clone, Subcommand)]
pub enum CacheCommand {
    /// List downloaded models with their sizes.
    List,
    /// Delete one downloaded model.
    Delete {
        /// Its hub id, such as `org/name`.
        repo: String,
    },
}

/// A model that says for itself what it is.
#[derive(Debug, Args)]
pub struct ModelFlags {
    /// A path or a hub id such as `org/name`.
    #[arg(short, long, visible_alias = "model", value_name = "PATH_OR_ID", value_hint = ValueHint::AnyPath)]
    model_id: String,
    #[command(flatten)]
    keys: KeyFlags,
}

/// A GGUF file.
#[derive(Debug, Args)]
pub struct GgufFlags {
    /// The directory or hub id that holds the file, or the file itself.
    #[arg(short = 'm', long, visible_alias = "quantized-model-id", value_name = "PATH_OR_ID", value_hint = ValueHint::AnyPath)]
    model_id: String,
    /// The file's name; needed where there are several.
    #[arg(short, long, visible_alias = "quantized-filename", value_name = "FILE")]
    file: Option<String>,
    #[command(flatten)]
    keys: KeyFlags,
}

// The flags that may be repeated. They are not `global`: of one that stands on both sides of the selector clap would
// keep one side only, and a key would be lost in silence. So each side has its own, and they are joined.
#[expect(missing_docs, reason = "clap would take it for the description of the command that flattens this")]
#[derive(Debug, Clone, Default, Args)]
pub struct KeyFlags {
    /// Bearer token that the OpenAI API asks for; repeatable
    #[arg(long, value_name = "KEY", help_heading = "Server")]
    api_key: Vec<String>,
    /// Bearer token that the MCP endpoint asks for; repeatable [env: MISTRALRS_HTTP_MCP_AUTH_KEY]
    #[cfg(feature = "http-mcp-stream")]
    #[arg(long, value_name = "KEY", help_heading = "MCP")]
    http_mcp_auth_key: Vec<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Server")]
struct ServerFlags {
    /// Port of the OpenAI API; 0 takes a free one [default: 1234]
    #[arg(short, long, global = true)]
    port: Option<u16>,
    /// Address that ports are bound to [default: 127.0.0.1]
    #[arg(long, global = true, value_name = "IP")]
    serve_ip: Option<IpAddr>,
    /// Configuration file: TOML, YAML or JSON [env: MISTRALRS_CONFIG]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// What is logged: info, debug, `warn,mistralrs_core=debug` … [env: RUST_LOG] [default: info]
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
    /// How it is logged [default: text]
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Engine")]
struct EngineFlags {
    /// Seeds the requests that bring no seed of their own
    #[arg(long, global = true)]
    seed: Option<u64>,
    /// Sequences in one step's batch [default: 32]
    #[arg(long, global = true, value_name = "N")]
    max_seqs: Option<NonZeroUsize>,
    /// Tokens one step computes at most; more is throughput, fewer smoother streams [default: 512]
    #[arg(long, global = true, value_name = "N")]
    max_num_batched_tokens: Option<NonZeroUsize>,
    /// Milliseconds that prompts may hold up running streams; longer prompts are computed in more parts; 0 is no limit
    /// [default: 500]
    #[arg(long, global = true, value_name = "MS")]
    max_decode_stall_ms: Option<u64>,
    /// Seconds a request may wait for its first step before it is answered 503; 0 is no limit [default: 300]
    #[arg(long, global = true, value_name = "SECONDS")]
    queue_timeout_secs: Option<u64>,
    /// Tokens of prompt and answer together, if fewer than the model's own limit
    #[arg(long, global = true, value_name = "N")]
    max_model_len: Option<NonZeroUsize>,
    /// Tokens guessed per step, where a text repeats itself or by the draft model; 0 turns it off [default: 8]
    #[arg(long, global = true, value_name = "N", visible_alias = "draft-max")]
    max_draft_tokens: Option<usize>,
    /// Smaller model with the same vocabulary that guesses where a text does not repeat itself
    #[arg(long, global = true, value_name = "PATH_OR_ID", visible_alias = "model-draft")]
    draft_model: Option<String>,
    /// Directory in which packed weights are kept, so that the next start is faster
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    packed_cache_dir: Option<PathBuf>,
    /// GiB that the packed weights of all models may take there; those not used for longest go first [default: 16]
    #[arg(long, global = true, value_name = "GIB")]
    packed_cache_size: Option<NonZeroUsize>,
    /// 0 turns the prefix cache off; otherwise the KV memory bounds it [default: 16]
    #[arg(long, global = true, value_name = "N")]
    prefix_cache_n: Option<usize>,
    /// The KV cache is always paged, so `off` is refused [default: auto]
    #[arg(long, global = true, value_name = "MODE")]
    paged_attn: Option<PagedAttention>,
    /// MiB of memory for the KV cache [default: from free memory]
    #[arg(long, global = true, value_name = "MIB")]
    pa_memory_mb: Option<NonZeroUsize>,
    /// Tokens in one KV block [default: 32]
    #[arg(long, global = true, value_name = "TOKENS")]
    pa_block_size: Option<NonZeroUsize>,
    /// How keys and values are stored; auto is f16 [default: auto]
    #[arg(long, global = true, value_name = "TYPE")]
    pa_cache_type: Option<KvCacheType>,
    /// Run on the CPU even where there is a GPU that this build could use
    #[arg(long, global = true)]
    cpu: bool,
    /// Threads that compute [default: one per physical core]
    #[arg(long, global = true, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// The name clients use for the model [default: the hub id, or the file's or directory's name]
    #[arg(long, global = true, value_name = "NAME")]
    served_model_name: Option<String>,
    /// Jinja file that replaces the chat template in the model's files
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    chat_template: Option<PathBuf>,
    /// The same, and wins over --chat-template
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    jinja_explicit: Option<PathBuf>,
    /// How hidden states become embeddings [default: as the model's files say, else last]
    #[arg(long, global = true, value_name = "TYPE")]
    pooling: Option<PoolingType>,
    /// Where the hub's token comes from: cache, env:NAME, path:FILE, literal:TOKEN or none [default: cache]
    #[arg(long, global = true, value_name = "SOURCE")]
    token_source: Option<TokenSource>,
}

#[cfg(feature = "http-mcp-stream")]
#[derive(Debug, Args)]
#[command(next_help_heading = "MCP")]
struct McpFlags {
    /// Port of the MCP endpoint, `POST /mcp/stream`; 0 takes a free one [env: MISTRALRS_HTTP_MCP_PORT]
    #[arg(long, global = true, value_name = "PORT")]
    http_mcp_port: Option<u16>,
    /// The older spelling: a second port with the same routes, `POST /mcp` among them
    #[arg(long, global = true, value_name = "PORT")]
    mcp_port: Option<u16>,
    /// File of upstream MCP servers: mcpServers JSON, mistral.rs's JSON, or this server's own keys
    #[cfg(feature = "tool-forwarding")]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    mcp_config: Option<PathBuf>,
}

impl Cli {
    /// Parses the process's arguments. Wrong ones end the process with status 2 and say what would be right.
    pub fn from_process() -> Self {
        Self::try_parse().unwrap_or_else(|error| explain(error).exit())
    }

    /// Where configuration comes from besides the environment, the flags as a layer of their own.
    pub fn sources(&self) -> Sources {
        let mut flags = json!({});
        self.server.write_to(&mut flags);
        self.engine.write_to(&mut flags);
        #[cfg(feature = "http-mcp-stream")]
        self.mcp.write_to(&mut flags);
        let mut keys = vec![&self.keys];
        if let Some(command) = &self.command {
            command.write_to(&mut flags);
            keys.extend(command.keys());
        }
        KeyFlags::write_to(&keys, &mut flags);
        Sources {
            config: self.server.config.clone(),
            #[cfg(feature = "tool-forwarding")]
            mcp_config: self.mcp.mcp_config.clone(),
            #[cfg(not(feature = "tool-forwarding"))]
            mcp_config: None,
            flags,
        }
    }

    /// What `--seed` says.
    pub fn seed(&self) -> Option<u64> {
        self.engine.seed
    }

    /// Completions for `shell`, as its own script.
    pub fn completions(shell: clap_complete::Shell) -> String {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Self::command(), "mistralrs-server", &mut script);
        String::from_utf8_lossy(&script).into_owned()
    }
}

impl ServerFlags {
    fn write_to(&self, layer: &mut Value) {
        set(layer, "server.port", self.port);
        set(layer, "server.serve_ip", self.serve_ip);
        set(layer, "server.log", self.log.as_deref());
        set(layer, "server.log_format", self.log_format);
    }
}

impl EngineFlags {
    fn write_to(&self, layer: &mut Value) {
        set(layer, "engine.seed", self.seed);
        set(layer, "engine.max_seqs", self.max_seqs);
        set(layer, "engine.max_num_batched_tokens", self.max_num_batched_tokens);
        set(layer, "engine.max_decode_stall_ms", self.max_decode_stall_ms);
        set(layer, "engine.queue_timeout_secs", self.queue_timeout_secs);
        set(layer, "engine.max_model_len", self.max_model_len);
        set(layer, "engine.max_draft_tokens", self.max_draft_tokens);
        set(layer, "engine.draft_model", self.draft_model.as_deref());
        set(layer, "engine.packed_cache_dir", self.packed_cache_dir.as_deref());
        set(layer, "engine.packed_cache_size", self.packed_cache_size);
        set(layer, "engine.prefix_cache_n", self.prefix_cache_n);
        set(layer, "engine.paged_attn", self.paged_attn);
        set(layer, "engine.pa_memory_mb", self.pa_memory_mb);
        set(layer, "engine.pa_block_size", self.pa_block_size);
        set(layer, "engine.pa_cache_type", self.pa_cache_type);
        set(layer, "engine.cpu", self.cpu.then_some(true));
        set(layer, "server.threads", self.threads);
        set(layer, "model.served_model_name", self.served_model_name.as_deref());
        set(layer, "model.chat_template", self.chat_template.as_deref());
        set(layer, "model.pooling", self.pooling);
        set(layer, "model.jinja_explicit", self.jinja_explicit.as_deref());
        set(layer, "model.token_source", self.token_source.clone());
    }
}

#[cfg(feature = "http-mcp-stream")]
impl McpFlags {
    fn write_to(&self, layer: &mut Value) {
        set(layer, "http_mcp.port", self.http_mcp_port);
        set(layer, "http_mcp.mcp_port", self.mcp_port);
        // A port on the command line is a wish for the endpoint, whatever the file says.
        set(layer, "http_mcp.enabled", self.http_mcp_port.or(self.mcp_port).map(|_| true));
    }
}

impl KeyFlags {
    fn write_to(both_sides: &[&Self], layer: &mut Value) {
        let join = |keys: fn(&Self) -> &Vec<String>| {
            let keys: Vec<&String> = both_sides.iter().flat_map(|side| keys(side)).collect();
            (!keys.is_empty()).then_some(keys)
        };
        set(layer, "server.api_keys", join(|keys| &keys.api_key));
        #[cfg(feature = "http-mcp-stream")]
        set(layer, "http_mcp.api_keys", join(|keys| &keys.http_mcp_auth_key));
    }
}

impl Command {
    /// The keys that stand behind it.
    fn keys(&self) -> Option<&KeyFlags> {
        match self {
            Self::Run(model) | Self::Plain(model) => Some(&model.keys),
            Self::Gguf(model) => Some(&model.keys),
            Self::Config(ConfigCommand::Check(keys)) => Some(keys),
            Self::Bench(_) | Self::Config(ConfigCommand::Schema) | Self::Completions { .. } | Self::Cache(_) => None,
            #[cfg(feature = "http-mcp-stream")]
            Self::Mcp(_) => None,
        }
    }

    /// A selector replaces the configured model as a whole: a file name of another model must not stay behind.
    fn write_to(&self, layer: &mut Value) {
        let (format, model_id, file) = match self {
            Self::Run(model) => ("auto", &model.model_id, None),
            Self::Plain(model) => ("safetensors", &model.model_id, None),
            Self::Gguf(model) => ("gguf", &model.model_id, model.file.as_deref()),
            Self::Bench(bench) => match (&bench.model_id, &bench.url) {
                (Some(model_id), None) => {
                    (bench.file.as_ref().map_or("auto", |_| "gguf"), model_id, bench.file.as_deref())
                }
                // Over HTTP the name means a model over there.
                _ => return,
            },
            Self::Config(_) | Self::Completions { .. } | Self::Cache(_) => return,
            #[cfg(feature = "http-mcp-stream")]
            Self::Mcp(command) => return command.write_to(layer),
        };
        set(layer, "model.format", Some(format));
        set(layer, "model.model_id", Some(model_id));
        set(layer, "model.file", Some(file));
    }
}

#[cfg(feature = "http-mcp-stream")]
impl McpCommand {
    /// What it changes in the file that names the servers.
    pub fn change(&self) -> Option<ServerChange> {
        match self {
            Self::Add(flags) => Some(ServerChange::Add(flags.clone().into())),
            Self::Remove { name } => Some(ServerChange::Remove(name.clone())),
            Self::Serve { .. } | Self::List | Self::Search { .. } | Self::Test | Self::Logs { .. } => None,
        }
    }

    fn write_to(&self, layer: &mut Value) {
        let Self::Serve { mcp_port } = self else { return };
        if layer.pointer("/http_mcp/port").is_none() {
            set(layer, "http_mcp.port", Some(mcp_port));
        }
        set(layer, "http_mcp.enabled", Some(true));
    }
}

#[cfg(feature = "http-mcp-stream")]
impl From<AddFlags> for NewServer {
    fn from(flags: AddFlags) -> Self {
        let AddFlags { name, url, transport, headers, env, namespace, command } = flags;
        Self { name, namespace, transport, command, env, url, headers }
    }
}

/// Names that users of mistral.rs know and this version does not serve, each with what to say about it.
const NOT_YET: &[(&str, &str)] = &[
    ("lora", "adapters are not supported yet"),
    ("lora-gguf", "adapters are not supported yet"),
    ("x-lora", "adapters are not supported yet"),
    ("x-lora-gguf", "adapters are not supported yet"),
    ("embedding", "embedding models are not supported yet"),
    ("toml", "model files in TOML are not supported yet; `--config FILE` with a [model] table names a model"),
    ("multi-model", "several models in one process are not supported yet"),
    ("--isq", "in-situ quantization is not supported yet; use a quantized GGUF file"),
    (
        "--no-kv-cache",
        "generation without a KV cache is not supported; `--prefix-cache-n 0` turns reuse between requests off",
    ),
    ("--dtype", "activations are computed in f32 and weights are kept as the files have them"),
];

/// Adds the reason where an argument is known but not served yet.
fn explain(mut error: clap::Error) -> clap::Error {
    let named = match error.kind() {
        ErrorKind::UnknownArgument => error.get(ContextKind::InvalidArg),
        ErrorKind::InvalidSubcommand => error.get(ContextKind::InvalidSubcommand),
        _ => None,
    };
    let Some(ContextValue::String(named)) = named else { return error };
    let name = named.split_once('=').map_or(named.as_str(), |(name, _)| name);
    let Some((_, reason)) = NOT_YET.iter().find(|(known, _)| *known == name) else { return error };
    let reason = (*reason).into();
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![reason]));
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(arguments: &str) -> Result<Value, String> {
        let arguments = std::iter::once("mistralrs-server").chain(arguments.split_whitespace());
        Cli::try_parse_from(arguments).map(|cli| cli.sources().flags).map_err(|error| explain(error).to_string())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_stand_on_either_side_of_the_selector_and_keys_on_both() {
        let expected = json!({
            "server": { "port": 7, "api_keys": ["a", "b"] },
            "engine": { "max_seqs": 3 },
            "model": { "format": "gguf", "model_id": "dir", "file": "x.gguf" },
        });
        for arguments in [
            "--port 7 --max-seqs 3 --api-key a --api-key b gguf -m dir -f x.gguf",
            "gguf -m dir -f x.gguf --api-key a --api-key b --max-seqs 3 --port 7",
            "--api-key a --max-seqs 3 gguf -m dir --port 7 -f x.gguf --api-key b",
        ] {
            assert_eq!(layer(arguments).unwrap(), expected, "{arguments}");
        }
    }

    #[test]
    fn what_is_not_served_yet_says_so_and_what_is_misspelt_gets_a_suggestion() {
        let check = |arguments, expected: &str| {
            let error = layer(arguments).unwrap_err();
            assert!(error.contains(expected), "{arguments}: {error}");
        };
        check("lora -m x", "adapters are not supported yet");
        check("--isq q4k run -m x", "in-situ quantization is not supported yet");
        check("run -m x --dtype=f16", "activations are computed in f32");
        check("--prot 7", "a similar argument exists: '--port'");
        check("ruun -m x", "a similar subcommand exists: 'run'");
        check("run -m x --paged-attn maybe", "[possible values: auto, on, off]");
    }

    #[cfg(feature = "http-mcp-stream")]
    #[test]
    fn a_server_to_add_is_a_command_or_a_url_with_what_belongs_to_it() {
        let added = |arguments: &str| {
            let arguments = ["mistralrs-server", "mcp", "add"].into_iter().chain(arguments.split_whitespace());
            let cli = Cli::try_parse_from(arguments).map_err(|error| error.to_string())?;
            match cli.command {
                Some(Command::Mcp(command)) => Ok(format!("{:?}", command.change())),
                other => Err(format!("{other:?}")),
            }
        };
        let child = added("fs --env KEY --namespace x -- npx -y pkg --root /tmp").unwrap();
        assert!(child.contains(r#"command: ["npx", "-y", "pkg", "--root", "/tmp"]"#), "{child}");
        assert!(child.contains(r#"Pair { name: "KEY", value: "$KEY" }"#), "{child}");
        let url = added("web --url https://h/sse --transport sse --header Authorization=$AUTH").unwrap();
        assert!(url.contains(r#"transport: Some("sse")"#) && url.contains(r#"value: "$AUTH""#), "{url}");
        for (arguments, expected) in [
            ("fs", "--url <URL>"),
            ("fs --url http://h -- npx", "cannot be used with"),
            ("fs --header A=b -- npx", "cannot be used with"),
            ("fs --header A=b", "--url <URL>"),
            ("fs --env A=b --url http://h", "cannot be used with"),
            ("fs --url http://h --transport carrier-pigeon", "[possible values: http, sse, websocket]"),
        ] {
            let refused = added(arguments).unwrap_err();
            assert!(refused.contains(expected), "{arguments}: {refused}");
        }
    }
}
