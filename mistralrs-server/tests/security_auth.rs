//! Keys on both ports: who gets in, what a stranger is told, and what may not be started at all.

mod support;

use std::time::Duration;

use anyhow::ensure;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use support::http;
use support::process::eventually;
use support::server::Shared;
use support::{Launch, tools};

const MAIN_KEY: &str = "sk-main-0123456789";
const OTHER_KEY: &str = "sk-other-9876543210";

static SHARED: Shared = Shared::new(|| Launch::model().option("--api-key", MAIN_KEY).option("--api-key", OTHER_KEY));

#[tokio::test]
async fn the_main_port_wants_its_key() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let stranger = server.http();
    let request = json!({ "model": "default", "prompt": "1,", "max_tokens": 1 });
    for path in
        ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/responses", "/tokenize", "/detokenize"]
    {
        let answer = stranger.post(path, &request).await?;
        answer.openai_error(401)?;
        ensure!(answer.header("www-authenticate").starts_with("Bearer"), "{path}: {answer:?}");
    }
    for path in ["/v1/models", "/v1/responses/resp_1", "/v1/responses/resp_1/input_items"] {
        stranger.get(path).await?.openai_error(401)?;
    }
    for path in ["/v1/messages", "/v1/messages/count_tokens"] {
        let (kind, _) = stranger.post(path, &request).await?.anthropic_error(401)?;
        ensure!(kind == "authentication_error", "{path}: {kind}");
    }
    stranger.with_key(MAIN_KEY).get("/v1/models").await?.ok()?;
    stranger.with_key(MAIN_KEY).post("/v1/completions", &request).await?.ok()?;
    // Whether the process lives is no secret: probes of an orchestrator carry no key.
    ensure!(stranger.get("/health").await?.status == StatusCode::OK);
    ensure!(stranger.get("/ready").await?.status == StatusCode::OK);
    Ok(())
}

#[tokio::test]
async fn all_wrong_keys_are_told_the_same() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let mut bodies = Vec::new();
    let longer = format!("{MAIN_KEY}0");
    for key in ["x", &MAIN_KEY[..MAIN_KEY.len() - 1], &longer, &MAIN_KEY.to_uppercase()] {
        let answer = server.http().with_key(key).get("/v1/models").await?;
        ensure!(answer.status == StatusCode::UNAUTHORIZED, "`{key}` was let in");
        ensure!(!answer.body.contains(key) || key == "x", "the answer repeats the key: {}", answer.body);
        bodies.push(answer.body);
    }
    ensure!(bodies.windows(2).all(|pair| pair[0] == pair[1]), "{bodies:?}");
    for header in ["Basic c2s6", "Bearer", "Bearer ", MAIN_KEY] {
        let request = server.http().request(Method::GET, "/v1/models").header("authorization", header);
        ensure!(http::read(request.send().await?).await?.status == StatusCode::UNAUTHORIZED, "`{header}` was let in");
    }
    Ok(())
}

#[tokio::test]
async fn the_openai_package_sees_an_authentication_error() -> anyhow::Result<()> {
    let python = require_tools!(Python);
    let server = SHARED.get().await?;
    let base = server.http().url("/v1");
    tools::python(&python, "openai_client.py", &[&base, "wrong_key_is_an_authentication_error", MAIN_KEY]).await?;
    Ok(())
}

#[tokio::test]
async fn the_anthropic_package_may_send_the_key_in_either_header() -> anyhow::Result<()> {
    let python = require_tools!(Python);
    let server = SHARED.get().await?;
    let base = server.http().url("/v1");
    tools::python(&python, "anthropic_client.py", &[&base, "both_headers_carry_the_key", MAIN_KEY]).await?;
    ensure!(!server.log().contains(MAIN_KEY), "the log holds a key");
    Ok(())
}

#[tokio::test]
async fn what_one_key_leaves_behind_another_cannot_find() -> anyhow::Result<()> {
    let python = require_tools!(Python);
    let server = SHARED.get().await?;
    let base = server.http().url("/v1");
    tools::python(&python, "responses_client.py", &[&base, "another_key_sees_none_of_it", MAIN_KEY, OTHER_KEY]).await?;
    Ok(())
}

#[tokio::test]
async fn each_request_leaves_one_line_that_names_it_and_never_what_was_said() -> anyhow::Result<()> {
    let launch = Launch::tiny().option("--api-key", MAIN_KEY).option("--log-format", "json");
    // Ports are announced in the text that this format quotes.
    let server = launch.start().await?;
    let http = server.http().with_key(MAIN_KEY);
    let request = json!({ "model": "default", "prompt": "an open secret", "max_tokens": 3 });
    let own =
        http.request(Method::POST, "/v1/completions?key=sk-query").header("x-request-id", "mine-1").json(&request);
    let answer = http::read(own.send().await?).await?;
    ensure!(answer.status == StatusCode::OK && answer.header("x-request-id") == "mine-1", "{answer:?}");
    let bad = http.request(Method::GET, "/v1/models").header("x-request-id", "two words");
    let bad = http::read(bad.send().await?).await?;
    ensure!(bad.header("x-request-id").len() == 36, "{bad:?}");
    let stranger = server.http().get("/v1/models/x").await?;
    stranger.openai_error(401)?;
    let mut stream = request.clone();
    stream["stream"] = json!(true);
    stream["max_tokens"] = json!(400);
    stream["ignore_eos"] = json!(true);
    drop(http.request(Method::POST, "/v1/completions").header("x-request-id", "gone-1").json(&stream).send().await?);

    let lines = eventually(Duration::from_secs(10), || async {
        let log = server.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let lines: Vec<Value> = lines.filter(|line| line["target"] == "access" && line["path"] != "/ready").collect();
        ensure!(lines.len() >= 4, "{} lines:\n{log}", lines.len());
        Ok(lines)
    })
    .await?;
    ensure!(lines.len() == 4, "{lines:#?}");
    let line = |id: &str| lines.iter().find(|line| line["request_id"] == id).cloned().unwrap_or_default();
    let first = line("mine-1");
    let told =
        ["method", "path", "route", "status", "outcome", "model"].map(|name| first[name].as_str().unwrap_or_default());
    ensure!(told == ["POST", "/v1/completions", "/v1/completions", "200", "sent", "tiny-llama"], "{first}");
    ensure!(first["bytes"] == answer.body.len() && first["duration_ms"].as_f64() > Some(0.0), "{first}");
    ensure!(first["remote"].as_str().is_some_and(|remote| remote.starts_with("127.0.0.1:")), "{first}");
    ensure!(first["key"].as_str().is_some_and(|key| key.len() == 8), "{first}");
    ensure!(line("gone-1")["outcome"] == "client_left", "{lines:#?}");
    let refused = line(stranger.header("x-request-id"));
    ensure!(
        refused["status"] == "401" && refused["route"] == "/v1/models/{*id}" && refused["key"].is_null(),
        "{refused}"
    );
    for secret in ["an open secret", MAIN_KEY, "sk-query"] {
        ensure!(!server.log().contains(secret), "`{secret}` is in the log");
    }
    Ok(())
}

#[tokio::test]
async fn a_preflight_of_an_allowed_page_passes_without_a_key_and_others_get_no_headers() -> anyhow::Result<()> {
    let config = "[server.cors]\nallow_origins = [\"http://localhost:3000\"]\n";
    let launch = Launch::tiny().file("--config", "mistralrs.toml", config).option("--api-key", MAIN_KEY);
    let server = launch.start().await?;
    let ask = |method: Method, path: &'static str, origin: &'static str| {
        let request = server.http().request(method, path).header("origin", origin);
        request.header("access-control-request-method", "POST").header("access-control-request-headers", "x-api-key")
    };
    for path in ["/v1/chat/completions", "/v1/messages"] {
        let answer = http::read(ask(Method::OPTIONS, path, "http://localhost:3000").send().await?).await?;
        ensure!(answer.status.is_success(), "{path}: {answer:?}");
        ensure!(answer.header("access-control-allow-origin") == "http://localhost:3000", "{path}: {answer:?}");
        ensure!(answer.header("access-control-allow-headers") == "x-api-key", "{path}: {answer:?}");
        ensure!(!answer.header("x-request-id").is_empty(), "{path}: {answer:?}");
        let evil = http::read(ask(Method::OPTIONS, path, "https://evil.example").send().await?).await?;
        ensure!(evil.header("access-control-allow-origin").is_empty(), "{path}: {evil:?}");
        // A page must be able to read why it was refused, in the API's own shape.
        let refused = http::read(ask(Method::POST, path, "http://localhost:3000").send().await?).await?;
        ensure!(refused.status == StatusCode::UNAUTHORIZED, "{path}: {refused:?}");
        ensure!(refused.header("access-control-allow-origin") == "http://localhost:3000", "{path}: {refused:?}");
    }
    let closed = SHARED.get().await?;
    let answer = closed.http().request(Method::OPTIONS, "/v1/models").header("origin", "http://localhost:3000");
    let answer = http::read(answer.header("access-control-request-method", "GET").send().await?).await?;
    ensure!(answer.status == StatusCode::METHOD_NOT_ALLOWED, "{answer:?}");
    ensure!(answer.header("access-control-allow-origin").is_empty(), "{answer:?}");
    Ok(())
}

#[cfg(feature = "http-mcp-stream")]
mod mcp_port {
    use super::*;
    use support::Http;
    use support::mcp::{STREAM, request};

    /// The gateway with two keys, whichever way they came.
    async fn check_keys(launch: Launch, good: &[&str]) -> anyhow::Result<()> {
        let server = launch.start().await?;
        let mcp = server.mcp();
        let list = request("tools/list", &json!({}));
        for key in good {
            mcp.with_key(key).rpc("tools/list", &json!({})).await?;
            let by_header = mcp.request(Method::POST, STREAM).header("x-api-key", *key).json(&list);
            http::read(by_header.send().await?).await?.ok()?;
        }
        let mut bodies = Vec::new();
        for client in [mcp.clone(), mcp.with_key("sk-wrong"), mcp.with_key(&good[0][1..])] {
            let answer = client.post(STREAM, &list).await?;
            ensure!(answer.status == StatusCode::UNAUTHORIZED, "{answer:?}");
            ensure!(answer.header("www-authenticate").starts_with("Bearer realm="), "{answer:?}");
            ensure!(answer.json()?.is_object(), "{answer:?}");
            bodies.push(answer.body);
        }
        ensure!(bodies[1] == bodies[2], "{bodies:?}");
        for (method, path) in [(Method::GET, STREAM), (Method::DELETE, STREAM), (Method::GET, "/mcp/list")] {
            let answer = http::read(mcp.request(method, path).send().await?).await?;
            ensure!(answer.status == StatusCode::UNAUTHORIZED, "{path}: {answer:?}");
        }
        for key in good {
            ensure!(!server.log().contains(key), "the log holds a key:\n{}", server.log());
        }
        Ok(())
    }

    #[tokio::test]
    async fn keys_of_flags_open_the_endpoint() -> anyhow::Result<()> {
        let launch =
            Launch::gateway().option("--http-mcp-auth-key", "sk-abc123").option("--http-mcp-auth-key", "sk-def456");
        check_keys(launch.option("--log", "debug"), &["sk-abc123", "sk-def456"]).await
    }

    #[tokio::test]
    async fn a_key_of_the_environment_opens_the_endpoint() -> anyhow::Result<()> {
        check_keys(Launch::gateway().environment("MISTRALRS_HTTP_MCP_AUTH_KEY", "sk-environment"), &["sk-environment"])
            .await
    }

    #[tokio::test]
    async fn keys_of_the_file_open_the_endpoint_and_may_name_the_environment() -> anyhow::Result<()> {
        let config = "[http_mcp]\nauth_method = \"api_key\"\napi_keys = [\"sk-file\", \"${SECOND_KEY}\"]\n";
        let launch =
            Launch::gateway().file("--config", "mistralrs.toml", config).environment("SECOND_KEY", "sk-second");
        check_keys(launch, &["sk-file", "sk-second"]).await
    }

    #[tokio::test]
    async fn each_port_has_its_own_keys() -> anyhow::Result<()> {
        let launch = Launch::model().mcp().option("--api-key", MAIN_KEY).option("--http-mcp-auth-key", "sk-abc123");
        let server = launch.start().await?;
        let answer = server.mcp().with_key(MAIN_KEY).post(STREAM, &request("tools/list", &json!({}))).await?;
        ensure!(answer.status == StatusCode::UNAUTHORIZED, "{answer:?}");
        server.http().with_key("sk-abc123").get("/v1/models").await?.openai_error(401)?;
        Ok(())
    }

    #[tokio::test]
    async fn an_address_that_others_reach_needs_a_key_at_start() -> anyhow::Result<()> {
        let (status, log) = Launch::gateway().option("--serve-ip", "0.0.0.0").run_to_exit().await?;
        ensure!(!status.success(), "open to the network without a key");
        ensure!(log.contains("--http-mcp-auth-key"), "the message does not say what would be right: {log}");

        let launch = Launch::gateway().option("--serve-ip", "0.0.0.0").option("--http-mcp-auth-key", "sk-abc123");
        let server = launch.option("--api-key", MAIN_KEY).start().await?;
        server.mcp().with_key("sk-abc123").rpc("tools/list", &json!({})).await?;
        Ok(())
    }

    #[tokio::test]
    async fn discovery_paths_answer_json_404_so_that_clients_do_not_try_oauth() -> anyhow::Result<()> {
        let server = Launch::gateway().option("--http-mcp-auth-key", "sk-abc123").start().await?;
        for path in ["/.well-known/oauth-protected-resource", "/.well-known/oauth-authorization-server"] {
            let answer = server.mcp().get(path).await?;
            ensure!(answer.status == StatusCode::NOT_FOUND && answer.json()?.is_object(), "{path}: {answer:?}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_preflight_of_an_allowed_page_passes_without_a_key() -> anyhow::Result<()> {
        let config = "[http_mcp.cors]\nallow_origins = [\"http://localhost:3000\"]\n";
        let launch =
            Launch::gateway().file("--config", "mistralrs.toml", config).option("--http-mcp-auth-key", "sk-abc123");
        let server = launch.start().await?;
        let answer = preflight(&server.mcp(), "http://localhost:3000").await?;
        ensure!(answer.status.is_success(), "{answer:?}");
        ensure!(answer.header("access-control-allow-origin") == "http://localhost:3000", "{answer:?}");
        let allowed = answer.header("access-control-allow-headers").to_lowercase();
        for name in ["authorization", "content-type", "mcp-session-id", "mcp-protocol-version"] {
            ensure!(allowed.contains(name), "{name} is not allowed: {allowed}");
        }
        let answer = preflight(&server.mcp(), "https://evil.example").await?;
        ensure!(answer.header("access-control-allow-origin").is_empty(), "{answer:?}");
        Ok(())
    }

    async fn preflight(mcp: &Http, origin: &str) -> anyhow::Result<http::Answer> {
        let request = mcp.request(Method::OPTIONS, STREAM).header("origin", origin);
        let request = request.header("access-control-request-method", "POST");
        http::read(request.header("access-control-request-headers", "authorization, content-type").send().await?).await
    }
}
