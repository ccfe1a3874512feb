//! Arrays of messages: protocol 2025-03-26 only, in a session or without one. Members run at once; their responses
//! go back in the order of the requests.

use std::num::NonZeroU32;

use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http::request::Parts;
use http::{StatusCode, header};
use mistralrs_mcp::rmcp::model::{ClientJsonRpcMessage, ClientRequest, JsonRpcRequest, ProtocolVersion};

use super::accept::Accept;
use super::answer::{Messages, is_response, texts_as_events};
use super::dispatch::{principal, session_id, supported_version, with_parts};
use super::error::{EndpointError, Refusal};
use super::{Endpoint, client_address};

impl Endpoint {
    pub(super) async fn post_batch(
        &self,
        parts: Parts,
        members: Vec<Result<ClientJsonRpcMessage, Refusal>>,
        accept: Accept,
    ) -> Result<Response, Refusal> {
        let session = match self.handshake_only.find(&parts.headers)? {
            Some(_) => None,
            None => session_id(&parts.headers),
        };
        let version = match &session {
            Some(id) => self.sessions.lease(id, principal(&parts))?.version.clone(),
            None => supported_version(&parts.headers)?.unwrap_or(ProtocolVersion::V_2025_03_26),
        };
        if version.as_str() > ProtocolVersion::V_2025_03_26.as_str() {
            let message = format!("MCP {version} has no batches: send one message per request");
            return Err(EndpointError::InvalidRequest(message).into());
        }
        self.charge_batch(&parts, members.len())?;
        let answers = members.into_iter().map(|member| self.answer_member(member, session.clone(), parts.clone()));
        let answers: Vec<String> = futures::future::join_all(answers).await.into_iter().flatten().collect();
        Ok(match answers.is_empty() {
            true => StatusCode::ACCEPTED.into_response(),
            false if accept.json => {
                ([(header::CONTENT_TYPE, "application/json")], format!("[{}]", answers.join(","))).into_response()
            }
            false => texts_as_events(answers),
        })
    }

    /// The request was admitted as one; the other members cost too.
    fn charge_batch(&self, parts: &Parts, num_members: usize) -> Result<(), EndpointError> {
        let others = NonZeroU32::new(num_members.saturating_sub(1) as u32);
        let (Some(others), Some(limits)) = (others, &self.limits) else { return Ok(()) };
        limits.admit(principal(parts), client_address(parts), others)?;
        Ok(())
    }

    /// The response of one member as text, since a [`serde_json::Value`] would hold 0.7 of an upstream as 0.699999988079071;
    /// `None` for a notification or response.
    async fn answer_member(
        &self,
        member: Result<ClientJsonRpcMessage, Refusal>,
        session: Option<String>,
        parts: Parts,
    ) -> Option<String> {
        let message = match member {
            Ok(message) => message,
            Err(refusal) => return Some(refusal.to_json().to_string()),
        };
        let ClientJsonRpcMessage::Request(request) = message else {
            let lease = session.and_then(|id| self.sessions.lease(&id, principal(&parts)).ok());
            if let Some(lease) = lease {
                // The session may be gone by now; nobody waits for an answer to this one.
                let _ = lease.accept(with_parts(message, parts)).await;
            }
            return None;
        };
        let id = request.id.clone();
        let mut messages = match self.start_member(request, session, parts).await {
            Ok(messages) => messages,
            Err(error) => return Some(Refusal::of(id, error).to_json().to_string()),
        };
        while let Some(event) = messages.next().await {
            if let Some(response) = event.message.filter(|message| is_response(message)) {
                return serde_json::to_string(&*response).ok();
            }
        }
        None
    }

    async fn start_member(
        &self,
        request: JsonRpcRequest<ClientRequest>,
        session: Option<String>,
        parts: Parts,
    ) -> Result<Messages, EndpointError> {
        if matches!(request.request, ClientRequest::InitializeRequest(_)) {
            return Err(EndpointError::InvalidRequest("`initialize` cannot be part of a batch".to_owned()));
        }
        let Some(id) = session else { return Ok(self.call(request, parts)) };
        let lease = self.sessions.lease(&id, principal(&parts))?;
        lease.call(with_parts(ClientJsonRpcMessage::Request(request), parts)).await
    }
}
