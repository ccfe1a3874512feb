//! Real MCP servers for the gateway to connect to.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use super::process::eventually;
use super::server::{free_port, spawn_bound_to_this_process};
use super::tools::workspace;

/// A Node server needs seconds to start on a loaded machine.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// `[[mcp_client.servers]]` for a server that is a child process.
pub fn child(name: &str, command: &Path, arguments: &[&str]) -> String {
    let command = command.display().to_string();
    format!("[[mcp_client.servers]]\nname = {name:?}\ncommand = {command:?}\nargs = {arguments:?}\n")
}

/// `[[mcp_client.servers]]` for the fixture of the conformance suite, which logs, fails and answers with all kinds of content.
pub fn fixture(name: &str) -> String {
    let script = workspace().join("scripts/conformance/fixture.py");
    child(name, Path::new("python3"), &[&script.display().to_string(), "legacy"])
}

/// `server-everything` speaking streamable HTTP or the transport before it; ended on drop.
pub struct Everything {
    child: Child,
    port: u16,
}

/// `server-everything` behind `supergateway`, which speaks WebSocket for it; ended on drop.
pub struct WebSocketEverything(Everything);

impl Everything {
    /// Starts it on a free port.
    pub async fn start(node: &Path, script: &Path) -> anyhow::Result<Self> {
        Self::start_on(free_port()?, node, script).await
    }

    /// Starts it on `port`, as after a restart of the same upstream.
    pub async fn start_on(port: u16, node: &Path, script: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(node);
        command.arg(script).arg("streamableHttp").env("PORT", port.to_string());
        Self::listening(command, port).await
    }

    /// Starts it with server-sent events, as revision 2024-11-05 has them.
    pub async fn start_sse(node: &Path, script: &Path) -> anyhow::Result<Self> {
        let (mut command, port) = (Command::new(node), free_port()?);
        command.arg(script).arg("sse").env("PORT", port.to_string());
        Self::listening(command, port).await
    }

    async fn listening(mut command: Command, port: u16) -> anyhow::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let everything = Self { child: spawn_bound_to_this_process(command)?, port };
        eventually(START_PATIENCE, || async {
            let listening = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
            listening.map(drop).context("server-everything does not listen")
        })
        .await?;
        Ok(everything)
    }

    /// Its endpoint.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/mcp", self.port)
    }

    /// Its endpoint if it was started with server-sent events.
    pub fn sse_url(&self) -> String {
        format!("http://127.0.0.1:{}/sse", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl WebSocketEverything {
    /// Starts both on a free port.
    pub async fn start(node: &Path, supergateway: &Path, script: &Path) -> anyhow::Result<Self> {
        let (mut command, port) = (Command::new(node), free_port()?);
        let stdio = format!("{} {} stdio", node.display(), script.display());
        command.arg(supergateway).args(["--stdio", &stdio, "--outputTransport", "ws", "--port", &port.to_string()]);
        Everything::listening(command, port).await.map(Self)
    }

    /// Its endpoint.
    pub fn url(&self) -> String {
        format!("ws://127.0.0.1:{}/message", self.0.port)
    }
}

impl Drop for Everything {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
