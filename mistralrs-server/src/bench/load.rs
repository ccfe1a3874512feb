//! Sends requests: in a closed loop, where each stream waits for its answer, or in an open one, where requests arrive
//! whether the target keeps up or not.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::target::{Answer, Failure, Pieces, Target};

/// An answer that takes longer has failed: the measurement must end.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(15);
/// Requests of an open loop that may be unanswered at once. A target that is slower than the rate for good would
/// otherwise fill this process; those beyond count as refused.
const MAX_IN_FLIGHT: usize = 4096;

/// How requests follow each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Load {
    /// So many streams, each with one request at a time.
    Closed { concurrency: usize },
    /// So many requests a second on average, at random times (a Poisson process).
    Open { rate: f64 },
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { concurrency: 1 } => f.write_str("1 stream"),
            Self::Closed { concurrency } => write!(f, "{concurrency} streams"),
            Self::Open { rate } => write!(f, "{rate} requests/s"),
        }
    }
}

/// What came of all requests of one load.
#[derive(Debug)]
pub(super) struct Measured {
    pub outcomes: Vec<Result<Answer, Failure>>,
    /// From the first request to the last answer.
    pub wall: Duration,
    /// Of an open loop: requests a second as the arrivals turned out.
    pub offered_rate: Option<f64>,
}

/// Sends the prompts in `indices`; `seed` decides when they arrive in an open loop.
pub(super) async fn drive<T: Target>(target: &Arc<T>, load: Load, indices: Range<u64>, seed: u64) -> Measured {
    let started_at = Instant::now();
    let (outcomes, offered_rate) = match load {
        Load::Closed { concurrency } => (drive_closed(target, concurrency, indices).await, None),
        Load::Open { rate } => {
            let arrivals = arrivals(rate, (indices.end - indices.start) as usize, seed);
            let span = arrivals.last().copied().unwrap_or_default().as_secs_f64();
            let offered_rate = arrivals.len() as f64 / span;
            (drive_open(target, &arrivals, indices).await, Some(offered_rate))
        }
    };
    Measured { outcomes, wall: started_at.elapsed(), offered_rate }
}

async fn drive_closed<T: Target>(
    target: &Arc<T>,
    concurrency: usize,
    indices: Range<u64>,
) -> Vec<Result<Answer, Failure>> {
    let next = Arc::new(AtomicU64::new(indices.start));
    let mut streams = JoinSet::new();
    for _ in 0..concurrency {
        let (target, next, end) = (Arc::clone(target), Arc::clone(&next), indices.end);
        streams.spawn(async move {
            let mut outcomes = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= end {
                    return outcomes;
                }
                outcomes.push(ask(&*target, index, None).await);
            }
        });
    }
    streams.join_all().await.into_iter().flatten().collect()
}

async fn drive_open<T: Target>(
    target: &Arc<T>,
    arrivals: &[Duration],
    indices: Range<u64>,
) -> Vec<Result<Answer, Failure>> {
    let started_at = Instant::now();
    let mut requests = JoinSet::new();
    let mut outcomes = Vec::new();
    for (index, &arrival) in indices.zip(arrivals) {
        let arrives_at = started_at + arrival;
        tokio::time::sleep_until(arrives_at).await;
        while let Some(ended) = requests.try_join_next() {
            match ended {
                Ok(outcome) => outcomes.push(outcome),
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
        if requests.len() >= MAX_IN_FLIGHT {
            let reason = format!("{MAX_IN_FLIGHT} requests are unanswered, which is the limit of the bench");
            outcomes.push(Err(Failure::Refused(reason)));
            continue;
        }
        let target = Arc::clone(target);
        requests.spawn(async move { ask(&*target, index, Some(arrives_at)).await });
    }
    outcomes.extend(requests.join_all().await);
    outcomes
}

/// Sends prompt `index` and reads its answer. It counts from `arrived_at`, or from when the prompt is made.
async fn ask<T: Target>(target: &T, index: u64, arrived_at: Option<Instant>) -> Result<Answer, Failure> {
    let prompt = target.prompt(index).await?;
    let arrived_at = arrived_at.unwrap_or_else(Instant::now);
    let mut pieces = Pieces::default();
    let used = match tokio::time::timeout(ANSWER_TIMEOUT, target.answer(prompt, &mut pieces)).await {
        Ok(used) => used?,
        Err(_) => return Err(Failure::Failed(format!("no complete answer within {ANSWER_TIMEOUT:?}"))),
    };
    Ok(Answer::new(arrived_at, &pieces, used))
}

/// Times at which requests arrive, with exponential pauses between them.
fn arrivals(rate: f64, num_requests: usize, seed: u64) -> Vec<Duration> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let pauses = std::iter::repeat_with(|| -(1.0 - random.random::<f64>()).ln() / rate);
    pauses
        .scan(0.0, |now, pause| {
            *now += pause;
            Some(Duration::from_secs_f64(*now))
        })
        .take(num_requests)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::bench::target::TokensUsed;

    /// Takes a second to begin and another second for each of three pieces; refuses every tenth prompt.
    #[derive(Default)]
    struct Slow {
        num_running: AtomicUsize,
        max_running: AtomicUsize,
    }

    impl Target for Slow {
        type Prompt = u64;

        async fn prompt(&self, index: u64) -> Result<u64, Failure> {
            Ok(index)
        }

        async fn answer(&self, prompt: u64, pieces: &mut Pieces) -> Result<TokensUsed, Failure> {
            if prompt % 10 == 9 {
                return Err(Failure::Refused("no room".to_owned()));
            }
            let num_running = self.num_running.fetch_add(1, Ordering::Relaxed) + 1;
            self.max_running.fetch_max(num_running, Ordering::Relaxed);
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                pieces.arrived();
            }
            self.num_running.fetch_sub(1, Ordering::Relaxed);
            Ok(TokensUsed::default())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_loop_keeps_its_streams_busy_and_counts_every_request() {
        let target = Arc::new(Slow::default());
        let measured = drive(&target, Load::Closed { concurrency: 4 }, 0..20, 1).await;
        let answers: Vec<_> = measured.outcomes.iter().flatten().collect();
        assert_eq!((measured.outcomes.len(), answers.len()), (20, 18));
        assert_eq!(target.max_running.load(Ordering::Relaxed), 4);
        // 18 answers of 3 s over 4 streams: the last two streams begin their fifth.
        assert_eq!(measured.wall, Duration::from_secs(15));
        for answer in answers {
            assert_eq!(answer.time_to_first, Some(Duration::from_secs(1)));
            assert_eq!(answer.gaps, [Duration::from_secs(1); 2]);
            assert_eq!(answer.used.completion, Some(3), "pieces are counted where the target does not say");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_loop_does_not_wait_for_answers() {
        let target = Arc::new(Slow::default());
        let measured = drive(&target, Load::Open { rate: 10.0 }, 0..100, 1).await;
        assert_eq!(measured.outcomes.len(), 100);
        assert!(target.max_running.load(Ordering::Relaxed) > 20, "{:?}", target.max_running);
        assert!(measured.wall < Duration::from_secs(20), "{:?}", measured.wall);
        assert!((5.0..20.0).contains(&measured.offered_rate.unwrap()), "{:?}", measured.offered_rate);
    }

    #[test]
    fn arrivals_have_the_asked_rate_and_are_the_same_for_the_same_seed() {
        let times = arrivals(50.0, 10_000, 7);
        assert_eq!(times, arrivals(50.0, 10_000, 7));
        let rate = 10_000.0 / times.last().unwrap().as_secs_f64();
        assert!((48.0..52.0).contains(&rate), "{rate}");
    }
}
