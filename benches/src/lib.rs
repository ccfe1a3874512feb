//! What the benches share: threads that start together.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// Runs `work(thread, num_operations)` on `num_threads` threads at once and measures from the common start to the
/// end of the last one; making and joining the threads is not in it.
///
/// Together they do `num_operations`, rounded up to a multiple of `num_threads`, and the time returned is scaled to
/// the number asked for.
///
/// # Panics
/// If `num_threads` is zero or a thread panics.
pub fn time_together(num_threads: u64, num_operations: u64, work: impl Fn(u64, u64) + Sync) -> Duration {
    let share = num_operations.div_ceil(num_threads);
    let start_line = Barrier::new(num_threads as usize);
    let run = |thread| {
        start_line.wait();
        let started = Instant::now();
        work(thread, share);
        (started, Instant::now())
    };
    let spans: Vec<(Instant, Instant)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..num_threads).map(|thread| scope.spawn(move || run(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a bench thread does not panic")).collect()
    });
    let first_start = spans.iter().map(|span| span.0).min().expect("there is a thread");
    let last_end = spans.iter().map(|span| span.1).max().expect("there is a thread");
    (last_end - first_start).mul_f64(num_operations as f64 / (share * num_threads) as f64)
}
