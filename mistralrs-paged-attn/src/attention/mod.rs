//! Attention over block tables for one packed ragged batch, on the CPU's threads.
//!
//! Causal and grouped-query. A work *unit* is a few KV heads and queries of one sequence, so that KV is read once for a
//! head's whole query group. Softmax is online over *tiles* of 64 tokens (`kernels`), restarted for every *span* of 256
//! tokens and merged span by span. Tiles and spans are counted from the sequence's first token, whoever computes them:
//! long contexts with few queries give their spans to different threads and still merge to the same bits, and so do
//! prefills in chunks of any size. (Counts are of blocks that are multiples of 16 tokens; others make them smaller.)

mod batch;
mod plan;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::utils::barrier_pool;

pub use batch::RaggedBatch;

use crate::cache::QueryRows;
use crate::cpu_storage::{CpuStorage, PoolGeometry};
use crate::kernels::{ClaimedChunks, GROUPS_PER_TILE, Group, KvElement, LANES, LOWEST, Rows, Tile, padded};
use plan::{Plan, QueryTile, TILES_PER_SPAN};

/// See [`KvCache::attend`](crate::KvCache::attend), which has checked that `batch`, `query` and `output` fit.
pub(crate) fn attend<E: KvElement>(
    storage: &CpuStorage<E>,
    layer: usize,
    query: &QueryRows<'_>,
    batch: &RaggedBatch,
    output: &mut [f32],
) {
    let plan = Plan::new(batch, storage.geometry(), query.num_heads, num_threads());
    run_plan(&Step { storage, layer, query, batch }, &plan, output);
}

/// Threads of the process's one compute pool; its caller works too.
fn num_threads() -> usize {
    barrier_pool().n_workers() + 1
}

/// What every unit of one call reads.
struct Step<'a, E> {
    storage: &'a CpuStorage<E>,
    layer: usize,
    query: &'a QueryRows<'a>,
    batch: &'a RaggedBatch,
}

fn run_plan<E: KvElement>(step: &Step<'_, E>, plan: &Plan, output: &mut [f32]) {
    let geometry = step.storage.geometry();
    let workers = Workers { num_threads: plan.num_threads, geometry };
    // One chunk per token and KV head: the heads of its query group lie side by side.
    let outputs = ClaimedChunks::new(output, step.query.num_heads / geometry.num_kv_heads * geometry.head_size);
    let mut partials = vec![0.0; plan.num_partials * partial_len(geometry)];
    let partial_rows = ClaimedChunks::new(&mut partials, partial_len(geometry));
    workers.for_each_index(plan.units.len(), |scratch, index| {
        let unit = &plan.units[index];
        let tile = &plan.tiles[unit.tile];
        scratch.start(step, tile);
        for span in unit.spans.clone() {
            scratch.attend_span(step, tile, span);
            match tile.first_partial {
                None => scratch.merge_span(),
                Some(first) => scratch.store_span(&partial_rows, first + span * tile.num_rows()),
            }
        }
        if tile.first_partial.is_none() {
            scratch.finish(tile, &outputs);
        }
    });
    let shared: Vec<_> = plan.tiles.iter().filter(|tile| tile.first_partial.is_some()).collect();
    workers.for_each_index(shared.len(), |scratch, index| {
        scratch.merge_partials(shared[index], &partials);
        scratch.finish(shared[index], &outputs);
    });
}

/// Threads of the process's compute pool, each with a scratch of its own.
struct Workers<'a> {
    num_threads: usize,
    geometry: &'a PoolGeometry,
}

impl Workers<'_> {
    /// Calls `work` once for each index, lower ones first, on whatever thread is free. Returns when all is done.
    fn for_each_index(&self, count: usize, work: impl Fn(&mut Scratch, usize) + Sync) {
        let cursor = AtomicUsize::new(0);
        let drain = || {
            let mut index = cursor.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            let mut scratch = Scratch::new(self.geometry);
            while index < count {
                work(&mut scratch, index);
                index = cursor.fetch_add(1, Ordering::Relaxed);
            }
        };
        // The pool hands out contiguous ranges, but the largest units come first: each thread takes one at a time.
        match self.num_threads.min(count) {
            0 => {}
            1 => drain(),
            num_workers => barrier_pool().execute_chunked(num_workers, |_| drain()),
        }
    }
}

/// Floats of one row's softmax over a span: its maximum, its sum, its padded output.
fn partial_len(geometry: &PoolGeometry) -> usize {
    2 + padded(geometry.head_size)
}

/// One thread's buffers for the rows of one query tile, by KV head, then query, then head of the query group.
struct Scratch {
    geometry: PoolGeometry,
    query: Vec<f32>,
    /// Of one KV head's rows: the others' are the same.
    num_visible: Vec<usize>,
    /// The current span: `[rows]`, `[rows, LANES]`, `[rows, padded D]`.
    max: Vec<f32>,
    sums: Vec<f32>,
    output: Vec<f32>,
    /// All spans so far, by row as in [`partial_len`].
    merged: Vec<f32>,
    num_merged: usize,
}

impl Scratch {
    fn new(geometry: &PoolGeometry) -> Self {
        Self {
            geometry: *geometry,
            query: Vec::new(),
            num_visible: Vec::new(),
            max: Vec::new(),
            sums: Vec::new(),
            output: Vec::new(),
            merged: Vec::new(),
            num_merged: 0,
        }
    }

    /// Takes the queries of `tile`, scaled so that weights are powers of two.
    fn start<E>(&mut self, step: &Step<'_, E>, tile: &QueryTile) {
        let group_len = tile.group_size * self.geometry.head_size;
        let scale = step.query.scale * std::f32::consts::LOG2_E;
        self.query.clear();
        for kv_head in tile.kv_heads.clone() {
            for token in tile.queries.clone() {
                let group =
                    &step.query.query[(token * self.geometry.num_kv_heads + kv_head) * group_len..][..group_len];
                self.query.extend(group.iter().map(|element| element * scale));
            }
        }
        self.num_visible.clear();
        for num_visible in tile.first_visible..=tile.last_visible() {
            self.num_visible.extend(std::iter::repeat_n(num_visible, tile.group_size));
        }
        refill(&mut self.merged, tile.num_rows() * partial_len(&self.geometry), 0.0);
        self.num_merged = 0;
    }

    /// Softmax over the tokens of one span alone.
    fn attend_span<E: KvElement>(&mut self, step: &Step<'_, E>, tile: &QueryTile, span: usize) {
        refill(&mut self.max, tile.num_rows(), LOWEST);
        refill(&mut self.sums, tile.num_rows() * LANES, 0.0);
        refill(&mut self.output, tile.num_rows() * padded(self.geometry.head_size), 0.0);
        let num_kv_tiles = self.geometry.groups_of(tile.last_visible()).div_ceil(GROUPS_PER_TILE);
        for kv_tile in span * TILES_PER_SPAN..num_kv_tiles.min((span + 1) * TILES_PER_SPAN) {
            for (index, kv_head) in tile.kv_heads.clone().enumerate() {
                let (next_tile, next_head) = match kv_head + 1 {
                    end if end == tile.kv_heads.end => ((kv_tile + 1).min(num_kv_tiles - 1), tile.kv_heads.start),
                    next_head => (kv_tile, next_head),
                };
                let current = step.kv_tile(tile, kv_head, kv_tile * GROUPS_PER_TILE);
                let ahead = step.kv_tile(tile, next_head, next_tile * GROUPS_PER_TILE);
                step.storage.isa().attend_tile(&current, &ahead, &mut self.head_rows(index));
            }
        }
    }

    /// Rows of the tile's KV head `index`.
    fn head_rows(&mut self, index: usize) -> Rows<'_> {
        let (num_rows, head_size) = (self.num_visible.len(), self.geometry.head_size);
        let rows = |row_len: usize| index * num_rows * row_len..(index + 1) * num_rows * row_len;
        Rows {
            head_size,
            query: &self.query[rows(head_size)],
            num_visible: &self.num_visible,
            max: &mut self.max[rows(1)],
            sums: &mut self.sums[rows(LANES)],
            output: &mut self.output[rows(padded(head_size))],
        }
    }

    /// Adds the current span to what was merged before.
    fn merge_span(&mut self) {
        let len = partial_len(&self.geometry);
        let mut partial = vec![0.0; len];
        for row in 0..self.max.len() {
            self.copy_span_row(row, &mut partial);
            merge(row_of_mut(&mut self.merged, row, len), self.num_merged, &partial);
        }
        self.num_merged += 1;
    }

    /// Leaves the current span for [`Self::merge_partials`], rows from chunk `first` on.
    fn store_span(&self, partials: &ClaimedChunks<'_>, first: usize) {
        for row in 0..self.max.len() {
            self.copy_span_row(row, partials.take(first + row));
        }
    }

    fn copy_span_row(&self, row: usize, partial: &mut [f32]) {
        partial[0] = self.max[row];
        partial[1] = row_of(&self.sums, row, LANES).iter().sum();
        partial[2..].copy_from_slice(row_of(&self.output, row, padded(self.geometry.head_size)));
    }

    /// What [`Self::merge_span`] would have made of the spans in turn.
    fn merge_partials(&mut self, tile: &QueryTile, partials: &[f32]) {
        let len = partial_len(&self.geometry);
        let first = tile.first_partial.expect("the tile was shared");
        refill(&mut self.merged, tile.num_rows() * len, 0.0);
        for span in 0..tile.num_spans {
            for row in 0..tile.num_rows() {
                let partial = row_of(partials, first + span * tile.num_rows() + row, len);
                merge(row_of_mut(&mut self.merged, row, len), span, partial);
            }
        }
    }

    /// Divides by the sums and hands out the rows.
    fn finish(&self, tile: &QueryTile, outputs: &ClaimedChunks<'_>) {
        let mut rows = self.merged.chunks_exact(partial_len(&self.geometry));
        for kv_head in tile.kv_heads.clone() {
            for token in tile.queries.clone() {
                let heads = outputs.take(token * self.geometry.num_kv_heads + kv_head);
                for (head, row) in heads.chunks_exact_mut(self.geometry.head_size).zip(&mut rows) {
                    for (to, from) in head.iter_mut().zip(&row[2..]) {
                        *to = from / row[1];
                    }
                }
            }
        }
    }
}

fn refill(buffer: &mut Vec<f32>, len: usize, value: f32) {
    buffer.clear();
    buffer.resize(len, value);
}

fn row_of(rows: &[f32], row: usize, row_len: usize) -> &[f32] {
    &rows[row * row_len..][..row_len]
}

fn row_of_mut(rows: &mut [f32], row: usize, row_len: usize) -> &mut [f32] {
    &mut rows[row * row_len..][..row_len]
}

/// Merges a span's row into `merged`, which holds `num_merged` spans before it. The same operations in the same order
/// wherever the spans were computed; a span of which the row sees nothing changes no bit.
fn merge(merged: &mut [f32], num_merged: usize, partial: &[f32]) {
    if num_merged == 0 {
        merged.copy_from_slice(partial);
        return;
    }
    let new_max = merged[0].max(partial[0]);
    let (of_earlier, of_span) = ((merged[0] - new_max).exp2(), (partial[0] - new_max).exp2());
    merged[0] = new_max;
    // Sum and output alike.
    for (merged, partial) in merged[1..].iter_mut().zip(&partial[1..]) {
        *merged = *merged * of_earlier + *partial * of_span;
    }
}

impl<E: KvElement> Step<'_, E> {
    /// Lane groups `first_group..` of the sequence, as far as the last query of `tile` sees.
    fn kv_tile(&self, tile: &QueryTile, kv_head: usize, first_group: usize) -> Tile<'_, E> {
        let num_groups = self.storage.geometry().groups_of(tile.last_visible());
        let block_table = self.batch.block_table(tile.sequence);
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
