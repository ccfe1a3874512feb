//! Turns the name of a lock into the small number its counts are kept under.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Names a process can have. Each costs 48 bytes per thread and some 40 series, and bounds the label `lock`;
/// locks named after the table is full share its last entry, [`OVERFLOW_NAME`].
pub(super) const MAX_NAMES: usize = 64;

/// What the locks are called that found no room of their own.
pub(super) const OVERFLOW_NAME: &str = "other";

static NAMES: Table = Table::new();

/// The name of a lock, as an index that is always below [`MAX_NAMES`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LockId(u8);

impl LockId {
    /// The id of `name`: one per name, however many locks share it.
    pub(super) fn of(name: &'static str) -> Self {
        NAMES.intern(name)
    }

    /// Marks the name as one that has a reader-writer lock, so that its reads and writes are shown apart.
    pub(super) fn mark_rwlock(self) {
        if let Some(entry) = NAMES.0[self.index()].get() {
            entry.is_rwlock.store(true, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) fn index(self) -> usize {
        // Never changes the value: it lets the compiler drop the bounds check on the fast path.
        usize::from(self.0) % MAX_NAMES
    }

    pub(super) fn name(self) -> &'static str {
        NAMES.0[self.index()].get().map_or(OVERFLOW_NAME, |entry| entry.name)
    }

    pub(super) fn is_rwlock(self) -> bool {
        NAMES.0[self.index()].get().is_some_and(|entry| entry.is_rwlock.load(Ordering::Relaxed))
    }
}

/// Every name given out so far, in the order of their first use.
pub(super) fn all() -> impl Iterator<Item = LockId> {
    NAMES.0.iter().take_while(|slot| slot.get().is_some()).enumerate().map(|(index, _)| LockId(index as u8))
}

struct Entry {
    name: &'static str,
    is_rwlock: AtomicBool,
}

/// Filled from the front and never emptied; readers need no lock.
struct Table([OnceLock<Entry>; MAX_NAMES]);

impl Table {
    const fn new() -> Self {
        Self([const { OnceLock::new() }; MAX_NAMES])
    }

    fn intern(&self, name: &'static str) -> LockId {
        let (last, front) = self.0.split_last().expect("the table has entries");
        for (index, slot) in front.iter().enumerate() {
            // Of two threads with a new name each, one fills the slot and the other goes on to the next.
            if slot.get_or_init(|| Entry::new(name)).name == name {
                return LockId(index as u8);
            }
        }
        last.get_or_init(|| Entry::new(OVERFLOW_NAME));
        LockId(front.len() as u8)
    }
}

impl Entry {
    fn new(name: &'static str) -> Self {
        Self { name, is_rwlock: AtomicBool::new(false) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names for the tests: the table keeps them for ever anyway.
    fn leaked(index: usize) -> &'static str {
        Box::leak(format!("lock_{index}").into_boxed_str())
    }

    #[test]
    fn gives_equal_names_one_id() {
        let table = Table::new();
        let (first, second) = (table.intern("kv_cache"), table.intern("free_list"));
        assert_ne!(first, second);
        assert_eq!(first, table.intern("kv_cache"));
    }

    #[test]
    fn gives_names_beyond_the_limit_one_shared_id() {
        let table = Table::new();
        let ids: Vec<_> = (0..MAX_NAMES + 10).map(|index| table.intern(leaked(index)).index()).collect();
        let expected: Vec<_> = (0..MAX_NAMES + 10).map(|index| index.min(MAX_NAMES - 1)).collect();
        assert_eq!(ids, expected);
        assert_eq!(table.0[MAX_NAMES - 1].get().map(|entry| entry.name), Some(OVERFLOW_NAME));
    }
}
