//! JSON-RPC over `POST /mcp/stream`, as bare as curl sends it.

use anyhow::Context;
use serde_json::{Value, json};

use super::{Http, sse};

/// The endpoint's path.
pub const STREAM: &str = "/mcp/stream";

/// A JSON-RPC request.
pub fn request(method: &str, params: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": "1", "method": method, "params": params })
}

/// A `tools/call` request.
pub fn call(tool: &str, arguments: &Value) -> Value {
    request("tools/call", &json!({ "name": tool, "arguments": arguments }))
}

impl Http {
    /// Sends `method` without session and handshake; gives the JSON-RPC `result`.
    pub async fn rpc(&self, method: &str, params: &Value) -> anyhow::Result<Value> {
        let answer = self.post(STREAM, &request(method, params)).await?.ok()?;
        anyhow::ensure!(answer["jsonrpc"] == "2.0" && answer["id"] == "1", "not the reply to this request: {answer}");
        answer.get("result").cloned().with_context(|| format!("no result: {answer}"))
    }

    /// Sends `method` without session and handshake; gives the JSON-RPC error's code and message.
    pub async fn rpc_error(&self, method: &str, params: &Value) -> anyhow::Result<(i64, String)> {
        let answer = self.post(STREAM, &request(method, params)).await?.json()?;
        let error = &answer["error"];
        let code = error["code"].as_i64().with_context(|| format!("no error code: {answer}"))?;
        Ok((code, error["message"].as_str().unwrap_or_default().to_owned()))
    }

    /// Calls a tool; `isError` results are results.
    pub async fn call_tool(&self, tool: &str, arguments: &Value) -> anyhow::Result<Value> {
        self.rpc("tools/call", &json!({ "name": tool, "arguments": arguments })).await
    }

    /// Calls a tool that must succeed and gives its first text.
    pub async fn call_tool_text(&self, tool: &str, arguments: &Value) -> anyhow::Result<String> {
        let result = self.call_tool(tool, arguments).await?;
        anyhow::ensure!(result["isError"] != true, "`{tool}` failed: {result}");
        text(&result)
    }

    /// The names that `tools/list` gives, in its order.
    pub async fn tool_names(&self) -> anyhow::Result<Vec<String>> {
        let result = self.rpc("tools/list", &json!({})).await?;
        let tools = result["tools"].as_array().context("`tools` is not a list")?;
        tools.iter().map(|tool| Ok(tool["name"].as_str().context("a tool without a name")?.to_owned())).collect()
    }

    /// Sends `body` asking for a stream and reads it to its end.
    pub async fn stream_events(&self, body: &Value) -> anyhow::Result<Vec<sse::Event>> {
        let request =
            self.request(reqwest::Method::POST, STREAM).header("accept", "application/json, text/event-stream");
        let response = request.json(body).send().await?;
        anyhow::ensure!(response.status().is_success(), "status {}", response.status());
        let content_type =
            response.headers().get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        anyhow::ensure!(content_type.starts_with("text/event-stream"), "content type {content_type:?}");
        sse::read_all(response).await
    }
}

/// The first text of a tool's result.
pub fn text(result: &Value) -> anyhow::Result<String> {
    let text = result["content"][0]["text"].as_str().with_context(|| format!("no text: {result}"))?;
    Ok(text.to_owned())
}
