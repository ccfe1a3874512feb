//! Any server with OpenAI's streaming `/v1/completions`.

use std::time::Duration;

use http::StatusCode;
use reqwest::{Client, RequestBuilder, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::BenchError;
use super::prompts::Prompts;
use super::target::{Failure, Pieces, Target, TokensUsed};

/// A server that does not even take the connection in this time is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// One line of an event stream: a piece of text with what servers put around it. More is not such a stream.
const MAX_LINE_BYTES: usize = 1 << 20;
/// How much of an error's body is shown.
const SHOWN_BYTES: usize = 300;

/// A server and what is asked of it.
pub(super) struct HttpTarget {
    client: Client,
    /// Without `/v1` and what follows.
    url: String,
    api_key: Option<String>,
    model: String,
    prompts: Prompts,
    shared: String,
    max_tokens: usize,
}

impl HttpTarget {
    /// Finds out what the server calls its model, unless `model` says it.
    pub async fn connect(
        url: &str,
        api_key: Option<String>,
        model: Option<String>,
        prompts: Prompts,
        max_tokens: usize,
    ) -> Result<Self, BenchError> {
        // A proxy in between would be measured with the server. Connections are not used twice: some servers (llama-server)
        // close one after a few requests without saying so, and the request that meets this fails.
        let client = Client::builder().no_proxy().connect_timeout(CONNECT_TIMEOUT).pool_max_idle_per_host(0).build();
        let url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let client = client.map_err(|error| BenchError::Server { url: url.clone(), problem: error.to_string() })?;
        let shared = prompts.shared_text();
        let mut target = Self { client, url, api_key, model: String::new(), prompts, shared, max_tokens };
        target.model = match model {
            Some(model) => model,
            None => target.first_model().await?,
        };
        Ok(target)
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn model(&self) -> &str {
        &self.model
    }

    async fn first_model(&self) -> Result<String, BenchError> {
        #[derive(Deserialize)]
        struct Models {
            data: Vec<Model>,
        }
        #[derive(Deserialize)]
        struct Model {
            id: String,
        }
        let url = format!("{}/v1/models", self.url);
        let failed = |problem: String| BenchError::Server { url: url.clone(), problem };
        let response = self.with_key(self.client.get(&url)).send().await;
        let response = response.and_then(Response::error_for_status).map_err(|error| failed(cause(error)))?;
        let models: Models = response.json().await.map_err(|error| failed(cause(error)))?;
        let first = models.data.into_iter().next();
        first.map(|model| model.id).ok_or_else(|| failed("lists no model; name one with --model".to_owned()))
    }

    fn with_key(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }
}

impl Target for HttpTarget {
    type Prompt = String;

    async fn prompt(&self, index: u64) -> Result<String, Failure> {
        Ok(self.shared.clone() + &self.prompts.own_text(index))
    }

    async fn answer(&self, prompt: String, pieces: &mut Pieces) -> Result<TokensUsed, Failure> {
        let body = json!({
            "model": self.model,
            "prompt": prompt,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": true,
            "stream_options": { "include_usage": true },
            // Not OpenAI's; a server that does not know it may answer with fewer tokens, and those are counted.
            "ignore_eos": true,
        });
        let request = self.with_key(self.client.post(format!("{}/v1/completions", self.url)));
        let response = request.json(&body).send().await.map_err(|error| Failure::Failed(cause(error)))?;
        let mut response = accepted(response).await?;
        let mut stream = CompletionStream::default();
        while let Some(bytes) = response.chunk().await.map_err(|error| Failure::Failed(cause(error)))? {
            stream.read(&bytes, pieces)?;
        }
        stream.end()
    }
}

/// The response, if it is an answer.
async fn accepted(response: Response) -> Result<Response, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let mut body = response.text().await.unwrap_or_default();
    body.truncate(body.floor_char_boundary(SHOWN_BYTES));
    let message = format!("{status}: {}", body.trim());
    Err(match status {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Failure::Refused(message),
        _ => Failure::Failed(message),
    })
}

/// The innermost reason; the outer ones say that a request was made.
fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut innermost: &dyn std::error::Error = &error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// An answer as it arrives.
#[derive(Debug, Default)]
struct CompletionStream {
    /// The beginning of a line whose end is to come.
    line: Vec<u8>,
    used: TokensUsed,
    is_complete: bool,
}

impl CompletionStream {
    fn read(&mut self, bytes: &[u8], pieces: &mut Pieces) -> Result<(), Failure> {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() > MAX_LINE_BYTES {
                return Err(Failure::Failed(format!("a line of the stream is longer than {MAX_LINE_BYTES} bytes")));
            }
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.read_line(&line, pieces)?;
            }
        }
        Ok(())
    }

    fn read_line(&mut self, line: &[u8], pieces: &mut Pieces) -> Result<(), Failure> {
        let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else { return Ok(()) };
        if data == b"[DONE]" {
            self.is_complete = true;
            return Ok(());
        }
        let event: Value = serde_json::from_slice(data)
            .map_err(|error| Failure::Failed(format!("the stream has an event that is not JSON: {error}")))?;
        if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
            let message = error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned);
            return Err(Failure::Failed(message));
        }
        let choice = &event["choices"][0];
        if choice["text"].as_str().is_some_and(|text| !text.is_empty()) {
            pieces.arrived();
        }
        self.is_complete |= choice["finish_reason"].is_string();
        let usage = &event["usage"];
        if usage.is_object() {
            self.used = TokensUsed {
                prompt: usage["prompt_tokens"].as_u64(),
                cached: usage["prompt_tokens_details"]["cached_tokens"].as_u64(),
                completion: usage["completion_tokens"].as_u64(),
            };
        }
        Ok(())
    }

    fn end(self) -> Result<TokensUsed, Failure> {
        if self.is_complete {
            Ok(self.used)
        } else {
            Err(Failure::Failed("the stream broke off before the answer was complete".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream in pieces of `len` bytes: how many pieces of text, and what it used or why it failed.
    fn read(body: &str, len: usize) -> String {
        let mut pieces = Pieces::default();
        let mut stream = CompletionStream::default();
        let outcome = body.as_bytes().chunks(len).try_for_each(|bytes| stream.read(bytes, &mut pieces));
        match outcome.and_then(|()| stream.end()) {
            Ok(used) => format!("{}: {:?} {:?}", pieces.len(), used.prompt, used.completion),
            Err(failure) => format!("{}: {failure:?}", pieces.len()),
        }
    }

    #[test]
    fn answers_of_several_servers_are_understood_however_they_are_cut() {
        let ours = "data: {\"choices\":[{\"text\":\"é\",\"finish_reason\":null}],\"usage\":null}\n\n: keep-alive\n\n\
            data: {\"choices\":[{\"text\":\"b\",\"finish_reason\":null}]}\n\n\
            data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"length\"}]}\n\n\
            data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";
        let without_usage = "data:{\"choices\":[{\"text\":\"a\"}]}\r\n\r\ndata:{\"choices\":[{\"text\":\"\",\"finish_reason\":\"stop\"}]}\r\n";
        for len in [1, 7, 1000] {
            assert_eq!(read(ours, len), "2: Some(7) Some(2)");
            assert_eq!(read(without_usage, len), "1: None None");
        }
    }

    #[test]
    fn answers_that_break_off_or_fail_are_failures() {
        let begun = "data: {\"choices\":[{\"text\":\"a\"}]}\n\n";
        let broken = r#"1: Failed("the stream broke off before the answer was complete")"#;
        assert_eq!(read(begun, 9), broken);
        let failed = begun.to_owned() + "data: {\"error\":{\"message\":\"out of memory\"}}\n\ndata: [DONE]\n\n";
        assert_eq!(read(&failed, 9), r#"1: Failed("out of memory")"#);
        assert!(read("data: {oops\n", 9).contains("not JSON"));
        assert!(read(&"x".repeat(MAX_LINE_BYTES + 1), 4096).contains("longer than"));
    }
}
