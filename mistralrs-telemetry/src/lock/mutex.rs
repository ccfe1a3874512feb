//! The mutex of `prometheus-locks`.
#![expect(clippy::disallowed_types, reason = "this is the wrapper that everybody else has to use")]

use std::fmt;
use std::ops::{Deref, DerefMut};

use super::names::LockId;
use super::stay::{self, Stay};
use super::tally::{self, Access};

/// A mutual exclusion lock whose acquisitions, waits and holds are on `/metrics` under its name.
///
/// Locks of one name add up there, and what a dropped lock counted stays. A panic releases the lock; there is no
/// poisoning.
pub struct Mutex<T: ?Sized> {
    id: LockId,
    inner: parking_lot::Mutex<T>,
}

/// The right to use what a [`Mutex`] holds; the lock is free when it is dropped.
#[must_use = "the lock is released at once if the guard is not kept"]
#[clippy::has_significant_drop]
pub struct MutexGuard<'a, T: ?Sized> {
    // In this order: released first, recorded then.
    inner: parking_lot::MutexGuard<'a, T>,
    stay: Stay,
}

impl<T> Mutex<T> {
    /// A free lock. `name` is the label `lock` of its metrics: a constant, one per purpose, never one per request.
    pub fn new(name: &'static str, value: T) -> Self {
        Self { id: LockId::of(name), inner: parking_lot::Mutex::new(value) }
    }

    /// The value, without the lock.
    pub fn into_inner(self) -> T {
        self.inner.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Waits until the lock is free and takes it. A thread that holds it already waits for ever.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        // Looked up before the lock is held, and used under it.
        let tally = tally::own(self.id);
        let (inner, waited_nanos) = match self.inner.try_lock() {
            Some(inner) => (inner, 0),
            None => self.wait(),
        };
        MutexGuard { inner, stay: Stay::begin(tally, Access::Mutex, waited_nanos) }
    }

    /// Takes the lock if it is free; an attempt that fails is not counted.
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let tally = tally::own(self.id);
        let inner = self.inner.try_lock()?;
        Some(MutexGuard { inner, stay: Stay::begin(tally, Access::Mutex, 0) })
    }

    /// The value, without locking: nobody else has a reference.
    pub fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }

    #[cold]
    #[inline(never)]
    fn wait(&self) -> (parking_lot::MutexGuard<'_, T>, u64) {
        stay::wait(|| self.inner.lock())
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Mutex");
        debug.field("name", &self.id.name());
        match self.inner.try_lock() {
            Some(value) => debug.field("data", &&*value),
            None => debug.field("data", &format_args!("<locked>")),
        };
        debug.finish()
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.stay.end();
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
