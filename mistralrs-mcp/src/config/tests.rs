//! One table a format: text in, what the gateway runs on out.

use super::*;

/// Parses `text`, checks it, and tells what came out in one line per server.
fn told(text: &str, format: FileFormat) -> String {
    let environment = |name: &str| match name {
        "TOKEN" => Some("s3cret".to_owned()),
        "HOME" => Some("/home/ada".to_owned()),
        _ => None,
    };
    let checked = parse_mcp_config(text, format, &environment)
        .and_then(|section| GatewayConfig::from_sections(Some(section), None));
    match checked {
        Ok(config) => config.upstreams.iter().map(summary).collect::<Vec<_>>().join("\n"),
        Err(error) => error.to_string(),
    }
}

fn summary(upstream: &UpstreamConfig) -> String {
    let UpstreamConfig { id, namespace, transport, connect_timeout, tool_timeout, max_concurrent_calls, .. } = upstream;
    let transport = match transport {
        TransportConfig::Stdio(StdioConfig { command, args, env, cwd }) => {
            let env: Vec<_> = env.iter().map(|(name, value)| format!("{name}={}", value.expose())).collect();
            format!("{command} {args:?} {env:?} {cwd:?}")
        }
        TransportConfig::StreamableHttp(http) => url_told("", http),
        TransportConfig::LegacySse(http) => url_told("sse ", http),
        TransportConfig::WebSocket(http) => url_told("websocket ", http),
    };
    format!("{id} `{}` {transport} {connect_timeout:?} {tool_timeout:?} {max_concurrent_calls}", namespace.as_str())
}

fn url_told(transport: &str, http: &HttpConfig) -> String {
    let HttpConfig { url, headers, auth } = http;
    let headers: Vec<_> =
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("tests write ASCII"))).collect();
    let token = auth.as_ref().map(|auth| match auth {
        HttpAuth::Bearer(token) => token.expose(),
        HttpAuth::OAuth(oauth) => oauth.client_secret.expose(),
    });
    format!("{transport}{url} {headers:?} {token:?}")
}

fn check_toml(text: &str, expected: &str) {
    assert_eq!(told(text, FileFormat::Toml), expected, "{text}");
}

fn check_json(text: &str, expected: &str) {
    assert_eq!(told(text, FileFormat::Json), expected, "{text}");
}

#[test]
fn the_documented_toml_is_read() {
    check_toml(
        r#"
        [mcp_client]
        enabled = true
        [[mcp_client.servers]]
        name = "filesystem"
        command = "npx"
        args = ["@modelcontextprotocol/server-filesystem", "/tmp", "-y"]
        env = { KEY = "$TOKEN" }
        [[mcp_client.servers]]
        name = "database"
        url = "http://postgres-mcp-server:5000"
        auth = { type = "bearer", token = "$TOKEN" }
        tool_timeout_seconds = 2.5
        max_concurrent_calls = 3
        "#,
        "filesystem `filesystem` npx [\"@modelcontextprotocol/server-filesystem\", \"/tmp\", \"-y\"] [\"KEY=s3cret\"] None 30s 30s 64\n\
         database `database` http://postgres-mcp-server:5000 [] Some(\"s3cret\") 5s 2.5s 3",
    );
    check_toml(
        "[[servers]]\nname = 'a'\ncommand = 'x'\ncwd = '${HOME}/w'\nnamespace = ''\n[[servers]]\nname = 'b'\nurl = 'https://h/mcp'\nheaders = { X-Key = '${TOKEN}' }\n[[servers]]\nname = 'off'\ncommand = 'y'\nenabled = false",
        "a `` x [] [] Some(\"/home/ada/w\") 30s 30s 64\nb `b` https://h/mcp [\"x-key: s3cret\"] None 5s 30s 64",
    );
}

#[test]
fn mistral_rs_files_are_read() {
    check_json(
        r#"{
            "servers": [
                { "name": "Filesystem Tools", "tool_prefix": "fs",
                  "source": { "type": "Process", "command": "mcp-server-filesystem", "args": ["/tmp"], "work_dir": "/w", "env": { "A": "$TOKEN" } } },
                { "id": "hub", "name": "Hub", "bearer_token": "$TOKEN",
                  "source": { "type": "Http", "url": "https://hub/mcp", "timeout_secs": 9, "headers": null } },
                { "name": "off", "enabled": false, "source": { "type": "Process", "command": "x", "args": [], "work_dir": null, "env": null } }
            ],
            "auto_register_tools": true, "tool_timeout_secs": 20, "max_concurrent_calls": 5
        }"#,
        "Filesystem_Tools `fs` mcp-server-filesystem [\"/tmp\"] [\"A=s3cret\"] Some(\"/w\") 30s 20s 5\n\
         hub `hub` https://hub/mcp [] Some(\"s3cret\") 5s 20s 5",
    );
    check_json(
        r#"{"servers": [{"name": "rt", "source": {"type": "WebSocket", "url": "wss://h/mcp"}}]}"#,
        "rt `rt` websocket wss://h/mcp [] None 5s 30s 64",
    );
    check_json(
        r#"{"servers": [{"name": "rt", "source": {"type": "Process", "command": "x"}}], "auto_register_tools": false}"#,
        "`auto_register_tools`: connecting servers without listing their tools is not supported in this version",
    );
    check_json(
        r#"{"servers": [{"name": "rt", "source": {"type": "Process", "command": "x", "args": "y"}}]}"#,
        "`servers[0].source.args`: invalid type: string \"y\", expected a sequence",
    );
    check_json(
        r#"{"servers": [{"name": "rt", "source": {"type": "Http", "uri": "http://h"}}]}"#,
        "unknown key `servers[0].source.uri`; did you mean `url`?",
    );
    check_json(
        r#"{"servers": [{"name": "rt", "source": {"type": "Http", "command": "x"}}]}"#,
        "`servers[0].source.command`: belongs to another `type` of source",
    );
    check_json(
        r#"{"servers": [{"name": "rt", "source": {"type": "Pipe", "command": "x"}}]}"#,
        "`servers[0].source.type`: unknown variant `Pipe`, expected one of `Http`, `Process`, `WebSocket`",
    );
    check_json(
        r#"{"servers": [{"name": "rt", "tool_prefx": "a", "source": {"type": "Process", "command": "x"}}]}"#,
        "unknown key `servers[0].tool_prefx`; did you mean `tool_prefix`?",
    );
}

#[test]
fn files_of_desktop_clients_are_read() {
    let one = "a `a` npx [\"-y\", \"pkg\"] [\"K=s3cret\"] None 30s 30s 64";
    check_json(
        r#"{"mcpServers": {
            "a": { "command": "npx", "args": ["-y", "pkg"], "env": { "K": "${TOKEN}" }, "autoApprove": ["x"] },
            "My Web": { "type": "streamable-http", "url": "http://h:1/mcp", "headers": { "Authorization": "Bearer $TOKEN" } },
            "off": { "command": "x", "disabled": true }
        }}"#,
        &format!("{one}\nMy_Web `My_Web` http://h:1/mcp [\"authorization: Bearer s3cret\"] None 5s 30s 64"),
    );
    check_json(
        r#"{"servers": {"a": {"type": "stdio", "command": "npx", "args": ["-y", "pkg"], "env": {"K": "$TOKEN"}}}}"#,
        one,
    );
    check_json(
        r#"{"mcpServers": {"old": {"type": "sse", "url": "http://h/sse"}}}"#,
        "old `old` sse http://h/sse [] None 5s 30s 64",
    );
    check_json(
        r#"{"mcpServers": {"a": {"comand": "npx"}}}"#,
        "unknown key `mcpServers.a.comand`; did you mean `command`?",
    );
    check_json(
        r#"{"mcpServers": {"a": {"command": "$NOPE"}}}"#,
        "`mcpServers.a.command`: environment variable `NOPE` is not set (`$$` stands for a plain dollar sign)",
    );
}

#[test]
fn aggregator_files_are_read() {
    let servers = "servers:\n\
        - id: filesystem\n  name: Files of the house\n  transport: stdio\n  command: npx\n  args: [pkg]\n\
        - {id: db, name: Database, transport: http, url: 'http://db/mcp', auth: {type: bearer, token_env: TOKEN}}\n";
    assert_eq!(
        told(servers, FileFormat::Yaml),
        "filesystem `filesystem` npx [\"pkg\"] [] None 30s 30s 64\ndb `db` http://db/mcp [] Some(\"s3cret\") 5s 30s 64"
    );
    for (addition, expected) in [
        (
            "roles: [{name: dev, permissions: ['filesystem:*']}]",
            "`roles`: access by role is not supported in this version",
        ),
        (
            "proxy: {host: h, port: 1}",
            "`proxy`: the listener's address in this file (use --http-mcp-port) is not supported in this version",
        ),
        (
            "- {id: ws, transport: websocket, url: 'http://h'}",
            "`mcp_client.servers[2] (ws).url`: `http://h` must begin with ws:// or wss:// and a host",
        ),
        (
            "- {id: x, transport: http, url: 'http://h', auth: {type: bearer, token_env: NOPE}}",
            "`servers[2].auth.token_env`: environment variable `NOPE` is not set (`$$` stands for a plain dollar sign)",
        ),
    ] {
        assert_eq!(told(&format!("{servers}{addition}"), FileFormat::Yaml), expected);
    }
}

#[test]
fn what_is_wrong_with_a_server_is_named_with_its_place() {
    for (line, expected) in [
        ("name = 'a'", "`mcp_client.servers[0] (a).command`: a server needs `command` or `url`"),
        (
            "name = 'a'\ncommand = 'x'\nauth = { type = 'bearer', token = 't' }",
            "`mcp_client.servers[0] (a).auth`: a child process has none; give it what it needs in `env`",
        ),
        (
            "name = 'a b'\ncommand = 'x'",
            "`mcp_client.servers[0] (a b).name`: must be 1 to 32 of A-Z a-z 0-9 _ -, got `a b`",
        ),
        (
            "name = 'mistralrs'\ncommand = 'x'",
            "`mcp_client.servers[0] (mistralrs).name`: `mistralrs` is the namespace of the native tools",
        ),
        (
            "name = 'a'\ncommand = 'x'\ntool_timeout_seconds = 0",
            "`mcp_client.servers[0] (a).tool_timeout_seconds`: must be more than 0 and at most 86400 seconds",
        ),
        (
            "name = 'a'\ncommand = 'x'\nmax_concurrent_calls = 0",
            "`mcp_client.servers[0] (a).max_concurrent_calls`: must be 1 to 4096",
        ),
        ("name = 'a'\ncomand = 'x'", "unknown key `servers[0].comand`; did you mean `command`?"),
        (
            "name = 'a'\ncommand = 'x'\nprotocol = 'new'",
            "`servers[0].protocol`: unknown variant `new`, expected one of `auto`, `legacy`, `modern`",
        ),
        (
            "name = 'a'\ncommand = 'x'\n[[servers]]\nname = 'a'\ncommand = 'y'",
            "`mcp_client.servers[1] (a).name`: `a` is taken by server `a`",
        ),
        (
            "name = 'a'\ncommand = 'x'\n[[servers]]\nname = 'b'\nnamespace = 'a'\ncommand = 'y'",
            "`mcp_client.servers[1] (b).namespace`: `a` is taken by server `a`",
        ),
    ] {
        check_toml(&format!("[[servers]]\n{line}"), expected);
    }
}

#[test]
fn what_is_wrong_with_an_endpoint_is_named_with_its_place() {
    for (line, expected) in [
        (
            "name = 'a'\ncommand = 'x'\nurl = 'http://h'",
            "`mcp_client.servers[0] (a).url`: a server has `command` or `url`, not both",
        ),
        (
            "name = 'a'\nurl = 'http://h'\nargs = ['x']",
            "`mcp_client.servers[0] (a).args`: belongs to `command`; this server has a `url`",
        ),
        (
            "name = 'a'\nurl = 'ftp://h'",
            "`mcp_client.servers[0] (a).url`: `ftp://h` must begin with http:// or https:// and a host",
        ),
        ("name = 'a'\ntransport = 'sse'\ncommand = 'x'", "`mcp_client.servers[0] (a).url`: this transport needs it"),
        (
            "name = 'a'\nurl = 'http://h'\nheaders = { Accept = 'x' }",
            "`mcp_client.servers[0] (a).headers.Accept`: is set by the protocol",
        ),
        (
            "name = 'a'\nurl = 'http://h'\nheaders = { Authorization = 'x' }\nauth = { type = 'bearer', token = 't' }",
            "`mcp_client.servers[0] (a).auth`: `headers` already holds Authorization",
        ),
        (
            "name = 'a'\nurl = 'http://h'\nauth = { type = 'bearer', token = 't', scopes = [] }",
            "`servers[0].auth`: `scopes` belongs to the type `oauth`",
        ),
        (
            "name = 'a'\nurl = 'http://h'\nauth = { type = 'basic' }",
            "`servers[0].auth.type`: unknown variant `basic`, expected one of `bearer`, `oauth`, `oauth2`",
        ),
        (
            "name = 'a'\nurl = 'http://h'\nkeep_alive_seconds = 5",
            "`mcp_client.servers[0] (a).keep_alive_seconds`: is for the transport `websocket` only",
        ),
        (
            "name = 'a'\nurl = 'ws://h'\nkeep_alive_seconds = -1",
            "`mcp_client.servers[0] (a).keep_alive_seconds`: must be more than 0 and at most 86400 seconds",
        ),
    ] {
        check_toml(&format!("[[servers]]\n{line}"), expected);
    }
}

#[test]
fn an_authorization_server_is_read_with_who_we_are_there() {
    let told = |auth: &str| {
        let text = format!(
            "[[servers]]\nname = 'a'\nurl = 'https://h/mcp'\nauth = {{ type = 'oauth', client_id = 'me', {auth} }}"
        );
        told_auth(&text)
    };
    let who = "client_secret = '$TOKEN'";
    for (auth, expected) in [
        (who.to_owned(), "OfUpstream [] None"),
        (format!("{who}, issuer = 'https://login/realm'"), "Issuer(\"https://login/realm\") [] None"),
        (
            format!(
                "{who}, token_url = 'https://login/token', scopes = ['a', 'b'], token_endpoint_auth_method = 'client_secret_post'"
            ),
            "TokenUrl(\"https://login/token\") [\"a\", \"b\"] Some(ClientSecretPost)",
        ),
        ("client_secret = ''".to_owned(), "`mcp_client.servers[0] (a).auth.client_secret`: is empty"),
        ("scopes = []".to_owned(), "`servers[0].auth`: `client_secret` is missing"),
        (format!("{who}, scopes = 'a'"), "`servers[0].auth.scopes`: invalid type: string \"a\", expected a sequence"),
        (
            format!("{who}, token = 't'"),
            "`servers[0].auth`: `token` belongs to the type `bearer`; with `oauth` it comes from a server",
        ),
        (format!("{who}, scope = ['a']"), "unknown key `servers[0].auth.scope`; did you mean `scopes`?"),
        (format!("{who}, scopes = ['a b']"), "`mcp_client.servers[0] (a).auth.scopes`: `a b` is not one scope"),
        (
            format!("{who}, token_url = 'login'"),
            "`mcp_client.servers[0] (a).auth.token_url`: `login` must begin with http:// or https:// and a host",
        ),
        (
            format!("{who}, issuer = 'https://h', token_url = 'https://h/t'"),
            "`mcp_client.servers[0] (a).auth.issuer`: `token_url` says already where tokens come from: give one of both",
        ),
        (
            format!("{who}, token_endpoint_auth_method = 'none'"),
            "`servers[0].auth.token_endpoint_auth_method`: unknown variant `none`, expected `client_secret_basic` or `client_secret_post`",
        ),
    ] {
        assert_eq!(told(&auth), expected, "{auth}");
    }
}

/// What became of the first server's `auth`.
fn told_auth(text: &str) -> String {
    let environment = |name: &str| (name == "TOKEN").then(|| "s3cret".to_owned());
    let checked = parse_mcp_config(text, FileFormat::Toml, &environment)
        .and_then(|section| GatewayConfig::from_sections(Some(section), None));
    let config = match checked {
        Ok(config) => config,
        Err(error) => return error.to_string(),
    };
    assert!(!format!("{config:?}").contains("s3cret"), "secrets do not appear in debug output");
    let TransportConfig::StreamableHttp(http) = &config.upstreams[0].transport else { panic!("{config:?}") };
    let Some(HttpAuth::OAuth(oauth)) = &http.auth else { panic!("{http:?}") };
    assert_eq!((oauth.client_id.as_str(), oauth.client_secret.expose()), ("me", "s3cret"));
    format!("{:?} {:?} {:?}", oauth.server, oauth.scopes, oauth.authentication)
}

#[test]
fn an_alias_names_a_tool_of_a_server_and_belongs_to_one() {
    let told = |aliases: &str| {
        let servers = "servers = [{ name = 'files', command = 'x' }, { name = 'off', command = 'x', enabled = false }, { name = 'plain', namespace = '', command = 'x' }]";
        let client = McpClientConfig::from_value(toml::from_str(servers).unwrap()).unwrap();
        let forwarding = toml::from_str(&format!("namespace_strategy = 'custom'\n[aliases]\n{aliases}")).unwrap();
        let checked = ToolForwardingConfig::from_value(forwarding)
            .and_then(|section| GatewayConfig::from_sections(Some(client), Some(section)));
        checked.map_or_else(|error| error.to_string(), |_| "good".to_owned())
    };
    let long = "x".repeat(65);
    for (aliases, expected) in [
        ("'files::read' = 'r'\n'off::read' = 'o'\n'echo' = 'e'", "good"),
        (
            "'files::read' = 'r'\n'files::write' = 'r'",
            "`tool_forwarding.aliases.files::write`: `r` is the alias of `files::read` already",
        ),
        (
            "'file::read' = 'r'",
            "`tool_forwarding.aliases.file::read`: no server has the namespace `file`; did you mean `files::read`?",
        ),
        ("'xyz::read' = 'r'", "`tool_forwarding.aliases.xyz::read`: no server has the namespace `xyz`"),
        ("'files::' = 'r'", "`tool_forwarding.aliases.files::`: names no tool"),
        ("'mistralrs::generate' = 'r'", "`tool_forwarding.aliases.mistralrs::generate`: native tools keep their names"),
        (
            "'files::read' = 'a::b'",
            "`tool_forwarding.aliases.files::read`: an alias must be 1 to 64 of A-Z a-z 0-9 _ -, got `a::b`",
        ),
        (
            &format!("'files::read' = '{long}'"),
            &format!(
                "`tool_forwarding.aliases.files::read`: an alias must be 1 to 64 of A-Z a-z 0-9 _ -, got `{long}`"
            ),
        ),
        ("'files::read' = 1", "`tool_forwarding.aliases.files::read`: invalid type: integer `1`, expected a string"),
        (
            "",
            "`tool_forwarding.namespace_strategy`: `custom` takes names from `[tool_forwarding.aliases]`, which has none",
        ),
    ] {
        assert_eq!(told(aliases), expected, "{aliases}");
    }
}

#[test]
fn who_answers_for_completions_is_said_per_server() {
    let checked = |keys: &str| {
        let server: serde_json::Value = toml::from_str(&format!("name = 'a'\ncommand = 'x'\n{keys}")).unwrap();
        let section = McpClientConfig::from_value(serde_json::json!({ "servers": [server] }));
        let config = section.and_then(|section| GatewayConfig::from_sections(Some(section), None));
        config.map(|config| config.upstreams[0].sampling).map_err(|error| error.to_string())
    };
    let config = |mode, max_tokens| Ok(SamplingConfig { mode, max_tokens });
    assert_eq!(checked(""), config(SamplingMode::Client, 512));
    assert_eq!(checked("sampling = 'local'"), config(SamplingMode::Local, 512));
    assert_eq!(checked("sampling = 'local'\nsampling_max_tokens = 7"), config(SamplingMode::Local, 7));
    assert_eq!(checked("sampling = 'off'"), config(SamplingMode::Off, 512));
    for (keys, expected) in [
        ("sampling = 'on'", "`mcp_client.servers[0].sampling`: unknown variant `on`"),
        ("sampling = 'local'\nsampling_max_tokens = 0", "(a).sampling_max_tokens`: must be at least 1"),
        ("sampling_max_tokens = 9", "(a).sampling_max_tokens`: is of use with `sampling = \"local\"` only"),
    ] {
        let error = checked(keys).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_file_that_holds_no_servers_says_what_it_needs() {
    check_toml(
        "[mcp_client]\nenabled = true\n[tool_forwarding]",
        "`tool_forwarding`: belongs into the server's configuration (--config), beside `mcp_client`; this file holds servers only",
    );
    check_toml("[other]", "`servers`: missing; the file needs `[[servers]]`, `[[mcp_client.servers]]` or `mcpServers`");
    check_toml("servers = [{ name = 1 }]", "`servers[0].name`: invalid type: integer `1`, expected a string");
    check_json("[1]", "`servers`: the file must be a table of servers");
    check_json("{", "not valid JSON: EOF while parsing an object at line 1 column 1");
}

#[test]
fn forwarding_says_what_it_does_not_support_yet() {
    let told = |text: &str| {
        let value: serde_json::Value = toml::from_str(text).unwrap();
        let checked = ToolForwardingConfig::from_value(value)
            .and_then(|section| GatewayConfig::from_sections(None, Some(section)));
        checked.map_or_else(
            |error| error.to_string(),
            |config| format!("{:?} {:?}", config.naming.strategy, config.naming.separator),
        )
    };
    for (text, expected) in [
        ("", "ServerPrefix Colons"),
        ("namespace_strategy = 'flat'\nseparator = '__'", "Flat Underscores"),
        (
            "[rate_limit]\ndefault = 100",
            "`tool_forwarding.rate_limit`: a rate limit per tool is not supported in this version",
        ),
        (
            "[cache]\nenabled = true",
            "`tool_forwarding.cache`: caching of tool results is not supported in this version",
        ),
        (
            "[security]\nblocked_tool = []",
            "unknown key `tool_forwarding.security.blocked_tool`; did you mean `blocked_tools`?",
        ),
        ("[security]\nblocked_tools = ['']", "`tool_forwarding.security.blocked_tools[0]`: `` matches no name"),
        ("xyz = 1", "unknown key `tool_forwarding.xyz`"),
    ] {
        assert_eq!(told(text), expected, "{text}");
    }
}

#[test]
fn a_disabled_section_is_checked_and_connects_nothing() {
    let client = |text: &str| McpClientConfig::from_value(toml::from_str(text).unwrap()).unwrap();
    let disabled = client("enabled = false\nservers = [{ name = 'a', command = 'x' }]");
    assert!(GatewayConfig::from_sections(Some(disabled), None).unwrap().upstreams.is_empty());
    let wrong = client("enabled = false\nservers = [{ name = 'a' }]");
    GatewayConfig::from_sections(Some(wrong), None).unwrap_err();
    let enabled = client("servers = [{ name = 'a', command = 'x' }]");
    let forwarding = ToolForwardingConfig { enabled: false, ..ToolForwardingConfig::default() };
    assert!(GatewayConfig::from_sections(Some(enabled), Some(forwarding)).unwrap().upstreams.is_empty());
}

#[test]
fn two_sources_of_servers_keep_their_own_switch() {
    let client = |text: &str| McpClientConfig::from_value(toml::from_str(text).unwrap()).unwrap();
    let disabled = client("enabled = false\nservers = [{ name = 'a', command = 'x' }]");
    let enabled = client("servers = [{ name = 'b', command = 'x' }]");
    let config = GatewayConfig::from_sections(Some(disabled.merge(enabled)), None).unwrap();
    assert_eq!(config.upstreams.iter().map(|upstream| upstream.id.as_str()).collect::<Vec<_>>(), ["b"]);
}

#[test]
fn secrets_do_not_appear_in_debug_output() {
    let text =
        "name = 'a'\nurl = 'http://h'\nheaders = { X-Key = 'hunter2' }\nauth = { type = 'bearer', token = 'hunter2' }";
    let server: serde_json::Value = toml::from_str(text).unwrap();
    let section = McpClientConfig::from_value(serde_json::json!({ "servers": [server] })).unwrap();
    assert!(!format!("{section:?}").contains("hunter2"));
    let config = GatewayConfig::from_sections(Some(section), None).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn the_extension_tells_the_syntax() {
    for (path, expected) in
        [("a/b.TOML", FileFormat::Toml), ("x.yml", FileFormat::Yaml), ("claude.json", FileFormat::Json)]
    {
        assert_eq!(FileFormat::from_path(std::path::Path::new(path)), Ok(expected));
    }
    let error = FileFormat::from_path(std::path::Path::new("servers.ini")).unwrap_err();
    assert_eq!(error.to_string(), "`servers.ini`: the name must end in .toml, .json, .yaml or .yml");
}
