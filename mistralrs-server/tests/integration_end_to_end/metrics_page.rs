//! What is on /metrics, read by promtool, by Prometheus, by the dashboards and by the document that describes it.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;

use tokio::process::Command;

use super::*;
use support::mcp;
use support::prometheus::Prometheus;
use support::tools::Tool;

/// For what is on /metrics.
static OBSERVED: Shared = Shared::new(launch_observed);

/// Names that users have in their dashboards, so they stay, although promtool would end or not end them in `_total`.
const FIXED_NAMES: [&str; 8] = [
    "http_mcp_stream_bytes_sent",
    "mistralrs_kv_cache_blocks_total",
    "mistralrs_lock_acquisition_count",
    "mistralrs_lock_contention_seconds",
    "mistralrs_rwlock_read_count",
    "mistralrs_rwlock_write_count",
    "mistralrs_tool_cache_hits",
    "mistralrs_tool_cache_misses",
];

#[tokio::test]
async fn promtool_has_nothing_to_say_but_the_names_that_users_have() -> anyhow::Result<()> {
    let promtool = require_tools!(Promtool);
    let server = OBSERVED.get().await?;
    exercise(&server).await?;
    let mut command = Command::new(promtool);
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let scrape = server.http().get("/metrics").await?.body;
    child.stdin.take().context("no stdin")?.write_all(scrape.as_bytes()).await?;
    let output = child.wait_with_output().await?;
    let said = String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?;
    let is_fixed = |line: &&str| FIXED_NAMES.iter().any(|name| line.split_whitespace().next() == Some(*name));
    let complaints: Vec<&str> = said.lines().filter(|line| !line.is_empty() && !is_fixed(line)).collect();
    ensure!(complaints.is_empty(), "{complaints:#?}");
    Ok(())
}

#[tokio::test]
async fn a_prometheus_server_scrapes_it() -> anyhow::Result<()> {
    let program = require_tools!(Prometheus);
    let server = OBSERVED.get().await?;
    exercise(&server).await?;
    let target = server.http().url("").replace("http://", "");
    let prometheus = Prometheus::start(&program, &target)?;
    for expression in [
        "up==1",
        "mistralrs_sequences_capacity",
        "mistralrs_time_to_first_token_seconds_count",
        "mistralrs_lock_acquisition_count",
        "http_mcp_requests_total",
        "mistralrs_tool_calls_total",
        "process_resident_memory_bytes",
    ] {
        eventually(Duration::from_secs(30), || async {
            ensure!(!prometheus.query(expression).await?.is_empty(), "{expression} has no samples");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_metrics_document_names_exactly_what_is_served() -> anyhow::Result<()> {
    let server = OBSERVED.get().await?;
    exercise(&server).await?;
    let scrape = server.http().scrape().await?;
    let served: BTreeSet<(String, String, String)> = scrape
        .families
        .iter()
        .map(|(name, family)| {
            let labels = scrape.label_names(name).into_iter().collect::<Vec<_>>().join(" ");
            (name.clone(), family.kind.clone(), labels)
        })
        .collect();
    let document = fs::read_to_string(tools::workspace().join("docs/metrics.md"))?;
    let documented: BTreeSet<(String, String, String)> = document.lines().filter_map(documented_metric).collect();
    let undocumented: Vec<_> = served.difference(&documented).collect();
    let unserved: Vec<_> = documented.difference(&served).collect();
    ensure!(
        undocumented.is_empty() && unserved.is_empty(),
        "served only: {undocumented:#?}\ndocumented only: {unserved:#?}"
    );
    Ok(())
}

#[tokio::test]
async fn every_panel_of_the_dashboards_shows_a_metric_that_exists() -> anyhow::Result<()> {
    let server = OBSERVED.get().await?;
    exercise(&server).await?;
    let served = server.http().scrape().await?;
    let mut num_expressions = 0;
    for entry in fs::read_dir(tools::workspace().join("grafana"))? {
        let path = entry?.path();
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(&path)?).context(path.display().to_string())?;
        for panel in dashboard["panels"].as_array().context("no panels")? {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let expression = target["expr"].as_str().with_context(|| format!("no expression in {panel}"))?;
                for name in metric_names(expression) {
                    let is_served = served.samples.iter().any(|sample| sample.name == name);
                    ensure!(
                        is_served,
                        "{}: panel {} shows {name}, which is not served",
                        path.display(),
                        panel["title"]
                    );
                    num_expressions += 1;
                }
            }
        }
    }
    ensure!(num_expressions > 10, "only {num_expressions} metrics are on dashboards");
    Ok(())
}

/// Makes every metric appear: a chat, a stream, a native and a forwarded tool call, and one mistake of each kind.
async fn exercise(server: &Server) -> anyhow::Result<()> {
    let (http, mcp) = (server.http(), server.mcp());
    let messages = json!([{ "role": "user", "content": "Hello" }]);
    http.post("/v1/chat/completions", &json!({ "model": "default", "messages": messages, "max_tokens": 3 }))
        .await?
        .ok()?;
    http.get("/no/such/path").await?.openai_error(404)?;
    let generate = json!({ "prompt": "1, 2,", "max_tokens": 2, "stream": true });
    mcp.stream_events(&mcp::call("generate", &generate)).await?;
    mcp.rpc_error("tools/call", &json!({ "name": "no_such_tool", "arguments": {} })).await?;
    if tools::find(Tool::FilesystemServer).is_some() {
        eventually(SETTLING, || async { mcp.call_tool_text("filesystem::list_allowed_directories", &json!({})).await })
            .await?;
    }
    Ok(())
}

/// A model, the MCP endpoint and one upstream: everything that has metrics.
fn launch_observed() -> Launch {
    let launch = Launch::model().mcp();
    let (Some(node), Some(script)) = (tools::find(Tool::Node), tools::find(Tool::FilesystemServer)) else {
        return launch;
    };
    let [node, script, docs] = [node, script, tools::workspace().join("docs")].map(|path| path.display().to_string());
    let config =
        format!("[[mcp_client.servers]]\nname = \"filesystem\"\ncommand = {node:?}\nargs = [{script:?}, {docs:?}]\n");
    launch.file("--config", "mistralrs.toml", &config)
}

/// Name, type and labels of a row of docs/metrics.md; other lines are `None`.
fn documented_metric(line: &str) -> Option<(String, String, String)> {
    let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
    let name = cells.next()?.trim_matches('`').to_owned();
    let kind = cells.next()?.to_owned();
    let mut labels: Vec<&str> = cells.next()?.split('`').skip(1).step_by(2).collect();
    labels.sort_unstable();
    Some((name, kind, labels.join(" ")))
}

/// The metrics that a PromQL expression reads: its words with our prefixes, outside of braces and quotes.
fn metric_names(expression: &str) -> Vec<String> {
    let outside =
        expression.split('{').map(|part| part.split_once('}').map_or(part, |(_, rest)| rest)).collect::<String>();
    let words = outside.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    let prefixes = ["mistralrs_", "http_", "process_", "request_", "requests_"];
    words.filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix))).map(str::to_owned).collect()
}
