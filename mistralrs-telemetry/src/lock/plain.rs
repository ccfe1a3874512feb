//! The locks without `prometheus-locks`: those of `std::sync` behind the same API, at no cost beyond theirs. With the
//! feature `shuttle` they are that model checker's, which decides in tests whose turn it is.
#![expect(clippy::disallowed_types, reason = "this is the wrapper that everybody else has to use")]

#[cfg(feature = "shuttle")]
use shuttle::sync;
use std::fmt;
#[cfg(not(feature = "shuttle"))]
use std::sync;
use std::sync::{PoisonError, TryLockError};

pub use sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

use crate::registry::Registry;

/// A mutual exclusion lock; with the feature `prometheus-locks` it would be on `/metrics` under its name.
///
/// A panic releases the lock; there is no poisoning.
pub struct Mutex<T: ?Sized>(sync::Mutex<T>);

/// A lock for many readers or one writer; with the feature `prometheus-locks` it would be on `/metrics`.
///
/// A panic releases the lock; there is no poisoning. A reader that comes after a waiting writer may wait as well, so
/// a thread must not read twice at a time.
pub struct RwLock<T: ?Sized>(sync::RwLock<T>);

/// Registers nothing: these locks do not count.
pub fn register_lock_metrics(_registry: &Registry) {}

impl<T> Mutex<T> {
    /// A free lock. `name` is the label `lock` of the metrics it does not have here.
    #[inline]
    pub fn new(_name: &'static str, value: T) -> Self {
        Self(sync::Mutex::new(value))
    }

    /// The value, without the lock.
    pub fn into_inner(self) -> T {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Waits until the lock is free and takes it. A thread that holds it already waits for ever or panics.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock if it is free.
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        unpoisoned(self.0.try_lock())
    }

    /// The value, without locking: nobody else has a reference.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> RwLock<T> {
    /// A free lock. `name` is the label `lock` of the metrics it does not have here.
    #[inline]
    pub fn new(_name: &'static str, value: T) -> Self {
        Self(sync::RwLock::new(value))
    }

    /// The value, without the lock.
    pub fn into_inner(self) -> T {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: ?Sized> RwLock<T> {
    /// Waits until no writer has the lock, and takes it for reading.
    #[inline]
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody has the lock, and takes it for writing.
    #[inline]
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock for reading if that needs no waiting.
    #[inline]
    pub fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
        unpoisoned(self.0.try_read())
    }

    /// Takes the lock for writing if it is free.
    #[inline]
    pub fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
        unpoisoned(self.0.try_write())
    }

    /// The value, without locking: nobody else has a reference.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_lock(f, "Mutex", self.try_lock().as_deref())
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_lock(f, "RwLock", self.try_read().as_deref())
    }
}

fn unpoisoned<Guard>(attempt: Result<Guard, TryLockError<Guard>>) -> Option<Guard> {
    match attempt {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

fn debug_lock<T: ?Sized + fmt::Debug>(f: &mut fmt::Formatter<'_>, kind: &str, value: Option<&T>) -> fmt::Result {
    match value {
        Some(value) => f.debug_struct(kind).field("data", &value).finish(),
        None => f.debug_struct(kind).field("data", &format_args!("<locked>")).finish(),
    }
}
