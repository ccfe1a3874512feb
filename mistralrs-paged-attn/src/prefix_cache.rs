//! Blocks kept for their contents, found by chained hash, evicted least recently used first.
//!
//! A block is named by what is in it *and before it*: its hash covers the parent's hash, so equal hashes mean equal
//! prefixes and one lookup per block finds the longest shared one. BLAKE3 at full width, since a collision would hand
//! one tenant's KV to another; [`PrefixSalt`] keeps tenants and adapters apart that must not share even equal text.

use std::collections::HashMap;

use crate::block_manager::BlockId;

/// Separates these hashes from any other use of BLAKE3; the number changes with what is hashed.
const ROOT_CONTEXT: &str = "mistralrs-paged-attn 2026 prefix hash root 2";

/// Chained content hash of a block: parent hash, tokens, salt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PrefixHash(pub(crate) [u8; 32]);

/// Keeps prefixes apart that must not be shared. Empty where there is nothing to tell apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrefixSalt {
    /// The adapter that computes the KV: another one's differs for the same tokens.
    pub adapter: String,
    /// Whose tokens they are: timing must not tell one tenant what another one has asked.
    pub tenant: String,
}

impl PrefixHash {
    /// The parent of every first block under `salt`.
    fn root(salt: &PrefixSalt) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(ROOT_CONTEXT);
        for part in [&salt.adapter, &salt.tenant] {
            // With its length, or the end of one could pass for the beginning of the other.
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        Self(hasher.finalize().into())
    }

    /// The hash of a full block of `tokens` that follows the block of this hash; the first `num_prompt` are of the prompt.
    fn child(&self, tokens: &[u32], num_prompt: usize) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        // All blocks have as many tokens: what is longer is of another kind.
        if num_prompt < tokens.len() {
            hasher.update(&(num_prompt as u64).to_le_bytes());
        }
        Self(hasher.finalize().into())
    }
}

/// Appends to `hashes`, which cover the first blocks of `tokens`, those of the blocks that are full by now.
/// A partly filled last block has no hash: its contents are not final. Blocks with tokens from `num_prompt` on, if those have other
/// KV than a prompt's, are not the blocks of a prompt of the same tokens.
pub fn extend_hashes(
    hashes: &mut Vec<PrefixHash>,
    (tokens, num_prompt): (&[u32], usize),
    block_size: usize,
    salt: &PrefixSalt,
) {
    let mut parent = hashes.last().copied().unwrap_or_else(|| PrefixHash::root(salt));
    for (index, block) in tokens.chunks_exact(block_size).enumerate().skip(hashes.len()) {
        parent = parent.child(block, num_prompt.saturating_sub(index * block_size));
        hashes.push(parent);
    }
}

/// Which block holds which content, and in what order the unheld ones go.
///
/// Written under the `prefix_cache` lock. *Retired* blocks are those that no table holds; they wait in `retired`,
/// oldest first, until they are adopted again or evicted.
pub(crate) struct PrefixCache {
    block_of: HashMap<PrefixHash, BlockId>,
    hash_of: Vec<Option<PrefixHash>>,
    retired: LruList,
    /// Hashes asked for since the start.
    pub(crate) num_lookups: u64,
    /// Hashes found since the start.
    pub(crate) num_hits: u64,
    /// Blocks evicted since the start.
    pub(crate) num_evictions: u64,
}

impl PrefixCache {
    pub(crate) fn new(num_blocks: usize) -> Self {
        Self {
            block_of: HashMap::new(),
            hash_of: vec![None; num_blocks],
            retired: LruList::new(num_blocks),
            num_lookups: 0,
            num_hits: 0,
            num_evictions: 0,
        }
    }

    /// The blocks of the longest cached run that starts at the first hash.
    pub(crate) fn find(&mut self, hashes: &[PrefixHash]) -> Vec<BlockId> {
        let blocks: Vec<_> = self.blocks_of(hashes).collect();
        self.num_lookups += hashes.len() as u64;
        self.num_hits += blocks.len() as u64;
        blocks
    }

    /// The same, without counting a lookup.
    pub(crate) fn blocks_of(&self, hashes: &[PrefixHash]) -> impl Iterator<Item = BlockId> {
        hashes.iter().map_while(|hash| self.block_of.get(hash).copied())
    }

    /// Makes `block` findable. Where another block already has this content, that one stays the one that is shared.
    pub(crate) fn publish(&mut self, block: BlockId, hash: PrefixHash) {
        let known = &mut self.hash_of[block.index()];
        debug_assert!(known.is_none_or(|known| known == hash), "a full block's contents never change");
        if known.is_none() && !self.block_of.contains_key(&hash) {
            *known = Some(hash);
            self.block_of.insert(hash, block);
        }
    }

    pub(crate) fn is_published(&self, block: BlockId) -> bool {
        self.hash_of[block.index()].is_some()
    }

    /// The last table let go of published `block`: it becomes the youngest of those that may be evicted.
    pub(crate) fn retire(&mut self, block: BlockId) {
        self.retired.push_youngest(block);
    }

    /// A table took retired `block` again.
    pub(crate) fn revive(&mut self, block: BlockId) {
        self.retired.unlink(block);
    }

    /// Forgets the block that has been unheld longest and returns it for new contents.
    pub(crate) fn evict(&mut self) -> Option<BlockId> {
        let block = self.retired.oldest()?;
        self.retired.unlink(block);
        let hash = self.hash_of[block.index()].take().expect("only published blocks retire");
        self.block_of.remove(&hash);
        self.num_evictions += 1;
        Some(block)
    }

    pub(crate) fn num_retired(&self) -> usize {
        self.retired.len
    }

    /// Retired blocks, oldest first, after checking both maps and the list against each other.
    ///
    /// # Panics
    /// If they disagree.
    pub(crate) fn checked_retired(&self) -> Vec<BlockId> {
        for (hash, block) in &self.block_of {
            assert_eq!(self.hash_of[block.index()], Some(*hash), "{block:?} is found by a hash it does not have");
        }
        let num_published = self.hash_of.iter().flatten().count();
        assert_eq!(num_published, self.block_of.len(), "every published block is found by its hash");
        let retired = self.retired.checked_blocks();
        for block in &retired {
            assert!(self.is_published(*block), "{block:?} is retired but not published");
        }
        retired
    }
}

/// End of the list, in either direction.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Link {
    older: u32,
    younger: u32,
}

/// A doubly linked list threaded through an array by block index: push, unlink and pop are O(1) and never allocate.
struct LruList {
    links: Vec<Link>,
    oldest: u32,
    youngest: u32,
    len: usize,
}

impl LruList {
    fn new(num_blocks: usize) -> Self {
        Self { links: vec![Link { older: NONE, younger: NONE }; num_blocks], oldest: NONE, youngest: NONE, len: 0 }
    }

    fn oldest(&self) -> Option<BlockId> {
        (self.oldest != NONE).then_some(BlockId(self.oldest))
    }

    fn push_youngest(&mut self, block: BlockId) {
        self.links[block.index()] = Link { older: self.youngest, younger: NONE };
        match self.youngest {
            NONE => self.oldest = block.0,
            previous => self.links[previous as usize].younger = block.0,
        }
        self.youngest = block.0;
        self.len += 1;
    }

    fn unlink(&mut self, block: BlockId) {
        let Link { older, younger } = self.links[block.index()];
        match older {
            NONE => self.oldest = younger,
            older => self.links[older as usize].younger = younger,
        }
        match younger {
            NONE => self.youngest = older,
            younger => self.links[younger as usize].older = older,
        }
        self.len -= 1;
    }

    fn checked_blocks(&self) -> Vec<BlockId> {
        let mut blocks = Vec::with_capacity(self.len);
        let (mut previous, mut current) = (NONE, self.oldest);
        while current != NONE {
            assert!(blocks.len() < self.len, "the list is longer than its length says");
            assert_eq!(self.links[current as usize].older, previous, "links agree in both directions");
            blocks.push(BlockId(current));
            (previous, current) = (current, self.links[current as usize].younger);
        }
        assert_eq!(self.youngest, previous, "the list ends at its youngest");
        assert_eq!(blocks.len(), self.len, "the list is as long as its length says");
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn salted(tokens: &[u32], adapter: &str, tenant: &str) -> Vec<PrefixHash> {
        let mut hashes = Vec::new();
        let salt = PrefixSalt { adapter: adapter.to_owned(), tenant: tenant.to_owned() };
        extend_hashes(&mut hashes, (tokens, tokens.len()), 2, &salt);
        hashes
    }

    fn hashes(tokens: &[u32]) -> Vec<PrefixHash> {
        salted(tokens, "", "")
    }

    #[test]
    fn a_hash_covers_the_whole_prefix_and_the_salt() {
        let base = hashes(&[1, 2, 3, 4]);
        assert_eq!(base, hashes(&[1, 2, 3, 4]));
        let other_start = hashes(&[1, 9, 3, 4]);
        assert_ne!(base[0], other_start[0]);
        assert_ne!(base[1], other_start[1], "equal tokens after an unequal prefix are another block");
        assert_ne!(base[0], salted(&[1, 2], "", "tenant")[0]);
        assert_ne!(base[0], salted(&[1, 2], "adapter", "")[0]);
        assert_ne!(salted(&[1, 2], "ab", "c"), salted(&[1, 2], "a", "bc"), "the parts do not run together");
        assert_ne!(hashes(&[7, 7, 7, 7])[0], hashes(&[7, 7, 7, 7])[1], "position is part of the content");
    }

    #[test]
    fn a_hash_tells_where_the_prompt_ends() {
        let of = |num_prompt| {
            let mut hashes = Vec::new();
            extend_hashes(&mut hashes, (&[1, 2, 3, 4, 5, 6], num_prompt), 2, &PrefixSalt::default());
            hashes
        };
        let prompt = hashes(&[1, 2, 3, 4, 5, 6]);
        assert_eq!(of(usize::MAX), prompt);
        for num_prompt in 0..6 {
            let found = of(num_prompt);
            let num_same = found.iter().zip(&prompt).take_while(|(found, prompt)| found == prompt).count();
            assert_eq!(num_same, num_prompt / 2, "blocks of the prompt alone");
            assert!(found[num_same..].iter().all(|hash| !prompt.contains(hash)));
            assert!((0..num_prompt).all(|other| of(other)[num_prompt / 2] != found[num_prompt / 2]), "{num_prompt}");
        }
    }

    #[test]
    fn only_full_blocks_are_hashed_and_growing_gives_the_same_hashes() {
        let whole = hashes(&[1, 2, 3, 4, 5]);
        assert_eq!(whole.len(), 2);
        let mut grown = Vec::new();
        for end in 0..=5 {
            extend_hashes(&mut grown, (&[1, 2, 3, 4, 5][..end], 5), 2, &PrefixSalt::default());
            assert_eq!(grown.len(), end / 2);
        }
        assert_eq!(grown, whole);
    }

    #[test]
    fn eviction_takes_the_longest_unheld_block_first() {
        let mut cache = PrefixCache::new(4);
        for (block, hash) in hashes(&[1, 2, 3, 4, 5, 6]).into_iter().enumerate() {
            cache.publish(BlockId(block as u32), hash);
            cache.retire(BlockId(block as u32));
        }
        cache.revive(BlockId(1));
        cache.retire(BlockId(1));
        assert_eq!(cache.checked_retired(), [BlockId(0), BlockId(2), BlockId(1)]);
        let evicted: Vec<_> = std::iter::from_fn(|| cache.evict()).collect();
        assert_eq!(evicted, [BlockId(0), BlockId(2), BlockId(1)]);
        assert!(cache.checked_retired().is_empty());
        assert_eq!(cache.num_evictions, 3);
    }
}
