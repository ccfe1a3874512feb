//! Responses that can be asked for by their id: those that have ended, and those that run in the background.
//!
//! [`ResponseStore`] is the lock and the clock around `table`, which decides what stays within the limits of number,
//! bytes and age. What is kept is kept in memory: it ends with the process.

mod metrics;
mod table;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use mistralrs_telemetry::Mutex;
use mistralrs_telemetry::registry::Registry;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use self::metrics::StoreMetrics;
use self::table::Table;
use super::item::Item;
use super::object::{ResponseObject, ResponseStatus};
use crate::api_keys::Principal;
use crate::config::StoreLimits;
use crate::error::ApiError;

/// How often memory of expired responses is given back where nobody asks; they cannot be read from their last second on.
const SWEEP_INTERVAL: Duration = Duration::from_mins(1);

/// The responses that can be asked for.
pub struct ResponseStore {
    limits: StoreLimits,
    /// Handlers of every thread look something up or put something in, which takes microseconds and never waits: less than
    /// a message to a task that owned the table, and its reply.
    table: Mutex<Table>,
}

/// A response with the conversation it came of.
pub(super) struct StoredResponse {
    /// As clients read it.
    pub object: ResponseObject,
    /// All items before its output, those of earlier responses included: they may be gone before this one is.
    pub input: Vec<Arc<Item>>,
}

impl StoredResponse {
    /// Its size as JSON, which is near enough to what it takes in memory. Items that other responses have too count here as
    /// well, so that memory is never more than the sum.
    fn num_bytes(&self) -> usize {
        let input = serde_json::to_vec(&self.input).map_or(usize::MAX, |json| json.len());
        let object = serde_json::to_vec(&self.object).map_or(usize::MAX, |json| json.len());
        input.saturating_add(object)
    }

    /// The items that a next response continues.
    pub fn conversation(&self) -> Vec<Arc<Item>> {
        let output = self.object.output.iter().map(|message| Arc::new(Item::Output(message.clone())));
        self.input.iter().map(Arc::clone).chain(output).collect()
    }

    fn with_status(&self, status: ResponseStatus) -> Self {
        self.with_object(ResponseObject { status, ..self.object.clone() })
    }

    fn with_object(&self, object: ResponseObject) -> Self {
        Self { object, input: self.input.clone() }
    }
}

impl ResponseStore {
    /// An empty store, whose metrics are registered: there is one per process.
    pub fn new(limits: StoreLimits, registry: &Registry) -> Arc<Self> {
        let table = Table::new(limits, StoreMetrics::register(registry));
        Arc::new(Self { limits, table: Mutex::new("response_store", table) })
    }

    /// Whether anything is ever kept.
    pub(super) fn is_enabled(&self) -> bool {
        self.limits.max_stored > 0
    }

    /// The response.
    ///
    /// # Errors
    /// [`ApiError::UnknownResponse`]: there is none, it is too old, or it is another's.
    pub(super) fn get(&self, owner: Principal, id: &str) -> Result<Arc<StoredResponse>, ApiError> {
        self.table.lock().get(owner, id, Instant::now()).ok_or_else(|| unknown(id))
    }

    /// Forgets the response; one that runs is ended.
    ///
    /// # Errors
    /// As for [`Self::get`].
    pub(super) fn delete(&self, owner: Principal, id: &str) -> Result<(), ApiError> {
        self.table.lock().delete(owner, id, Instant::now()).ok_or_else(|| unknown(id))
    }

    /// Ends the response if it runs, and gives it as it is then.
    ///
    /// # Errors
    /// As for [`Self::get`].
    pub(super) fn cancel(&self, owner: Principal, id: &str) -> Result<Arc<StoredResponse>, ApiError> {
        let mut table = self.table.lock();
        let now = Instant::now();
        let response = table.get(owner, id, now).ok_or_else(|| unknown(id))?;
        match table.change_running(id, now, |response| response.with_status(ResponseStatus::Cancelled)) {
            Some(()) => table.get(owner, id, now).ok_or_else(|| unknown(id)),
            None => Ok(response),
        }
    }

    /// Keeps a response that is to run in the background.
    ///
    /// # Errors
    /// [`ApiError::BackgroundFull`].
    pub(super) fn begin(
        self: &Arc<Self>,
        owner: Principal,
        response: StoredResponse,
    ) -> Result<RunningResponse, ApiError> {
        let id = response.object.id.clone();
        match self.table.lock().begin(owner, response, Instant::now()) {
            Some(cancellation) => Ok(RunningResponse { store: Arc::clone(self), id, cancellation }),
            None => Err(ApiError::BackgroundFull { limit: self.limits.max_background.min(self.limits.max_stored) }),
        }
    }

    /// Ends all that runs in the background: a process that drains ends before anybody could ask for it.
    pub fn cancel_running(&self) {
        let mut table = self.table.lock();
        for id in table.running() {
            table.change_running(&id, Instant::now(), |response| response.with_status(ResponseStatus::Cancelled));
        }
    }

    /// Gives back the memory of expired responses until the shutdown.
    pub async fn sweep(self: Arc<Self>, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            self.table.lock().remove_expired(Instant::now());
        }
    }
}

fn unknown(id: &str) -> ApiError {
    ApiError::UnknownResponse { id: id.to_owned() }
}

/// Where a response goes when it has ended.
pub(super) struct Keeping {
    /// `None`: it is not kept.
    pub store: Option<Arc<ResponseStore>>,
    pub owner: Principal,
    pub input: Vec<Arc<Item>>,
}

impl Keeping {
    /// Keeps `object`, if it is to be kept.
    pub fn keep(&self, object: &ResponseObject) {
        if let Some(store) = &self.store {
            let response = StoredResponse { object: object.clone(), input: self.input.clone() };
            store.table.lock().keep(self.owner, Arc::new(response), Instant::now());
        }
    }
}

/// A response that runs in the background. Dropped before it has ended, as by a panic, it has failed.
pub(super) struct RunningResponse {
    store: Arc<ResponseStore>,
    id: String,
    cancellation: CancellationToken,
}

impl RunningResponse {
    /// Completes when somebody cancels or deletes it.
    pub async fn cancelled(&self) {
        self.cancellation.cancelled().await;
    }

    /// Its first token is there.
    pub fn advance(&self) {
        self.change(|response| response.with_status(ResponseStatus::InProgress));
    }

    /// It has ended as `object`.
    pub fn finish(self, object: ResponseObject) {
        self.change(|response| response.with_object(object));
    }

    fn change(&self, change: impl FnOnce(&StoredResponse) -> StoredResponse) {
        self.store.table.lock().change_running(&self.id, Instant::now(), change);
    }
}

impl Drop for RunningResponse {
    fn drop(&mut self) {
        // Does nothing to one that has ended.
        self.change(|response| {
            let mut object = response.object.clone();
            object.fail(ApiError::Panic.to_string());
            response.with_object(object)
        });
    }
}
