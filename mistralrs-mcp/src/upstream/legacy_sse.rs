//! An upstream that speaks the HTTP transport of 2024-11-05: one stream of events from the server, which begins with where to
//! POST messages to. The stream is the session; when it ends a new one is opened by the supervisor.

use std::sync::Arc;

use futures::StreamExt;
use reqwest::Url;
use rmcp::RoleClient;
use rmcp::model::ServerJsonRpcMessage;
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use rmcp::transport::common::client_side_sse::BoxedSseResponse;
use rmcp::transport::streamable_http_client::StreamableHttpClient;

use super::connection::root_cause;
use super::credentials::{Credentials, HttpError, send};
use super::http_client::{MAX_MESSAGE_BYTES, builder};
use super::streamable_http::headers;
use crate::config::{HttpConfig, UpstreamConfig, UpstreamId};

/// Events before the one that names the endpoint; more is another kind of stream.
const MAX_EVENTS_BEFORE_ENDPOINT: usize = 16;

/// The stream, and where answers to it go.
pub(super) struct SseTransport {
    upstream: UpstreamId,
    client: reqwest::Client,
    config: HttpConfig,
    credentials: Credentials,
    endpoint: Url,
    /// `None` once it was closed.
    events: Option<BoxedSseResponse>,
}

/// Opens the stream and waits for its endpoint.
///
/// # Errors
/// A sentence: there is no stream, or no endpoint that messages may be sent to.
pub(super) async fn connect(
    upstream: &UpstreamConfig,
    config: &HttpConfig,
    credentials: Credentials,
) -> Result<SseTransport, String> {
    let client = builder(upstream, &config.url).build().map_err(|error| root_cause(&error))?;
    let url = Arc::<str>::from(config.url.as_str());
    let get = |token| {
        let (url, headers) = (Arc::clone(&url), headers(config));
        client.get_stream_with_max_sse_event_size(url, None, None, token, headers, MAX_MESSAGE_BYTES)
    };
    let mut events = credentials.apply(get).await.map_err(|error| root_cause(&error))?;
    let endpoint = endpoint(&config.url, &mut events).await?;
    let (upstream, config) = (upstream.id.clone(), config.clone());
    Ok(SseTransport { upstream, client, config, credentials, endpoint, events: Some(events) })
}

async fn endpoint(url: &str, events: &mut BoxedSseResponse) -> Result<Url, String> {
    for _ in 0..MAX_EVENTS_BEFORE_ENDPOINT {
        let event = events.next().await.ok_or("its stream ended before it named an endpoint")?;
        let event = event.map_err(|error| root_cause(&error))?;
        if event.event.as_deref() == Some("endpoint") {
            return resolve(url, event.data.unwrap_or_default().trim());
        }
    }
    Err("its stream names no endpoint: this is no server of the legacy SSE transport".to_owned())
}

/// Of the same origin: our credentials go where the configuration says, and nowhere that a server says.
fn resolve(url: &str, endpoint: &str) -> Result<Url, String> {
    let base = Url::parse(url).map_err(|error| error.to_string())?;
    let endpoint = base.join(endpoint).map_err(|error| format!("its endpoint `{endpoint}` is not a URL: {error}"))?;
    if endpoint.origin() != base.origin() {
        return Err(format!("its endpoint `{endpoint}` lies on another host, where nothing is sent to"));
    }
    Ok(endpoint)
}

impl Transport<RoleClient> for SseTransport {
    type Error = HttpError;

    fn send(
        &mut self,
        message: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        let (client, endpoint, config) = (self.client.clone(), self.endpoint.clone(), self.config.clone());
        let credentials = self.credentials.clone();
        async move {
            let post = |token| send(client.post(endpoint.clone()).json(&message), &config, token);
            // The answer proper comes by the stream.
            credentials.apply(post).await?;
            Ok(())
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        while let Some(Ok(event)) = self.events.as_mut()?.next().await {
            if event.event.as_deref().is_some_and(|name| name != "message") {
                continue;
            }
            match serde_json::from_str::<ServerJsonRpcMessage>(event.data.as_deref().unwrap_or_default()) {
                Ok(message) => return Some(message),
                Err(error) => tracing::warn!(upstream = %self.upstream, %error, "an unreadable event was left out"),
            }
        }
        None
    }

    async fn close(&mut self) -> Result<(), Self::Error> {
        self.events = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_go_to_the_configured_host_only() {
        let resolved = |endpoint| resolve("http://localhost:3001/sse", endpoint).map(|url| url.to_string());
        assert_eq!(resolved("/message?sessionId=1").unwrap(), "http://localhost:3001/message?sessionId=1");
        assert_eq!(resolved("message").unwrap(), "http://localhost:3001/message");
        assert_eq!(resolved("http://localhost:3001/m").unwrap(), "http://localhost:3001/m");
        for other in ["http://localhost:3002/m", "https://localhost:3001/m", "//evil.example/m", "file:///etc/passwd"] {
            assert!(resolved(other).unwrap_err().contains("another host"), "{other}");
        }
    }
}
