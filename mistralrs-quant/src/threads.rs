//! Who does the work: kernels say what may run side by side, the caller brings the threads.

use std::ops::Range;

/// A pool of threads. Results never depend on it.
pub trait Threads: Sync {
    /// How many there are; what is worth cutting into as many units.
    fn count(&self) -> usize;

    /// Calls `work` with ranges that together are `0..num_units`, each unit once, and returns when all are done.
    fn run(&self, num_units: usize, work: &(dyn Fn(Range<usize>) + Sync));
}

/// The calling thread alone.
#[derive(Debug, Clone, Copy)]
pub struct CallingThread;

impl Threads for CallingThread {
    fn count(&self) -> usize {
        1
    }

    fn run(&self, num_units: usize, work: &(dyn Fn(Range<usize>) + Sync)) {
        if num_units > 0 {
            work(0..num_units);
        }
    }
}

/// A pointer that threads may copy; each use says why its writes do not overlap.
pub(crate) struct SendPointer<T>(pub(crate) *mut T);

impl<T> Clone for SendPointer<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SendPointer<T> {}

// SAFETY: sending the address is harmless; dereferencing it is `unsafe` where it happens.
unsafe impl<T: Send> Send for SendPointer<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SendPointer<T> {}

impl<T> SendPointer<T> {
    /// The address `offset` elements on; a method, so that closures capture the wrapper and not the raw pointer.
    pub(crate) fn at(self, offset: usize) -> *mut T {
        self.0.wrapping_add(offset)
    }
}
