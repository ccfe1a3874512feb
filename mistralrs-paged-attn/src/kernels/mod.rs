//! The arithmetic of attention on one core, and the only `unsafe` of this crate.
//!
//! Works on one [`Tile`] of KV and some [`Rows`] of queries at a time; knows no batch, block table or thread. Every
//! row's arithmetic is a fixed sequence of operations per tile, whatever rows are computed beside it: the reason why a
//! sequence gets the same bits alone, in a batch, prefilled at once, in chunks or token by token. There are two such
//! sequences: vector registers' (`tile`), and the CPU's matrix unit's (`amx`). Who calls says which.

#![expect(clippy::inline_always, reason = "lanes are registers only inside a function with their target feature")]

#[cfg(target_arch = "x86_64")]
mod amx;
mod element;
mod lanes;
// One file for both crates of kernels.
#[path = "../../../mistralrs-quant/src/kernels/matrix_unit.rs"]
mod matrix_unit;
mod memory;
mod q8;
mod tile;
mod write;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

pub(crate) use element::KvElement;
use lanes::Portable;
pub(crate) use memory::{ClaimedChunks, Claims, LazyPool, Line, Stripes, line_floats, line_floats_mut};
pub(crate) use q8::{Q8, RUN_LEN};
pub(crate) use write::{HeadRows, HeadSlots};

/// Tokens whose keys sit side by side in memory, one per vector lane.
pub(crate) const LANES: usize = 16;
/// Lane groups per tile. One tile of keys fills four vectors, enough independent sums to hide the latency of one.
pub(crate) const GROUPS_PER_TILE: usize = 4;
/// Tokens per tile at most.
pub(crate) const TILE_LEN: usize = LANES * GROUPS_PER_TILE;
/// Rows computed at once: 6 x 4 sums, a query and four keys just fit 32 vector registers.
const MAX_ROWS_AT_ONCE: usize = 6;
/// Rows that the CPU's matrix unit computes at once: units of work for it have as many, or a multiple.
pub(crate) const MATRIX_ROWS: usize = 16;
/// Head sizes that the unit takes are multiples of this: four of its registers of values.
const MATRIX_DIMS: usize = 4 * LANES;
/// A maximum below any score. Finite, so that `score - LOWEST` is never `-inf - -inf`.
pub(crate) const LOWEST: f32 = f32::MIN;

/// Up to [`LANES`] consecutive tokens of one KV head, all in one block.
#[derive(Clone, Copy)]
pub(crate) struct Group<'a, E> {
    /// [`KvElement::keys_len`].
    pub(crate) keys: &'a [E],
    /// `[num_lanes or more,` [`KvElement::row_len`]`]`.
    pub(crate) values: &'a [E],
    /// Position of the first token.
    pub(crate) first_token: usize,
    /// Tokens; 0 past the end of the sequence, where keys are any.
    pub(crate) num_lanes: usize,
}

/// Up to [`TILE_LEN`] consecutive tokens of one KV head, in lane groups that may lie in different blocks.
pub(crate) struct Tile<'a, E> {
    pub(crate) groups: [Group<'a, E>; GROUPS_PER_TILE],
}

/// By group of a tile, which tokens a few rows see.
struct Seen {
    /// Tokens before the window of the first row, whose window begins first.
    num_hidden: [usize; GROUPS_PER_TILE],
    /// Tokens up to the last that the last row sees, which sees furthest.
    num_shown: [usize; GROUPS_PER_TILE],
}

impl<E: KvElement> Tile<'_, E> {
    /// Its tokens, by position.
    fn tokens(&self) -> Range<usize> {
        let last = self.groups.iter().rfind(|group| group.num_lanes > 0).unwrap_or(&self.groups[0]);
        self.groups[0].first_token..last.first_token + last.num_lanes
    }

    /// What rows see, by [`Rows::num_visible`] and [`Rows::window`]; `None` if it is nothing.
    fn seen_by(&self, num_visible: &[usize], window: usize) -> Option<Seen> {
        let (first, last) = (num_visible.first()?, num_visible.last()?);
        let (num_hidden, num_shown) = (self.num_hidden(first.saturating_sub(window)), self.num_shown(*last));
        (num_hidden != num_shown).then_some(Seen { num_hidden, num_shown })
    }

    /// Tokens of each group that a query sees that sees `num_visible` of its sequence.
    fn num_shown(&self, num_visible: usize) -> [usize; GROUPS_PER_TILE] {
        self.groups.map(|group| num_visible.saturating_sub(group.first_token).min(group.num_lanes))
    }

    /// Tokens of each group before `first_seen`.
    fn num_hidden(&self, first_seen: usize) -> [usize; GROUPS_PER_TILE] {
        self.groups.map(|group| first_seen.saturating_sub(group.first_token).min(group.num_lanes))
    }

    /// Panics where a kernel would read outside the groups.
    fn check(&self, head_size: usize) {
        assert!(E::DTYPE.fits(head_size));
        for group in &self.groups {
            assert!(group.num_lanes <= LANES && group.keys.len() == E::keys_len(head_size));
            assert!(group.values.len() >= group.num_lanes * E::row_len(head_size));
        }
    }
}

/// The head size in whole vectors: what a row of values or output takes.
pub(crate) fn padded(head_size: usize) -> usize {
    head_size.next_multiple_of(LANES)
}

/// Query rows and their unfinished softmax: after all tiles, `output / sum of sums` is the attention.
pub(crate) struct Rows<'a> {
    pub(crate) head_size: usize,
    /// `[rows, D]`, scaled by the softmax scale and log2(e): weights are powers of two here. The matrix unit does not read it.
    pub(crate) query: &'a [f32],
    /// `[rows]`, rising: tokens each row sees, from the start of its sequence.
    pub(crate) num_visible: &'a [usize],
    /// How many of these a row sees, the last ones.
    pub(crate) window: usize,
    /// `[rows]`: the largest score so far, [`LOWEST`] at first.
    pub(crate) max: &'a mut [f32],
    /// `[rows, LANES]`: weights so far, relative to `max`, summed by lane.
    pub(crate) sums: &'a mut [f32],
    /// `[rows, padded D]`: values so far, weighted the same.
    pub(crate) output: &'a mut [f32],
}

impl Rows<'_> {
    /// The first token that `row` sees.
    fn first_seen(&self, row: usize) -> usize {
        self.num_visible[row].saturating_sub(self.window)
    }

    /// Panics where a kernel would read or write outside the buffers.
    fn check(&self) {
        let num_rows = self.num_visible.len();
        assert_eq!(self.query.len(), num_rows * self.head_size);
        assert_eq!(self.max.len(), num_rows);
        assert_eq!(self.sums.len(), num_rows * LANES);
        assert_eq!(self.output.len(), num_rows * padded(self.head_size));
    }
}

/// What the matrix unit reads in place of floats: each in two bf16, of which the second is what the first leaves.
pub(crate) struct MatrixOperands<'a> {
    /// Of [`query_lines`], made by [`split_query`] in place of [`Rows::query`].
    pub(crate) query: &'a [Line],
    /// Of [`kv_lines`]; a tile's keys and values are put here.
    pub(crate) kv: &'a mut [Line],
}

/// Whether the CPU has a matrix unit, and rows of `head_size` can be computed by it.
pub(crate) fn matrix_unit_takes(head_size: usize) -> bool {
    matrix_unit::is_available() && head_size.is_multiple_of(MATRIX_DIMS)
}

/// Lines of `num_rows` queries for the matrix unit.
pub(crate) fn query_lines(num_rows: usize, head_size: usize) -> usize {
    num_rows * (2 * head_size * 2 / size_of::<Line>())
}

/// Lines of a tile's keys and values for the matrix unit.
pub(crate) fn kv_lines(head_size: usize) -> usize {
    2 * query_lines(TILE_LEN, head_size)
}

/// Makes `lines`, of [`query_lines`], of `query` `[rows, D]` times `scale`, whole [`MATRIX_ROWS`] of a D that [`matrix_unit_takes`].
pub(crate) fn split_query(query: &[f32], (head_size, scale): (usize, f32), lines: &mut [Line]) {
    let num_rows = query.len() / head_size;
    assert!(matrix_unit_takes(head_size) && num_rows.is_multiple_of(MATRIX_ROWS));
    assert!(query.len() == num_rows * head_size && lines.len() == query_lines(num_rows, head_size));
    // SAFETY: there is a unit, and with it AVX-512F; sizes were checked.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        amx::split_query(query, (head_size, scale), lines);
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("there is no matrix unit for queries times {scale}")
}

/// As [`Isa::attend_tile`], by the matrix unit. Rows are whole [`MATRIX_ROWS`], of a head size that [`matrix_unit_takes`].
pub(crate) fn attend_tile_by_matrix_unit<E: KvElement>(
    tile: &Tile<'_, E>,
    ahead: &Tile<'_, E>,
    rows: &mut Rows<'_>,
    operands: &mut MatrixOperands<'_>,
) {
    tile.check(rows.head_size);
    ahead.check(rows.head_size);
    rows.check();
    let num_rows = rows.num_visible.len();
    assert!(matrix_unit_takes(rows.head_size) && num_rows.is_multiple_of(MATRIX_ROWS));
    assert_eq!(operands.query.len(), query_lines(num_rows, rows.head_size));
    assert_eq!(operands.kv.len(), kv_lines(rows.head_size));
    // SAFETY: there is a unit, and with it AVX-512F; buffers were checked above.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        amx::attend_tile(tile, ahead, rows, operands);
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("there is no matrix unit for {num_rows} rows")
}

/// An instruction set that this CPU has: values come from [`Isa::best`] and [`Isa::all`] only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Isa(Level);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Isa {
    /// The fastest one.
    pub(crate) fn best() -> Self {
        Self::all()[0]
    }

    /// All of them, fastest first.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                all.push(Self(Level::Avx512));
            }
            let has_avx2 = is_x86_feature_detected!("avx2");
            if has_avx2 && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                all.push(Self(Level::Avx2));
            }
        }
        all.push(Self(Level::Portable));
        all
    }

    /// Adds the tokens of `tile` to the softmax of every row that sees them. `ahead` is what will be read next: it is
    /// fetched from memory meanwhile, so that computing does not wait for reading nor the other way round.
    pub(crate) fn attend_tile<E: KvElement>(self, tile: &Tile<'_, E>, ahead: &Tile<'_, E>, rows: &mut Rows<'_>) {
        tile.check(rows.head_size);
        ahead.check(rows.head_size);
        rows.check();
        match self.0 {
            // SAFETY: `Isa::all` found the feature; buffers were checked above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { x86::attend_tile_avx512(tile, ahead, rows) },
            // SAFETY: `Isa::all` found the features; buffers were checked above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { x86::attend_tile_avx2(tile, ahead, rows) },
            // SAFETY: needs no feature; buffers were checked above.
            Level::Portable => unsafe { tile::attend_narrow::<Portable, E>(tile, ahead, rows) },
        }
    }

    /// Rounds the rows into a block, the first at the token that `slots` names.
    ///
    /// # Panics
    /// If the rows do not fit there.
    pub(crate) fn write_head<E: KvElement>(self, rows: &HeadRows<'_>, mut slots: HeadSlots<'_, E>) {
        match self.0 {
            // SAFETY: `Isa::all` found the feature.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { x86::write_head_avx512(rows, &mut slots) },
            // SAFETY: `Isa::all` found the features.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { x86::write_head_avx2(rows, &mut slots) },
            // SAFETY: needs no feature.
            Level::Portable => unsafe { write::write_head::<Portable, E>(rows, &mut slots) },
        }
    }
}
