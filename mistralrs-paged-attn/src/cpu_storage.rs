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

use candle_core::utils::barrier_pool;

use crate::BlockCopy;
use crate::attention::{self, AttentionPlan, RaggedBatch, num_threads};
use crate::cache::{KvLayout, KvRows, KvStorage, QueryRows};
use crate::kernels::{HeadRows, HeadSlots, Isa, KvElement, LANES, LazyPool, Stripes};

/// Keys and values of one step below which one thread writes them all: a few microseconds, less than a parked thread
/// takes to wake.
const MIN_SHARED_ELEMENTS: usize = 16 * 1024;
/// Parts of the pool that each thread should find, so that the last to finish does not keep the others waiting for long.
const STRIPES_PER_THREAD: usize = 4;

/// Where things are inside a pool, in its units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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

    /// Where one head of one layer is in a block.
    fn head_range(&self, layer: usize, kv_head: usize) -> Range<usize> {
        let start = (layer * self.num_kv_heads + kv_head) * self.head_len;
        start..start + self.head_len
    }

    /// The lane group that has `token` of a sequence.
    pub(crate) fn group_of(&self, token: usize) -> usize {
        token / self.block_size * self.num_groups + token % self.block_size / LANES
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
        let block = &self.pool.as_slice()[block as usize * self.geometry.block_len()..];
        let (keys, values) = block[self.geometry.head_range(layer, kv_head)].split_at(self.geometry.keys_len);
        HeadBlock { keys, values }
    }
}

/// Neighbouring tokens of a step whose slots are neighbours in one block.
struct SlotRun {
    tokens: Range<usize>,
    block: usize,
    /// Of the first token, in the block.
    offset: usize,
}

/// `slots` in runs, in order.
fn slot_runs(slots: &[u32], block_size: usize) -> impl Iterator<Item = SlotRun> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let first = *slots.get(start)? as usize;
        let (block, offset) = (first / block_size, first % block_size);
        let is_next = |(slot, next): (&u32, usize)| *slot as usize == next;
        let candidates = slots[start..].iter().zip(first..first + block_size - offset);
        let tokens = start..start + candidates.take_while(|pair| is_next(*pair)).count();
        start = tokens.end;
        Some(SlotRun { tokens, block, offset })
    })
}

impl<E: KvElement> CpuStorage<E> {
    /// See [`KvStorage::write`]. Each block is one thread's, so that a slot that comes twice has what came last.
    pub(crate) fn write_on(&mut self, num_threads: usize, layer: usize, rows: &KvRows<'_>, slots: &[u32]) {
        let Self { geometry, isa, .. } = *self;
        let num_stripes = if num_threads > 1 { num_threads * STRIPES_PER_THREAD } else { 1 };
        let stripes = Stripes::new(self.pool.as_mut_slice(), geometry.block_len(), num_stripes);
        let drain = || {
            while let Some(mut stripe) = stripes.next() {
                for run in slot_runs(slots, geometry.block_size) {
                    if let Some(block) = stripe.chunk_mut(run.block) {
                        write_run(isa, &geometry, layer, rows, &run, block);
                    }
                }
            }
        };
        match num_threads {
            1 => drain(),
            _ => barrier_pool().execute_chunked(num_threads, |_| drain()),
        }
    }
}

fn write_run<E: KvElement>(
    isa: Isa,
    geometry: &PoolGeometry,
    layer: usize,
    rows: &KvRows<'_>,
    run: &SlotRun,
    block: &mut [E],
) {
    let PoolGeometry { num_kv_heads, head_size, group_len, row_len, keys_len, .. } = *geometry;
    for kv_head in 0..num_kv_heads {
        let (keys, values) = block[geometry.head_range(layer, kv_head)].split_at_mut(keys_len);
        let slots = HeadSlots { keys, values, offset: run.offset, group_len, row_len };
        let (token, column) = (run.tokens.start, kv_head * head_size);
        let rows = HeadRows {
            num_tokens: run.tokens.len(),
            key: rows.key.part(token, column, head_size),
            value: rows.value.part(token, column, head_size),
        };
        isa.write_head(&rows, slots);
    }
}

impl<E: KvElement> KvStorage for CpuStorage<E> {
    fn write(&mut self, layer: usize, rows: &KvRows<'_>, slots: &[u32]) {
        let num_elements = 2 * slots.len() * self.geometry.num_kv_heads * self.geometry.head_size;
        let num_threads = if num_elements < MIN_SHARED_ELEMENTS { 1 } else { num_threads() };
        self.write_on(num_threads, layer, rows, slots);
    }

    fn copy_block(&mut self, copy: BlockCopy) {
        let block_len = self.geometry.block_len();
        let from = copy.from.index() * block_len;
        self.pool.as_mut_slice().copy_within(from..from + block_len, copy.to.index() * block_len);
    }

    fn plan(&self, plan: &mut AttentionPlan, batch: &RaggedBatch, num_heads: usize) {
        plan.fill(batch, &self.geometry, num_heads, num_threads());
    }

    fn attend(&self, layer: usize, query: &QueryRows<'_>, plan: &AttentionPlan, output: &mut [f32]) {
        attention::attend(self, layer, query, plan, output);
    }

    fn num_blocks(&self) -> usize {
        self.num_blocks
    }
}
