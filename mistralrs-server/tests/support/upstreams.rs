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

/// A server of the official Python SDK that lets in who shows a token of `oauth2-mock-server`; both ended on drop.
pub struct Guarded {
    authorization: Everything,
    server: Everything,
}

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
            listening.map(drop).context("the upstream does not listen")
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

    fn issuer(&self) -> String {
        format!("http://localhost:{}", self.port)
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

impl Guarded {
    /// Starts both on free ports.
    pub async fn start(node: &Path, authorization: &Path, python: &Path) -> anyhow::Result<Self> {
        let (mut command, port) = (Command::new(node), free_port()?);
        command.arg(authorization).args(["-a", "127.0.0.1", "-p", &port.to_string()]);
        let authorization = Everything::listening(command, port).await?;
        let (mut command, port) = (Command::new(python), free_port()?);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/python/guarded_server.py");
        command.arg(script).args([port.to_string(), authorization.issuer()]);
        // A proxy of the machine must not come between the two.
        command.env("NO_PROXY", "localhost,127.0.0.1").env("no_proxy", "localhost,127.0.0.1");
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        Ok(Self { authorization, server: Everything::listening(command, port).await? })
    }

    /// Its endpoint.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Of its authorization server, as that calls itself.
    pub fn issuer(&self) -> String {
        self.authorization.issuer()
    }
}

impl Drop for Everything {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
