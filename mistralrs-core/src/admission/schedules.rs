//! Handlers, a shutdown and the engine under a model checker, which decides at each lock whose turn it is.

use std::collections::BTreeSet;
use std::time::Instant;

use shuttle::thread;
use tokio::sync::mpsc::Receiver;
use tokio::sync::mpsc::error::TryRecvError;

use super::*;
use crate::detokenizer::Vocabulary;
use crate::generation::{Answer, Continuation, SequenceEvent, event_channel};
use crate::request::{FinishReason, SamplingParams};
use crate::sampling::{ChoiceSeed, Sampler, SamplerSetup};
use crate::speculation::Speculation;

/// Schedules per test: random ones, of some dozen turns each.
const NUM_SCHEDULES: usize = 3_000;

/// Sequences that may wait; one fewer than there are handlers, so that some schedules refuse one.
const MAX_WAITING: usize = 2;

/// Whatever the order: a sequence that was accepted ends, by the engine or with it; one that was refused never reaches
/// it; the limit holds; and nobody waits for ever.
#[test]
fn schedules_of_handlers_a_shutdown_and_the_engine_lose_no_sequence() {
    shuttle::check_random(one_life, NUM_SCHEDULES);
}

fn one_life() {
    let limits = QueueLimits { max_waiting: MAX_WAITING, max_num_seqs: 1, timeout: None };
    let admission = Arc::new(Admission::new(Arc::new(BlockManager::new(2, 2, true)), limits));
    let handlers: Vec<_> = (0..=MAX_WAITING)
        .map(|_| {
            let admission = Arc::clone(&admission);
            thread::spawn(move || hand_in(&admission))
        })
        .collect();
    let batch = {
        let admission = Arc::clone(&admission);
        thread::spawn(move || hand_in_batch(&admission))
    };
    let shutdown = {
        let admission = Arc::clone(&admission);
        thread::spawn(move || {
            admission.close();
            admission.cancel_all();
        })
    };
    let engine = {
        let admission = Arc::clone(&admission);
        thread::spawn(move || run_engine(&admission))
    };
    shutdown.join().unwrap();
    let served = engine.join().unwrap();
    let accepted = handlers.into_iter().filter_map(|handler| handler.join().unwrap());
    for (id, events) in accepted.chain(batch.join().unwrap()) {
        assert_eq!(wait_for_end(events), served.contains(&id), "{id:?} was heard of if it was served");
    }
    assert!(admission.active.lock().is_empty(), "nothing stays registered");
}

/// What a handler does with one request; `None` if it is refused.
fn hand_in(admission: &Admission) -> Option<(SequenceId, Receiver<SequenceEvent>)> {
    let (new, events) = new_sequence(admission);
    let id = new.sequence.id;
    admission.check_room(1).and_then(|()| admission.submit(vec![new])).ok()?;
    assert!(admission.status().num_waiting <= MAX_WAITING);
    Some((id, events))
}

/// A request of several sequences, the next as soon as there is a place for it.
fn hand_in_batch(admission: &Arc<Admission>) -> Vec<(SequenceId, Receiver<SequenceEvent>)> {
    let mut accepted = Vec::new();
    let Ok(batch) = admission.open_batch() else { return accepted };
    for _ in 0..=MAX_WAITING {
        while !accepted.is_empty() && !batch.has_place() && !is_stopped(admission) {
            thread::yield_now();
        }
        let (new, events) = new_sequence(admission);
        let id = new.sequence.id;
        if batch.submit(new).is_err() {
            break;
        }
        accepted.push((id, events));
    }
    accepted
}

fn is_stopped(admission: &Admission) -> bool {
    admission.queue.lock().state == QueueState::Stopped
}

fn new_sequence(admission: &Admission) -> (NewSequence, Receiver<SequenceEvent>) {
    let (events, receiver) = event_channel(1);
    let stop_token_ids = Arc::new(BTreeSet::new());
    let setup = SamplerSetup {
        params: &SamplingParams::default(),
        num_top_logprobs: None,
        prompt_token_ids: &[1],
        vocabulary: &Arc::new(Vocabulary::from_bytes(&[])),
        stop_token_ids: &stop_token_ids,
        min_tokens: 0,
    };
    let continuation = Continuation {
        sampler: Sampler::new(&setup, ChoiceSeed { seed: 0, choice: 0 }),
        max_new_tokens: 1,
        stop_token_ids: Arc::clone(&stop_token_ids),
        last_token_at: None,
        speculation: Speculation::default(),
    };
    let generation = Generation {
        answer: Answer::Text(Box::new(continuation)),
        events,
        cancelled: Arc::new(AtomicBool::new(false)),
        arrived_at: Instant::now(),
        has_started: false,
    };
    (NewSequence { sequence: Sequence::new(admission.reserve_ids(1), None, vec![1], Vec::new()), generation }, receiver)
}

/// Whether an event came before the channel closed; one of them must.
fn wait_for_end(mut events: Receiver<SequenceEvent>) -> bool {
    loop {
        match events.try_recv() {
            Ok(_) => return true,
            Err(TryRecvError::Disconnected) => return false,
            Err(TryRecvError::Empty) => thread::yield_now(),
        }
    }
}

/// Drains until it is told to end, as the engine's loop does; the sequences it ended.
fn run_engine(admission: &Admission) -> Vec<SequenceId> {
    let mut served = Vec::new();
    loop {
        let arrivals = admission.drain(0);
        assert!(arrivals.len() <= MAX_WAITING, "the limit holds");
        for new in arrivals {
            let id = new.sequence.id;
            new.generation.send(SequenceEvent::Finished { reason: FinishReason::Stop, num_completion_tokens: 0 });
            admission.forget(id);
            served.push(id);
        }
        admission.publish(EngineStatus::default());
        if admission.is_closed() {
            break;
        }
        thread::yield_now();
    }
    admission.stop();
    served
}
