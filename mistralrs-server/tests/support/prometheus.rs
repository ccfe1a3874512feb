//! A Prometheus server from Debian, scraping one target.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::Http;
use super::server::{free_port, spawn_bound_to_this_process};

/// Ended on drop; its data goes with it.
pub struct Prometheus {
    child: Child,
    http: Http,
    _data: TempDir,
}

impl Prometheus {
    /// Starts it with `target` (`host:port`) as the only one.
    pub fn start(program: &Path, target: &str) -> anyhow::Result<Self> {
        let data = tempfile::tempdir()?;
        let config = data.path().join("prometheus.yml");
        let text = format!(
            "global:\n  scrape_interval: 1s\nscrape_configs:\n  - job_name: mistralrs\n    static_configs:\n      - targets: ['{target}']\n"
        );
        fs::write(&config, text)?;
        let port = free_port()?;
        let mut command = Command::new(program);
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", data.path().join("tsdb").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(data.path().join("log"))?);
        Ok(Self { child: spawn_bound_to_this_process(command)?, http: Http::new(port), _data: data })
    }

    /// The samples of an instant query: labels and value as Prometheus's API gives them.
    pub async fn query(&self, expression: &str) -> anyhow::Result<Vec<Value>> {
        let request = self.http.request(reqwest::Method::POST, "/api/v1/query");
        // The expressions of the tests hold nothing that a form would escape.
        let request =
            request.header("content-type", "application/x-www-form-urlencoded").body(format!("query={expression}"));
        let answer = super::http::read(request.send().await?).await?.ok()?;
        Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
