//! A plain HTTP client of one server: status, headers and body, nothing hidden.

use std::time::Duration;

use anyhow::Context;
use reqwest::{Method, RequestBuilder, Response, StatusCode, header::HeaderMap};
use serde_json::Value;

use super::metrics::Scrape;

/// No request of a test takes longer, however loaded the machine is.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(5);

/// A client with one base URL and, if given, one key.
#[derive(Clone)]
pub struct Http {
    client: reqwest::Client,
    base: String,
    key: Option<String>,
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.body)
            .with_context(|| format!("{} with a body that is not JSON: {:?}", self.status, self.body))
    }

    /// A header's text, empty if it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as JSON, if the status is 200.
    pub fn ok(&self) -> anyhow::Result<Value> {
        anyhow::ensure!(self.status == StatusCode::OK, "status {}: {}", self.status, self.body);
        self.json()
    }

    /// The message of an error in OpenAI's shape, after checking that shape and the status.
    pub fn openai_error(&self, status: u16) -> anyhow::Result<String> {
        anyhow::ensure!(self.status.as_u16() == status, "status {} instead of {status}: {}", self.status, self.body);
        let body = self.json()?;
        let error = body["error"].as_object().with_context(|| format!("no `error` object: {body}"))?;
        for field in ["message", "type", "param", "code"] {
            anyhow::ensure!(error.contains_key(field), "no `{field}` in {body}");
        }
        Ok(error["message"].as_str().context("`message` is not a string")?.to_owned())
    }
}

impl Answer {
    /// The type and message of an error in Anthropic's shape, after checking that shape and the status.
    pub fn anthropic_error(&self, status: u16) -> anyhow::Result<(String, String)> {
        anyhow::ensure!(self.status.as_u16() == status, "status {} instead of {status}: {}", self.status, self.body);
        let body = self.json()?;
        anyhow::ensure!(body["type"] == "error" && body["request_id"] == self.header("request-id"), "{self:?}");
        let text = |field: &str| body["error"][field].as_str().map(str::to_owned);
        text("type").zip(text("message")).with_context(|| format!("no `type` or `message` in {body}"))
    }
}

impl Http {
    /// A client of the server at `port` of the loopback address.
    pub fn new(port: u16) -> Self {
        // The machine's proxy settings must not come between a test and its own server.
        let client = reqwest::Client::builder().no_proxy().timeout(REQUEST_TIMEOUT).build();
        Self {
            client: client.expect("a client without options builds"),
            base: format!("http://127.0.0.1:{port}"),
            key: None,
        }
    }

    /// The same client with `Authorization: Bearer key`.
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self.clone() }
    }

    /// The address with `path`.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// A request to send as the test likes.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, self.url(path));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// `GET path`.
    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        read(self.request(Method::GET, path).send().await?).await
    }

    /// `POST path` with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        read(self.open(path, body).await?).await
    }

    /// `POST path` with a JSON body; the answer's body is still to be read.
    pub async fn open(&self, path: &str, body: &Value) -> anyhow::Result<Response> {
        Ok(self.request(Method::POST, path).json(body).send().await?)
    }

    /// `POST path` with any bytes as `application/json`.
    pub async fn post_bytes(&self, path: &str, body: impl Into<reqwest::Body>) -> anyhow::Result<Answer> {
        let request = self.request(Method::POST, path).header("content-type", "application/json").body(body);
        read(request.send().await?).await
    }

    /// A scrape of `/metrics`.
    pub async fn scrape(&self) -> anyhow::Result<Scrape> {
        let answer = self.get("/metrics").await?;
        anyhow::ensure!(answer.status == StatusCode::OK, "/metrics: {}", answer.status);
        Scrape::parse(&answer.body)
    }
}

/// Reads `response` to its end.
pub async fn read(response: Response) -> anyhow::Result<Answer> {
    let (status, headers) = (response.status(), response.headers().clone());
    Ok(Answer { status, headers, body: response.text().await? })
}
