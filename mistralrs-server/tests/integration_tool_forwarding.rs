//! Real MCP servers behind the gateway: listed, called, killed, restarted, dead from the start.
#![cfg(feature = "tool-forwarding")]

#[path = "integration_tool_forwarding/clients.rs"]
mod clients;
#[path = "integration_tool_forwarding/faults.rs"]
mod faults;
#[path = "integration_tool_forwarding/servers.rs"]
mod servers;
#[path = "integration_tool_forwarding/sessions.rs"]
mod sessions;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;

use support::mcp::text;
use support::process::{self, eventually};
use support::server::Server;
use support::upstreams::{Everything, Guarded, WebSocketEverything};
use support::{Http, Launch, tools, upstreams};

/// A Node child needs seconds to start on a loaded machine.
const CHILD_PATIENCE: Duration = Duration::from_secs(30);
const GREETING: &str = "hello from the filesystem";

/// A folder that a filesystem server may read, and how to start one.
struct Filesystem {
    node: PathBuf,
    script: PathBuf,
    root: tempfile::TempDir,
}

impl Filesystem {
    fn new(node: PathBuf, script: PathBuf) -> anyhow::Result<Self> {
        let root = tempfile::tempdir()?;
        fs::write(root.path().join("greeting.txt"), GREETING)?;
        Ok(Self { node, script, root })
    }

    fn greeting(&self) -> String {
        self.root.path().join("greeting.txt").display().to_string()
    }

    fn arguments(&self) -> [String; 2] {
        [self.script.display().to_string(), self.root.path().display().to_string()]
    }

    /// `[[mcp_client.servers]]` for it.
    fn toml(&self, name: &str) -> String {
        upstreams::child(name, &self.node, &self.arguments().each_ref().map(String::as_str))
    }
}

fn toml_url(name: &str, url: &str) -> String {
    format!("[[mcp_client.servers]]\nname = {name:?}\nurl = {url:?}\n")
}

#[tokio::test]
async fn tools_of_two_upstreams_are_listed_and_called_beside_the_native_ones() -> anyhow::Result<()> {
    let (node, filesystem, everything) = require_tools!(Node, FilesystemServer, EverythingServer);
    let everything = Everything::start(&node, &everything).await?;
    let filesystem = Filesystem::new(node, filesystem)?;
    let config = filesystem.toml("filesystem") + &toml_url("everything", &everything.url());
    let server = Launch::model().mcp().file("--config", "mistralrs.toml", &config).start().await?;
    let mcp = server.mcp();

    wait_for_tool(&mcp, "filesystem::read_file").await?;
    wait_for_tool(&mcp, "everything::echo").await?;
    let names = mcp.tool_names().await?;
    let native = names.iter().position(|name| name == "generate").context("no native tools")?;
    let forwarded = names.iter().position(|name| name.contains("::")).context("no forwarded tools")?;
    ensure!(native < forwarded, "native tools come first: {names:?}");
    ensure!(mcp.tool_names().await? == names, "the order changed between two lists");

    ensure!(read_greeting(&mcp, &filesystem).await? == GREETING);
    ensure!(mcp.call_tool_text("everything::echo", &json!({ "message": "hi" })).await?.contains("hi"));
    let scrape = server.http().scrape().await?;
    ensure!(scrape.count("mistralrs_tool_forwarded_calls_total", &[("tool", "filesystem::read_file")])? == 1);
    ensure!(scrape.count("mistralrs_tool_forwarded_duration_seconds_count", &[])? == 2);
    Ok(())
}

#[tokio::test]
async fn one_server_is_reached_by_four_transports() -> anyhow::Result<()> {
    let (node, everything, supergateway) = require_tools!(Node, EverythingServer, Supergateway);
    let http = Everything::start(&node, &everything).await?;
    let events = Everything::start_sse(&node, &everything).await?;
    let frames = WebSocketEverything::start(&node, &supergateway, &everything).await?;
    let config = toml_url("http", &http.url())
        + &toml_url("events", &events.sse_url())
        + "transport = \"sse\"\n"
        + &toml_url("frames", &frames.url())
        + &upstreams::child("child", &node, &[&everything.display().to_string(), "stdio"]);
    let server = gateway(&config).await?;
    let mcp = server.mcp();
    for name in ["http", "events", "frames", "child"] {
        let check = async {
            wait_for_tool(&mcp, &format!("{name}::echo")).await?;
            let echoed = mcp.call_tool_text(&format!("{name}::echo"), &json!({ "message": name })).await?;
            ensure!(echoed.contains(name), "{echoed:?}");
            let resources = mcp.rpc("resources/list", &json!({})).await?;
            let uri = format!("mcp://{name}/");
            let resources = resources["resources"].as_array().context("no list")?;
            let first =
                resources.iter().find_map(|resource| resource["uri"].as_str().filter(|own| own.starts_with(&uri)));
            let read = mcp.rpc("resources/read", &json!({ "uri": first.context("no resource")? })).await?;
            ensure!(read["contents"][0]["uri"].is_string(), "{read}");
            let prompt = mcp.rpc("prompts/get", &json!({ "name": format!("{name}::simple-prompt") })).await?;
            ensure!(prompt["messages"][0]["content"]["text"].is_string(), "{prompt}");
            Ok(())
        };
        check.await.with_context(|| format!("over {name}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn an_upstream_behind_an_authorization_server_is_reached_with_its_tokens() -> anyhow::Result<()> {
    const SECRET: &str = "hunter2-of-the-gateway";
    let (node, authorization, python) = require_tools!(Node, AuthorizationServer, Python);
    let guarded = Guarded::start(&node, &authorization, &python).await?;
    let oauth = |rest: &str| {
        let who = "type = \"oauth\", client_id = \"gateway\", client_secret = \"$GATEWAY_SECRET\"";
        format!("auth = {{ {who}, token_endpoint_auth_method = \"client_secret_basic\"{rest} }}\n")
    };
    let issuer = format!(", issuer = {:?}, scopes = [\"tools\"]", guarded.issuer());
    let token_url = format!(", token_url = \"{}/token\", scopes = [\"tools\"]", guarded.issuer());
    let wrong_scope = format!(", token_url = \"{}/token\", scopes = [\"other\"]", guarded.issuer());
    let config = [("found", ""), ("issued", &issuer), ("told", &token_url), ("unscoped", &wrong_scope)]
        .map(|(name, rest)| toml_url(name, &guarded.url()) + &oauth(rest))
        .concat();
    let configured =
        |launch: Launch| launch.environment("GATEWAY_SECRET", SECRET).file("--config", "mistralrs.toml", &config);
    let server = configured(Launch::gateway()).start().await?;
    let mcp = server.mcp();
    for name in ["found", "issued", "told"] {
        let tool = format!("{name}::secret_of_the_house");
        wait_for_tool(&mcp, &tool).await?;
        let told = mcp.call_tool_text(&tool, &json!({})).await?;
        ensure!(told == "the key is under the mat", "{told}");
    }
    ensure!(!mcp.tool_names().await?.iter().any(|name| name.starts_with("unscoped")));
    ensure!(server.log().contains("unscoped") && !server.log().contains(SECRET), "{}", server.log());

    let (status, printed) = configured(Launch::default().option("--http-mcp-port", "0"))
        .selector(["config", "check"])
        .run_to_exit()
        .await?;
    ensure!(status.success() && printed.contains("token_url") && !printed.contains(SECRET), "{printed}");
    Ok(())
}

#[tokio::test]
async fn every_spelling_of_a_tools_name_calls_it() -> anyhow::Result<()> {
    let (node, script) = require_tools!(Node, FilesystemServer);
    let filesystem = Filesystem::new(node, script)?;
    let server = gateway(&filesystem.toml("filesystem")).await?;
    let mcp = server.mcp();
    wait_for_tool(&mcp, "filesystem::read_file").await?;
    for name in ["filesystem::read_file", "filesystem__read_file", "read_file"] {
        let text = mcp.call_tool_text(name, &json!({ "path": filesystem.greeting() })).await?;
        ensure!(text == GREETING, "{name}: {text:?}");
    }
    let (code, message) =
        mcp.rpc_error("tools/call", &json!({ "name": "filesystem::no_such", "arguments": {} })).await?;
    ensure!(code == -32602 && message.contains("filesystem::no_such"), "{code} {message}");
    Ok(())
}

#[tokio::test]
async fn a_tool_that_fails_is_a_result_and_the_upstream_stays() -> anyhow::Result<()> {
    let (node, script) = require_tools!(Node, FilesystemServer);
    let filesystem = Filesystem::new(node, script)?;
    let server = gateway(&filesystem.toml("filesystem")).await?;
    let mcp = server.mcp();
    wait_for_tool(&mcp, "filesystem::read_file").await?;
    let child = only_child(&server)?;
    let result = mcp.call_tool("filesystem::read_file", &json!({ "path": "/outside/of/the/root" })).await?;
    ensure!(result["isError"] == true && !text(&result)?.is_empty(), "{result}");
    ensure!(read_greeting(&mcp, &filesystem).await? == GREETING);
    ensure!(only_child(&server)? == child, "a failing tool restarted its server");
    Ok(())
}

#[tokio::test]
async fn an_upstream_dead_at_start_leaves_the_others_working() -> anyhow::Result<()> {
    let (node, script) = require_tools!(Node, FilesystemServer);
    let filesystem = Filesystem::new(node, script)?;
    // Nobody listens on the discard port; the program does not exist; the script ends at once.
    let config = toml_url("dead_url", "http://127.0.0.1:9/mcp")
        + "[[mcp_client.servers]]\nname = \"no_program\"\ncommand = \"/no/such/program\"\n"
        + "[[mcp_client.servers]]\nname = \"ends\"\ncommand = \"false\"\n"
        + &filesystem.toml("filesystem");
    let mut server = gateway(&config).await?;
    let mcp = server.mcp();
    wait_for_tool(&mcp, "filesystem::read_file").await?;
    ensure!(read_greeting(&mcp, &filesystem).await? == GREETING);
    ensure!(!mcp.tool_names().await?.iter().any(|name| name.starts_with("dead_url")));
    ensure!(server.log().contains("dead_url"), "the dead upstream is not in the log");
    server.assert_alive()
}

#[tokio::test]
async fn a_killed_child_is_restarted_by_the_next_call() -> anyhow::Result<()> {
    let (node, script) = require_tools!(Node, FilesystemServer);
    let filesystem = Filesystem::new(node, script)?;
    let server = gateway(&filesystem.toml("filesystem")).await?;
    let mcp = server.mcp();
    wait_for_tool(&mcp, "filesystem::read_file").await?;
    for _ in 0..2 {
        let child = only_child(&server)?;
        process::send_signal(child, libc::SIGKILL)?;
        ensure!(read_greeting(&mcp, &filesystem).await? == GREETING);
        ensure!(only_child(&server)? != child, "the killed child answered");
    }
    ensure!(mcp.tool_names().await?.iter().any(|name| name == "filesystem::read_file"));
    Ok(())
}

#[tokio::test]
async fn an_http_upstream_that_restarts_is_reached_again() -> anyhow::Result<()> {
    let (node, script) = require_tools!(Node, EverythingServer);
    let everything = Everything::start(&node, &script).await?;
    let server = gateway(&toml_url("everything", &everything.url())).await?;
    let mcp = server.mcp();
    wait_for_tool(&mcp, "everything::echo").await?;
    ensure!(mcp.call_tool_text("everything::echo", &json!({ "message": "one" })).await?.contains("one"));

    let port = everything.port();
    drop(everything);
    let result = mcp.call_tool("everything::echo", &json!({ "message": "nobody" })).await;
    ensure!(!result.is_ok_and(|result| result["isError"] != true), "a dead upstream answered");
    let everything = Everything::start_on(port, &node, &script).await?;
    // The new process knows nothing of the old session; the circuit may still be open for its five seconds.
    eventually(CHILD_PATIENCE, || async {
        let answer = mcp.call_tool_text("everything::echo", &json!({ "message": "two" })).await?;
        ensure!(answer.contains("two"), "{answer:?}");
        Ok(())
    })
    .await?;
    drop(everything);
    Ok(())
}

#[tokio::test]
async fn children_end_with_the_server() -> anyhow::Result<()> {
    let (node, script) = require_tools!(Node, FilesystemServer);
    let filesystem = Filesystem::new(node, script)?;
    let config = filesystem.toml("one") + &filesystem.toml("two");
    let mut server = gateway(&config).await?;
    wait_for_tool(&server.mcp(), "two::read_file").await?;
    let children = process::descendants(server.pid())?;
    ensure!(children.len() >= 2, "{children:?}");
    server.terminate()?;
    let status = server.wait_for_exit(CHILD_PATIENCE).await?;
    ensure!(status.success(), "exit status {status}");
    check_all_gone(&children).await?;

    // Not even a crash leaves children behind.
    let mut server = gateway(&config).await?;
    wait_for_tool(&server.mcp(), "two::read_file").await?;
    let children = process::descendants(server.pid())?;
    process::send_signal(server.pid(), libc::SIGKILL)?;
    server.wait_for_exit(CHILD_PATIENCE).await?;
    check_all_gone(&children).await
}

#[tokio::test]
async fn upstreams_are_read_from_every_format_people_have() -> anyhow::Result<()> {
    let (node, script) = require_tools!(Node, FilesystemServer);
    let filesystem = Filesystem::new(node, script)?;
    let (command, arguments) = (filesystem.node.display().to_string(), filesystem.arguments());
    let desktop = json!({ "mcpServers": { "files": { "command": command, "args": arguments } } });
    let mistral_rs = json!({ "servers": [{
        "name": "files", "source": { "type": "Process", "command": command, "args": arguments },
    }] });
    let aggregator = format!(
        "servers:\n  - id: files\n    name: Files\n    transport: stdio\n    command: {command:?}\n    args: {arguments:?}\n"
    );
    for (name, text) in [
        ("mistralrs-mcp-client.toml", filesystem.toml("files")),
        ("desktop.json", desktop.to_string()),
        ("mistral-rs.json", mistral_rs.to_string()),
        ("aggregator.yaml", aggregator),
    ] {
        let check = async {
            let server = Launch::gateway().file("--mcp-config", name, &text).start().await?;
            wait_for_tool(&server.mcp(), "files::read_file").await?;
            let answer =
                server.mcp().call_tool_text("files::read_file", &json!({ "path": filesystem.greeting() })).await?;
            ensure!(answer == GREETING, "{answer:?}");
            Ok(())
        };
        check.await.with_context(|| format!("with {name}:\n{text}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn the_mcp_package_reads_a_file_through_the_gateway() -> anyhow::Result<()> {
    let (python, node, script) = require_tools!(Python, Node, FilesystemServer);
    let filesystem = Filesystem::new(node, script)?;
    let server = gateway(&filesystem.toml("filesystem")).await?;
    wait_for_tool(&server.mcp(), "filesystem::read_file").await?;
    let url = server.mcp().url("/mcp/stream");
    for mode in ["legacy", "auto"] {
        tools::python(&python, "mcp_client.py", &[&url, mode, "filesystem_file_is_read"]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_in_a_file_of_any_format_is_named_with_its_line() -> anyhow::Result<()> {
    for (flag, name, text, expected) in [
        (
            "--config",
            "mistralrs.toml",
            "[[mcp_client.servers]]\nname = \"files\"\ncomand = \"true\"\n",
            "mistralrs.toml:3: unknown key `mcp_client.servers[0].comand`; did you mean `command`?",
        ),
        (
            "--config",
            "mistralrs.yaml",
            "mcp_client:\n  servers:\n  - name: files\n    command: [\"true\"]\n",
            "mistralrs.yaml:4: `mcp_client.servers[0].command`: invalid type: sequence, expected a string",
        ),
        (
            "--config",
            "mistralrs.json",
            "{\"tool_forwarding\": {\n\"aliases\": {\n\"file::x\": \"y\"}},\n\"mcp_client\": {\"servers\": [{\"name\": \"files\", \"command\": \"true\"}]}}",
            "mistralrs.json:3: `tool_forwarding.aliases.file::x`: no server has the namespace `file`; did you mean `files::x`?",
        ),
        (
            "--mcp-config",
            "servers.toml",
            "[[servers]]\nname = \"files\"\ncommand = \"true\"\ntool_timeout_seconds = 0\n",
            "servers.toml:4: `mcp_client.servers[0] (files).tool_timeout_seconds`: must be more than 0",
        ),
        (
            "--mcp-config",
            "mistral-rs.json",
            "{\"servers\": [\n{\"name\": \"rt\",\n\"source\": {\"type\": \"Process\",\n\"comand\": \"x\"}}]}",
            "mistral-rs.json:4: unknown key `servers[0].source.comand`; did you mean `command`?",
        ),
        (
            "--mcp-config",
            "desktop.json",
            "{\"mcpServers\": {\n\"a\": {\"command\": \"true\"},\n\"b\": {\n\"command\": 7}}}",
            "desktop.json:4: `mcpServers.b.command`: invalid type: integer `7`, expected a string",
        ),
        (
            "--mcp-config",
            "desktop.json",
            "{\"mcpServers\": {\n\"a\": {\"command\": \"true\"},\n\"b\": {\n\"url\": \"ftp://h\"}}}",
            "desktop.json:4: `mcp_client.servers[1] (b).url`: `ftp://h` must begin with",
        ),
        (
            "--mcp-config",
            "editor.json",
            "{\"servers\": {\n\"a\": {\n\"type\": \"stdoi\", \"command\": \"true\"}}}",
            "editor.json:3: `servers.a.type`: unknown variant `stdoi`",
        ),
        (
            "--mcp-config",
            "aggregator.yaml",
            "servers:\n- id: a\n  transport: stdio\n  comand: x\n",
            "aggregator.yaml:4: unknown key `servers[0].comand`; did you mean `command`?",
        ),
    ] {
        let log = refused(Launch::gateway().file(flag, name, text)).await?;
        ensure!(log.contains(expected), "{expected:?} is not in {log}");
    }
    Ok(())
}

#[tokio::test]
async fn a_look_at_the_servers_needs_no_port() -> anyhow::Result<()> {
    let (node, script) = require_tools!(Node, FilesystemServer);
    let filesystem = Filesystem::new(node, script)?;
    let config = filesystem.toml("files") + "[[mcp_client.servers]]\nname = \"none\"\ncommand = \"/no/such/program\"\n";
    let look =
        |words: &[&str]| Launch::default().selector(words).file("--config", "mistralrs.toml", &config).run_to_exit();
    let (status, list) = look(&["mcp", "list"]).await?;
    ensure!(status.success() && list.contains("files::read_text_file\t") && list.contains("# none: "), "{list}");
    let (status, found) = look(&["mcp", "search", "directory", "tree"]).await?;
    ensure!(status.success() && found.starts_with("files::directory_tree\t"), "{found}");
    let (status, tested) = look(&["mcp", "test"]).await?;
    ensure!(status.code() == Some(1) && tested.contains("files: connected\nnone: the program"), "{tested}");
    Ok(())
}

#[tokio::test]
async fn what_servers_write_to_their_standard_error_is_shown_until_a_signal() -> anyhow::Result<()> {
    let child = |name: &str| {
        let script = format!("echo {name} has no database >&2; exec sleep 600");
        format!(
            "[[mcp_client.servers]]\nname = {name:?}\ncommand = \"sh\"\nargs = [\"-c\", {script:?}]\nconnect_timeout_seconds = 1\n"
        )
    };
    let config = child("one") + &child("two");
    let logs = |words: &[&str]| Launch::default().selector(words).file("--config", "mistralrs.toml", &config);
    let (status, said) = logs(&["mcp", "logs", "three"]).run_to_exit().await?;
    ensure!(status.code() == Some(2) && said.contains("there is no server `three`"), "{said}");
    let mut following = logs(&["mcp", "logs", "two"]).spawn()?;
    eventually(CHILD_PATIENCE, || async {
        let log = following.log();
        ensure!(log.contains("stderr: two has no database") && log.contains("two: "), "{log}");
        Ok(())
    })
    .await?;
    following.terminate()?;
    let status = following.wait_for_exit(CHILD_PATIENCE).await?;
    ensure!(status.success() && !following.log().contains("one has"), "{status}\n{}", following.log());
    Ok(())
}

#[tokio::test]
async fn servers_are_added_to_a_file_and_removed_from_it() -> anyhow::Result<()> {
    let (node, script) = require_tools!(Node, FilesystemServer);
    let filesystem = Filesystem::new(node, script)?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("servers.json");
    let (command, [script, root]) = (filesystem.node.display().to_string(), filesystem.arguments());
    let mcp = |words: &[&str]| Launch::default().option("--mcp-config", &file).selector(words).run_to_exit();

    let (status, said) = mcp(&["mcp", "add", "files", "--env", "TOKEN=s3cret", "--", &command, &script, &root]).await?;
    ensure!(status.success() && said.contains("warning: --env TOKEN") && said.contains("added `files`"), "{said}");
    let (status, said) = mcp(&["mcp", "add", "files", "--url", "http://h"]).await?;
    ensure!(status.code() == Some(2) && said.contains("there is a server `files` already"), "{said}");
    let (status, list) = mcp(&["mcp", "list"]).await?;
    ensure!(status.success() && list.contains("files::read_text_file\t"), "{list}");
    let (status, said) = mcp(&["mcp", "remove", "file"]).await?;
    ensure!(status.code() == Some(2) && said.contains("did you mean `files`?"), "{said}");
    let (status, said) = mcp(&["mcp", "remove", "files"]).await?;
    ensure!(status.success() && said.contains("removed `files`"), "{said}");
    ensure!(serde_json::from_str::<serde_json::Value>(&fs::read_to_string(&file)?)? == json!({ "mcpServers": {} }));
    Ok(())
}

#[tokio::test]
async fn a_server_that_asks_for_a_completion_gets_it_of_the_model_if_its_configuration_says_so() -> anyhow::Result<()> {
    let (node, script) = require_tools!(Node, EverythingServer);
    let child = |name: &str, keys: &str| {
        let (command, script) = (node.display().to_string(), script.display().to_string());
        format!(
            "[[mcp_client.servers]]\nname = {name:?}\ncommand = {command:?}\nargs = [{script:?}, \"stdio\"]\n{keys}\n"
        )
    };
    let config = child("asking", "sampling = \"local\"\nsampling_max_tokens = 24") + &child("other", "");
    let server = Launch::model().mcp().file("--config", "mistralrs.toml", &config).start().await?;
    let mcp = server.mcp();
    wait_for_tool(&mcp, "other::trigger-sampling-request").await?;
    // A bare request: nobody but the model could answer.
    let arguments = json!({ "prompt": "What is the capital of France?", "maxTokens": 500 });
    let answer = mcp.call_tool_text("asking::trigger-sampling-request", &arguments).await?;
    let (_, sampled) = answer.split_once(": ").with_context(|| format!("no result: {answer}"))?;
    let sampled: serde_json::Value = serde_json::from_str(sampled)?;
    ensure!(sampled["model"].as_str().is_some_and(|model| model.contains("SmolLM2")), "{sampled}");
    ensure!(sampled["role"] == "assistant" && sampled["content"]["text"].is_string(), "{sampled}");
    // 24 tokens at most, not the 500 that it asked for.
    let scrape = server.http().scrape().await?;
    let generated = scrape.count("mistralrs_inter_token_latency_seconds_count", &[])? + 1;
    ensure!(generated <= 24, "{generated} tokens were generated");
    let call = json!({ "name": "other::trigger-sampling-request", "arguments": arguments });
    let refused =
        mcp.rpc("tools/call", &call).await.map_or_else(|error| error.to_string(), |result| result.to_string());
    ensure!(refused.contains("cannot answer"), "{refused}");
    Ok(())
}

/// What a start ends with that must not succeed.
async fn refused(launch: Launch) -> anyhow::Result<String> {
    let (status, log) = launch.run_to_exit().await?;
    ensure!(!status.success(), "it started: {log}");
    Ok(log)
}

async fn gateway(config: &str) -> anyhow::Result<Server> {
    Launch::gateway().file("--config", "mistralrs.toml", config).start().await
}

async fn read_greeting(mcp: &Http, filesystem: &Filesystem) -> anyhow::Result<String> {
    mcp.call_tool_text("filesystem::read_file", &json!({ "path": filesystem.greeting() })).await
}

async fn wait_for_tool(mcp: &Http, name: &str) -> anyhow::Result<()> {
    eventually(CHILD_PATIENCE, || async {
        let names = mcp.tool_names().await?;
        ensure!(names.iter().any(|known| known == name), "{name} is not among {names:?}");
        Ok(())
    })
    .await
}

fn only_child(server: &Server) -> anyhow::Result<u32> {
    let children = process::children(server.pid())?;
    ensure!(children.len() == 1, "children: {children:?}");
    Ok(children[0])
}

async fn check_all_gone(pids: &[u32]) -> anyhow::Result<()> {
    eventually(CHILD_PATIENCE, || async {
        let alive: Vec<_> =
            pids.iter().filter(|pid| process::is_alive(**pid) && Path::new(&format!("/proc/{pid}")).exists()).collect();
        ensure!(alive.is_empty(), "still alive: {alive:?}");
        Ok(())
    })
    .await
}
