//! What do the counts and the sampled clock cost beside the locks they wrap? Budget: uncontended at most 3 ns more than
//! parking_lot; contended at least 97 % of its throughput, at 2, 8 and 32 threads, with short and with long holds.
//!
//! One element is one acquisition with its hold, by whichever thread.
#![expect(clippy::disallowed_types, reason = "the raw locks are what ours is measured against")]

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use mistralrs_benches::time_together;

/// What is kept under each lock.
type Value = u64;

const NUM_THREADS: [u64; 4] = [1, 2, 8, 32];

/// The read-mostly mix: one operation in so many writes.
const WRITE_ONE_IN: u64 = 16;

/// A lock on cache lines of its own: where it happens to straddle two, it is the slower one, whosever it is.
#[repr(align(128))]
struct Padded<L>(L);

/// How long the lock is kept.
#[derive(Clone, Copy)]
enum Hold {
    /// A few instructions: what a counter or a queue's length costs.
    Short,
    /// About a microsecond: what a walk over a small table costs.
    Long,
}

impl Hold {
    const ALL: [Self; 2] = [Self::Short, Self::Long];

    fn name(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Long => "long",
        }
    }

    /// The next value, after as much work as the hold is long: each round needs the one before it, and no memory.
    fn work(self, value: Value) -> Value {
        let num_rounds = match self {
            Self::Short => 1,
            Self::Long => 1000,
        };
        (0..num_rounds).fold(black_box(value), |value, round| (value ^ round).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }
}

type Group<'a> = BenchmarkGroup<'a, WallTime>;

/// Measures `operation(number)` on `num_threads` threads at once; the threads' numbers are shifted against each other.
fn bench(group: &mut Group<'_>, name: &str, num_threads: u64, operation: impl Fn(u64) + Sync) {
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|num_operations| {
            time_together(num_threads, num_operations, |thread, share| {
                for number in thread..thread + share {
                    operation(number);
                }
            })
        });
    });
}

fn bench_mutexes(group: &mut Group<'_>, hold: Hold, num_threads: u64) {
    let Padded(lock) = &Padded(std::sync::Mutex::new(0));
    bench(group, "std", num_threads, |_| {
        let mut value = lock.lock().expect("no bench panics");
        *value = hold.work(*value);
    });
    let Padded(lock) = &Padded(parking_lot::Mutex::new(0));
    bench(group, "parking_lot", num_threads, |_| {
        let mut value = lock.lock();
        *value = hold.work(*value);
    });
    let Padded(lock) = &Padded(mistralrs_telemetry::Mutex::new("bench_mutex", 0));
    bench(group, "ours", num_threads, |_| {
        let mut value = lock.lock();
        *value = hold.work(*value);
    });
}

fn bench_rwlocks(group: &mut Group<'_>, hold: Hold, num_threads: u64) {
    let is_write = |number: u64| number.is_multiple_of(WRITE_ONE_IN);
    let Padded(lock) = &Padded(std::sync::RwLock::new(0));
    bench(group, "std", num_threads, |number| {
        if is_write(number) {
            let mut value = lock.write().expect("no bench panics");
            *value = hold.work(*value);
        } else {
            let value = lock.read().expect("no bench panics");
            black_box(hold.work(*value));
        }
    });
    let Padded(lock) = &Padded(parking_lot::RwLock::new(0));
    bench(group, "parking_lot", num_threads, |number| {
        if is_write(number) {
            let mut value = lock.write();
            *value = hold.work(*value);
        } else {
            let value = lock.read();
            black_box(hold.work(*value));
        }
    });
    let Padded(lock) = &Padded(mistralrs_telemetry::RwLock::new("bench_rwlock", 0));
    bench(group, "ours", num_threads, |number| {
        if is_write(number) {
            let mut value = lock.write();
            *value = hold.work(*value);
        } else {
            let value = lock.read();
            black_box(hold.work(*value));
        }
    });
}

fn bench_all(criterion: &mut Criterion, kind: &str, bench_kind: fn(&mut Group<'_>, Hold, u64)) {
    for hold in Hold::ALL {
        for num_threads in NUM_THREADS {
            let mut group = criterion.benchmark_group(format!("{kind}/{}/{num_threads}_threads", hold.name()));
            group.throughput(Throughput::Elements(1));
            bench_kind(&mut group, hold, num_threads);
            group.finish();
        }
    }
}

fn mutexes(criterion: &mut Criterion) {
    bench_all(criterion, "mutex", bench_mutexes);
}

fn rwlocks(criterion: &mut Criterion) {
    bench_all(criterion, "rwlock", bench_rwlocks);
}

/// Long enough per lock for a steady median; short enough that the three of one row run within seconds of each other,
/// and all of them in two minutes.
fn configuration() -> Criterion {
    Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_millis(1500))
}

criterion_group! { name = benches; config = configuration(); targets = mutexes, rwlocks }
criterion_main!(benches);
