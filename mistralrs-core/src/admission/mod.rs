//! Where requests enter: what handlers and the engine thread share, and nothing else does.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::Duration;

use mistralrs_paged_attn::BlockManager;
use mistralrs_telemetry::{Mutex, RwLock};

use crate::error::RequestError;
use crate::generation::Generation;
use crate::sequence::{Sequence, SequenceId};

#[cfg(all(test, feature = "shuttle"))]
mod schedules;

/// A sequence on its way to the engine thread, with what the scheduler does not need to see.
pub(crate) struct NewSequence {
    pub sequence: Sequence,
    pub generation: Generation,
}

/// What the KV cache and the queues held after the last step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineStatus {
    /// Sequences in the batch.
    pub num_running: usize,
    /// Sequences waiting for admission, preempted ones included.
    pub num_waiting: usize,
    /// KV blocks held by sequences.
    pub num_blocks_used: usize,
    /// KV blocks in all.
    pub num_blocks_total: usize,
}

/// What bounds the line of those that wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueLimits {
    /// Sequences that may wait.
    pub max_waiting: usize,
    /// Sequences that run at once.
    pub max_num_seqs: usize,
    /// How long one may wait for its first step.
    pub timeout: Option<Duration>,
}

/// The shared half of an engine. Each lock says who takes it, and why a message would not do.
pub(crate) struct Admission {
    /// Handlers push, the engine drains once per step. Not a channel: the limit covers the scheduler's queue too.
    queue: Mutex<AdmissionQueue>,
    /// Cancel flags of all live sequences. Handlers insert, shutdown sets, the engine removes.
    active: Mutex<HashMap<SequenceId, Arc<AtomicBool>>>,
    /// The engine writes after each step; handlers and scrapes read without waiting for one.
    status: RwLock<EngineStatus>,
    /// Who holds which block: the engine's, read by admission and scrapes.
    pub blocks: Arc<BlockManager>,
    limits: QueueLimits,
    next_id: AtomicU64,
    engine: OnceLock<Thread>,
}

struct AdmissionQueue {
    arrivals: VecDeque<NewSequence>,
    /// Sequences in the scheduler's own waiting queue when it was last seen.
    num_backlog: usize,
    /// Requests that have more sequences to submit; each holds a place.
    num_open_batches: usize,
    state: QueueState,
}

impl AdmissionQueue {
    fn num_waiting(&self) -> usize {
        self.arrivals.len() + self.num_backlog + self.num_open_batches
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum QueueState {
    Open,
    /// Nothing new; what has begun goes on.
    Draining,
    Stopped,
}

impl Admission {
    pub fn new(blocks: Arc<BlockManager>, limits: QueueLimits) -> Self {
        let queue =
            AdmissionQueue { arrivals: VecDeque::new(), num_backlog: 0, num_open_batches: 0, state: QueueState::Open };
        let status = EngineStatus { num_blocks_total: blocks.usage().num_total, ..EngineStatus::default() };
        Self {
            queue: Mutex::new("request_queue", queue),
            active: Mutex::new("active_requests", HashMap::new()),
            status: RwLock::new("kv_cache", status),
            blocks,
            limits,
            next_id: AtomicU64::new(0),
            engine: OnceLock::new(),
        }
    }

    /// Consecutive ids for the choices of one request, the first one returned.
    pub fn reserve_ids(&self, num_choices: usize) -> SequenceId {
        SequenceId(self.next_id.fetch_add(num_choices as u64, Ordering::Relaxed))
    }

    /// Whether `num_sequences` more would be accepted now.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn check_room(&self, num_sequences: usize) -> Result<(), RequestError> {
        self.check_queue(&self.queue.lock(), num_sequences)
    }

    /// Lets in a request that submits its sequences one by one, so that it never has all of them in the queue. One place
    /// is its own until it has submitted the last: what it has begun it can go on with, however many come meanwhile.
    ///
    /// # Errors
    /// As [`Self::submit`] of one sequence.
    pub fn open_batch(self: &Arc<Self>) -> Result<OpenBatch, RequestError> {
        let mut queue = self.queue.lock();
        self.check_queue(&queue, 1)?;
        queue.num_open_batches += 1;
        drop(queue);
        Ok(OpenBatch { admission: Arc::clone(self) })
    }

    /// Queues all choices of a request, or none.
    ///
    /// # Errors
    /// [`RequestError::QueueFull`] at the limit, [`RequestError::ShuttingDown`] while draining.
    pub fn submit(&self, sequences: Vec<NewSequence>) -> Result<(), RequestError> {
        {
            let mut queue = self.queue.lock();
            self.check_queue(&queue, sequences.len())?;
            self.push(&mut queue, sequences);
        }
        self.wake();
        Ok(())
    }

    fn push(&self, queue: &mut AdmissionQueue, sequences: Vec<NewSequence>) {
        let mut active = self.active.lock();
        for new in &sequences {
            active.insert(new.sequence.id, Arc::clone(&new.generation.cancelled));
        }
        queue.arrivals.extend(sequences);
    }

    fn check_queue(&self, queue: &AdmissionQueue, num_sequences: usize) -> Result<(), RequestError> {
        if queue.state != QueueState::Open {
            return Err(RequestError::ShuttingDown);
        }
        let num_waiting = queue.num_waiting();
        if num_waiting + num_sequences > self.limits.max_waiting {
            return Err(RequestError::QueueFull { num_waiting, retry_after_seconds: self.retry_after(num_waiting) });
        }
        Ok(())
    }

    /// A second for each batch that stands in line: requests of a few hundred tokens take about that.
    fn retry_after(&self, num_waiting: usize) -> u64 {
        (num_waiting / self.limits.max_num_seqs.max(1)).clamp(1, 30) as u64
    }

    /// How a sequence ends that has waited for `waited` and never run; `None` if it may go on waiting.
    pub fn check_wait(&self, waited: Duration, num_waiting: usize) -> Option<RequestError> {
        let is_overdue = self.limits.timeout.is_some_and(|timeout| waited > timeout);
        is_overdue.then(|| RequestError::QueueTimeout {
            waited_seconds: waited.as_secs(),
            retry_after_seconds: self.retry_after(num_waiting),
        })
    }

    /// Engine only: what arrived since the last step.
    pub fn drain(&self, num_backlog: usize) -> VecDeque<NewSequence> {
        let mut queue = self.queue.lock();
        queue.num_backlog = num_backlog + queue.arrivals.len();
        std::mem::take(&mut queue.arrivals)
    }

    /// Engine only: `id` has ended.
    pub fn forget(&self, id: SequenceId) {
        self.active.lock().remove(&id);
    }

    /// Engine only: what admission and scrapes see until the next step.
    pub fn publish(&self, status: EngineStatus) {
        *self.status.write() = status;
    }

    /// As of the last step, plus what has arrived since.
    pub fn status(&self) -> EngineStatus {
        let num_arrivals = self.queue.lock().arrivals.len();
        let mut status = *self.status.read();
        status.num_waiting += num_arrivals;
        status
    }

    /// Refuses new requests; the engine thread ends when it has nothing left.
    pub fn close(&self) {
        let mut queue = self.queue.lock();
        if queue.state == QueueState::Open {
            queue.state = QueueState::Draining;
        }
        drop(queue);
        self.wake();
    }

    /// Whether the engine thread may end once idle.
    pub fn is_closed(&self) -> bool {
        let queue = self.queue.lock();
        let is_complete = queue.num_open_batches == 0 || queue.state == QueueState::Stopped;
        queue.state != QueueState::Open && queue.arrivals.is_empty() && is_complete
    }

    /// Engine only, when its thread ends for whatever reason: drops what is queued, so that its streams end.
    pub fn stop(&self) {
        let mut queue = self.queue.lock();
        queue.state = QueueState::Stopped;
        let dropped = std::mem::take(&mut queue.arrivals);
        drop(queue);
        drop(dropped);
        self.active.lock().clear();
    }

    /// Cancels everything that is queued or running, and what would follow it.
    pub fn cancel_all(&self) {
        self.queue.lock().state = QueueState::Stopped;
        for cancelled in self.active.lock().values() {
            cancelled.store(true, Ordering::Release);
        }
        self.wake();
    }

    /// Tells which thread to wake.
    pub fn attach(&self, engine: Thread) {
        self.engine.get_or_init(|| engine);
    }

    /// Ends the engine thread's sleep, or the next one if it is awake.
    pub fn wake(&self) {
        if let Some(engine) = self.engine.get() {
            engine.unpark();
        }
    }
}

/// A request that has begun and has more sequences to submit: it may go on while the engine drains, and the engine's thread
/// waits for it.
pub(crate) struct OpenBatch {
    admission: Arc<Admission>,
}

impl OpenBatch {
    /// Whether there is a place beside its own.
    pub fn has_place(&self) -> bool {
        self.admission.queue.lock().num_waiting() < self.admission.limits.max_waiting
    }

    /// Queues the next one, in its own place if there is no other.
    ///
    /// # Errors
    /// [`RequestError::ShuttingDown`] after the drain.
    pub fn submit(&self, sequence: NewSequence) -> Result<(), RequestError> {
        {
            let mut queue = self.admission.queue.lock();
            if queue.state == QueueState::Stopped {
                return Err(RequestError::ShuttingDown);
            }
            self.admission.push(&mut queue, vec![sequence]);
        }
        self.admission.wake();
        Ok(())
    }
}

impl Drop for OpenBatch {
    /// The engine may have waited for nothing else.
    fn drop(&mut self) {
        self.admission.queue.lock().num_open_batches -= 1;
        self.admission.wake();
    }
}
