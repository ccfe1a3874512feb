//! An upstream of 2026-07-28 answers with what it needs to know first, and wants to be called again. Its own era's clients
//! get that answer as it is; older ones are asked here, and never see that there were several calls.

use std::collections::BTreeMap;
use std::time::Duration;

use rmcp::model::{ClientRequest, InputRequest, InputRequiredResult, InputResponses, ServerRequest, ServerResult};

use crate::downstream::Downstream;
use crate::error::GatewayError;
use crate::gateway::{CallContext, Gateway};

/// What asks more often never ends.
pub(super) const MAX_ROUNDS: usize = 10;
/// Before a call is repeated for an upstream that only asks for patience.
const PATIENCE: Duration = Duration::from_millis(250);

/// Forwards `request`, and again with the client's answers until it is answered itself.
///
/// # Errors
/// As [`Gateway::forward`], and [`GatewayError::Unanswered`].
pub(super) async fn forward_with_answers(
    gateway: &Gateway,
    mut request: ClientRequest,
    context: &CallContext,
) -> Result<ServerResult, GatewayError> {
    for _ in 0..MAX_ROUNDS {
        match gateway.forward(request.clone(), context).await? {
            ServerResult::InputRequiredResult(needed) => put_answers(&mut request, needed, context).await?,
            result => return Ok(result),
        }
    }
    Err(too_many_rounds())
}

/// What becomes of a call that is answered with questions for ever.
pub(super) fn too_many_rounds() -> GatewayError {
    GatewayError::Unanswered { reason: format!("it was asked {MAX_ROUNDS} times") }
}

/// Asks who `context` says, and puts the answers into `request`.
///
/// # Errors
/// [`GatewayError::Unanswered`].
pub(super) async fn put_answers(
    request: &mut ClientRequest,
    needed: InputRequiredResult,
    context: &CallContext,
) -> Result<(), GatewayError> {
    let questions = needed.input_requests.unwrap_or_default();
    if questions.is_empty() {
        tokio::time::sleep(PATIENCE).await;
    }
    let Some(downstream) = context.downstream.as_deref() else {
        return Err(GatewayError::Unanswered { reason: "it answers no questions".to_owned() });
    };
    let mut answers = BTreeMap::new();
    for (key, question) in questions {
        answers.insert(key, ask(downstream, question).await?);
    }
    let method = request.method().to_owned();
    let (responses, state) = continuation(request).ok_or(GatewayError::NotForwarded(method))?;
    *responses = Some(InputResponses::from(answers));
    *state = needed.request_state;
    Ok(())
}

/// Where a request has answers to what it needed, and the state that they belong to.
pub(super) fn continuation(request: &mut ClientRequest) -> Option<(&mut Option<InputResponses>, &mut Option<String>)> {
    match request {
        ClientRequest::CallToolRequest(call) => {
            Some((&mut call.params.input_responses, &mut call.params.request_state))
        }
        ClientRequest::GetPromptRequest(get) => Some((&mut get.params.input_responses, &mut get.params.request_state)),
        ClientRequest::ReadResourceRequest(read) => {
            Some((&mut read.params.input_responses, &mut read.params.request_state))
        }
        _ => None,
    }
}

async fn ask(downstream: &dyn Downstream, question: InputRequest) -> Result<serde_json::Value, GatewayError> {
    let unanswered = |reason: String| GatewayError::Unanswered { reason };
    let question = match question {
        InputRequest::CreateMessage(request) => ServerRequest::CreateMessageRequest(request),
        InputRequest::Elicitation(request) => ServerRequest::ElicitRequest(request),
        InputRequest::ListRoots(request) => ServerRequest::ListRootsRequest(request),
        _ => return Err(unanswered("it cannot be asked this".to_owned())),
    };
    let answer = downstream.ask(question).await.map_err(|error| unanswered(error.message.into_owned()))?;
    serde_json::to_value(answer).map_err(|error| unanswered(error.to_string()))
}
