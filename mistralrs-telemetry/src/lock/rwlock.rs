//! The reader-writer lock of `prometheus-locks`.
#![expect(clippy::disallowed_types, reason = "this is the wrapper that everybody else has to use")]

use std::fmt;
use std::ops::{Deref, DerefMut};

use super::names::LockId;
use super::stay::{self, Stay};
use super::tally::{self, Access, Tally};

/// A lock for many readers or one writer whose acquisitions, waits and holds are on `/metrics` under its name.
///
/// Locks of one name add up there, and what a dropped lock counted stays. A panic releases the lock; there is no
/// poisoning. A reader that comes after a waiting writer waits as well, so a thread must not read twice at a time.
pub struct RwLock<T: ?Sized> {
    id: LockId,
    inner: parking_lot::RwLock<T>,
}

/// The right to read what an [`RwLock`] holds, together with other readers.
#[must_use = "the lock is released at once if the guard is not kept"]
#[clippy::has_significant_drop]
pub struct RwLockReadGuard<'a, T: ?Sized> {
    // In this order: released first, recorded then.
    inner: parking_lot::RwLockReadGuard<'a, T>,
    stay: Stay,
}

/// The right to use what an [`RwLock`] holds, alone.
#[must_use = "the lock is released at once if the guard is not kept"]
#[clippy::has_significant_drop]
pub struct RwLockWriteGuard<'a, T: ?Sized> {
    // In this order: released first, recorded then.
    inner: parking_lot::RwLockWriteGuard<'a, T>,
    stay: Stay,
}

impl<T> RwLock<T> {
    /// A free lock. `name` is the label `lock` of its metrics: a constant, one per purpose, never one per request.
    pub fn new(name: &'static str, value: T) -> Self {
        let id = LockId::of(name);
        id.mark_rwlock();
        Self { id, inner: parking_lot::RwLock::new(value) }
    }

    /// The value, without the lock.
    pub fn into_inner(self) -> T {
        self.inner.into_inner()
    }
}

impl<T: ?Sized> RwLock<T> {
    /// Waits until no writer has or wants the lock, and takes it for reading.
    #[inline]
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        // Looked up before the lock is held, and used under it.
        let tally = tally::own(self.id);
        let (inner, waited_nanos) = match self.inner.try_read() {
            Some(inner) => (inner, 0),
            None => self.wait_to_read(tally),
        };
        RwLockReadGuard { inner, stay: Stay::begin(tally, Access::Read, waited_nanos) }
    }

    /// Waits until nobody has the lock, and takes it for writing.
    #[inline]
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        // Looked up before the lock is held, and used under it.
        let tally = tally::own(self.id);
        let (inner, waited_nanos) = match self.inner.try_write() {
            Some(inner) => (inner, 0),
            None => self.wait_to_write(tally),
        };
        RwLockWriteGuard { inner, stay: Stay::begin(tally, Access::Write, waited_nanos) }
    }

    /// Takes the lock for reading if that needs no waiting; an attempt that fails is not counted.
    #[inline]
    pub fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
        let tally = tally::own(self.id);
        let inner = self.inner.try_read()?;
        Some(RwLockReadGuard { inner, stay: Stay::begin(tally, Access::Read, 0) })
    }

    /// Takes the lock for writing if it is free; an attempt that fails is not counted.
    #[inline]
    pub fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
        let tally = tally::own(self.id);
        let inner = self.inner.try_write()?;
        Some(RwLockWriteGuard { inner, stay: Stay::begin(tally, Access::Write, 0) })
    }

    /// The value, without locking: nobody else has a reference.
    pub fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }

    #[cold]
    #[inline(never)]
    fn wait_to_read(&self, tally: &Tally) -> (parking_lot::RwLockReadGuard<'_, T>, u64) {
        stay::wait_among_readers(tally, || self.inner.try_read(), || self.inner.read())
    }

    #[cold]
    #[inline(never)]
    fn wait_to_write(&self, tally: &Tally) -> (parking_lot::RwLockWriteGuard<'_, T>, u64) {
        stay::wait_among_readers(tally, || self.inner.try_write(), || self.inner.write())
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("RwLock");
        debug.field("name", &self.id.name());
        match self.inner.try_read() {
            Some(value) => debug.field("data", &&*value),
            None => debug.field("data", &format_args!("<locked>")),
        };
        debug.finish()
    }
}

impl<T: ?Sized> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> DerefMut for RwLockWriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T: ?Sized> Drop for RwLockReadGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.stay.end();
    }
}

impl<T: ?Sized> Drop for RwLockWriteGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.stay.end();
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLockReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLockWriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for RwLockReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for RwLockWriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
