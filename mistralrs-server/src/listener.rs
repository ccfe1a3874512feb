//! Sockets: binding them, and serving a router on them with limits and an orderly end.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::Response;
use axum::{BoxError, Router};
use bytes::Bytes;
use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};

use crate::stalled_writes::StalledWrites;

/// A connection that sends no request for this long is closed, whether it is slow or merely kept alive. Longer than
/// the keep-alive time of the usual clients, so that they close first and no request meets a closing connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// HTTP/2 connections without traffic are asked whether anybody is there; a client that vanished is found this way.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// Requests at once on one HTTP/2 connection: more than a client's pool, fewer than the engine's queue.
const MAX_CONCURRENT_STREAMS: u32 = 128;

/// Pause after accepting failed, as it does while the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What connections of one port may take.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// Open at once; more wait in the kernel's backlog.
    pub max_connections: usize,
    /// How long a client may read nothing of what is sent to it; `None`: for ever.
    pub write_timeout: Option<Duration>,
}

/// A port that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr} ({what}): {source}{hint}", hint = self.hint())]
pub struct BindError {
    /// What would have been served there.
    pub what: &'static str,
    /// Where.
    pub addr: SocketAddr,
    /// Why not.
    pub source: io::Error,
}

impl BindError {
    fn hint(&self) -> &'static str {
        match self.source.kind() {
            io::ErrorKind::AddrInUse => "; another process has it: stop that one or choose another port",
            io::ErrorKind::PermissionDenied => "; ports below 1024 need privileges: choose another port",
            io::ErrorKind::AddrNotAvailable => "; this machine has no such address: see --serve-ip",
            _ => "",
        }
    }
}

/// Opens `addr`. Connections wait in the kernel until [`serve`] accepts them.
///
/// # Errors
/// [`BindError`], with what to do about it.
pub async fn bind(what: &'static str, addr: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(addr).await.map_err(|source| BindError { what, addr, source })
}

/// Serves `router` until `shutdown`; then accepts nothing new, lets running requests finish, and returns.
/// Handlers find the peer's address as `ConnectInfo<SocketAddr>`.
pub async fn serve(listener: TcpListener, router: Router, limits: ConnectionLimits, shutdown: CancellationToken) {
    let permits = Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS)));
    let connections = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &permits) => accepted,
            () = shutdown.cancelled() => break,
        };
        let (stream, peer, permit) = accepted;
        // Tokens are small writes that must leave at once.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let stream = StalledWrites::new(stream, limits.write_timeout);
        tokio::spawn(serve_connection(stream, peer, router.clone(), connections.watcher(), permit));
    }
    // Closed before draining: a client that connects now gets a refusal, not silence.
    drop(listener);
    connections.shutdown().await;
}

async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let permit = Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, permit),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The permit is held as long as the connection.
async fn serve_connection(
    stream: StalledWrites<TcpStream>,
    peer: SocketAddr,
    router: Router,
    watcher: Watcher,
    _permit: OwnedSemaphorePermit,
) {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_TIMEOUT);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS);
    let connection =
        server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(with_peer(router, peer))).into_owned();
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%peer, error, "connection ended");
    }
}

/// `router` for one connection: bodies become axum's, and the peer's address is put beside each request.
fn with_peer<B>(
    router: Router,
    peer: SocketAddr,
) -> impl Service<Request<B>, Response = Response, Error = Infallible, Future: Send> + Clone
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    tower::service_fn(move |mut request: Request<B>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request.map(Body::new))
    })
}
