//! Real MCP servers for the gateway to connect to.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use super::process::eventually;
use super::server::{free_port, spawn_bound_to_this_process};

/// A Node server needs seconds to start on a loaded machine.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// `server-everything` speaking streamable HTTP; ended on drop.
pub struct Everything {
    child: Child,
    port: u16,
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

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Everything {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
