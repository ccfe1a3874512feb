//! An upstream that speaks WebSocket, one message a frame. The handshake is an HTTP request like any other upstream's, with
//! its headers, credentials, proxies and certificates; the connection that comes of it is handed to tungstenite.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::{HeaderValue, StatusCode, header};
use reqwest::Upgraded;
use rmcp::RoleClient;
use rmcp::model::ServerJsonRpcMessage;
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Error as WebSocketError, Message};

use super::connection::root_cause;
use super::credentials::{Credentials, send};
use super::http_client::{MAX_MESSAGE_BYTES, builder};
use crate::config::{HttpConfig, UpstreamConfig, UpstreamId};

/// What MCP's own SDKs ask for; servers that know no subprotocols leave it unanswered.
const SUBPROTOCOL: &str = "mcp";
/// For the farewell.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// What a server puts behind our key before it hashes both (RFC 6455, 1.3).
const HANDSHAKE_ID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A WebSocket as a transport.
pub(super) struct WebSocketTransport {
    upstream: UpstreamId,
    /// A lock and no message: each call waits for its own frame to be written.
    sink: Arc<Mutex<SplitSink<WebSocketStream<Upgraded>, Message>>>,
    frames: SplitStream<WebSocketStream<Upgraded>>,
    pulse: Pulse,
}

/// Whether the other side is there: one that was silent for long is asked.
struct Pulse {
    /// How long a silence may be before it is asked, and then again until it is given up.
    interval: Duration,
    heard_at: Instant,
    has_asked: bool,
}

/// Shakes hands.
///
/// # Errors
/// A sentence: what answered is not a WebSocket server.
pub(super) async fn connect(
    upstream: &UpstreamConfig,
    config: &HttpConfig,
    credentials: &Credentials,
) -> Result<WebSocketTransport, String> {
    let upgraded = upgrade(upstream, config, credentials).await?;
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES))
        .max_write_buffer_size(2 * MAX_MESSAGE_BYTES);
    let socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(limits)).await;
    let (sink, frames) = socket.split();
    let pulse = Pulse { interval: upstream.keep_alive, heard_at: Instant::now(), has_asked: false };
    Ok(WebSocketTransport { upstream: upstream.id.clone(), sink: Arc::new(Mutex::new(sink)), frames, pulse })
}

impl Transport<RoleClient> for WebSocketTransport {
    type Error = WebSocketError;

    fn send(
        &mut self,
        message: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        let sink = Arc::clone(&self.sink);
        async move {
            let text = serde_json::to_string(&message).map_err(|error| WebSocketError::Io(error.into()))?;
            sink.lock().await.send(Message::text(text)).await
        }
    }

    /// Ends with the connection, with the first error on it, or when the other side is no more.
    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            tokio::select! {
                frame = self.frames.next() => {
                    self.pulse.heard(Instant::now());
                    if let Some(message) = self.read(&frame?.ok()?) {
                        return Some(message);
                    }
                }
                () = sleep_until(self.pulse.next()) => {
                    if self.pulse.has_asked {
                        tracing::warn!(upstream = %self.upstream, "it does not answer pings");
                        return None;
                    }
                    self.pulse.has_asked = true;
                    self.ping();
                }
            }
        }
    }

    async fn close(&mut self) -> Result<(), Self::Error> {
        // What is still being written to a peer that reads nothing is not waited for.
        match timeout(CLOSE_TIMEOUT, async { self.sink.lock().await.close().await }).await {
            Ok(closed) => closed,
            Err(_) => Ok(()),
        }
    }
}

impl WebSocketTransport {
    /// In a task of its own: what is received meanwhile must not wait for what is written.
    fn ping(&self) {
        let (sink, limit) = (Arc::clone(&self.sink), self.pulse.interval);
        tokio::spawn(timeout(limit, async move {
            // If it cannot be sent there will be no answer, which says as much.
            let _ = sink.lock().await.send(Message::Ping(Bytes::new())).await;
        }));
    }

    fn read(&self, frame: &Message) -> Option<RxJsonRpcMessage<RoleClient>> {
        let text = match frame {
            Message::Text(text) => text.as_str(),
            Message::Binary(bytes) => std::str::from_utf8(bytes).unwrap_or_default(),
            _ => return None,
        };
        let message = serde_json::from_str::<ServerJsonRpcMessage>(text);
        message
            .inspect_err(|error| tracing::warn!(upstream = %self.upstream, %error, "an unreadable frame was left out"))
            .ok()
    }
}

impl Pulse {
    /// Any frame says that it is there.
    fn heard(&mut self, now: Instant) {
        (self.heard_at, self.has_asked) = (now, false);
    }

    /// When something has to happen if nothing is heard.
    fn next(&self) -> Instant {
        self.heard_at + if self.has_asked { 2 * self.interval } else { self.interval }
    }
}

/// What a WebSocket server answers `key` with, and nothing else does.
fn proof_of(key: &str) -> String {
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{HANDSHAKE_ID}").as_bytes()))
}

async fn upgrade(
    upstream: &UpstreamConfig,
    config: &HttpConfig,
    credentials: &Credentials,
) -> Result<Upgraded, String> {
    // HTTP/2 upgrades in another way, which WebSocket servers seldom speak.
    let client = builder(upstream, &config.url).http1_only().build().map_err(|error| root_cause(&error))?;
    // ws:// and wss:// differ from http:// and https:// in nothing but their names.
    let url = config.url.replacen("ws", "http", 1);
    let key = STANDARD.encode(uuid::Uuid::new_v4().as_bytes());
    let shake_hands = |token| {
        let request = client.get(&url);
        let request = request
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)
            .header(header::SEC_WEBSOCKET_KEY, &key);
        send(request, config, token)
    };
    let response = credentials.apply(shake_hands).await.map_err(|error| root_cause(&error))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(format!("it is no WebSocket server: it answered the handshake with {}", response.status()));
    }
    let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes);
    if accepted != Some(proof_of(&key).as_bytes()) {
        return Err("it is no WebSocket server: it did not prove that it read the handshake".to_owned());
    }
    response.upgrade().await.map_err(|error| root_cause(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_is_that_of_the_specifications_example() {
        assert_eq!(proof_of("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
