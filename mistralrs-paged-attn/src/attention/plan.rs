//! Cuts one step's attention into units of work of bounded size. Values in, a plan out; any plan gives the same bits.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::num::NonZeroUsize;
use std::ops::Range;

use super::RaggedBatch;
use super::scratch::{MaxRows, Workspace};
use crate::KvLayout;
use crate::cpu_storage::PoolGeometry;
use crate::kernels::{GROUPS_PER_TILE, MATRIX_ROWS, matrix_unit_takes};

/// KV tiles per span: 256 tokens, where merging (one pass over a row's output) is below 2 % of the work, and a context
/// of 512 still keeps two threads busy with one KV head.
pub(super) const TILES_PER_SPAN: usize = 4;
/// Query rows per unit: queries and outputs of 48 rows of 64 stay in 48 KiB of L1 beside a KV tile.
const MAX_ROWS_PER_TILE: usize = 48;
/// The same where the CPU's matrix unit computes them: each KV tile has to be made ready for it, once for all these rows. Prompts of a
/// few hundred tokens still give each thread some units.
const MAX_MATRIX_ROWS_PER_TILE: usize = 12 * MATRIX_ROWS;
/// What reading a KV tile from memory costs, in rows computed over it.
const READ_COST: usize = 4;
/// Rows that the matrix unit computes in the time of one.
const MATRIX_SPEED: usize = 3;
/// Units that each thread should find, so that the last to finish does not keep the others waiting for long.
const UNITS_PER_THREAD: usize = 4;
/// Rows over a span below which one thread does it all: a few microseconds, less than a parked thread takes to wake.
const MIN_SHARED_COST: usize = 32;
/// Rows times spans to merge below which one thread merges them all: about as long as a second barrier takes.
const MIN_SHARED_MERGES: usize = 64;

/// Neighbouring queries of one sequence and the query groups of neighbouring KV heads.
///
/// Few queries (decodes) come with many heads: a block's heads are neighbours in memory, and the longer the run that
/// is read forwards, the nearer reading comes to the memory's full speed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueryTile {
    /// Where the sequence's block table begins in [`AttentionPlan::blocks`].
    pub(super) first_block: usize,
    pub(super) kv_heads: Range<usize>,
    /// Tokens of the batch.
    pub(super) queries: Range<usize>,
    /// Tokens up to and with the first query; each next one has one more.
    pub(super) first_visible: usize,
    /// Query heads per KV head.
    pub(super) group_size: usize,
    /// Whether the CPU's matrix unit computes its rows.
    pub(super) is_by_matrix_unit: bool,
    /// Of KV, from the first that the first query sees to the last that the last one does.
    pub(super) kv_tiles: Range<usize>,
    /// If several units share the tile: where their rows per span begin.
    pub(super) first_partial: Option<usize>,
}

impl QueryTile {
    /// Rows of each KV head, those that fill up the matrix unit's last ones included.
    pub(super) fn rows_per_head(&self) -> usize {
        let num_rows = self.queries.len() * self.group_size;
        if self.is_by_matrix_unit { num_rows.next_multiple_of(MATRIX_ROWS) } else { num_rows }
    }

    pub(super) fn num_rows(&self) -> usize {
        self.kv_heads.len() * self.rows_per_head()
    }

    /// Spans that have its KV tiles.
    pub(super) fn spans(&self) -> Range<usize> {
        self.kv_tiles.start / TILES_PER_SPAN..self.kv_tiles.end.div_ceil(TILES_PER_SPAN)
    }

    /// Tokens that the last query sees.
    pub(super) fn last_visible(&self) -> usize {
        self.first_visible + self.queries.len() - 1
    }

    fn head_cost(&self) -> usize {
        READ_COST + if self.is_by_matrix_unit { self.rows_per_head() / MATRIX_SPEED } else { self.rows_per_head() }
    }

    fn span_cost(&self) -> usize {
        self.kv_heads.len() * self.head_cost()
    }
}

/// Some spans of a query tile: what one thread does at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) tile: usize,
    pub(super) spans: Range<usize>,
}

/// One KV head of a shared tile, whose spans are merged when all units are done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Merge {
    pub(super) tile: usize,
    pub(super) kv_head: usize,
}

/// How the threads share one step's attention, and the buffers they need for it.
///
/// [`KvCache::plan`](crate::KvCache::plan) makes it once per step, every layer of the step uses it. Kept from step to
/// step, it keeps its memory. Layers that differ in what they see have plans of their own ([`Self::with_window`]). One
/// step at a time: it can be sent to another thread, not shared.
#[derive(Debug, Default)]
pub struct AttentionPlan {
    /// The cache that it fits; `None` before the first plan and after a bad one.
    pub(crate) made_for: Option<(KvLayout, usize)>,
    pub(super) geometry: PoolGeometry,
    num_heads: usize,
    num_tokens: usize,
    /// See [`Self::with_window`].
    window: Option<NonZeroUsize>,
    /// See [`Self::computing_prompts_apart`].
    computes_prompts_apart: bool,
    /// Of all sequences, as far as they are read.
    pub(super) blocks: Vec<u32>,
    pub(super) tiles: Vec<QueryTile>,
    /// Largest first.
    pub(super) units: Vec<Unit>,
    pub(super) merges: Vec<Merge>,
    /// Rows of all spans of all shared tiles.
    pub(super) num_partials: usize,
    /// Threads worth waking, the caller included.
    pub(super) num_threads: usize,
    pub(super) num_merge_threads: usize,
    /// Borrowed by one call of attention at a time.
    pub(super) workspace: RefCell<Workspace>,
}

impl AttentionPlan {
    /// For layers whose tokens see the last `window` tokens only, themselves included; all, where there is none.
    pub fn with_window(window: Option<NonZeroUsize>) -> Self {
        Self { window, ..Self::default() }
    }

    /// Whether tokens of prompts may be computed in another way than generated ones: by the CPU's matrix unit, where it has
    /// one and heads are multiples of 64. Sums are as exact as the vector units', products to 15 bits; so a token's bits tell its kind.
    #[must_use]
    pub fn computing_prompts_apart(self, computes_prompts_apart: bool) -> Self {
        Self { computes_prompts_apart, ..self }
    }

    /// Tokens of the step, T.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Query heads, H.
    pub fn num_heads(&self) -> usize {
        self.num_heads
    }

    /// Tokens that a token sees, itself included, if not all.
    pub fn window(&self) -> Option<NonZeroUsize> {
        self.window
    }

    /// The same for arithmetic: more than any context has, where a token sees all.
    pub(super) fn max_visible(&self) -> usize {
        self.window.map_or(usize::MAX, NonZeroUsize::get)
    }

    /// Query heads per KV head.
    pub(super) fn group_size(&self) -> usize {
        self.num_heads / self.geometry.num_kv_heads
    }

    /// Forgets the step, not the memory.
    pub(crate) fn clear(&mut self) {
        self.made_for = None;
        self.num_partials = 0;
        self.blocks.clear();
        self.tiles.clear();
        self.units.clear();
        self.merges.clear();
    }

    /// What is large beside a thread's share is cut, by spans first and by heads where that is not enough.
    pub(crate) fn fill(&mut self, batch: &RaggedBatch, geometry: &PoolGeometry, num_heads: usize, num_threads: usize) {
        self.clear();
        (self.geometry, self.num_heads, self.num_tokens) = (*geometry, num_heads, batch.num_tokens());
        for sequence in 0..batch.num_sequences() {
            let num_blocks = batch.context_len(sequence).div_ceil(geometry.block_size);
            self.blocks.extend_from_slice(&batch.block_table(sequence)[..num_blocks]);
        }
        let cutter = Cutter {
            geometry: *geometry,
            group_size: num_heads / geometry.num_kv_heads,
            window: self.max_visible(),
            num_by_vectors: if self.computes_prompts_apart && matrix_unit_takes(geometry.head_size) {
                batch.num_generated_sequences
            } else {
                batch.num_sequences()
            },
        };
        let whole_tiles = || cutter.query_tiles(batch);
        let cost: usize = whole_tiles().map(|tile| tile.spans().len() * tile.span_cost()).sum();
        self.num_threads = if cost < MIN_SHARED_COST { 1 } else { num_threads };
        let num_shares = self.num_threads * UNITS_PER_THREAD;
        let share = if self.num_threads > 1 { (cost / num_shares).max(1) } else { usize::MAX };
        for tile in whole_tiles() {
            let max_heads =
                (max_rows_per_tile(tile.is_by_matrix_unit) / tile.rows_per_head()).min(share / tile.head_cost()).max(1);
            // Of nearly equal size: eight heads, five at most, are four and four.
            let heads_per_tile = tile.kv_heads.len().div_ceil(tile.kv_heads.len().div_ceil(max_heads));
            for first_head in tile.kv_heads.clone().step_by(heads_per_tile) {
                let kv_heads = first_head..tile.kv_heads.end.min(first_head + heads_per_tile);
                self.add(QueryTile { kv_heads, ..tile.clone() }, share);
            }
        }
        self.num_merge_threads = if self.num_partials < MIN_SHARED_MERGES { 1 } else { self.num_threads };
        let tiles = &self.tiles;
        // A stable sort would allocate: what is equally large stays in order by its place.
        self.units.sort_unstable_by_key(|unit| {
            (Reverse(unit.spans.len() * tiles[unit.tile].span_cost()), unit.tile, unit.spans.start)
        });
        self.grow_workspace();
    }

    fn add(&mut self, mut tile: QueryTile, share: usize) {
        let (spans, num_rows) = (tile.spans(), tile.num_rows());
        let num_units = (spans.len() * tile.span_cost()).div_ceil(share).min(spans.len());
        let spans_per_unit = spans.len().div_ceil(num_units);
        if spans_per_unit < spans.len() {
            tile.first_partial = Some(self.num_partials);
            self.num_partials += spans.len() * num_rows;
            self.merges.extend(tile.kv_heads.clone().map(|kv_head| Merge { tile: self.tiles.len(), kv_head }));
        }
        for start in spans.clone().step_by(spans_per_unit) {
            let spans = start..spans.end.min(start + spans_per_unit);
            self.units.push(Unit { tile: self.tiles.len(), spans });
        }
        self.tiles.push(tile);
    }

    /// Whichever thread gets whichever unit, it finds room: attention itself never allocates.
    fn grow_workspace(&mut self) {
        let max_rows = |is_by_matrix_unit| {
            let tiles = self.tiles.iter().filter(|tile| tile.is_by_matrix_unit == is_by_matrix_unit);
            tiles.map(QueryTile::num_rows).max().unwrap_or(0)
        };
        let max_rows = MaxRows { by_matrix_unit: max_rows(true), others: max_rows(false) };
        let workspace = self.workspace.get_mut();
        workspace.grow_scratches(&self.geometry, self.num_threads, max_rows);
        workspace.grow_partials(&self.geometry, self.num_partials);
        workspace.output_claims.reserve(self.num_tokens * self.geometry.num_kv_heads);
    }
}

fn max_rows_per_tile(is_by_matrix_unit: bool) -> usize {
    if is_by_matrix_unit { MAX_MATRIX_ROWS_PER_TILE } else { MAX_ROWS_PER_TILE }
}

/// What makes query tiles of a batch.
struct Cutter {
    geometry: PoolGeometry,
    group_size: usize,
    /// Tokens that a token sees.
    window: usize,
    /// Sequences whose queries are not for the matrix unit, the first ones.
    num_by_vectors: usize,
}

impl Cutter {
    /// All sequences' queries in pieces, each with all KV heads.
    fn query_tiles(&self, batch: &RaggedBatch) -> impl Iterator<Item = QueryTile> {
        let mut next_block = 0;
        (0..batch.num_sequences()).flat_map(move |sequence| {
            let (all_queries, context_len) = (batch.queries(sequence), batch.context_len(sequence));
            let is_by_matrix_unit = sequence >= self.num_by_vectors;
            let queries_per_tile = (max_rows_per_tile(is_by_matrix_unit) / self.group_size).max(1);
            let first_block = next_block;
            next_block += context_len.div_ceil(self.geometry.block_size);
            all_queries.clone().step_by(queries_per_tile).map(move |start| {
                let queries = start..all_queries.end.min(start + queries_per_tile);
                // The last query of the sequence sees all of its context.
                let last_visible = context_len - (all_queries.end - queries.end);
                let first_visible = last_visible + 1 - queries.len();
                QueryTile {
                    first_block,
                    kv_heads: 0..self.geometry.num_kv_heads,
                    first_visible,
                    queries,
                    group_size: self.group_size,
                    is_by_matrix_unit,
                    kv_tiles: self.kv_tiles(first_visible, last_visible),
                    first_partial: None,
                }
            })
        })
    }

    /// What queries see whose first has `first_visible` tokens up to it, and whose last `last_visible`.
    fn kv_tiles(&self, first_visible: usize, last_visible: usize) -> Range<usize> {
        let first_group = self.geometry.group_of(first_visible.saturating_sub(self.window));
        first_group / GROUPS_PER_TILE..self.geometry.groups_of(last_visible).div_ceil(GROUPS_PER_TILE)
    }
}
