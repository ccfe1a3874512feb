use std::path::PathBuf;

use clap::Parser;
use mistralrs_core::config::PackedCacheConfig;

use super::*;
use crate::cli::Cli;

/// Runs `mistralrs-server FLAGS` with a configuration file and an environment, and gives the settings as text.
struct Case {
    file: Option<(&'static str, &'static str)>,
    environment: &'static [(&'static str, &'static str)],
    flags: &'static str,
}

impl Case {
    fn settings(&self) -> Result<Settings, String> {
        self.configuration()?.settings().map_err(|error| error.to_string())
    }

    /// The directory of the file is cut out of messages: it differs from run to run.
    fn configuration(&self) -> Result<Configuration, String> {
        let directory = tempfile::tempdir().unwrap();
        let mut arguments = vec!["mistralrs-server".to_owned()];
        arguments.extend(self.flags.split_whitespace().map(str::to_owned));
        if let Some((name, text)) = self.file {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            arguments.extend(["--config".to_owned(), path.display().to_string()]);
        }
        let environment =
            self.environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let cli = Cli::try_parse_from(arguments).map_err(|error| error.to_string())?;
        let prefix = format!("{}/", directory.path().display());
        Configuration::load(cli.sources(), environment).map_err(|error| error.to_string().replace(&prefix, ""))
    }
}

fn toml(text: &'static str) -> Case {
    Case { file: Some(("mistralrs.toml", text)), environment: &[], flags: "" }
}

fn flags(flags: &'static str) -> Case {
    Case { file: None, environment: &[], flags }
}

fn error(case: &Case) -> String {
    match case.settings() {
        Ok(settings) => panic!("accepted: {settings:?}"),
        Err(error) => error,
    }
}

fn check_error(case: &Case, expected: &str) {
    assert_eq!(error(case), expected);
}

#[test]
fn defaults_serve_loopback_only_and_no_mcp() {
    let settings = flags("run -m some/model").settings().unwrap();
    assert_eq!(settings.server.addr.to_string(), "127.0.0.1:1234");
    assert_eq!(settings.server.max_body_bytes, 4 << 20);
    assert!(settings.server.api_keys.is_empty() && settings.server.cors.is_none() && settings.lock_metrics);
    let engine = settings.model.unwrap().engine;
    assert_eq!(format!("{engine:?}"), format!("{:?}", mistralrs_core::EngineConfig::default()));
    #[cfg(feature = "http-mcp-stream")]
    assert!(settings.mcp.is_none());
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let file = Some(("mistralrs.toml", "[server]\nlog = \"file\"\nport = 1\n[engine]\nmax_seqs = 1"));
    let environment = &[("RUST_LOG", "environment")];
    let show = |case: Case| {
        let settings = case.settings().unwrap();
        format!(
            "{} {} {}",
            settings.server.addr.port(),
            settings.server.log,
            settings.model.unwrap().engine.max_num_seqs
        )
    };
    assert_eq!(show(Case { file, environment: &[], flags: "run -m a/b" }), "1 file 1");
    assert_eq!(show(Case { file, environment, flags: "run -m a/b" }), "1 environment 1");
    assert_eq!(show(Case { file, environment, flags: "--log flag run -m a/b --port 3 --max-seqs 4" }), "3 flag 4");
}

#[test]
fn toml_yaml_and_json_have_the_same_keys() {
    let files = [
        ("c.toml", "[server]\nport = 7\napi_keys = [\"k\"]"),
        ("c.yaml", "server:\n  port: 7\n  api_keys: [k]\n"),
        ("c.yml", "server: { port: 7, api_keys: [\"k\"] }"),
        ("c.json", r#"{ "server": { "port": 7, "api_keys": ["k"] } }"#),
    ];
    for file in files {
        let settings = Case { file: Some(file), environment: &[], flags: "" }.settings().unwrap();
        assert_eq!((settings.server.addr.port(), settings.server.api_keys), (7, vec!["k".to_owned()]), "{}", file.0);
    }
}

#[test]
fn the_environment_names_the_file_and_the_mcp_endpoint() {
    let missing = Case { file: None, environment: &[("MISTRALRS_CONFIG", "/nowhere/m.toml")], flags: "" };
    check_error(&missing, "cannot read `/nowhere/m.toml`: No such file or directory (os error 2)");
    let wrong = Case { file: None, environment: &[("MISTRALRS_HTTP_MCP_PORT", "http")], flags: "" };
    check_error(&wrong, "environment variable MISTRALRS_HTTP_MCP_PORT: `http` is not a port number");
}

#[cfg(feature = "http-mcp-stream")]
#[test]
fn the_mcp_endpoint_comes_from_flags_environment_or_file() {
    use std::fmt::Write as _;

    let show = |case: Case| match case.settings().unwrap().mcp {
        None => "off".to_owned(),
        Some(McpSettings { http, .. }) => {
            let mut text = format!("{} keys {:?}", http.addr, http.api_keys);
            if let Some(older) = http.older_addr {
                write!(text, " and {older}").unwrap();
            }
            if let Some(limit) = http.rate_limit {
                let show =
                    |limit: Option<std::num::NonZeroU32>| limit.map_or("-".to_owned(), |limit| limit.to_string());
                write!(text, " limits {} {} {}", show(limit.global), show(limit.per_key), show(limit.per_ip)).unwrap();
            }
            text
        }
    };
    let file =
        "[http_mcp]\nenabled = true\nport = 5\napi_keys = [\"k\"]\n[http_mcp.rate_limit]\nglobal = 9\nper_key = 3";
    let environment = &[
        ("MISTRALRS_HTTP_MCP_PORT", "6"),
        ("MISTRALRS_HTTP_MCP_AUTH_KEY", "a, b"),
        ("MISTRALRS_HTTP_MCP_RATE_LIMIT", "8"),
    ];
    assert_eq!(show(toml(file)), "127.0.0.1:5 keys [\"k\"] limits 9 3 -");
    assert_eq!(
        show(Case { file: Some(("m.toml", file)), environment, flags: "" }),
        "127.0.0.1:6 keys [\"a\", \"b\"] limits 8 3 -"
    );
    assert_eq!(
        show(Case { file: Some(("m.toml", file)), environment, flags: "--http-mcp-port 7 --http-mcp-auth-key c" }),
        "127.0.0.1:7 keys [\"c\"] limits 8 3 -"
    );
    assert_eq!(show(flags("--http-mcp-port 0 --mcp-port 0")), "127.0.0.1:0 keys [] and 127.0.0.1:0");
    assert_eq!(show(flags("--mcp-port 9")), "127.0.0.1:9 keys []");
    assert_eq!(show(toml("[http_mcp]\nenabled = true")), "127.0.0.1:4322 keys []");
    assert_eq!(show(toml("[http_mcp]\nenabled = false\nport = 5")), "off");
}

#[test]
fn unknown_keys_and_values_name_the_nearest_known_one() {
    insta::assert_snapshot!(error(&toml("[server]\nprot = 1")), @"mistralrs.toml:2: unknown key `prot` in `server`; did you mean `port`? (known: port, serve_ip, api_keys, log, log_format, threads, max_body_bytes, max_connections, write_timeout_secs, request_timeout_secs, drain_timeout_secs, cors, responses)");
    insta::assert_snapshot!(error(&toml("[sever]\nport = 1")), @"mistralrs.toml:1: unknown key `sever`; did you mean `server`? (known: server, model, engine, prometheus_locks, http_mcp, mcp_client, tool_forwarding)");
    insta::assert_snapshot!(error(&toml("[engine]\npa_cache_type = \"f61\"")), @"mistralrs.toml:2: unknown value `f61` of `engine.pa_cache_type`; did you mean `bf16`? (known: auto, f16, bf16, f32, q8_0)");
    insta::assert_snapshot!(error(&toml("[server]\nport = \"http\"")), @r#"mistralrs.toml:2: `server.port`: invalid type: string "http", expected u16"#);
    insta::assert_snapshot!(error(&toml("[server]\nmax_body_bytes = 0")), @"mistralrs.toml:2: `server.max_body_bytes`: invalid value: integer `0`, expected a nonzero usize");
    insta::assert_snapshot!(error(&toml("[server]\napi_keys = [\n 'a',\n '$NOPE',\n]")), @"mistralrs.toml:2: `server.api_keys[1]`: the environment variable `NOPE` is not set; write `$$` for a dollar sign");
    insta::assert_snapshot!(error(&toml("[server]\nport = 1\nport = 2")), @"
    mistralrs.toml: TOML parse error at line 3, column 1
      |
    3 | port = 2
      | ^^^^
    duplicate key
    ");
}

#[test]
fn a_file_of_another_kind_is_refused() {
    let case = |name, text| Case { file: Some((name, text)), environment: &[], flags: "" };
    insta::assert_snapshot!(error(&case("mistralrs.ini", "")), @"mistralrs.ini: the name must end in .toml, .yaml, .yml or .json");
    insta::assert_snapshot!(error(&case("list.json", "[1]")), @"list.json: the file must hold a table of keys");
    insta::assert_snapshot!(error(&case("broken.json", "{")), @"broken.json: EOF while parsing an object at line 1 column 1");
    assert!(case("empty.yaml", "").settings().is_ok());
}

#[test]
fn contradictions_and_what_this_version_cannot_do_are_refused() {
    insta::assert_snapshot!(error(&flags("run -m a/b --paged-attn off")), @"--paged-attn off: this engine's KV cache is always paged, on the CPU too; use `auto` or `on`");
    insta::assert_snapshot!(error(&flags("run -m a/b --pa-block-size 24")), @"--pa-block-size 24: expected a power of two up to 256, in tokens");
    insta::assert_snapshot!(error(&flags("run -m a/b --draft-model c/d --max-draft-tokens 0")), @"--draft-model is of no use with --max-draft-tokens 0: remove one");
    insta::assert_snapshot!(error(&toml("[engine]\ndraft_model = \"c/d\"")), @"--draft-model guesses for a model, and none is named (`run -m MODEL`)");
    insta::assert_snapshot!(error(&flags("run -m a/b --log =,=")), @"--log `=,=` is not a log filter: invalid filter directive");
    insta::assert_snapshot!(error(&flags("run -m a/b --api-key é")), @"`server.api_keys`: a key must be visible ASCII characters without spaces, at least one");
    insta::assert_snapshot!(error(&toml("[model]\nfile = \"x.gguf\"")), @"`model.file` needs `model.model_id`: the directory or hub id it is in");
    insta::assert_snapshot!(error(&toml("[server.cors]\nallow_origins = [\"localhost:3000\"]")), @"`server.cors.allow_origins`: `localhost:3000` is not an origin such as `http://localhost:3000`, without a path, or `*`");
    insta::assert_snapshot!(error(&toml("[prometheus_locks]\nmetrics_endpoint = \"/health\"")), @"`prometheus_locks.metrics_endpoint` is `/health`, but must be an unused path such as `/metrics`");
    insta::assert_snapshot!(error(&toml("[http_mcp]\nenabled = true\nauth_method = \"jwt\"")), @r#"`http_mcp.auth_method = "jwt"` is not supported by this version; use "api_key""#);
    insta::assert_snapshot!(error(&toml("[http_mcp]\nenabled = true\nauth_method = \"api_key\"")), @r#"`http_mcp.auth_method = "api_key"` needs `http_mcp.api_keys` or --http-mcp-auth-key"#);
    insta::assert_snapshot!(error(&toml("[http_mcp]\nenabled = true\nauth_method = \"none\"\napi_keys = [\"k\"]")), @r#"`http_mcp.auth_method = "none"` contradicts `http_mcp.api_keys`; remove one of them"#);
    insta::assert_snapshot!(error(&toml("[http_mcp]\nport = 1234")), @"port 1234 is wanted for the OpenAI API and for the MCP endpoint; give them different ports (--port, --http-mcp-port)");
    insta::assert_snapshot!(error(&toml("[server]\nserve_ip = \"0.0.0.0\"\n[http_mcp]\nenabled = true")), @"the MCP endpoint would listen on 0.0.0.0 without a key, and its tools act on this machine: give --http-mcp-auth-key KEY, or bind it to this machine with --serve-ip 127.0.0.1");
}

#[test]
fn a_process_with_nothing_to_serve_is_refused() {
    let nothing = flags("").settings().unwrap().check_serves_something().unwrap_err();
    assert!(nothing.to_string().starts_with("nothing to serve: name a model (`run -m MODEL`)"), "{nothing}");
    assert!(flags("run -m a/b").settings().unwrap().check_serves_something().is_ok());
}

#[test]
fn a_selector_replaces_the_model_of_the_file_as_a_whole() {
    let case = Case {
        file: Some(("m.toml", "[model]\nformat = \"gguf\"\nmodel_id = \"dir\"\nfile = \"x.gguf\"")),
        environment: &[],
        flags: "run -m a/b",
    };
    let selector = case.settings().unwrap().model.unwrap().selector;
    assert_eq!(selector, ModelSelector { format: ModelFormat::Auto, model_id: "a/b".into(), file: None });
}

#[test]
fn a_draft_model_is_named_by_flag_or_file() {
    let file = Some(("m.toml", "[engine]\ndraft_model = \"small/file\""));
    let draft = |file, flags| Case { file, environment: &[], flags }.settings().unwrap().model.unwrap().draft;
    let expected =
        |model_id: &str| Some(ModelSelector { format: ModelFormat::Auto, model_id: model_id.to_owned(), file: None });
    assert_eq!(draft(None, "run -m a/b"), None);
    assert_eq!(draft(file, "run -m a/b"), expected("small/file"));
    assert_eq!(draft(file, "run -m a/b --draft-model small/flag"), expected("small/flag"));
    assert_eq!(draft(None, "--model-draft small/flag gguf -m a -f b.gguf"), expected("small/flag"));
}

#[test]
fn packed_weights_are_kept_where_flag_or_file_says() {
    let file = Some(("m.toml", "[engine]\npacked_cache_dir = \"file\"\npacked_cache_size = 3"));
    let kept = |file, flags| Case { file, environment: &[], flags }.settings().unwrap().model.unwrap().packed_cache;
    let expected = |directory: &str, gib: u64| {
        Some(PackedCacheConfig { directory: PathBuf::from(directory), max_bytes: gib << 30 })
    };
    assert_eq!(kept(None, "run -m a/b"), None);
    assert_eq!(kept(None, "run -m a/b --packed-cache-size 5"), None);
    assert_eq!(kept(None, "run -m a/b --packed-cache-dir flag"), expected("flag", 16));
    assert_eq!(kept(file, "run -m a/b --packed-cache-size 5"), expected("file", 5));
    assert_eq!(kept(file, "--packed-cache-dir flag run -m a/b"), expected("flag", 3));
}

#[test]
fn the_hubs_token_comes_from_where_token_source_says() {
    let token = |flags| {
        let environment =
            &[("HF_TOKEN", "from-hf"), ("OTHER", "from-other"), ("HF_HOME", "/hf"), ("HF_HUB_OFFLINE", "1")];
        Case { file: None, environment, flags }.settings().map(|settings| settings.model.unwrap().hub)
    };
    let hub = token("run -m a/b").unwrap();
    assert_eq!((hub.token.as_deref(), hub.offline, hub.cache_dir), (Some("from-hf"), true, PathBuf::from("/hf/hub")));
    assert_eq!(token("run -m a/b --token-source env:OTHER").unwrap().token.as_deref(), Some("from-other"));
    assert_eq!(token("run -m a/b --token-source literal:abc").unwrap().token.as_deref(), Some("abc"));
    assert_eq!(token("run -m a/b --token-source none").unwrap().token, None);
    assert_eq!(
        token("run -m a/b --token-source env:MISSING").unwrap_err(),
        "--token-source env:MISSING: the environment variable is not set"
    );
}

#[test]
fn the_printed_configuration_has_no_secrets_and_names_variables() {
    let case = Case {
        file: Some((
            "m.toml",
            "[server]\napi_keys = [\"sk-one\"]\n[model]\nmodel_id = \"$HOME/model\"\ntoken_source = \"literal:tkn\"",
        )),
        environment: &[("HOME", "/home/ann")],
        flags: "",
    };
    let printed = case.configuration().unwrap().to_redacted_toml();
    insta::assert_snapshot!(printed, @r#"
    [server]
    port = 1234
    serve_ip = "127.0.0.1"
    api_keys = ["***"]
    log = "info"
    log_format = "text"
    max_body_bytes = 4194304
    max_connections = 1024
    write_timeout_secs = 60
    request_timeout_secs = 3600
    drain_timeout_secs = 30

    [server.cors]
    allow_origins = []
    allow_methods = []

    [server.responses]
    max_stored = 1000
    max_stored_bytes = 67108864
    ttl_secs = 86400
    max_background = 32

    [model]
    format = "auto"
    model_id = "${HOME}/model"
    token_source = "***"

    [engine]
    max_seqs = 32
    max_num_batched_tokens = 512
    max_decode_stall_ms = 500
    max_waiting_requests = 256
    queue_timeout_secs = 300
    priority_aging_requests = 32
    prefix_cache_n = 16
    paged_attn = "auto"
    pa_block_size = 32
    pa_cache_type = "auto"
    max_draft_tokens = 8
    packed_cache_size = 16
    cpu = false

    [prometheus_locks]
    enabled = true
    metrics_endpoint = "/metrics"

    [http_mcp]
    api_keys = []
    allowed_hosts = []

    [http_mcp.rate_limit]

    [http_mcp.cors]
    allow_origins = []
    allow_methods = []
    "#);
}

#[test]
fn the_schema_describes_every_key() {
    let schema: Value = serde_json::from_str(&json_schema()).unwrap();
    let file = serde_json::to_value(ConfigFile::default()).unwrap();
    for section in file.as_object().unwrap().keys() {
        assert!(schema["properties"][section].is_object(), "{section}");
    }
    assert!(schema["$defs"]["ServerSection"]["properties"]["port"]["description"].is_string());
}
