//! Requests without a session: each is one call, served by a short-lived rmcp loop of its own.
//! The caller's connection is the call's life: when it drops the answer, the call is cancelled.

use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::{FutureExt, Stream};
use http::request::Parts;
use mistralrs_mcp::rmcp::model::{
    ClientCapabilities, ClientJsonRpcMessage, ClientNotification, ClientRequest, ErrorCode, ErrorData, GetExtensions,
    Implementation, InitializeRequestParams, JsonRpcRequest, ProtocolVersion, ServerConfig, ServerJsonRpcMessage,
    ServerResult,
};
use mistralrs_mcp::rmcp::service::{NotificationContext, RequestContext, RunningService, serve_directly};
use mistralrs_mcp::rmcp::transport::OneshotTransport;
use mistralrs_mcp::rmcp::transport::streamable_http_server::session::ServerSseMessage;
use mistralrs_mcp::rmcp::{RoleServer, Service};
use tokio::sync::mpsc;

use super::incoming::{OTHER_METHOD, method_label};

/// The messages that one request leads to: notifications while it runs, then one response. Dropping it cancels the
/// call; the gateway's handler sees its token fire.
pub(super) struct StatelessCall<S: Service<RoleServer>> {
    /// rmcp bounds it: a caller that reads slowly makes the tool's progress reports wait.
    messages: mpsc::Receiver<ServerJsonRpcMessage>,
    _running: RunningService<RoleServer, S>,
}

impl<S: Service<RoleServer>> StatelessCall<S> {
    pub fn start(service: S, mut request: JsonRpcRequest<ClientRequest>, parts: Parts) -> Self {
        request.request.extensions_mut().insert(parts);
        let (transport, messages) = OneshotTransport::new(ClientJsonRpcMessage::Request(request));
        Self { messages, _running: serve_directly(service, transport, Some(assumed_client())) }
    }
}

impl<S: Service<RoleServer>> Stream for StatelessCall<S> {
    type Item = ServerSseMessage;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let message = self.get_mut().messages.poll_recv(context);
        message.map(|message| message.map(ServerSseMessage::from_message))
    }
}

impl<S: Service<RoleServer>> Unpin for StatelessCall<S> {}

/// Who calls without a handshake. The specification lets a server assume 2025-03-26 where nothing says otherwise;
/// no capabilities means that nobody asks such a caller for sampling or elicitation, which it could not answer.
fn assumed_client() -> InitializeRequestParams {
    InitializeRequestParams::new(ClientCapabilities::default(), Implementation::default())
        .with_protocol_version(ProtocolVersion::V_2025_03_26)
}

/// The handler, with an answer for every request. rmcp runs each request in its own task: one that panics would leave its
/// caller waiting for a response that nobody sends. And a method that nobody serves is named in a sentence.
#[derive(Clone)]
pub(super) struct Answering<S>(pub S);

impl<S: Service<RoleServer>> Service<RoleServer> for Answering<S> {
    async fn handle_request(
        &self,
        request: ClientRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<ServerResult, ErrorData> {
        let method = method_label(request.method());
        let unknown = (method == OTHER_METHOD).then(|| request.method().to_owned());
        let answer = AssertUnwindSafe(self.0.handle_request(request, context)).catch_unwind().await;
        match answer {
            Ok(Err(error)) if error.code == ErrorCode::METHOD_NOT_FOUND => {
                let message = format!("method `{}` is not served here", unknown.as_deref().unwrap_or(method));
                Err(ErrorData::new(error.code, message, error.data))
            }
            Ok(answer) => answer,
            Err(_panic) => {
                tracing::error!(method, "a request handler panicked; its caller was told so");
                let message = "the server failed while answering; this is a bug, please report it";
                Err(ErrorData::internal_error(message, None))
            }
        }
    }

    async fn handle_notification(
        &self,
        notification: ClientNotification,
        context: NotificationContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.0.handle_notification(notification, context).await
    }

    fn get_info(&self) -> ServerConfig {
        self.0.get_info()
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        self.0.supported_protocol_versions()
    }
}
