//! Calls of 2026-07-28 whose upstream asks something meanwhile, as servers of older revisions do. Their clients cannot be
//! asked while a call runs: they get what is needed as a result, and repeat the call with the answers. Until then the call
//! is held open here.
//!
//! A held call is not polled. Its upstream waits for the answer, and what it says meanwhile waits in the call's channel.
#![expect(deprecated, reason = "sampling, roots and logging are what every server before 2026-07-28 knows")]

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use mistralrs_telemetry::Mutex;
use rmcp::model::{
    ClientCapabilities, ClientRequest, ClientResult, ErrorData, InputRequest, InputRequests, InputResponses,
    LoggingMessageNotificationParam, ServerRequest, ServerResult,
};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::caller::{PeerDownstream, PeerProgress};
use crate::downstream::{Downstream, DownstreamId};
use crate::error::GatewayError;
use crate::gateway::{CallContext, Gateway, Principal};
use crate::local_tools::{ProgressSink, ProgressUpdate};

/// Who was asked may think about it for so long; then the call is given up, and its upstream told.
const HOLD_TIME: Duration = Duration::from_mins(2);
/// Each is one of its upstream's calls that run.
const MAX_HELD: usize = 256;
/// Of one principal, so that none takes the places of all.
const MAX_HELD_BY_ONE: usize = 32;
/// Questions of one call that its client has not seen yet.
const MAX_QUESTIONS: usize = 16;
/// What our `requestState`s begin with. Those of upstreams are passed on.
const STATE_PREFIX: &str = "mistralrs-held-";

/// The calls that wait for their clients, by `requestState`.
pub(crate) struct HeldCalls {
    calls: Mutex<HashMap<String, Held>>,
}

struct Held {
    call: AskingCall,
    /// Gives it up.
    _timer: AbortOnDropHandle<()>,
}

/// A call that runs, and what its upstream wants to know.
pub(super) struct AskingCall {
    principal: Principal,
    /// Its method and what it is for: a repetition has both.
    subject: String,
    cancellation: CancellationToken,
    outcome: BoxFuture<'static, Result<ServerResult, GatewayError>>,
    client: Arc<AskedLater>,
    questions: mpsc::Receiver<Asked>,
    /// Put to the client and not answered.
    pending: BTreeMap<String, Asked>,
    num_asked: usize,
}

/// How far a call has come.
pub(super) enum Stage {
    Done(Box<Result<ServerResult, GatewayError>>),
    /// It goes on when these are answered.
    Asks(InputRequests),
}

struct Asked {
    request: ServerRequest,
    answer: oneshot::Sender<Result<ClientResult, ErrorData>>,
}

/// The client behind a call, whichever of its requests is waiting just now.
struct AskedLater {
    id: DownstreamId,
    /// Written when the call is repeated.
    client: ArcSwap<PeerDownstream>,
    /// The same; absent if that request wants no progress.
    progress: ArcSwapOption<PeerProgress>,
    questions: mpsc::Sender<Asked>,
}

impl HeldCalls {
    pub fn new() -> Self {
        Self { calls: Mutex::new("held_calls", HashMap::new()) }
    }

    /// Whether `state` is one of ours.
    pub(super) fn is_ours(state: &str) -> bool {
        state.starts_with(STATE_PREFIX)
    }

    /// Keeps `call` until it is repeated, and gives the state by which that is known.
    ///
    /// # Errors
    /// [`GatewayError::Unanswered`] if too many wait already.
    pub(super) fn hold(self: &Arc<Self>, call: AskingCall) -> Result<String, GatewayError> {
        let state = format!("{STATE_PREFIX}{}", uuid::Uuid::new_v4());
        let mut calls = self.calls.lock();
        let of_this_one = calls.values().filter(|held| held.call.principal == call.principal).count();
        if calls.len() >= MAX_HELD || of_this_one >= MAX_HELD_BY_ONE {
            return Err(GatewayError::Unanswered { reason: "too many calls wait for their clients".to_owned() });
        }
        let timer = tokio::spawn(Self::give_up(Arc::downgrade(self), state.clone()));
        calls.insert(state.clone(), Held { call, _timer: AbortOnDropHandle::new(timer) });
        Ok(state)
    }

    async fn give_up(calls: Weak<Self>, state: String) {
        tokio::time::sleep(HOLD_TIME).await;
        // Not under the lock: what is dropped tells its upstream.
        let late = calls.upgrade().and_then(|calls| calls.calls.lock().remove(&state));
        if let Some(Held { call, _timer }) = late {
            tracing::debug!("a client did not come back with what its call needs");
            call.cancel().await;
        }
    }

    /// The call that waits for `answers` under `state`, with them. A call stays if they cannot be read.
    ///
    /// # Errors
    /// [`GatewayError::InvalidArguments`] if there is none of this `principal` and `subject`.
    pub(super) fn resume(
        &self,
        state: &str,
        principal: &Principal,
        subject: &str,
        answers: InputResponses,
    ) -> Result<AskingCall, GatewayError> {
        let invalid = |reason: String| GatewayError::InvalidArguments { tool: subject.to_owned(), reason };
        let mut calls = self.calls.lock();
        let held = calls.get(state).filter(|held| held.call.principal == *principal && held.call.subject == subject);
        // Another's is as unknown as one that never was.
        let held = held.ok_or_else(|| invalid("`requestState` continues no call that waits here".to_owned()))?;
        let answers = held.call.read(answers).map_err(invalid)?;
        let mut call = calls.remove(state).expect("it was found above, under the same lock").call;
        drop(calls);
        for (key, answer) in answers {
            if let Some(asked) = call.pending.remove(&key) {
                // The upstream may have taken its question back.
                let _ = asked.answer.send(Ok(answer));
            }
        }
        Ok(call)
    }

    /// Gives all of them up.
    pub fn clear(&self) {
        let calls = std::mem::take(&mut *self.calls.lock());
        drop(calls);
    }
}

impl AskingCall {
    /// Begins `request`, for `client`; nothing happens before [`Self::advance`].
    pub fn new(
        gateway: Arc<Gateway>,
        request: ClientRequest,
        mut context: CallContext,
        client: PeerDownstream,
        progress: Option<PeerProgress>,
    ) -> Self {
        let (questions, asked) = mpsc::channel(MAX_QUESTIONS);
        let wants_progress = progress.is_some();
        let client = Arc::new(AskedLater {
            id: client.id(),
            client: ArcSwap::from_pointee(client),
            progress: ArcSwapOption::from_pointee(progress),
            questions,
        });
        context.progress = wants_progress.then(|| Arc::clone(&client) as Arc<dyn ProgressSink>);
        context.downstream = Some(Arc::clone(&client) as Arc<dyn Downstream>);
        let (principal, subject) = (context.principal.clone(), subject_of(&request));
        let cancellation = context.cancellation.clone();
        let outcome = async move { gateway.forward(request, &context).await }.boxed();
        let pending = BTreeMap::new();
        Self { principal, subject, cancellation, outcome, client, questions: asked, pending, num_asked: 0 }
    }

    /// From now on `client` is the one that waits.
    pub fn is_continued_by(&self, client: PeerDownstream, progress: Option<PeerProgress>) {
        self.client.client.store(Arc::new(client));
        self.client.progress.store(progress.map(Arc::new));
    }

    /// Until its end, or until something has to be asked.
    pub async fn advance(&mut self) -> Stage {
        if self.pending.is_empty() {
            tokio::select! {
                biased;
                outcome = &mut self.outcome => return Stage::Done(Box::new(outcome)),
                Some(asked) = self.questions.recv() => self.note(asked),
            }
            // What was asked at once is answered at once.
            while let Ok(asked) = self.questions.try_recv() {
                self.note(asked);
            }
        }
        let asked = self.pending.iter();
        Stage::Asks(asked.filter_map(|(key, asked)| Some((key.clone(), input_request(&asked.request)?))).collect())
    }

    /// Ends it: its upstream is told, and it counts as cancelled.
    pub async fn cancel(self) {
        self.cancellation.cancel();
        let _ = self.outcome.await;
    }

    fn note(&mut self, asked: Asked) {
        self.num_asked += 1;
        self.pending.insert(format!("question-{}", self.num_asked), asked);
    }

    /// Those of `answers` that were asked for, as what they are.
    fn read(&self, answers: InputResponses) -> Result<Vec<(String, ClientResult)>, String> {
        let asked_for = answers.into_iter().filter_map(|(key, answer)| Some((self.pending.get(&key)?, key, answer)));
        let read = asked_for.map(|(asked, key, answer)| match read(&asked.request, answer) {
            Ok(answer) => Ok((key, answer)),
            Err(error) => Err(format!("`inputResponses.{key}` is no answer to its question: {error}")),
        });
        read.collect()
    }
}

/// What a request is for, in the words of its sender.
pub(super) fn subject_of(request: &ClientRequest) -> String {
    match request {
        ClientRequest::CallToolRequest(call) => call.params.name.to_string(),
        ClientRequest::GetPromptRequest(get) => get.params.name.clone(),
        ClientRequest::ReadResourceRequest(read) => read.params.uri.clone(),
        other => other.method().to_owned(),
    }
}

fn input_request(request: &ServerRequest) -> Option<InputRequest> {
    Some(match request {
        ServerRequest::CreateMessageRequest(request) => InputRequest::CreateMessage(request.clone()),
        ServerRequest::ElicitRequest(request) => InputRequest::Elicitation(request.clone()),
        ServerRequest::ListRootsRequest(request) => InputRequest::ListRoots(request.clone()),
        _ => return None,
    })
}

fn read(question: &ServerRequest, answer: Value) -> serde_json::Result<ClientResult> {
    Ok(match question {
        ServerRequest::CreateMessageRequest(_) => {
            ClientResult::CreateMessageResult(Box::new(serde_json::from_value(answer)?))
        }
        ServerRequest::ListRootsRequest(_) => ClientResult::ListRootsResult(serde_json::from_value(answer)?),
        _ => ClientResult::ElicitResult(serde_json::from_value(answer)?),
    })
}

#[async_trait]
impl Downstream for AskedLater {
    fn id(&self) -> DownstreamId {
        self.id
    }

    fn capabilities(&self) -> ClientCapabilities {
        self.client.load().capabilities()
    }

    async fn ask(&self, request: ServerRequest) -> Result<ClientResult, ErrorData> {
        self.client.load().check_able(&request)?;
        let (answer, answered) = oneshot::channel();
        let gone = || ErrorData::internal_error("the client ended its call", None);
        self.questions.send(Asked { request, answer }).await.map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    async fn log(&self, message: LoggingMessageNotificationParam) {
        let client = self.client.load_full();
        client.log(message).await;
    }
}

#[async_trait]
impl ProgressSink for AskedLater {
    async fn send(&self, progress: f64, message: String) -> bool {
        self.forward(ProgressUpdate { progress, total: None, message: Some(message) }).await
    }

    async fn forward(&self, update: ProgressUpdate) -> bool {
        let progress = self.progress.load_full();
        match progress {
            // A later repetition may want it again.
            None => true,
            Some(progress) => progress.forward(update).await,
        }
    }
}
