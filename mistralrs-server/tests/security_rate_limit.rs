//! Too many requests: refused with a time to come back, each key and address for itself.
#![cfg(feature = "http-mcp-stream")]

mod support;

use anyhow::ensure;
use futures::future::try_join_all;
use serde_json::json;

use support::http::Answer;
use support::mcp::{STREAM, request};
use support::server::Server;
use support::{Http, Launch};

/// So many more than any limit below that a refusal must come, however the requests fall into seconds.
const BURST: usize = 60;

async fn start(limits: &str, keys: &[&str]) -> anyhow::Result<Server> {
    let config = format!("[http_mcp.rate_limit]\n{limits}\n");
    let launch = Launch::gateway().file("--config", "mistralrs.toml", &config);
    keys.iter().fold(launch, |launch, key| launch.option("--http-mcp-auth-key", key)).start().await
}

/// Sends a burst and gives (served, refused).
async fn burst(mcp: &Http) -> anyhow::Result<(Vec<Answer>, Vec<Answer>)> {
    let list = request("tools/list", &json!({}));
    let answers = try_join_all((0..BURST).map(|_| mcp.post(STREAM, &list))).await?;
    for answer in &answers {
        ensure!([200, 429].contains(&answer.status.as_u16()), "{answer:?}");
    }
    Ok(answers.into_iter().partition(|answer| answer.status == 200))
}

#[tokio::test]
async fn a_refusal_says_when_to_come_back_and_is_kept_short() -> anyhow::Result<()> {
    let server = start("per_ip = 5", &[]).await?;
    let (served, refused) = burst(&server.mcp()).await?;
    ensure!(!served.is_empty() && !refused.is_empty(), "{} served, {} refused", served.len(), refused.len());
    for answer in &refused {
        ensure!(answer.header("retry-after").parse::<u64>()? >= 1, "{answer:?}");
        ensure!(answer.header("x-ratelimit-limit").parse::<u64>()? == 5, "{answer:?}");
        ensure!(answer.header("x-ratelimit-remaining") == "0", "{answer:?}");
        answer.header("x-ratelimit-reset").parse::<u64>()?;
        ensure!(answer.json()?["error"].is_object(), "{answer:?}");
    }
    let wait = refused[0].header("retry-after").parse()?;
    ensure!(wait <= 2, "a limit by the second locks out for {wait} s");
    tokio::time::sleep(std::time::Duration::from_secs(wait)).await;
    server.mcp().rpc("tools/list", &json!({})).await?;
    Ok(())
}

#[tokio::test]
async fn one_key_over_its_limit_leaves_the_others_alone() -> anyhow::Result<()> {
    let server = start("per_key = 5\nper_ip = 1000\nglobal = 1000", &["sk-loud", "sk-quiet"]).await?;
    let (_, refused) = burst(&server.mcp().with_key("sk-loud")).await?;
    ensure!(!refused.is_empty(), "nothing was refused");
    server.mcp().with_key("sk-quiet").rpc("tools/list", &json!({})).await?;
    Ok(())
}

#[tokio::test]
async fn all_together_stay_under_the_global_limit() -> anyhow::Result<()> {
    let server = start("per_key = 1000\nper_ip = 1000\nglobal = 5", &["sk-one", "sk-two"]).await?;
    let (one, two) = (server.mcp().with_key("sk-one"), server.mcp().with_key("sk-two"));
    let (first, second) = tokio::try_join!(burst(&one), burst(&two))?;
    ensure!(!first.1.is_empty() && !second.1.is_empty(), "nothing was refused");
    Ok(())
}

#[tokio::test]
async fn wrong_keys_are_limited_by_address_so_that_guessing_is_slow() -> anyhow::Result<()> {
    let server = start("per_ip = 5", &["sk-abc123"]).await?;
    let list = request("tools/list", &json!({}));
    let wrong = server.mcp().with_key("sk-guess");
    let answers = try_join_all((0..BURST).map(|_| wrong.post(STREAM, &list))).await?;
    ensure!(answers.iter().any(|answer| answer.status == 401), "no 401");
    ensure!(answers.iter().any(|answer| answer.status == 429), "{BURST} wrong keys at once and no 429");
    server.mcp().with_key("sk-abc123").rpc("tools/list", &json!({})).await?;
    Ok(())
}

#[tokio::test]
async fn refusals_are_counted() -> anyhow::Result<()> {
    let server = start("per_ip = 5", &[]).await?;
    let (served, refused) = burst(&server.mcp()).await?;
    let scrape = server.http().scrape().await?;
    for (status, answers) in [("200", served), ("429", refused)] {
        let counted = scrape.count("http_mcp_requests_total", &[("status", status)])?;
        ensure!(counted == answers.len() as u64, "{status}: {counted} counted of {}", answers.len());
    }
    Ok(())
}

#[tokio::test]
async fn the_environment_sets_the_limit_too() -> anyhow::Result<()> {
    let server = Launch::gateway().environment("MISTRALRS_HTTP_MCP_RATE_LIMIT", "5").start().await?;
    let (_, refused) = burst(&server.mcp()).await?;
    ensure!(!refused.is_empty(), "nothing was refused");
    Ok(())
}
