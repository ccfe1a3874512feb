//! Responses that nobody waits for: they run on a task of their own until they end, are cancelled, or are too late.

use super::answer::Answer;
use super::object::ResponseObject;
use super::store::{Keeping, RunningResponse, StoredResponse};
use crate::error::ApiError;
use crate::openai::generation::Generation;

/// Starts the task and gives the response as it is now: queued.
///
/// # Errors
/// [`ApiError::BackgroundFull`]; the generation is cancelled then.
pub(super) fn start(generation: Generation, mut answer: Answer, keeping: Keeping) -> Result<ResponseObject, ApiError> {
    let Keeping { store, owner, input } = keeping;
    let store = store.ok_or_else(|| ApiError::invalid("background", "`background`: this server keeps no responses"))?;
    let queued = answer.queue().clone();
    let running = store.begin(owner, StoredResponse { object: queued.clone(), input })?;
    tokio::spawn(run(running, answer, generation));
    Ok(queued)
}

async fn run(running: RunningResponse, mut answer: Answer, mut generation: Generation) {
    let object = tokio::select! {
        // Its place in the store says so already; dropping the generation frees what the engine holds.
        () = running.cancelled() => return,
        object = complete(&running, &mut answer, &mut generation) => object,
    };
    running.finish(object);
}

async fn complete(running: &RunningResponse, answer: &mut Answer, generation: &mut Generation) -> ResponseObject {
    let mut has_begun = false;
    while let Some(piece) = generation.next().await {
        match piece {
            Ok(piece) => {
                answer.accept(piece);
                if !std::mem::replace(&mut has_begun, true) {
                    running.advance();
                }
            }
            Err(error) => return answer.fail(&error).clone(),
        }
    }
    answer.end(generation.usage()).clone()
}
