//! How we measure and lock; no domain words.

pub mod buckets;
pub mod lock;
pub mod registry;
pub mod testing;

pub use lock::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, register_lock_metrics};
