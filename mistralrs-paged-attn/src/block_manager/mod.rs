//! Who holds which block: reference counts, free list, prefix cache.
//!
//! A block is in exactly one state: *free*; *held* by one or more [`BlockTable`]s; or *cached*, held by nobody but kept
//! for its contents until someone adopts or evicts it. Owns no tensor: the same block id indexes every layer's pool.
//!
//! The engine moves blocks, admission and scrapes read [`BlockManager::usage`], so the bookkeeping sits behind two
//! locks rather than a message: `prefix_cache` (what is findable) and `free_list` (counts and free blocks). **Lock
//! order: `prefix_cache` before `free_list`.** Growing into free blocks, the common case, takes `free_list` only.

use mistralrs_telemetry::Mutex;

use crate::prefix_cache::{self, PrefixCache, PrefixHash, PrefixSalt};

#[cfg(all(test, feature = "shuttle"))]
mod schedules;
#[cfg(test)]
mod tests;

/// A physical block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

impl BlockId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Physical blocks of one sequence, in token order. Not `Clone`: one holder, one release.
///
/// Dropping a table that still holds blocks leaks them for as long as the manager lives: debug builds panic.
#[must_use = "dropping a table leaks its blocks; give it to `BlockManager::release`"]
#[derive(Debug, Default)]
pub struct BlockTable(Vec<BlockId>);

impl BlockTable {
    /// The blocks, in token order.
    pub fn blocks(&self) -> &[BlockId] {
        &self.0
    }
}

impl Drop for BlockTable {
    fn drop(&mut self) {
        debug_assert!(
            self.0.is_empty() || std::thread::panicking(),
            "a table was dropped with {} blocks",
            self.0.len()
        );
    }
}

/// There are not enough free blocks; the scheduler answers by preempting, never by waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("out of KV blocks: {num_needed} needed, {num_free} free")]
pub struct OutOfBlocks {
    /// Blocks the call needed.
    pub num_needed: usize,
    /// Blocks free or evictable.
    pub num_free: usize,
}

/// Contents that must be in two blocks: whoever owns the memory copies them before anything is written to either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    /// Has them.
    pub from: BlockId,
    /// Gets them.
    pub to: BlockId,
}

/// What the prefix cache has of a prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CachedPrefix {
    /// Blocks from the start.
    pub num_blocks: usize,
    /// Of these, held by nobody: adopting them takes so many from what is available.
    pub num_unheld_blocks: usize,
}

/// A count of blocks by state, for metrics and admission.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockUsage {
    /// All blocks.
    pub num_total: usize,
    /// Held by at least one table.
    pub num_used: usize,
    /// Held by nobody but kept for their contents; evicted when needed.
    pub num_cached: usize,
    /// Prefix lookups, in blocks asked for.
    pub num_lookups: u64,
    /// Prefix lookups that hit, in blocks.
    pub num_hits: u64,
    /// Cached blocks given up.
    pub num_evictions: u64,
}

impl BlockUsage {
    /// Blocks that [`BlockManager::grow`] can still hand out: free ones and evictable ones.
    pub fn num_available(&self) -> usize {
        self.num_total - self.num_used
    }
}

/// Owns all block bookkeeping. Shared by the engine, admission and scrapes: locks `free_list` and `prefix_cache` are
/// inside, in the order the module states. Every operation is O(1) per block.
pub struct BlockManager {
    block_size: usize,
    /// `None` when prefix caching is off. Locked before `free_list`.
    prefix_cache: Option<Mutex<PrefixCache>>,
    free_list: Mutex<FreeList>,
}

impl BlockManager {
    /// `num_blocks` blocks of `block_size` tokens. Without the prefix cache, [`Self::hash_blocks`] is empty and
    /// nothing is ever shared.
    ///
    /// # Panics
    /// If `block_size` is 0 or `num_blocks` does not fit a block id.
    pub fn new(num_blocks: usize, block_size: usize, enable_prefix_cache: bool) -> Self {
        assert!(block_size > 0, "a block holds at least one token");
        Self {
            block_size,
            prefix_cache: enable_prefix_cache.then(|| Mutex::new("prefix_cache", PrefixCache::new(num_blocks))),
            free_list: Mutex::new("free_list", FreeList::new(num_blocks)),
        }
    }

    /// Tokens per block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Grows `table` to hold `num_tokens`, or changes nothing. Free blocks go first, then cached ones, least recently
    /// used first. Every block stays free, cached, or in as many tables as its reference count says.
    ///
    /// # Errors
    /// [`OutOfBlocks`]: the scheduler answers it by preempting, never by waiting.
    pub fn grow(&self, table: &mut BlockTable, num_tokens: usize) -> Result<(), OutOfBlocks> {
        let num_needed = num_tokens.div_ceil(self.block_size).saturating_sub(table.0.len());
        if num_needed == 0 || self.free_list.lock().try_take(num_needed, &mut table.0) {
            return Ok(());
        }
        // Both locks, in order: the shortage seen above may have passed, so everything is counted again.
        let mut prefix_cache = self.prefix_cache.as_ref().map(Mutex::lock);
        let mut free_list = self.free_list.lock();
        let num_evictable = prefix_cache.as_ref().map_or(0, |cache| cache.num_retired());
        let num_free = free_list.free.len() + num_evictable;
        if num_free < num_needed {
            return Err(OutOfBlocks { num_needed, num_free });
        }
        while free_list.free.len() < num_needed {
            let evicted = prefix_cache.as_mut().and_then(|cache| cache.evict());
            free_list.free.push(evicted.expect("as many were counted as evictable"));
        }
        let taken = free_list.try_take(num_needed, &mut table.0);
        assert!(taken, "the free list was filled under its lock");
        Ok(())
    }

    /// Chained hashes of the full blocks of `tokens`, a prompt; no lock is taken, so callers do it off the engine thread.
    pub fn hash_blocks(&self, tokens: &[u32], salt: &PrefixSalt) -> Vec<PrefixHash> {
        let mut hashes = Vec::new();
        self.extend_hashes(&mut hashes, (tokens, tokens.len()), salt);
        hashes
    }

    /// Appends to `hashes` those of the blocks of `tokens` that have become full since: O(new blocks), lock-free. The
    /// first `num_prompt` tokens have the KV of a prompt, those behind them perhaps another.
    pub fn extend_hashes(
        &self,
        hashes: &mut Vec<PrefixHash>,
        (tokens, num_prompt): (&[u32], usize),
        salt: &PrefixSalt,
    ) {
        if self.prefix_cache.is_some() {
            prefix_cache::extend_hashes(hashes, (tokens, num_prompt), self.block_size, salt);
        }
    }

    /// How long the longest cached prefix is. Changes nothing, so that whoever waits can ask in every step.
    pub fn find_prefix(&self, hashes: &[PrefixHash]) -> CachedPrefix {
        let Some(prefix_cache) = &self.prefix_cache else { return CachedPrefix::default() };
        let prefix_cache = prefix_cache.lock();
        let free_list = self.free_list.lock();
        let mut found = CachedPrefix::default();
        for block in prefix_cache.blocks_of(hashes) {
            found.num_blocks += 1;
            found.num_unheld_blocks += usize::from(free_list.num_references[block.index()] == 0);
        }
        found
    }

    /// The longest cached prefix: its blocks, now shared by the returned table. They are full and must not be written.
    pub fn adopt_prefix(&self, hashes: &[PrefixHash]) -> BlockTable {
        let Some(prefix_cache) = &self.prefix_cache else { return BlockTable::default() };
        let mut prefix_cache = prefix_cache.lock();
        let blocks = prefix_cache.find(hashes);
        let mut free_list = self.free_list.lock();
        for block in &blocks {
            if free_list.add_reference(*block) == 1 {
                prefix_cache.revive(*block);
            }
        }
        BlockTable(blocks)
    }

    /// A second table over the first `num_tokens` of `table`. Full blocks are shared, now read-only for both; what is in a
    /// last one that is partly filled goes into a block of its own, as the copy says. So either can grow on its own.
    ///
    /// # Errors
    /// [`OutOfBlocks`], and no change, if that one block is not to be had.
    ///
    /// # Panics
    /// If `table` does not hold `num_tokens`.
    pub fn fork(&self, table: &BlockTable, num_tokens: usize) -> Result<(BlockTable, Option<BlockCopy>), OutOfBlocks> {
        let num_full = num_tokens / self.block_size;
        let mut forked = BlockTable(table.0[..num_full].to_vec());
        {
            let mut free_list = self.free_list.lock();
            for block in &forked.0 {
                free_list.add_reference(*block);
            }
        }
        if let Err(error) = self.grow(&mut forked, num_tokens) {
            self.release(forked);
            return Err(error);
        }
        let copy = forked.0.get(num_full).map(|to| BlockCopy { from: table.0[num_full], to: *to });
        Ok((forked, copy))
    }

    /// Makes block `index` of `table`, now full, findable under `hash`. Where another block has the same contents
    /// already, that one stays findable and this one private.
    ///
    /// # Panics
    /// If `table` has no block `index`.
    pub fn publish(&self, table: &BlockTable, index: usize, hash: PrefixHash) {
        if let Some(prefix_cache) = &self.prefix_cache {
            // Held by `table`, so neither evicted nor handed out meanwhile: `free_list` is not needed.
            prefix_cache.lock().publish(table.0[index], hash);
        }
    }

    /// Gives all blocks of `table` back; published ones stay cached until evicted.
    pub fn release(&self, mut table: BlockTable) {
        let blocks = std::mem::take(&mut table.0);
        let mut prefix_cache = self.prefix_cache.as_ref().map(Mutex::lock);
        let mut free_list = self.free_list.lock();
        // Last block first: a chain must lose its tail before its head, or the tail is cached but unreachable.
        for block in blocks.into_iter().rev() {
            if free_list.drop_reference(block) > 0 {
                continue;
            }
            match prefix_cache.as_mut() {
                Some(cache) if cache.is_published(block) => cache.retire(block),
                _ => free_list.free.push(block),
            }
        }
    }

    /// Counts, for metrics, admission and tests. Holds the locks for a few loads.
    pub fn usage(&self) -> BlockUsage {
        let prefix_cache = self.prefix_cache.as_ref().map(Mutex::lock);
        let free_list = self.free_list.lock();
        let mut usage = BlockUsage {
            num_total: free_list.num_references.len(),
            num_used: free_list.num_used,
            ..Default::default()
        };
        if let Some(cache) = prefix_cache {
            usage.num_cached = cache.num_retired();
            usage.num_lookups = cache.num_lookups;
            usage.num_hits = cache.num_hits;
            usage.num_evictions = cache.num_evictions;
        }
        usage
    }

    /// Every block is free, cached, or in tables exactly as often as its reference count says. `tables` must be all
    /// that exist.
    ///
    /// # Panics
    /// If not.
    pub fn check_invariants(&self, tables: &[&BlockTable]) {
        let prefix_cache = self.prefix_cache.as_ref().map(Mutex::lock);
        let free_list = self.free_list.lock();
        let num_total = free_list.num_references.len();
        let mut num_held = vec![0_u32; num_total];
        for block in tables.iter().flat_map(|table| table.blocks()) {
            num_held[block.index()] += 1;
        }
        assert_eq!(num_held, free_list.num_references, "reference counts are the tables' references");
        let num_used = num_held.iter().filter(|&&count| count > 0).count();
        assert_eq!(num_used, free_list.num_used, "the count of held blocks is right");

        let cached = prefix_cache.as_ref().map_or_else(Vec::new, |cache| cache.checked_retired());
        let mut num_places: Vec<u32> = num_held.iter().map(|&count| u32::from(count > 0)).collect();
        for block in free_list.free.iter().chain(&cached) {
            num_places[block.index()] += 1;
        }
        assert_eq!(num_places, vec![1; num_total], "each block is free, held or cached, and one of them only");
        if let Some(cache) = &prefix_cache {
            for block in &free_list.free {
                assert!(!cache.is_published(*block), "free {block:?} can still be found");
            }
        }
    }
}

/// Reference counts and free blocks. Written under the `free_list` lock.
struct FreeList {
    /// By block: how many tables hold it.
    num_references: Vec<u32>,
    /// A stack: what was freed last is still in the CPU's caches, and a lightly used pool never touches its far end.
    free: Vec<BlockId>,
    /// Blocks with a reference.
    num_used: usize,
}

impl FreeList {
    fn new(num_blocks: usize) -> Self {
        let num_ids = u32::try_from(num_blocks).expect("block ids are 32 bits wide");
        Self { num_references: vec![0; num_blocks], free: (0..num_ids).rev().map(BlockId).collect(), num_used: 0 }
    }

    /// Moves `num_blocks` free blocks to the end of `table`; `false`, and no change, if there are not so many.
    fn try_take(&mut self, num_blocks: usize, table: &mut Vec<BlockId>) -> bool {
        let Some(num_left) = self.free.len().checked_sub(num_blocks) else { return false };
        for block in self.free.drain(num_left..).rev() {
            self.num_references[block.index()] = 1;
            table.push(block);
        }
        self.num_used += num_blocks;
        true
    }

    /// The number of references after adding one.
    fn add_reference(&mut self, block: BlockId) -> u32 {
        let count = &mut self.num_references[block.index()];
        *count += 1;
        self.num_used += usize::from(*count == 1);
        *count
    }

    /// The number of references left.
    fn drop_reference(&mut self, block: BlockId) -> u32 {
        let count = &mut self.num_references[block.index()];
        *count = count.checked_sub(1).expect("a block in a table has a reference");
        self.num_used -= usize::from(*count == 0);
        *count
    }
}
