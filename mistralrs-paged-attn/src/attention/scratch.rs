//! What attention computes in: each thread's rows, and what threads leave for each other.

use std::ops::Range;

use super::Step;
use super::plan::{QueryTile, TILES_PER_SPAN};
use crate::cpu_storage::PoolGeometry;
use crate::kernels::{
    ClaimedChunks, Claims, GROUPS_PER_TILE, KvElement, LANES, LOWEST, Line, MatrixOperands, Rows,
    attend_tile_by_matrix_unit, kv_lines, line_floats, line_floats_mut, padded, query_lines, split_query,
};

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

/// Rows of the largest query tile.
#[derive(Debug, Clone, Copy)]
pub(super) struct MaxRows {
    /// Of those that the CPU's matrix unit computes.
    pub(super) by_matrix_unit: usize,
    pub(super) others: usize,
}

impl Workspace {
    /// A scratch for `max_rows` for each thread.
    pub(super) fn grow_scratches(&mut self, geometry: &PoolGeometry, num_threads: usize, max_rows: MaxRows) {
        if self.scratches.len() < num_threads {
            self.scratches.resize_with(num_threads, Scratch::default);
        }
        self.scratch_claims.reserve(self.scratches.len());
        self.scratches.iter_mut().for_each(|scratch| scratch.grow(geometry, max_rows));
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
    /// The same for the CPU's matrix unit, and the KV that it passes over.
    matrix_query: Vec<Line>,
    matrix_kv: Vec<Line>,
    /// Of one KV head's rows: the others' are the same.
    num_visible: Vec<usize>,
    /// The current span: `[rows]`, `[rows, LANES]`, `[rows, padded D]`.
    max: Vec<f32>,
    sums: Vec<f32>,
    output: Vec<Line>,
    /// All spans so far, by row as in [`partial_len`].
    merged: Vec<f32>,
    num_merged: usize,
}

impl Scratch {
    fn grow(&mut self, geometry: &PoolGeometry, max_rows: MaxRows) {
        self.geometry = *geometry;
        let num_rows = max_rows.by_matrix_unit.max(max_rows.others);
        if max_rows.by_matrix_unit > 0 {
            reserve(&mut self.matrix_query, query_lines(max_rows.by_matrix_unit, geometry.head_size));
            self.matrix_kv.resize(kv_lines(geometry.head_size), Line::ZERO);
        }
        reserve(&mut self.query, num_rows * geometry.head_size);
        reserve(&mut self.num_visible, num_rows);
        reserve(&mut self.max, num_rows);
        reserve(&mut self.sums, num_rows * LANES);
        reserve(&mut self.output, num_rows * padded(geometry.head_size) / LANES);
        reserve(&mut self.merged, num_rows * partial_len(geometry));
    }

    /// Takes the queries of `tile`, scaled so that weights are powers of two.
    pub(super) fn start<E>(&mut self, step: &Step<'_, E>, tile: &QueryTile) {
        let group_len = tile.group_size * self.geometry.head_size;
        let scale = step.query.scale * std::f32::consts::LOG2_E;
        self.query.clear();
        for kv_head in tile.kv_heads.clone() {
            for token in tile.queries.clone() {
                self.query.extend_from_slice(&step.query.query.row(token)[kv_head * group_len..][..group_len]);
            }
            // Rows that fill up the matrix unit's.
            self.query
                .resize((kv_head + 1 - tile.kv_heads.start) * tile.rows_per_head() * self.geometry.head_size, 0.0);
        }
        self.num_visible.clear();
        for num_visible in tile.first_visible..=tile.last_visible() {
            self.num_visible.extend(std::iter::repeat_n(num_visible, tile.group_size));
        }
        self.num_visible.resize(tile.rows_per_head(), tile.last_visible());
        if tile.is_by_matrix_unit {
            self.matrix_query.resize(query_lines(tile.num_rows(), self.geometry.head_size), Line::ZERO);
            split_query(&self.query, (self.geometry.head_size, scale), &mut self.matrix_query);
        } else {
            self.query.iter_mut().for_each(|element| *element *= scale);
        }
        self.merged.resize(tile.num_rows() * partial_len(&self.geometry), 0.0);
        self.num_merged = 0;
    }

    /// Softmax over the tokens of one span alone.
    pub(super) fn attend_span<E: KvElement>(&mut self, step: &Step<'_, E>, tile: &QueryTile, span: usize) {
        refill(&mut self.max, tile.num_rows(), LOWEST);
        refill(&mut self.sums, tile.num_rows() * LANES, 0.0);
        refill(&mut self.output, tile.num_rows() * padded(self.geometry.head_size) / LANES, Line::ZERO);
        let (first, end) = (span * TILES_PER_SPAN, (span + 1) * TILES_PER_SPAN);
        for kv_tile in first.max(tile.kv_tiles.start)..end.min(tile.kv_tiles.end) {
            for (index, kv_head) in tile.kv_heads.clone().enumerate() {
                let (next_tile, next_head) = match kv_head + 1 {
                    end if end == tile.kv_heads.end => ((kv_tile + 1).min(tile.kv_tiles.end - 1), tile.kv_heads.start),
                    next_head => (kv_tile, next_head),
                };
                let current = step.kv_tile(tile, kv_head, kv_tile * GROUPS_PER_TILE);
                let ahead = step.kv_tile(tile, next_head, next_tile * GROUPS_PER_TILE);
                match self.head_rows(tile, index, step.window) {
                    (mut rows, Some(mut operands)) => {
                        attend_tile_by_matrix_unit(&current, &ahead, &mut rows, &mut operands);
                    }
                    (mut rows, None) => step.storage.isa().attend_tile(&current, &ahead, &mut rows),
                }
            }
        }
    }

    /// Rows of `tile`'s KV head `index`, and what the matrix unit reads in their place if it computes them.
    fn head_rows(&mut self, tile: &QueryTile, index: usize, window: usize) -> (Rows<'_>, Option<MatrixOperands<'_>>) {
        let (num_rows, head_size) = (self.num_visible.len(), self.geometry.head_size);
        let rows = |row_len: usize| index * num_rows * row_len..(index + 1) * num_rows * row_len;
        let operands = tile.is_by_matrix_unit.then_some((&self.matrix_query, &mut self.matrix_kv));
        let operands =
            operands.map(|(query, kv)| MatrixOperands { query: &query[rows(query_lines(1, head_size))], kv });
        let rows = Rows {
            head_size,
            query: &self.query[rows(head_size)],
            num_visible: &self.num_visible,
            window,
            max: &mut self.max[rows(1)],
            sums: &mut self.sums[rows(LANES)],
            output: &mut line_floats_mut(&mut self.output)[rows(padded(head_size))],
        };
        (rows, operands)
    }

    /// Adds the current span to what was merged before.
    pub(super) fn merge_span(&mut self) {
        let mut merged = std::mem::take(&mut self.merged);
        for (row, merged) in merged.chunks_exact_mut(partial_len(&self.geometry)).enumerate() {
            self.span_row(row).merge_into(merged, self.num_merged);
        }
        self.merged = merged;
        self.num_merged += 1;
    }

    /// Leaves the current span for [`Self::merge_partials`], rows from chunk `first` on.
    pub(super) fn store_span(&self, partials: &ClaimedChunks<'_, f32>, first: usize) {
        for row in 0..self.max.len() {
            self.span_row(row).merge_into(partials.take(first + row), 0);
        }
    }

    fn span_row(&self, row: usize) -> SpanRow<'_> {
        SpanRow {
            max: self.max[row],
            sum: sum_of_lanes(row_of(&self.sums, row, LANES)),
            output: row_of(line_floats(&self.output), row, padded(self.geometry.head_size)),
        }
    }

    /// What [`Self::merge_span`] would have made of the spans in turn, for one KV head.
    pub(super) fn merge_partials(&mut self, tile: &QueryTile, kv_head: usize, partials: &[f32]) {
        let (len, num_rows) = (partial_len(&self.geometry), tile.rows_per_head());
        let first = tile.first_partial.expect("the tile was shared") + (kv_head - tile.kv_heads.start) * num_rows;
        self.merged.resize(num_rows * len, 0.0);
        for span in 0..tile.spans().len() {
            for row in 0..num_rows {
                let [max, sum, output @ ..] = row_of(partials, first + span * tile.num_rows() + row, len) else {
                    unreachable!("a row has a maximum and a sum")
                };
                let span_row = SpanRow { max: *max, sum: *sum, output };
                span_row.merge_into(&mut self.merged[row * len..][..len], span);
            }
        }
    }

    /// Divides by the sums and hands out the rows, which are those of `kv_heads`.
    pub(super) fn finish(&self, tile: &QueryTile, kv_heads: Range<usize>, outputs: &ClaimedChunks<'_, f32>) {
        let len = partial_len(&self.geometry);
        for (kv_head, rows) in kv_heads.zip(self.merged.chunks_exact(tile.rows_per_head() * len)) {
            let mut rows = rows.chunks_exact(len);
            for token in tile.queries.clone() {
                let heads = outputs.take(token * self.geometry.num_kv_heads + kv_head);
                for (head, row) in heads.chunks_exact_mut(self.geometry.head_size).zip(&mut rows) {
                    let factor = 1.0 / row[1];
                    for (to, from) in head.iter_mut().zip(&row[2..]) {
                        // 0 has one sign, whichever the matrix unit left.
                        *to = from * factor + 0.0;
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

fn refill<T: Copy>(buffer: &mut Vec<T>, len: usize, value: T) {
    buffer.clear();
    buffer.resize(len, value);
}

fn row_of(rows: &[f32], row: usize, row_len: usize) -> &[f32] {
    &rows[row * row_len..][..row_len]
}

/// By halves, in one order for all.
fn sum_of_lanes(lanes: &[f32]) -> f32 {
    let mut sums: [f32; LANES] = lanes.try_into().expect("a row of sums has a lane for each");
    for half in [LANES / 2, LANES / 4, LANES / 8, LANES / 16] {
        (0..half).for_each(|lane| sums[lane] += sums[lane + half]);
    }
    sums[0]
}

/// A row's softmax over a span.
struct SpanRow<'a> {
    max: f32,
    sum: f32,
    output: &'a [f32],
}

impl SpanRow<'_> {
    /// Merges the row into `merged`, of [`partial_len`], which holds `num_merged` spans before it. The same operations in the same
    /// order wherever the spans were computed; a span of which the row sees nothing changes no bit.
    fn merge_into(&self, merged: &mut [f32], num_merged: usize) {
        let [max, sum, output @ ..] = merged else { unreachable!("a row has a maximum and a sum") };
        if num_merged == 0 {
            (*max, *sum) = (self.max, self.sum);
            output.copy_from_slice(self.output);
            return;
        }
        let new_max = max.max(self.max);
        let (of_earlier, of_span) = ((*max - new_max).exp2(), (self.max - new_max).exp2());
        (*max, *sum) = (new_max, *sum * of_earlier + self.sum * of_span);
        for (merged, span) in output.iter_mut().zip(self.output) {
            *merged = *merged * of_earlier + *span * of_span;
        }
    }
}
