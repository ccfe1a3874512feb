//! Named locks that count themselves.
//!
//! With the feature `prometheus-locks` they wrap `parking_lot`'s: a free lock is taken in one atomic operation and
//! counted, exactly, in a counter of the thread's own; the clock is read only when a lock is found taken (all of the
//! wait is measured) and for one hold in 128. Nothing is pushed: [`register_lock_metrics`] reads the counters at
//! scrape. Without the feature the same names are `std::sync`'s locks and count nothing.
//!
//! A thread that finds a lock taken spins for a microsecond before it queues, so no wait on `/metrics` is shorter.
//! A guard belongs to its thread, so it cannot be held across an `.await` in a spawned task.

#[cfg(all(feature = "prometheus-locks", feature = "shuttle"))]
compile_error!("the model checker can only stand in for the plain locks: build with `--no-default-features`");

#[cfg(feature = "prometheus-locks")]
mod collector;
#[cfg(feature = "prometheus-locks")]
mod histogram;
#[cfg(feature = "prometheus-locks")]
mod mutex;
#[cfg(feature = "prometheus-locks")]
mod names;
#[cfg(not(feature = "prometheus-locks"))]
mod plain;
#[cfg(feature = "prometheus-locks")]
mod rwlock;
#[cfg(feature = "prometheus-locks")]
mod stay;
#[cfg(feature = "prometheus-locks")]
mod tally;

#[cfg(feature = "prometheus-locks")]
pub use {
    collector::register_lock_metrics,
    mutex::{Mutex, MutexGuard},
    rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard},
};

#[cfg(not(feature = "prometheus-locks"))]
pub use plain::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, register_lock_metrics};

#[cfg(test)]
mod tests;
