//! The greeter of `http_upstream` behind the two transports that rmcp has no server for.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use axum::extract::State;
use axum::response::sse::{Event, Sse};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::{SinkExt, Stream, StreamExt, stream};
use http::{HeaderMap, StatusCode};
use mistralrs_mcp::rmcp::ServiceExt;
use mistralrs_mcp::rmcp::model::{ClientJsonRpcMessage, ProtocolVersion, ServerJsonRpcMessage};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;

use super::http_upstream::Greeter;

/// A server that can hang up on its clients.
pub struct UrlUpstream {
    address: SocketAddr,
    hang_up: Arc<ArcSwap<CancellationToken>>,
}

/// What the routes of the legacy transport share.
#[derive(Clone)]
struct SseState {
    hang_up: Arc<ArcSwap<CancellationToken>>,
    /// To the newest stream's server.
    inbox: Arc<ArcSwapOption<mpsc::Sender<ClientJsonRpcMessage>>>,
}

impl UrlUpstream {
    /// The transport of 2024-11-05. Requests need `Authorization: Bearer s3cret`.
    pub async fn start_sse() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hang_up = Arc::<ArcSwap<CancellationToken>>::default();
        let state = SseState { hang_up: Arc::clone(&hang_up), inbox: Arc::default() };
        let routes = Router::new().route("/sse", get(open_stream)).route("/message", post(take_message));
        tokio::spawn(async move { axum::serve(listener, routes.with_state(state)).await.unwrap() });
        Self { address, hang_up }
    }

    /// One JSON-RPC message a frame, with garbage before each.
    pub async fn start_web_socket() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hang_up = Arc::<ArcSwap<CancellationToken>>::default();
        let until = Arc::clone(&hang_up);
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let until = CancellationToken::clone(&until.load());
                tokio::spawn(async move { until.run_until_cancelled(serve_frames(connection)).await });
            }
        });
        Self { address, hang_up }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every connection there is ends; new ones are accepted.
    pub fn hang_up(&self) {
        self.hang_up.swap(Arc::default()).cancel();
    }
}

/// Bytes to and from a server, until they are stopped with the connections left open.
pub struct Relay {
    address: SocketAddr,
    frozen: Arc<ArcSwap<CancellationToken>>,
}

impl Relay {
    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let frozen = Arc::<ArcSwap<CancellationToken>>::default();
        let until = Arc::clone(&frozen);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let until = CancellationToken::clone(&until.load());
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(server).await.unwrap();
                    let copied = tokio::io::copy_bidirectional(&mut client, &mut server);
                    if until.run_until_cancelled(copied).await.is_none() {
                        // Both stay open.
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        Self { address, frozen }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The connections that there are; new ones work.
    pub fn freeze(&self) {
        self.frozen.swap(Arc::default()).cancel();
    }
}

fn greeter() -> Greeter {
    Greeter { versions: ProtocolVersion::KNOWN_VERSIONS }
}

fn is_authorized(headers: &HeaderMap) -> bool {
    headers.get("authorization").is_some_and(|value| value == "Bearer s3cret")
}

async fn open_stream(
    State(state): State<SseState>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, StatusCode> {
    if !is_authorized(&headers) {
        return Err(StatusCode::UNAUTHORIZED);
    }
    let (to_server, inbox) = mpsc::channel(16);
    let (outbox, answers) = mpsc::channel::<ServerJsonRpcMessage>(16);
    state.inbox.store(Some(Arc::new(to_server)));
    let until = CancellationToken::clone(&state.hang_up.load());
    tokio::spawn(serve_channels(outbox, inbox));
    let hello = [Event::default().event("endpoint").data("/message?session=1")];
    let answers = stream::unfold(answers, |mut answers| async { Some((answers.recv().await?, answers)) });
    let events = stream::iter(hello).chain(answers.map(|answer| Event::default().json_data(answer).unwrap()));
    Ok(Sse::new(events.map(Ok).take_until(until.cancelled_owned())))
}

async fn serve_channels(outbox: mpsc::Sender<ServerJsonRpcMessage>, inbox: mpsc::Receiver<ClientJsonRpcMessage>) {
    let sink = futures::sink::unfold(outbox, |outbox, message| async move {
        outbox.send(message).await.map_err(|_| std::io::Error::other("the client left"))?;
        Ok::<_, std::io::Error>(outbox)
    });
    let inbox = stream::unfold(inbox, |mut inbox| async { Some((inbox.recv().await?, inbox)) });
    if let Ok(service) = Box::pin(greeter().serve((Box::pin(sink), Box::pin(inbox)))).await {
        let _ = service.waiting().await;
    }
}

async fn take_message(
    State(state): State<SseState>,
    headers: HeaderMap,
    Json(message): Json<ClientJsonRpcMessage>,
) -> StatusCode {
    if !is_authorized(&headers) {
        return StatusCode::UNAUTHORIZED;
    }
    let inbox = state.inbox.load_full();
    match inbox {
        Some(inbox) if inbox.send(message).await.is_ok() => StatusCode::ACCEPTED,
        _ => StatusCode::NOT_FOUND,
    }
}

/// Shakes hands with who asks for it as RFC 6455 has it.
async fn accept(mut connection: TcpStream) -> Option<TcpStream> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(connection.read_u8().await.ok()?);
    }
    let request = String::from_utf8(request).ok()?;
    let key = request.lines().find(|line| line.to_ascii_lowercase().starts_with("sec-websocket-key:"));
    let Some((_, key)) = key.and_then(|line| line.split_once(':')) else {
        connection.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await.ok()?;
        return None;
    };
    let proof =
        digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{}258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key.trim()).as_bytes());
    let proof = STANDARD.encode(proof);
    let answer =
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: ";
    connection.write_all(format!("{answer}{proof}\r\n\r\n").as_bytes()).await.ok()?;
    Some(connection)
}

async fn serve_frames(connection: TcpStream) {
    let Some(connection) = accept(connection).await else { return };
    let (sink, frames) = WebSocketStream::from_raw_socket(connection, Role::Server, None).await.split();
    let sink = sink.with_flat_map(|message: ServerJsonRpcMessage| {
        let frames = [Message::text("no JSON"), Message::text(serde_json::to_string(&message).unwrap())];
        stream::iter(frames).map(Ok)
    });
    let messages = frames.filter_map(|frame| async { serde_json::from_str(frame.ok()?.to_text().ok()?).ok() });
    if let Ok(service) = Box::pin(greeter().serve((sink, Box::pin(messages)))).await {
        let _ = service.waiting().await;
    }
}
