//! What both kinds of locks promise, and what the instrumented ones show.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use prometheus::Registry;

use super::*;

#[test]
fn excludes_others_from_a_mutex() {
    let counter = Mutex::new("test_excludes", 0_u64);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..10_000).for_each(|_| *counter.lock() += 1));
        }
    });
    assert_eq!(counter.into_inner(), 40_000);
}

#[test]
fn excludes_writers_from_readers() {
    // A writer breaks the equality for a moment, which no reader may see.
    let pair = RwLock::new("test_excludes_writers", (0_u64, 0_u64));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..5_000 {
                    let mut pair = pair.write();
                    pair.0 += 1;
                    pair.1 += 1;
                }
            });
            scope.spawn(|| {
                for _ in 0..5_000 {
                    let pair = pair.read();
                    assert_eq!(pair.0, pair.1);
                }
            });
        }
    });
    assert_eq!(*pair.read(), (10_000, 10_000));
}

#[test]
fn refuses_to_wait_when_only_trying() {
    let mutex = Mutex::new("test_tries", 1);
    let guard = mutex.lock();
    assert!(mutex.try_lock().is_none());
    drop(guard);
    assert_eq!(mutex.try_lock().as_deref(), Some(&1));

    let rwlock = RwLock::new("test_tries", 1);
    let reader = rwlock.read();
    assert_eq!(rwlock.try_read().as_deref(), Some(&1));
    assert!(rwlock.try_write().is_none());
    drop(reader);
    let writer = rwlock.try_write().unwrap();
    assert!(rwlock.try_read().is_none());
    drop(writer);
}

#[test]
fn releases_the_lock_of_a_holder_that_panics() {
    let mutex = Mutex::new("test_panics", 1);
    let rwlock = RwLock::new("test_panics", 1);
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let _mutex = mutex.lock();
        let _rwlock = rwlock.write();
        std::panic::resume_unwind(Box::new("a holder panics"));
    }));
    assert!(panic.is_err());
    assert_eq!((*mutex.lock(), *rwlock.write()), (1, 1));
    assert_eq!((mutex.try_lock().as_deref(), rwlock.try_read().as_deref()), (Some(&1), Some(&1)));
    assert_eq!((mutex.into_inner(), rwlock.into_inner()), (1, 1));
}

#[test]
fn gives_its_owner_the_value_without_locking() {
    let mut mutex = Mutex::new("test_owner", vec![1]);
    mutex.get_mut().push(2);
    assert_eq!(mutex.into_inner(), [1, 2]);
    let mut rwlock = RwLock::new("test_owner", vec![1]);
    rwlock.get_mut().push(2);
    assert_eq!(rwlock.into_inner(), [1, 2]);
}

#[test]
fn holds_values_of_unknown_size() {
    let mutex: Box<Mutex<dyn Iterator<Item = u8> + Send>> = Box::new(Mutex::new("test_unsized", [7].into_iter()));
    assert_eq!(mutex.lock().next(), Some(7));
    let rwlock: Box<RwLock<[u8]>> = Box::new(RwLock::new("test_unsized", [7, 8]));
    rwlock.write().reverse();
    assert_eq!(*rwlock.read(), [8, 7]);
}

#[test]
fn formats_the_value_unless_it_is_locked() {
    let mutex = Mutex::new("test_format", 7);
    let unlocked = format!("{mutex:?}");
    let guard = mutex.lock();
    let locked = format!("{mutex:?}");
    assert!(unlocked.starts_with("Mutex") && unlocked.ends_with("data: 7 }"), "{unlocked}");
    assert!(locked.ends_with("data: <locked> }"), "{locked}");
    assert_eq!(format!("{guard:?} {guard}"), "7 7");
}

#[test]
fn lets_references_and_locks_cross_threads() {
    fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<Mutex<u8>>();
    is_send_and_sync::<RwLock<u8>>();
}

#[test]
#[cfg(not(feature = "prometheus-locks"))]
fn registers_no_metrics_without_the_feature() {
    let registry = Registry::new();
    register_lock_metrics(&registry);
    drop(Mutex::new("test_silent", 1).lock());
    assert_eq!(crate::testing::text(&registry), "");
}

#[cfg(feature = "prometheus-locks")]
mod instrumented {
    use std::sync::Barrier;

    use super::*;
    use crate::testing;

    const ACQUISITIONS: &str = "mistralrs_lock_acquisition_count";
    const READS: &str = "mistralrs_rwlock_read_count";
    const WRITES: &str = "mistralrs_rwlock_write_count";
    const WAITS: &str = "mistralrs_lock_wait_seconds_count";
    const HOLDS: &str = "mistralrs_lock_hold_seconds_count";

    fn shown(metric: &str, lock: &str) -> Option<f64> {
        let registry = Registry::new();
        register_lock_metrics(&registry);
        testing::value(&registry, metric, &[("lock", lock)])
    }

    #[test]
    fn counts_every_acquisition_of_eight_threads() {
        const NUM_THREADS: u32 = 8;
        const NUM_ROUNDS: u32 = 100_000;
        let mutex = Mutex::new("test_exact_mutex", 0_u64);
        let rwlock = RwLock::new("test_exact_rwlock", 0_u64);
        thread::scope(|scope| {
            for _ in 0..NUM_THREADS {
                scope.spawn(|| {
                    for round in 0..NUM_ROUNDS {
                        *mutex.lock() += 1;
                        if round % 4 == 0 {
                            *rwlock.write() += 1;
                        } else {
                            std::hint::black_box(*rwlock.read());
                        }
                    }
                });
            }
        });
        let num_locks = f64::from(NUM_THREADS * NUM_ROUNDS);
        assert_eq!(shown(ACQUISITIONS, "test_exact_mutex"), Some(num_locks));
        assert_eq!(shown(ACQUISITIONS, "test_exact_rwlock"), Some(num_locks));
        assert_eq!(shown(READS, "test_exact_rwlock"), Some(num_locks * 0.75));
        assert_eq!(shown(WRITES, "test_exact_rwlock"), Some(num_locks * 0.25));
        assert_eq!((*mutex.lock(), *rwlock.read()), (800_000, 200_000));
    }

    #[test]
    fn counts_only_the_tries_that_succeed() {
        let mutex = Mutex::new("test_tries_mutex", ());
        let guard = mutex.try_lock();
        assert!(mutex.try_lock().is_none());
        drop(guard);
        assert_eq!(shown(ACQUISITIONS, "test_tries_mutex"), Some(1.0));

        let rwlock = RwLock::new("test_tries_rwlock", ());
        let reader = rwlock.try_read();
        assert!(rwlock.try_write().is_none());
        drop(reader);
        let writer = rwlock.try_write();
        assert!(rwlock.try_read().is_none());
        drop(writer);
        assert_eq!((shown(READS, "test_tries_rwlock"), shown(WRITES, "test_tries_rwlock")), (Some(1.0), Some(1.0)));
    }

    #[test]
    fn times_a_sample_of_holds() {
        let mutex = Mutex::new("test_holds", ());
        for _ in 0..12_800 {
            drop(mutex.lock());
        }
        let num_holds = shown(HOLDS, "test_holds").unwrap();
        assert!((90.0..110.0).contains(&num_holds), "{num_holds} of 12800");
    }

    /// Takes `mutex` once in each of two threads, in the second perhaps while the first has it.
    fn lock_in_two_threads(mutex: &Mutex<()>) {
        let started = Barrier::new(2);
        thread::scope(|scope| {
            let guard = mutex.lock();
            scope.spawn(|| {
                started.wait();
                drop(mutex.lock());
            });
            started.wait();
            thread::yield_now();
            drop(guard);
        });
    }

    #[test]
    fn shows_a_wait_for_a_lock_that_is_taken() {
        let mutex = Mutex::new("test_waits", ());
        // Whether the second thread asks before the lock is free again is the scheduler's choice: a few times in ten.
        let num_rounds = (1_u32..=10_000).find(|_| {
            lock_in_two_threads(&mutex);
            shown(WAITS, "test_waits") != Some(0.0)
        });
        assert_eq!(shown(WAITS, "test_waits"), Some(1.0));
        assert_eq!(shown(ACQUISITIONS, "test_waits"), num_rounds.map(|rounds| f64::from(2 * rounds)));
        let seconds = shown("mistralrs_lock_contention_seconds", "test_waits").unwrap();
        assert!(seconds > 0.0);
        assert_eq!(shown("mistralrs_lock_wait_seconds_sum", "test_waits"), Some(seconds));
    }

    #[test]
    fn adds_locks_of_one_name_up_and_keeps_what_dropped_ones_counted() {
        let kept = Mutex::new("test_totals", ());
        drop(kept.lock());
        for _ in 0..3 {
            drop(Mutex::new("test_totals", ()).lock());
        }
        thread::scope(|scope| {
            scope.spawn(|| drop(kept.lock()));
        });
        assert_eq!(shown(ACQUISITIONS, "test_totals"), Some(5.0));
    }

    #[test]
    fn shows_locks_that_were_never_taken() {
        let _mutex = Mutex::new("test_untaken_mutex", ());
        let _rwlock = RwLock::new("test_untaken_rwlock", ());
        assert_eq!(shown(ACQUISITIONS, "test_untaken_mutex"), Some(0.0));
        assert_eq!(shown(READS, "test_untaken_mutex"), None);
        assert_eq!(shown(READS, "test_untaken_rwlock"), Some(0.0));
    }

    #[test]
    fn shows_a_lock_that_is_held_without_waiting_for_it() {
        let mutex = Mutex::new("test_held", ());
        let _guard = mutex.lock();
        assert_eq!(shown(ACQUISITIONS, "test_held"), Some(1.0));
    }
}
