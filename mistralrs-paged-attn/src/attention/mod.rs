//! Attention over block tables for one packed ragged batch, on the CPU's threads.
//!
//! Causal, over all tokens or a sliding window of the last, and grouped-query. A work *unit* is a few KV heads and
//! queries of one sequence, so that KV is read once for a head's whole query group. Softmax is online over *tiles* of 64
//! tokens (`kernels`), restarted for every *span* of 256 tokens and merged span by span. Tiles and spans are counted from
//! the sequence's first token, whoever computes them: long contexts with few queries give their spans to different
//! threads and still merge to the same bits, and so do prefills in chunks of any size. Prompts' rows are computed by the CPU's
//! matrix unit where there is one and the plan may tell them apart. Tiles before the window of a
//! unit's first query are not read. (Counts are of blocks that are multiples of 16 tokens; others make them smaller.)

mod batch;
mod plan;
mod scratch;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::utils::barrier_pool;

pub use batch::RaggedBatch;
pub use plan::AttentionPlan;

use crate::cache::QueryRows;
use crate::cpu_storage::{CpuStorage, PoolGeometry};
use crate::kernels::{ClaimedChunks, Claims, GROUPS_PER_TILE, Group, KvElement, LANES, Tile};
use plan::QueryTile;
use scratch::{Scratch, Workspace, partial_len};

/// Threads of the process's one compute pool; its caller works too.
pub(crate) fn num_threads() -> usize {
    barrier_pool().n_workers() + 1
}

/// What every unit of one call reads.
struct Step<'a, E> {
    storage: &'a CpuStorage<E>,
    layer: usize,
    query: &'a QueryRows<'a>,
    blocks: &'a [u32],
    /// Tokens that a token sees.
    window: usize,
}

/// See [`KvCache::attend`](crate::KvCache::attend), which has checked that `plan`, `query` and `output` fit.
pub(crate) fn attend<E: KvElement>(
    storage: &CpuStorage<E>,
    layer: usize,
    query: &QueryRows<'_>,
    plan: &AttentionPlan,
    output: &mut [f32],
) {
    let AttentionPlan { geometry, blocks, tiles, units, merges, .. } = plan;
    let step = Step { storage, layer, query, blocks, window: plan.max_visible() };
    let mut workspace = plan.workspace.borrow_mut();
    let Workspace { scratches, scratch_claims, partials, partial_claims, output_claims } = &mut *workspace;
    let mut workers = Workers { scratches, claims: scratch_claims };
    // One chunk per token and KV head: the heads of its query group lie side by side.
    let outputs = ClaimedChunks::new(output, plan.group_size() * geometry.head_size, output_claims);
    let partials = &mut partials[..plan.num_partials * partial_len(geometry)];
    let partial_rows = ClaimedChunks::new(partials, partial_len(geometry), partial_claims);
    workers.for_each_index(plan.num_threads, units.len(), |scratch, index| {
        let unit = &units[index];
        let tile = &tiles[unit.tile];
        scratch.start(&step, tile);
        for span in unit.spans.clone() {
            scratch.attend_span(&step, tile, span);
            match tile.first_partial {
                None => scratch.merge_span(),
                Some(first) => scratch.store_span(&partial_rows, first + (span - tile.spans().start) * tile.num_rows()),
            }
        }
        if tile.first_partial.is_none() {
            scratch.finish(tile, tile.kv_heads.clone(), &outputs);
        }
    });
    let partials = &*partials;
    workers.for_each_index(plan.num_merge_threads, merges.len(), |scratch, index| {
        let (tile, kv_head) = (&tiles[merges[index].tile], merges[index].kv_head);
        scratch.merge_partials(tile, kv_head, partials);
        scratch.finish(tile, kv_head..kv_head + 1, &outputs);
    });
}

/// Threads of the process's compute pool, each with a scratch of its own.
struct Workers<'a> {
    scratches: &'a mut [Scratch],
    claims: &'a mut Claims,
}

impl Workers<'_> {
    /// Calls `work` once for each index, lower ones first, on whatever thread is free. Returns when all is done.
    fn for_each_index(&mut self, num_threads: usize, count: usize, work: impl Fn(&mut Scratch, usize) + Sync) {
        let cursor = AtomicUsize::new(0);
        let scratches = ClaimedChunks::new(self.scratches, 1, self.claims);
        let drain = |worker: usize| {
            let [scratch] = scratches.take(worker) else { unreachable!("a chunk is one scratch") };
            loop {
                let index = cursor.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return;
                }
                work(scratch, index);
            }
        };
        // The pool hands out contiguous ranges, but the largest units come first: each thread takes one at a time.
        match num_threads.min(count) {
            0 => {}
            1 => drain(0),
            num_workers => barrier_pool().execute_chunked(num_workers, |range| drain(range.start)),
        }
    }
}

impl<E: KvElement> Step<'_, E> {
    /// Lane groups `first_group..` of the sequence, as far as the last query of `tile` sees.
    fn kv_tile(&self, tile: &QueryTile, kv_head: usize, first_group: usize) -> Tile<'_, E> {
        let num_groups = self.storage.geometry().groups_of(tile.last_visible());
        let block_table = &self.blocks[tile.first_block..];
        let mut groups = [self.group(block_table, kv_head, first_group); GROUPS_PER_TILE];
        for (index, group) in (first_group..).zip(&mut groups).skip(1) {
            if index < num_groups {
                *group = self.group(block_table, kv_head, index);
            } else {
                group.num_lanes = 0;
            }
        }
        Tile { groups }
    }

    fn group(&self, block_table: &[u32], kv_head: usize, index: usize) -> Group<'_, E> {
        let PoolGeometry { block_size, num_groups, group_len, row_len, .. } = *self.storage.geometry();
        let (block, group) = (index / num_groups, index % num_groups);
        let in_block = group * LANES;
        let head = self.storage.head_block(self.layer, block_table[block], kv_head);
        Group {
            keys: &head.keys[group * group_len..][..group_len],
            values: &head.values[in_block * row_len..],
            first_token: block * block_size + in_block,
            num_lanes: LANES.min(block_size - in_block),
        }
    }
}
