//! An upstream that speaks WebSocket, one message a frame. The handshake is an HTTP request like any other upstream's, with
//! its headers, credentials, proxies and certificates; the connection that comes of it is handed to tungstenite.

use std::future::ready;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::{Sink, SinkExt, Stream, StreamExt};
use http::{HeaderValue, StatusCode, header};
use reqwest::Upgraded;
use rmcp::RoleClient;
use rmcp::model::ServerJsonRpcMessage;
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::sink_stream::SinkStreamTransport;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};

use super::connection::root_cause;
use super::http_client::{MAX_MESSAGE_BYTES, authorized, builder};
use crate::config::{HttpConfig, UpstreamConfig, UpstreamId};

/// What MCP's own SDKs ask for; servers that know no subprotocols leave it unanswered.
const SUBPROTOCOL: &str = "mcp";
/// What a server puts behind our key before it hashes both (RFC 6455, 1.3).
const HANDSHAKE_ID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Shakes hands.
///
/// # Errors
/// A sentence: what answered is not a WebSocket server.
pub(super) async fn connect(
    upstream: &UpstreamConfig,
    config: &HttpConfig,
) -> Result<
    SinkStreamTransport<
        impl Sink<TxJsonRpcMessage<RoleClient>, Error = WebSocketError> + Unpin + Send + 'static,
        impl Stream<Item = RxJsonRpcMessage<RoleClient>> + Unpin + Send + 'static,
    >,
    String,
> {
    let upgraded = upgrade(upstream, config).await?;
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES))
        .max_write_buffer_size(2 * MAX_MESSAGE_BYTES);
    let socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(limits)).await;
    let (sink, stream) = socket.split();
    let sink = sink.with(|message: TxJsonRpcMessage<RoleClient>| {
        let text = serde_json::to_string(&message).map_err(|error| WebSocketError::Io(error.into()));
        ready(text.map(Message::text))
    });
    Ok(SinkStreamTransport::new(sink, messages(stream, upstream.id.clone())))
}

/// Ends with the connection, or with the first error on it.
fn messages(
    frames: impl Stream<Item = Result<Message, WebSocketError>> + Unpin + Send + 'static,
    upstream: UpstreamId,
) -> impl Stream<Item = RxJsonRpcMessage<RoleClient>> + Unpin + Send + 'static {
    let frames = frames.take_while(|frame| ready(frame.is_ok())).filter_map(|frame| ready(frame.ok()));
    frames.filter_map(move |frame| {
        let text = match &frame {
            Message::Text(text) => text.as_str(),
            Message::Binary(bytes) => std::str::from_utf8(bytes).unwrap_or_default(),
            _ => return ready(None),
        };
        let message = serde_json::from_str::<ServerJsonRpcMessage>(text);
        if let Err(error) = &message {
            tracing::warn!(%upstream, %error, "an unreadable frame was left out");
        }
        ready(message.ok())
    })
}

/// What a WebSocket server answers `key` with, and nothing else does.
fn proof_of(key: &str) -> String {
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{HANDSHAKE_ID}").as_bytes()))
}

async fn upgrade(upstream: &UpstreamConfig, config: &HttpConfig) -> Result<Upgraded, String> {
    // HTTP/2 upgrades in another way, which WebSocket servers seldom speak.
    let client = builder(upstream, config).http1_only().build().map_err(|error| root_cause(&error))?;
    // ws:// and wss:// differ from http:// and https:// in nothing but their names.
    let url = config.url.replacen("ws", "http", 1);
    let key = STANDARD.encode(uuid::Uuid::new_v4().as_bytes());
    let request = authorized(client.get(url), config)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)
        .header(header::SEC_WEBSOCKET_KEY, &key);
    let response = request.send().await.map_err(|error| root_cause(&error))?;
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
