//! Clients that leave in the middle of an answer: what the model was doing for them ends, where the protocol says so.

use super::*;
use support::metrics::Scrape;
use support::sse::Event;

/// How long the engine may take to notice what happened: a step or two on a loaded machine.
const SETTLING: Duration = Duration::from_secs(30);
const BOTH: &str = "application/json, text/event-stream";

/// Calls that would go on for as long as a test looks.
fn endless_calls() -> [Value; 2] {
    let mut generate = call("generate", &json!({ "prompt": "1, 2, 3, 4, 5,", "temperature": 0, "max_tokens": 1900 }));
    let messages = json!([{ "role": "user", "content": "Write down the numbers from 1 to 500, with commas between." }]);
    let mut chat = call("chat", &json!({ "messages": messages, "temperature": 0, "max_tokens": 1900 }));
    for call in [&mut generate, &mut chat] {
        call["params"]["_meta"] = json!({ "progressToken": "mine" });
    }
    [generate, chat]
}

fn num_cancelled(scrape: &Scrape) -> anyhow::Result<u64> {
    scrape.count("mistralrs_sequences_completed_total", &[("reason", "cancelled")])
}

async fn running(http: &Http) -> anyhow::Result<u64> {
    http.scrape().await?.count("mistralrs_sequences_running", &[])
}

/// Leaves in the way of `leave` while the model answers, and waits until it answers nobody any more.
async fn check_it_ends<F>(server: &support::server::Server, leave: impl FnOnce() -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let http = server.http();
    let before = num_cancelled(&http.scrape().await?)?;
    leave().await?;
    eventually(SETTLING, || async {
        let scrape = http.scrape().await?;
        ensure!(num_cancelled(&scrape)? == before + 1, "nothing was cancelled");
        for name in ["mistralrs_sequences_running", "mistralrs_sequences_waiting", "mistralrs_kv_cache_blocks_used"] {
            let held = scrape.require(name, &[])?;
            ensure!(held == 0.0, "{name} is {held}");
        }
        Ok(())
    })
    .await
}

/// Opens the answer and reads until pieces of text come, which are the caller's own.
async fn watch(request: reqwest::RequestBuilder) -> anyhow::Result<(reqwest::Response, Vec<Event>)> {
    let mut response = request.header("accept", BOTH).send().await?;
    ensure!(response.status() == StatusCode::OK, "{response:?}");
    let (mut reader, mut events) = (sse::Reader::default(), Vec::new());
    loop {
        let bytes = response.chunk().await?.context("the stream ended before there was any text")?;
        events.extend(reader.push(&bytes)?);
        let Some(piece) = events.iter().rfind(|event| event.data.contains("notifications/progress")) else { continue };
        ensure!(piece.json()?["params"]["progressToken"] == "mine", "{piece:?}");
        return Ok((response, events));
    }
}

#[tokio::test]
async fn closing_the_stream_ends_the_sequence_where_there_is_no_session() -> anyhow::Result<()> {
    let server = Launch::model().mcp().start().await?;
    let mcp = server.mcp();
    for request in endless_calls() {
        check_it_ends(&server, || async {
            let (stream, _) = watch(mcp.request(Method::POST, STREAM).json(&request)).await?;
            ensure!(running(&server.http()).await? == 1, "it is not running");
            drop(stream);
            Ok(())
        })
        .await
        .context("a bare request")?;
        let mut newer = request.clone();
        newer["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!("2026-07-28");
        newer["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({});
        let headers = [
            ("mcp-protocol-version", "2026-07-28"),
            ("mcp-method", "tools/call"),
            ("mcp-name", newer["params"]["name"].as_str().context("no name")?),
        ];
        check_it_ends(&server, || async {
            let post = headers
                .iter()
                .fold(mcp.request(Method::POST, STREAM), |post, (name, value)| post.header(*name, *value));
            drop(watch(post.json(&newer)).await?);
            Ok(())
        })
        .await
        .context("2026-07-28")?;
    }
    Ok(())
}

#[tokio::test]
async fn in_a_session_a_notification_ends_the_sequence_and_closing_the_stream_does_not() -> anyhow::Result<()> {
    let server = Launch::model().mcp().start().await?;
    let mcp = server.mcp();
    let (session, _) = open_session(&mcp, "2025-11-25").await?;
    let in_session = || mcp.request(Method::POST, STREAM).header("mcp-session-id", &session);
    for request in endless_calls() {
        check_it_ends(&server, || async {
            let (stream, _) = watch(in_session().json(&request)).await?;
            drop(stream);
            // Some steps later it is still answering.
            tokio::time::sleep(Duration::from_millis(500)).await;
            ensure!(running(&server.http()).await? == 1, "closing the stream was taken for a cancel");
            let params = json!({ "requestId": request["id"] });
            let cancelled = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": params });
            let accepted = http::read(in_session().header("accept", BOTH).json(&cancelled).send().await?).await?;
            ensure!(accepted.status == StatusCode::ACCEPTED, "{accepted:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_of_a_session_that_broke_is_resumed_with_the_answer_at_its_end() -> anyhow::Result<()> {
    let server = SHARED.get().await?;
    let mcp = keyed(&server.mcp());
    let (session, _) = open_session(&mcp, "2025-11-25").await?;
    let mut request = call("generate", &json!({ "prompt": "1, 2, 3, 4, 5, 6,", "temperature": 0, "max_tokens": 40 }));
    request["params"]["_meta"] = json!({ "progressToken": "mine" });
    let post = mcp.request(Method::POST, STREAM).header("mcp-session-id", &session).json(&request);
    let (stream, events) = watch(post).await?;
    drop(stream);
    let last_id = events.iter().rev().find_map(|event| event.id.clone()).context("no event has an id")?;
    let get = mcp.request(Method::GET, STREAM).header("mcp-session-id", &session).header("last-event-id", last_id);
    let mut resumed = get.header("accept", "text/event-stream").send().await?;
    ensure!(resumed.status() == StatusCode::OK, "{resumed:?}");
    let mut reader = sse::Reader::default();
    let answer = async {
        loop {
            let bytes = resumed.chunk().await?.context("the stream ended without the answer")?;
            let events = reader.push(&bytes)?;
            let mut messages = events.iter().filter_map(|event| event.json().ok());
            if let Some(answer) = messages.find(|message| message["id"] == request["id"]) {
                return anyhow::Ok(answer);
            }
        }
    };
    let answer = tokio::time::timeout(SETTLING, answer).await.context("no answer came")??;
    ensure!(answer["result"]["structuredContent"]["finish_reason"] == "length", "{answer}");
    ensure!(text(&answer["result"])?.contains('7'), "{answer}");
    Ok(())
}
