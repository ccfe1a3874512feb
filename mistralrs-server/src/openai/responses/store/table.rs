//! Which responses are kept: limits of number, bytes and age. No lock, no clock; values in, answers out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::StoredResponse;
use super::metrics::{Eviction, StoreMetrics};
use crate::api_keys::Principal;
use crate::config::StoreLimits;

/// The responses that are kept, by age.
pub(super) struct Table {
    limits: StoreLimits,
    /// By the order in which they were put in or ended, so that the first ended one is also the first to expire.
    entries: BTreeMap<u64, Entry>,
    /// Ids to keys of `entries`.
    ages: HashMap<String, u64>,
    next_age: u64,
    /// Of all entries together.
    num_bytes: usize,
    num_running: usize,
    metrics: StoreMetrics,
}

struct Entry {
    owner: Principal,
    response: Arc<StoredResponse>,
    num_bytes: usize,
    life: Life,
}

enum Life {
    /// It runs in the background and cannot be evicted; cancelling the token ends it.
    Running(CancellationToken),
    /// It has ended and is kept until then at most.
    Ended { expires_at: Instant },
}

impl Table {
    pub fn new(limits: StoreLimits, metrics: StoreMetrics) -> Self {
        Self {
            limits,
            entries: BTreeMap::new(),
            ages: HashMap::new(),
            next_age: 0,
            num_bytes: 0,
            num_running: 0,
            metrics,
        }
    }

    /// Keeps a response that has ended, in the place of the oldest ones if need be. One that is larger than all memory
    /// there is for them is not kept.
    pub fn keep(&mut self, owner: Principal, response: Arc<StoredResponse>, now: Instant) {
        self.remove_expired(now);
        let num_bytes = response.num_bytes();
        if self.make_room(num_bytes) {
            let life = Life::Ended { expires_at: now + self.limits.ttl };
            self.insert(Entry { owner, response, num_bytes, life });
        } else {
            self.metrics.evicted(Eviction::NeverFits);
            tracing::warn!(id = response.object.id, num_bytes, "the response does not fit into the store");
        }
    }

    /// Keeps a response that is to run; `None` if as many run as may, or there is no room for it.
    pub fn begin(&mut self, owner: Principal, response: StoredResponse, now: Instant) -> Option<CancellationToken> {
        self.remove_expired(now);
        let num_bytes = response.num_bytes();
        if self.num_running >= self.limits.max_background || !self.make_room(num_bytes) {
            return None;
        }
        let cancellation = CancellationToken::new();
        let life = Life::Running(cancellation.clone());
        self.insert(Entry { owner, response: Arc::new(response), num_bytes, life });
        Some(cancellation)
    }

    /// Replaces a running response by what `change` makes of it; nothing if it has ended or is gone.
    pub fn change_running(
        &mut self,
        id: &str,
        now: Instant,
        change: impl FnOnce(&StoredResponse) -> StoredResponse,
    ) -> Option<()> {
        let age = *self.ages.get(id)?;
        let entry = self.entries.get_mut(&age)?;
        let Life::Running(cancellation) = &entry.life else { return None };
        let response = change(&entry.response);
        if response.object.status.is_running() {
            // Its size is that of its input, which does not change.
            entry.response = Arc::new(response);
            return Some(());
        }
        cancellation.cancel();
        let owner = entry.owner;
        self.remove(age);
        self.keep(owner, Arc::new(response), now);
        Some(())
    }

    /// The response, if `owner` has one with this id.
    pub fn get(&mut self, owner: Principal, id: &str, now: Instant) -> Option<Arc<StoredResponse>> {
        self.remove_expired(now);
        let age = self.age(owner, id)?;
        self.entries.get(&age).map(|entry| Arc::clone(&entry.response))
    }

    /// Forgets the response, ending it if it runs.
    pub fn delete(&mut self, owner: Principal, id: &str, now: Instant) -> Option<()> {
        self.remove_expired(now);
        let age = self.age(owner, id)?;
        self.remove(age);
        Some(())
    }

    /// Ids of all that run.
    pub fn running(&self) -> Vec<String> {
        let running = self.entries.values().filter(|entry| matches!(entry.life, Life::Running(_)));
        running.map(|entry| entry.response.object.id.clone()).collect()
    }

    /// Forgets what is too old.
    pub fn remove_expired(&mut self, now: Instant) {
        while let Some((&age, expires_at)) = self.oldest_ended()
            && expires_at <= now
        {
            self.metrics.evicted(Eviction::Age);
            self.remove(age);
        }
    }

    /// Evicts ended responses, oldest first, until one more of `num_bytes` fits; `false` if it cannot.
    fn make_room(&mut self, num_bytes: usize) -> bool {
        let StoreLimits { max_stored, max_stored_bytes, .. } = self.limits;
        // What runs stays, so that evicting all others for nothing would help nobody.
        let running = self.entries.values().filter(|entry| matches!(entry.life, Life::Running(_)));
        let running_bytes: usize = running.map(|entry| entry.num_bytes).sum();
        if self.num_running >= max_stored || running_bytes.saturating_add(num_bytes) > max_stored_bytes {
            return false;
        }
        while self.entries.len() >= max_stored || self.num_bytes + num_bytes > max_stored_bytes {
            let Some((&age, _)) = self.oldest_ended() else { return false };
            let is_full = self.entries.len() >= max_stored;
            self.metrics.evicted(if is_full { Eviction::Number } else { Eviction::Size });
            self.remove(age);
        }
        true
    }

    /// At most `max_background` running ones are passed over.
    fn oldest_ended(&self) -> Option<(&u64, Instant)> {
        self.entries.iter().find_map(|(age, entry)| match entry.life {
            Life::Running(_) => None,
            Life::Ended { expires_at } => Some((age, expires_at)),
        })
    }

    fn age(&self, owner: Principal, id: &str) -> Option<u64> {
        let age = *self.ages.get(id)?;
        // Another's response is as unknown as none at all.
        self.entries.get(&age).is_some_and(|entry| entry.owner == owner).then_some(age)
    }

    fn insert(&mut self, entry: Entry) {
        let age = self.next_age;
        self.next_age += 1;
        self.num_bytes += entry.num_bytes;
        self.num_running += usize::from(matches!(entry.life, Life::Running(_)));
        self.ages.insert(entry.response.object.id.clone(), age);
        self.entries.insert(age, entry);
        self.show_size();
    }

    fn remove(&mut self, age: u64) {
        let Some(entry) = self.entries.remove(&age) else { return };
        self.ages.remove(&entry.response.object.id);
        self.num_bytes -= entry.num_bytes;
        if let Life::Running(cancellation) = entry.life {
            cancellation.cancel();
            self.num_running -= 1;
        }
        self.show_size();
    }

    fn show_size(&self) {
        self.metrics.stored.set(self.entries.len() as i64);
        self.metrics.stored_bytes.set(self.num_bytes as i64);
    }

    /// That all counts are true and no limit is passed.
    #[cfg(test)]
    pub fn check_invariants(&self) {
        let is_running = |entry: &&Entry| matches!(entry.life, Life::Running(_));
        assert_eq!(self.num_running, self.entries.values().filter(is_running).count());
        assert_eq!(self.num_bytes, self.entries.values().map(|entry| entry.num_bytes).sum::<usize>());
        assert!(self.entries.values().all(|entry| entry.num_bytes == entry.response.num_bytes()));
        assert_eq!(self.ages.len(), self.entries.len());
        assert!(self.ages.iter().all(|(id, age)| self.entries[age].response.object.id == *id));
        assert!(self.entries.len() <= self.limits.max_stored, "{} responses", self.entries.len());
        assert!(self.num_bytes <= self.limits.max_stored_bytes, "{} bytes", self.num_bytes);
        assert!(self.num_running <= self.limits.max_background, "{} running", self.num_running);
        let expiries = self.entries.values().filter_map(|entry| match entry.life {
            Life::Running(_) => None,
            Life::Ended { expires_at } => Some(expires_at),
        });
        assert!(expiries.is_sorted(), "the oldest is not the first to expire");
    }
}
