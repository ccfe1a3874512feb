//! What attention computes in: each thread's rows, and what threads leave for each other.

use std::ops::Range;

use super::Step;
use super::plan::{QueryTile, TILES_PER_SPAN};
use crate::cpu_storage::PoolGeometry;
use crate::kernels::{ClaimedChunks, Claims, GROUPS_PER_TILE, KvElement, LANES, LOWEST, Rows, padded};

/// All buffers of one call, kept from call to call.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    /// One per thread.
    pub(super) scratches: Vec<Scratch>,
    pub(super) scratch_claims: Claims,
    /// `[rows of all spans of shared tiles,` [`partial_len`]`]`, or longer.
    pub(super) partials: Vec<f32>,
    pub(super) partial_claims: Claims,
    pub(super) output_claims: Claims,
}

impl Workspace {
    /// A scratch of `num_rows` rows for each thread.
    pub(super) fn grow_scratches(&mut self, geometry: &PoolGeometry, num_threads: usize, num_rows: usize) {
        if self.scratches.len() < num_threads {
            self.scratches.resize_with(num_threads, Scratch::default);
        }
        self.scratch_claims.reserve(self.scratches.len());
        self.scratches.iter_mut().for_each(|scratch| scratch.grow(geometry, num_rows));
    }

    pub(super) fn grow_partials(&mut self, geometry: &PoolGeometry, num_partials: usize) {
        self.partial_claims.reserve(num_partials);
        let len = num_partials * partial_len(geometry);
        if self.partials.len() < len {
            self.partials.resize(len, 0.0);
        }
    }
}

/// Floats of one row's softmax over a span: its maximum, its sum, its padded output.
pub(super) fn partial_len(geometry: &PoolGeometry) -> usize {
    2 + padded(geometry.head_size)
}

/// One thread's buffers for the rows of one query tile, by KV head, then query, then head of the query group.
#[derive(Debug, Default)]
pub(super) struct Scratch {
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
    /// A row on its way to `merged`.
    partial: Vec<f32>,
}

impl Scratch {
    fn grow(&mut self, geometry: &PoolGeometry, num_rows: usize) {
        self.geometry = *geometry;
        reserve(&mut self.query, num_rows * geometry.head_size);
        reserve(&mut self.num_visible, num_rows);
        reserve(&mut self.max, num_rows);
        reserve(&mut self.sums, num_rows * LANES);
        reserve(&mut self.output, num_rows * padded(geometry.head_size));
        reserve(&mut self.merged, num_rows * partial_len(geometry));
        reserve(&mut self.partial, partial_len(geometry));
    }

    /// Takes the queries of `tile`, scaled so that weights are powers of two.
    pub(super) fn start<E>(&mut self, step: &Step<'_, E>, tile: &QueryTile) {
        let group_len = tile.group_size * self.geometry.head_size;
        let scale = step.query.scale * std::f32::consts::LOG2_E;
        self.query.clear();
        for kv_head in tile.kv_heads.clone() {
            for token in tile.queries.clone() {
                let group = &step.query.query.row(token)[kv_head * group_len..][..group_len];
                self.query.extend(group.iter().map(|element| element * scale));
            }
        }
        self.num_visible.clear();
        for num_visible in tile.first_visible..=tile.last_visible() {
            self.num_visible.extend(std::iter::repeat_n(num_visible, tile.group_size));
        }
        self.merged.resize(tile.num_rows() * partial_len(&self.geometry), 0.0);
        self.num_merged = 0;
    }

    /// Softmax over the tokens of one span alone.
    pub(super) fn attend_span<E: KvElement>(&mut self, step: &Step<'_, E>, tile: &QueryTile, span: usize) {
        refill(&mut self.max, tile.num_rows(), LOWEST);
        refill(&mut self.sums, tile.num_rows() * LANES, 0.0);
        refill(&mut self.output, tile.num_rows() * padded(self.geometry.head_size), 0.0);
        let (first, end) = (span * TILES_PER_SPAN, (span + 1) * TILES_PER_SPAN);
        for kv_tile in first.max(tile.kv_tiles.start)..end.min(tile.kv_tiles.end) {
            for (index, kv_head) in tile.kv_heads.clone().enumerate() {
                let (next_tile, next_head) = match kv_head + 1 {
                    end if end == tile.kv_heads.end => ((kv_tile + 1).min(tile.kv_tiles.end - 1), tile.kv_heads.start),
                    next_head => (kv_tile, next_head),
                };
                let current = step.kv_tile(tile, kv_head, kv_tile * GROUPS_PER_TILE);
                let ahead = step.kv_tile(tile, next_head, next_tile * GROUPS_PER_TILE);
                step.storage.isa().attend_tile(&current, &ahead, &mut self.head_rows(index, step.window));
            }
        }
    }

    /// Rows of the tile's KV head `index`.
    fn head_rows(&mut self, index: usize, window: usize) -> Rows<'_> {
        let (num_rows, head_size) = (self.num_visible.len(), self.geometry.head_size);
        let rows = |row_len: usize| index * num_rows * row_len..(index + 1) * num_rows * row_len;
        Rows {
            head_size,
            query: &self.query[rows(head_size)],
            num_visible: &self.num_visible,
            window,
            max: &mut self.max[rows(1)],
            sums: &mut self.sums[rows(LANES)],
            output: &mut self.output[rows(padded(head_size))],
        }
    }

    /// Adds the current span to what was merged before.
    pub(super) fn merge_span(&mut self) {
        let len = partial_len(&self.geometry);
        let mut partial = std::mem::take(&mut self.partial);
        partial.resize(len, 0.0);
        for row in 0..self.max.len() {
            self.copy_span_row(row, &mut partial);
            merge(row_of_mut(&mut self.merged, row, len), self.num_merged, &partial);
        }
        self.partial = partial;
        self.num_merged += 1;
    }

    /// Leaves the current span for [`Self::merge_partials`], rows from chunk `first` on.
    pub(super) fn store_span(&self, partials: &ClaimedChunks<'_, f32>, first: usize) {
        for row in 0..self.max.len() {
            self.copy_span_row(row, partials.take(first + row));
        }
    }

    fn copy_span_row(&self, row: usize, partial: &mut [f32]) {
        partial[0] = self.max[row];
        partial[1] = row_of(&self.sums, row, LANES).iter().sum();
        partial[2..].copy_from_slice(row_of(&self.output, row, padded(self.geometry.head_size)));
    }

    /// What [`Self::merge_span`] would have made of the spans in turn, for one KV head.
    pub(super) fn merge_partials(&mut self, tile: &QueryTile, kv_head: usize, partials: &[f32]) {
        let (len, num_rows) = (partial_len(&self.geometry), tile.rows_per_head());
        let first = tile.first_partial.expect("the tile was shared") + (kv_head - tile.kv_heads.start) * num_rows;
        self.merged.resize(num_rows * len, 0.0);
        for span in 0..tile.spans().len() {
            for row in 0..num_rows {
                let partial = row_of(partials, first + span * tile.num_rows() + row, len);
                merge(row_of_mut(&mut self.merged, row, len), span, partial);
            }
        }
    }

    /// Divides by the sums and hands out the rows, which are those of `kv_heads`.
    pub(super) fn finish(&self, tile: &QueryTile, kv_heads: Range<usize>, outputs: &ClaimedChunks<'_, f32>) {
        let mut rows = self.merged.chunks_exact(partial_len(&self.geometry));
        for kv_head in kv_heads {
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

/// Room for `len` elements in all.
fn reserve<T>(buffer: &mut Vec<T>, len: usize) {
    buffer.reserve(len.saturating_sub(buffer.len()));
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
