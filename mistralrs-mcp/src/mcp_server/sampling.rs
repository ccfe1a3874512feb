//! Who answers an upstream that asks for a completion: the client whose call is running, the local model in its place,
//! or nobody, as the upstream's configuration says.
#![expect(deprecated, reason = "sampling is what every server before 2026-07-28 asks for")]

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use rmcp::model::{
    ClientCapabilities, ClientRequest, ClientResult, CreateMessageRequestParams, ErrorData, InputRequest,
    InputRequiredResult, LoggingMessageNotificationParam, SamplingCapability, ServerRequest, ServerResult,
};

use super::questions::{MAX_ROUNDS, put_answers, too_many_rounds};
use crate::config::{SamplingConfig, SamplingMode};
use crate::downstream::{Downstream, DownstreamId};
use crate::error::GatewayError;
use crate::gateway::CallContext;
use crate::local_sampler::LocalSampler;
use crate::upstream::Upstream;

const OFF: &str = "the configuration of this server has `sampling = \"off\"`";

/// A client as an upstream of this configuration may ask it.
struct Asked {
    client: Option<Arc<dyn Downstream>>,
    /// The client's, or of nobody.
    id: DownstreamId,
    sampler: Option<Arc<dyn LocalSampler>>,
    config: SamplingConfig,
}

/// A call to one upstream, with who answers its questions.
pub(crate) struct AskableCall<'a> {
    context: Cow<'a, CallContext>,
    config: SamplingConfig,
    /// Whether the local model answers, not the client.
    is_answered_here: bool,
}

impl<'a> AskableCall<'a> {
    pub fn new(context: &'a CallContext, config: SamplingConfig, sampler: Option<&Arc<dyn LocalSampler>>) -> Self {
        if config.mode == SamplingMode::Client {
            return Self { context: Cow::Borrowed(context), config, is_answered_here: false };
        }
        let client = context.downstream.clone();
        let id = client.as_ref().map_or_else(DownstreamId::unique, |client| client.id());
        let asked = Asked { client, id, sampler: sampler.cloned(), config };
        let is_answered_here = asked.is_answered_here();
        let context = CallContext { downstream: Some(Arc::new(asked)), ..context.clone() };
        Self { context: Cow::Owned(context), config, is_answered_here }
    }

    /// Sends `request`, and again with the local model's answers for as long as these are all that is needed: an
    /// upstream of 2026-07-28 asks by an answer.
    ///
    /// # Errors
    /// As [`Upstream::send`], and [`GatewayError::Unanswered`].
    pub async fn send(
        &self,
        upstream: &Upstream,
        mut request: ClientRequest,
        deadline: Instant,
    ) -> Result<ServerResult, GatewayError> {
        for _ in 0..MAX_ROUNDS {
            let needed = match upstream.send(request.clone(), deadline, &self.context).await? {
                ServerResult::InputRequiredResult(needed) => needed,
                result => return Ok(result),
            };
            match answerer_of(&needed) {
                Answerer::Client => return Ok(ServerResult::InputRequiredResult(needed)),
                _ if self.config.mode == SamplingMode::Off => {
                    return Err(GatewayError::Unanswered { reason: OFF.to_owned() });
                }
                Answerer::Model if self.is_answered_here => {
                    put_answers(&mut request, needed, &self.context).await?;
                }
                // The client gets them as a whole, and can do its part.
                Answerer::Model | Answerer::Both => return Ok(ServerResult::InputRequiredResult(needed)),
            }
        }
        Err(too_many_rounds())
    }
}

/// Who can answer what an upstream needs to know.
enum Answerer {
    Client,
    Model,
    Both,
}

fn answerer_of(needed: &InputRequiredResult) -> Answerer {
    let questions = || needed.input_requests.iter().flatten().map(|(_, question)| question);
    let num_of_model = questions().filter(|question| matches!(question, InputRequest::CreateMessage(_))).count();
    match num_of_model {
        0 => Answerer::Client,
        num if num == questions().count() => Answerer::Model,
        _ => Answerer::Both,
    }
}

impl Asked {
    fn is_answered_here(&self) -> bool {
        let can_sample = self.client.as_ref().is_some_and(|client| client.capabilities().sampling.is_some());
        self.config.mode == SamplingMode::Local && self.sampler.is_some() && !can_sample
    }

    async fn create_message(&self, mut request: CreateMessageRequestParams) -> Result<ClientResult, ErrorData> {
        let Some(sampler) = &self.sampler else {
            return Err(ErrorData::internal_error("this process has no model", None));
        };
        request.max_tokens = request.max_tokens.min(self.config.max_tokens);
        sampler.create_message(request).await.map(|answer| ClientResult::CreateMessageResult(Box::new(answer)))
    }

    async fn ask_client(&self, question: ServerRequest) -> Result<ClientResult, ErrorData> {
        match &self.client {
            Some(client) => client.ask(question).await,
            None => Err(ErrorData::internal_error("the caller of this tool answers no questions", None)),
        }
    }
}

#[async_trait]
impl Downstream for Asked {
    fn id(&self) -> DownstreamId {
        self.id
    }

    fn capabilities(&self) -> ClientCapabilities {
        let mut capabilities = self.client.as_ref().map(|client| client.capabilities()).unwrap_or_default();
        match self.config.mode {
            SamplingMode::Off => capabilities.sampling = None,
            SamplingMode::Local if self.sampler.is_some() => {
                capabilities.sampling.get_or_insert(SamplingCapability::default());
            }
            SamplingMode::Local | SamplingMode::Client => {}
        }
        capabilities
    }

    async fn ask(&self, question: ServerRequest) -> Result<ClientResult, ErrorData> {
        match question {
            ServerRequest::CreateMessageRequest(_) if self.config.mode == SamplingMode::Off => {
                Err(ErrorData::invalid_request(OFF, None))
            }
            ServerRequest::CreateMessageRequest(asked) if self.is_answered_here() => {
                self.create_message(asked.params).await
            }
            question => self.ask_client(question).await,
        }
    }

    async fn log(&self, message: LoggingMessageNotificationParam) {
        if let Some(client) = &self.client {
            client.log(message).await;
        }
    }
}
