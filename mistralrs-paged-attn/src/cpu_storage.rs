//! KV pools in host memory, laid out for [`kernels`](crate::kernels).
//!
//! One pool `[block, layer, kv_head, keys then values]`. Keys of one head are `[group, D, LANES]` (transposed, so that a
//! vector load brings one dimension of 16 tokens) and values `[token, padded D]`; types with scales keep them in
//! between. Padding is there so that kernels have no tails, and is nothing for block sizes and head sizes that are
//! multiples of 16.
//!
//! Keys, values and heads of a block are neighbours, because attention then reads a block as one forward run of memory.
//! Layers are inside the block, because the pool then grows block by block: huge pages help reading and cost nothing.

use std::ops::Range;

use crate::cache::{KvLayout, KvRows, KvStorage, QueryRows};
use crate::kernels::{Isa, KvElement, LANES, LazyPool};
use crate::{BlockCopy, RaggedBatch, attention};

/// Where things are inside a pool, in its units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolGeometry {
    pub(crate) num_kv_heads: usize,
    pub(crate) head_size: usize,
    pub(crate) block_size: usize,
    /// Lane groups per block.
    pub(crate) num_groups: usize,
    /// Keys of one lane group of one head.
    pub(crate) group_len: usize,
    /// Values of one token of one head.
    pub(crate) row_len: usize,
    /// Keys of one head of one block.
    keys_len: usize,
    /// Keys and values of one head of one block.
    head_len: usize,
    num_layers: usize,
    unit_bytes: usize,
}

impl PoolGeometry {
    /// `None` if a size is 0, the head size is not one that `E` can store, or a block is larger than memory can be.
    pub(crate) fn new<E: KvElement>(layout: &KvLayout) -> Option<Self> {
        let KvLayout { num_layers, num_kv_heads, head_size, block_size, .. } = *layout;
        if num_layers == 0 || num_kv_heads == 0 || head_size == 0 || block_size == 0 || !E::DTYPE.fits(head_size) {
            return None;
        }
        // Lengths below are at most two units per element and lane: none overflows.
        head_size.checked_next_multiple_of(LANES)?.checked_mul(2 * LANES)?;
        let (group_len, row_len) = (E::keys_len(head_size), E::row_len(head_size));
        let num_groups = block_size.div_ceil(LANES);
        let keys_len = num_groups.checked_mul(group_len)?;
        let head_len = row_len.checked_mul(block_size)?.checked_add(keys_len)?;
        let block_len = head_len.checked_mul(num_kv_heads)?.checked_mul(num_layers)?;
        block_len.checked_mul(size_of::<E>())?;
        Some(Self {
            num_kv_heads,
            head_size,
            block_size,
            num_groups,
            group_len,
            row_len,
            keys_len,
            head_len,
            num_layers,
            unit_bytes: size_of::<E>(),
        })
    }

    /// Units of one block, keys and values of all layers.
    pub(crate) fn block_len(&self) -> usize {
        self.num_layers * self.num_kv_heads * self.head_len
    }

    pub(crate) fn block_bytes(&self) -> usize {
        self.block_len() * self.unit_bytes
    }

    /// Where one head of one block of one layer is.
    fn head_range(&self, layer: usize, block: usize, kv_head: usize) -> Range<usize> {
        let start = ((block * self.num_layers + layer) * self.num_kv_heads + kv_head) * self.head_len;
        start..start + self.head_len
    }

    /// Lane groups that the first `num_tokens` of a sequence reach into.
    pub(crate) fn groups_of(&self, num_tokens: usize) -> usize {
        num_tokens / self.block_size * self.num_groups + (num_tokens % self.block_size).div_ceil(LANES)
    }
}

/// One KV head of one block: its keys and its values.
pub(crate) struct HeadBlock<'a, E> {
    /// `[group, group_len]`.
    pub(crate) keys: &'a [E],
    /// `[token, row_len]`.
    pub(crate) values: &'a [E],
}

/// The pool and what reads it.
pub(crate) struct CpuStorage<E> {
    geometry: PoolGeometry,
    num_blocks: usize,
    pool: LazyPool<E>,
    isa: Isa,
}

impl<E: KvElement> CpuStorage<E> {
    /// `None` where the system refuses the memory.
    pub(crate) fn new(geometry: PoolGeometry, num_blocks: usize) -> Option<Self> {
        let pool = LazyPool::new(geometry.block_len().checked_mul(num_blocks)?)?;
        Some(Self { geometry, num_blocks, pool, isa: Isa::best() })
    }

    pub(crate) fn geometry(&self) -> &PoolGeometry {
        &self.geometry
    }

    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    #[cfg(test)]
    pub(crate) fn use_isa(&mut self, isa: Isa) {
        self.isa = isa;
    }

    pub(crate) fn head_block(&self, layer: usize, block: u32, kv_head: usize) -> HeadBlock<'_, E> {
        let head = self.geometry.head_range(layer, block as usize, kv_head);
        let (keys, values) = self.pool.as_slice()[head].split_at(self.geometry.keys_len);
        HeadBlock { keys, values }
    }
}

impl<E: KvElement> KvStorage for CpuStorage<E> {
    fn write(&mut self, layer: usize, rows: &KvRows<'_>, batch: &RaggedBatch) {
        let PoolGeometry { num_kv_heads, head_size, block_size, group_len, row_len, keys_len, .. } = self.geometry;
        let pool = self.pool.as_mut_slice();
        let keys = rows.key.chunks_exact(num_kv_heads * head_size);
        let values = rows.value.chunks_exact(num_kv_heads * head_size);
        for ((key, value), slot) in keys.zip(values).zip(&batch.slot_mapping) {
            let (block, offset) = (*slot as usize / block_size, *slot as usize % block_size);
            let (group, lane) = (offset / LANES, offset % LANES);
            let heads = key.chunks_exact(head_size).zip(value.chunks_exact(head_size)).enumerate();
            for (kv_head, (key, value)) in heads {
                let head = self.geometry.head_range(layer, block, kv_head);
                let (keys, values) = pool[head].split_at_mut(keys_len);
                E::write_key(key, &mut keys[group * group_len..][..group_len], lane);
                E::write_value(value, &mut values[offset * row_len..][..row_len]);
            }
        }
    }

    fn copy_block(&mut self, copy: BlockCopy) {
        let block_len = self.geometry.block_len();
        let from = copy.from.index() * block_len;
        self.pool.as_mut_slice().copy_within(from..from + block_len, copy.to.index() * block_len);
    }

    fn attend(&self, layer: usize, query: &QueryRows<'_>, batch: &RaggedBatch, output: &mut [f32]) {
        attention::attend(self, layer, query, batch, output);
    }

    fn num_blocks(&self) -> usize {
        self.num_blocks
    }
}
