//! Servers of the protocol's own authors, run from the npm registry.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mistralrs_mcp::config::TransportConfig;
use serde_json::json;

use super::{Setup, eventually, url};

const EVERYTHING: &str = "@modelcontextprotocol/server-everything";
const FILESYSTEM: &str = "@modelcontextprotocol/server-filesystem";
const PORT: u16 = 39_417;

/// A server in a process group of its own; npx starts others.
struct Group(Child);

impl Group {
    fn everything_over_http() -> Self {
        let child = Command::new("npx")
            .args(["-y", EVERYTHING, "streamableHttp"])
            .env("PORT", PORT.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-9", "--", &format!("-{}", self.0.id())]).status();
        let _ = self.0.wait();
    }
}

fn is_listening() -> bool {
    std::net::TcpStream::connect(("127.0.0.1", PORT)).is_ok()
}

#[tokio::test]
#[ignore = "needs npx and the npm registry"]
async fn the_reference_servers_are_listed_and_called() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("note.txt"), "from a real file").unwrap();
    let mut filesystem = super::command("filesystem", "npx");
    if let TransportConfig::Stdio(stdio) = &mut filesystem.transport {
        stdio.args = vec!["-y".into(), FILESYSTEM.into(), directory.path().display().to_string()];
    }
    let mut everything = super::command("everything", "npx");
    if let TransportConfig::Stdio(stdio) = &mut everything.transport {
        stdio.args = vec!["-y".into(), EVERYTHING.into()];
    }
    let server = Group::everything_over_http();
    eventually("the HTTP server listens", is_listening).await;
    let web = url("web", &format!("http://127.0.0.1:{PORT}/mcp"));
    let gateway = Setup::new().with(filesystem).with(everything).with(web).start().await;

    let path = directory.path().join("note.txt");
    assert_eq!(gateway.call_text("filesystem::read_file", json!({"path": path})).await, "from a real file");
    assert_eq!(gateway.call_text("filesystem__read_text_file", json!({"path": path})).await, "from a real file");
    assert_eq!(gateway.call_text("everything::echo", json!({"message": "hi"})).await, "Echo: hi");
    assert_eq!(gateway.call_text("web::echo", json!({"message": "hi"})).await, "Echo: hi");

    // Its sessions are in memory: after a restart it answers 400 to ours.
    drop(server);
    eventually("the HTTP server is gone", || !is_listening()).await;
    let _server = Group::everything_over_http();
    eventually("the HTTP server listens again", is_listening).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(gateway.call_text("web::echo", json!({"message": "again"})).await, "Echo: again");
    gateway.shutdown().await;
}
