//! The inner loops: R rows of activations by V tiles, over all inputs.
//!
//! Every output is one chain over the blocks of inputs, in order: the integer sum of a span, exact, times the weights'
//! scale, plus the minimum's share, times the activations' scale, added. So R, V, the layout of the weights and the
//! instruction set never change a bit.

use std::ops::Range;

use super::is_made_by_amd;
use super::lanes::Lanes;
use super::weights::{Expanded, ExpandedWeights, OpenBlock, Stored, Weights, for_format};
use crate::activations::{QuantizedRows, STRIP};
use crate::format::{BLOCK, BlockFormat};
use crate::matrix::{Output, Tiles};
use crate::tile::{QUAD, QUADS, TILE};

/// The part of a product that one unit of work computes.
pub(crate) struct Job<'a> {
    pub(crate) weights: Tiles<'a>,
    pub(crate) activations: &'a QuantizedRows,
    pub(crate) out: Output<'a>,
    /// Of the matrix.
    pub(crate) tiles: Range<usize>,
    /// Of the activations.
    pub(crate) strips: Range<usize>,
    /// Room for expanded tiles, if there is more than one strip.
    pub(crate) scratch: &'a mut [u8],
}

/// Rows of a strip as kernels walk over them, block by block.
#[derive(Clone, Copy)]
pub(super) struct RowPointers {
    quants: *const i8,
    scales: *const f32,
    bases: *const i32,
    sums: *const f32,
    /// Rows from one block to the next.
    stride: usize,
}

/// Where the results of neighbouring tiles for some rows go.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub(super) at: *mut f32,
    pub(super) stride: usize,
    /// Of all the tiles; fewer than 16 in the matrix's last one.
    pub(super) num_columns: usize,
    /// Added to the first row; null for nothing.
    pub(super) addend: *const f32,
    pub(super) addend_stride: usize,
}

/// With fewer strips the next tiles are not asked for meanwhile: there is too little time between so many questions.
const MIN_STRIPS_AHEAD: usize = 8;

/// Tiles that are expanded together.
pub(crate) const TILES_AT_ONCE: usize = 2;

/// Bytes that an expanded block of those tiles takes at most.
pub(crate) const MAX_EXPANDED_BYTES: usize = TILES_AT_ONCE * Expanded::<2, true>::GROUP_BYTES;

/// Computes `job`.
///
/// # Safety
/// The CPU has what `L` needs; tiles and strips exist; the weights' groups cover the activations' inputs; activations
/// have half sums if the format needs them; `out` has room for every row and nobody else touches these columns of these
/// rows; `scratch` holds [`TILES_AT_ONCE`] expanded tiles unless there is one strip.
pub(super) unsafe fn run<L: Lanes>(job: &mut Job<'_>) {
    macro_rules! with {
        ($format:ident, $spans:literal, $has_minima:literal) => {
            run_format::<L, Stored<{ BlockFormat::$format as usize }>, Expanded<$spans, $has_minima>>(job)
        };
    }
    // SAFETY: the caller's promise is the callee's; the format names how tiles are stored.
    unsafe { for_format!(job.weights.format, with) }
}

/// # Safety
/// As [`run`]'s; `S` and `E` are the job's format as stored and expanded.
unsafe fn run_format<L: Lanes, S: Weights, E: ExpandedWeights>(job: &mut Job<'_>) {
    const { assert!(S::SPANS == E::SPANS && S::HAS_MINIMA == E::HAS_MINIMA) };
    let num_groups = job.weights.num_groups;
    let stored = |tile: usize| job.weights.bytes.as_ptr().wrapping_add(tile * num_groups * S::GROUP_BYTES);
    if job.strips.len() == 1 {
        let tiles = TileRun { at: stored(job.tiles.start), num_groups, tiles: job.tiles.clone() };
        // SAFETY: the caller's promise: the tiles are there, as many as the job has.
        unsafe { multiply_strip::<L, S>(job, &tiles, job.strips.start) };
        return;
    }
    let num_blocks = num_groups * S::BLOCKS;
    for first in job.tiles.clone().step_by(TILES_AT_ONCE) {
        let tiles = first..job.tiles.end.min(first + TILES_AT_ONCE);
        for (index, tile) in tiles.clone().enumerate() {
            let to = job.scratch[index * num_blocks * E::GROUP_BYTES..].as_mut_ptr();
            // SAFETY: the caller's promise: the tile is there, and there is room for so many expanded ones.
            unsafe { L::expand::<S, E>(stored(tile), num_groups, to) };
        }
        let is_ahead = job.strips.len() >= MIN_STRIPS_AHEAD;
        let num_next = if is_ahead { job.tiles.end.min(tiles.end + TILES_AT_ONCE) - tiles.end } else { 0 };
        let ahead = (num_next * num_groups * S::GROUP_BYTES).div_ceil(job.strips.len());
        let (at, tiles) = (stored(tiles.end), TileRun { at: job.scratch.as_ptr(), num_groups: num_blocks, tiles });
        for (index, strip) in job.strips.clone().enumerate() {
            // The next tiles come out of memory meanwhile, a part with each strip.
            for line in (0..ahead).step_by(64) {
                L::prefetch_far(at.wrapping_add(index * ahead + line));
            }
            // SAFETY: as above, and the tiles were just expanded.
            unsafe { multiply_strip::<L, E>(job, &tiles, strip) };
        }
    }
}

/// Neighbouring tiles in some layout.
struct TileRun {
    /// The first one's groups.
    at: *const u8,
    /// Of each.
    num_groups: usize,
    /// Which they are.
    tiles: Range<usize>,
}

/// All rows of a strip by the tiles of a run.
///
/// # Safety
/// As [`run`]'s; the run is of layout `W`.
unsafe fn multiply_strip<L: Lanes, W: Weights>(job: &Job<'_>, tiles: &TileRun, strip: usize) {
    let first_row = strip * STRIP;
    let num_rows = STRIP.min(job.activations.num_rows() - first_row);
    // Expanded tiles are only loaded: two at once halve the loads of activations. Stored ones are taken apart for every
    // call, so one at a time, by as many rows as there are registers.
    let max_rows = if L::IS_WIDE && !W::IS_EXPANDED { 8 } else { L::MAX_ROWS };
    // Parts of nearly equal size.
    let part = num_rows.div_ceil(num_rows.div_ceil(max_rows));
    for row in (0..num_rows).step_by(part) {
        let rows = RowPointers::new::<W>(job.activations, first_row, row);
        let strip = StripPart { rows, first_row: first_row + row, out: &job.out };
        let num_rows = part.min(num_rows - row);
        // SAFETY: the caller's promise; so many rows are left in the strip.
        unsafe {
            if !L::IS_WIDE {
                multiply_few_rows::<L, W>(tiles, &strip, num_rows);
            } else if W::IS_EXPANDED {
                multiply_rows::<L, W, 2>(tiles, &strip, num_rows);
            } else if num_rows > 6 {
                multiply_many_rows::<L, W>(tiles, &strip, num_rows);
            } else {
                multiply_rows::<L, W, 1>(tiles, &strip, num_rows);
            }
        }
    }
}

/// # Safety
/// As [`multiply_strip`]'s; the part has `num_rows` rows, at most 3.
unsafe fn multiply_few_rows<L: Lanes, W: Weights>(tiles: &TileRun, strip: &StripPart<'_>, num_rows: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        if L::MAX_ROWS == 1 || num_rows == 1 {
            multiply_tiles::<L, W, 1, 1>(tiles, strip);
        } else if L::MAX_ROWS == 2 || num_rows == 2 {
            multiply_tiles::<L, W, 2, 1>(tiles, strip);
        } else {
            multiply_tiles::<L, W, 3, 1>(tiles, strip);
        }
    }
}

/// # Safety
/// As [`multiply_strip`]'s; the part has `num_rows` rows, at most 6.
unsafe fn multiply_rows<L: Lanes, W: Weights, const V: usize>(tiles: &TileRun, strip: &StripPart<'_>, num_rows: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match num_rows {
            1 => multiply_tiles::<L, W, 1, V>(tiles, strip),
            2 => multiply_tiles::<L, W, 2, V>(tiles, strip),
            3 => multiply_tiles::<L, W, 3, V>(tiles, strip),
            4 => multiply_tiles::<L, W, 4, V>(tiles, strip),
            5 => multiply_tiles::<L, W, 5, V>(tiles, strip),
            _ => multiply_tiles::<L, W, 6, V>(tiles, strip),
        }
    }
}

/// # Safety
/// As [`multiply_strip`]'s; the part has `num_rows` rows, 7 or 8.
unsafe fn multiply_many_rows<L: Lanes, W: Weights>(tiles: &TileRun, strip: &StripPart<'_>, num_rows: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        if num_rows == 7 {
            multiply_tiles::<L, W, 7, 1>(tiles, strip);
        } else {
            multiply_tiles::<L, W, 8, 1>(tiles, strip);
        }
    }
}

/// Some rows of a strip, and where their results go.
struct StripPart<'a> {
    rows: RowPointers,
    first_row: usize,
    out: &'a Output<'a>,
}

/// R rows by all tiles of the run, V at a time.
///
/// # Safety
/// As [`run`]'s; the strip has R rows.
unsafe fn multiply_tiles<L: Lanes, W: Weights, const R: usize, const V: usize>(tiles: &TileRun, strip: &StripPart<'_>) {
    let tile_bytes = tiles.num_groups * W::GROUP_BYTES;
    let is_asked_for = R > rows_left_to_the_cpu();
    for first in (0..tiles.tiles.len()).step_by(V) {
        // Where fewer are left the last one stands in for those that are missing, and is not stored again.
        let last = tiles.tiles.len() - 1;
        let at = std::array::from_fn(|tile| tiles.at.wrapping_add(last.min(first + tile) * tile_bytes));
        let target = Target::new(strip.out, tiles.tiles.start + first, tiles.tiles.len() - first, strip.first_row);
        let groups = TileGroups { at, len: tiles.num_groups, is_asked_for };
        // SAFETY: the caller's promise: the tiles are there.
        unsafe { L::multiply::<W, R, V>(&groups, &strip.rows, &target) };
    }
}

/// Groups of V tiles, side by side.
#[derive(Clone, Copy)]
pub(super) struct TileGroups<const V: usize> {
    at: [*const u8; V],
    /// Of each.
    len: usize,
    /// Whether lines are asked for before they are read, if tiles are stored ones.
    is_asked_for: bool,
}

impl RowPointers {
    /// From row `row` of the strip that begins with `first_row`.
    fn new<W: Weights>(activations: &QuantizedRows, first_row: usize, row: usize) -> Self {
        let num_inputs = activations.num_inputs();
        let block = first_row * num_inputs / BLOCK;
        let sums = if W::SPANS == 2 { &activations.halves } else { &activations.whole };
        let span = block * W::SPANS;
        Self {
            quants: activations.quants[first_row * num_inputs + row * BLOCK..].as_ptr(),
            scales: activations.scales[block + row..].as_ptr(),
            bases: sums.bases[span + row..].as_ptr(),
            sums: sums.sums[span + row..].as_ptr(),
            stride: STRIP.min(activations.num_rows() - first_row),
        }
    }
}

impl Target {
    /// Row `row` of `num_tiles` tiles from `tile` on.
    pub(super) fn new(out: &Output<'_>, tile: usize, num_tiles: usize, row: usize) -> Self {
        let column = tile * TILE;
        Self {
            at: out.at.at(row * out.stride + column),
            stride: out.stride,
            num_columns: (num_tiles * TILE).min(out.num_columns - column),
            addend: if out.addend.0.is_null() {
                std::ptr::null()
            } else {
                out.addend.at(row * out.addend_stride + column)
            },
            addend_stride: out.addend_stride,
        }
    }

    /// Asks for the lines of `row` in V tiles. Results are rows far apart, one or two lines of each: were they fetched only
    /// when they are stored, all that follows would wait for memory.
    #[inline(always)]
    pub(super) fn prefetch<L: Lanes, const V: usize>(&self, row: usize) {
        for tile in 0..V {
            L::prefetch(self.at.wrapping_add(row * self.stride + tile * TILE).cast());
        }
    }

    /// # Safety
    /// `row` is one of the rows that the target was made for.
    #[inline(always)]
    pub(super) unsafe fn store<L: Lanes>(self, row: usize, tile: usize, values: L) {
        let column = tile * TILE;
        let at = self.at.wrapping_add(row * self.stride + column);
        let addend = self.addend.wrapping_add(row * self.addend_stride + column);
        // SAFETY: the caller's promise; a shorter tail goes through a buffer of a whole tile.
        unsafe {
            if column + TILE <= self.num_columns {
                let values = if self.addend.is_null() { values } else { values.add(L::load(addend)) };
                values.store(at);
            } else if column < self.num_columns {
                let mut tail = [0f32; TILE];
                values.store(tail.as_mut_ptr());
                let tail = &mut tail[..self.num_columns - column];
                if !self.addend.is_null() {
                    tail.iter_mut().enumerate().for_each(|(index, value)| *value += *addend.add(index));
                }
                std::ptr::copy_nonoverlapping(tail.as_ptr(), at, tail.len());
            }
        }
    }
}

/// R rows by V tiles of layout `W`. Called by [`Lanes::multiply`] only, which has the CPU features.
///
/// # Safety
/// The CPU has what `L` needs; pointers lead to as many rows, groups and columns as they were made for.
#[inline(always)]
pub(super) unsafe fn multiply<L: Lanes, W: Weights, const R: usize, const V: usize>(
    tiles: &TileGroups<V>,
    rows: &RowPointers,
    target: &Target,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = *rows;
        for row in 0..R {
            target.prefetch::<L, V>(row);
        }
        let mut out = [[L::splat(0.0); V]; R];
        for group in 0..tiles.len {
            let mut groups = tiles.at;
            for tile in &mut groups {
                *tile = tile.add(group * W::GROUP_BYTES);
            }
            for block in 0..W::BLOCKS {
                if !W::IS_EXPANDED && tiles.is_asked_for {
                    for group in groups {
                        prefetch_block::<L, W>(group, block);
                    }
                }
                multiply_block::<L, W, R, V>((groups, block), &mut rows, &mut out);
            }
        }
        for (row, out) in out.into_iter().enumerate() {
            for (tile, out) in out.into_iter().enumerate() {
                target.store(row, tile, out);
            }
        }
    }
}

/// Bytes that stored tiles are asked for before they are read: by the second-level cache, which can wait for more lines at
/// a time than the first-level one, and then by that.
const PREFETCH_FAR_BYTES: usize = 16 * 1024;
const PREFETCH_BYTES: usize = 2 * 1024;

/// Asks for what follows so far behind a block: as many lines as a block takes, since AMD's CPUs wait for a whole group's.
/// Taking codes apart is so much work for each byte that the CPU does not look far enough ahead by itself, and its
/// prefetchers stop at the end of each page.
#[inline(always)]
fn prefetch_block<L: Lanes, W: Weights>(group: *const u8, block: usize) {
    let num_lines = W::GROUP_BYTES.div_ceil(W::BLOCKS).div_ceil(LINE_BYTES);
    for line in block * num_lines..(block + 1) * num_lines {
        L::prefetch_far(group.wrapping_add(PREFETCH_FAR_BYTES + line * LINE_BYTES));
        L::prefetch(group.wrapping_add(PREFETCH_BYTES + line * LINE_BYTES));
    }
}

/// Of a cache.
const LINE_BYTES: usize = 64;

/// So many rows are too little work to ask for tiles meanwhile: the CPU's own prefetchers read as fast as memory gives, and
/// are slower if they are asked. Measured: Zen 4, one thread, with one row 30 GB/s of any type, 22 if asked; with three rows in Q4_K
/// 17, 26 if asked. Intel's Sapphire Rapids wants to be asked for one row already: 17 GB/s of Q4_0, 29 if asked.
fn rows_left_to_the_cpu() -> usize {
    if is_made_by_amd() { 2 } else { 0 }
}

/// Adds the products of one block of the groups, and moves `rows` on to the next one.
///
/// Written out where a loop or a closure would do: a loop that LLVM leaves as one keeps its arrays in memory, and a closure
/// that it does not inline knows no CPU features.
///
/// # Safety
/// As [`multiply`]'s.
#[inline(always)]
unsafe fn multiply_block<L: Lanes, W: Weights, const R: usize, const V: usize>(
    (groups, block): ([*const u8; V], usize),
    rows: &mut RowPointers,
    out: &mut [[L; V]; R],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut open = [W::open::<L>(groups[0], block); V];
        for tile in 1..V {
            open[tile] = W::open(groups[tile], block);
        }
        let sums = if W::SPANS == 1 {
            let sums = add_quads::<L, W, R, V>(&mut open, 0, rows, start_sums::<L, R, V>(rows));
            add_quads::<L, W, R, V>(&mut open, QUADS / 2, rows, sums)
        } else {
            let sums = add_quads::<L, W, R, V>(&mut open, 0, rows, start_sums::<L, R, V>(rows));
            add_sums::<L, W, R, V>(factors::<L, W, V>(groups, block, 0), rows, sums, out);
            add_quads::<L, W, R, V>(&mut open, QUADS / 2, rows, start_sums::<L, R, V>(rows))
        };
        add_sums::<L, W, R, V>(factors::<L, W, V>(groups, block, W::SPANS - 1), rows, sums, out);
        rows.quants = rows.quants.add(rows.stride * BLOCK);
        rows.scales = rows.scales.add(rows.stride);
    }
}

/// Scales and minima of a span.
///
/// # Safety
/// As [`multiply`]'s.
#[inline(always)]
unsafe fn factors<L: Lanes, W: Weights, const V: usize>(
    groups: [*const u8; V],
    block: usize,
    span: usize,
) -> [(L, L); V] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut factors = [W::factors(groups[0], block, span); V];
        for tile in 1..V {
            factors[tile] = W::factors(groups[tile], block, span);
        }
        factors
    }
}

/// What a span's sums start from.
///
/// # Safety
/// As [`multiply`]'s.
#[inline(always)]
unsafe fn start_sums<L: Lanes, const R: usize, const V: usize>(rows: &RowPointers) -> [[L::Sums; V]; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[L::start(rows.bases); V]; R];
        for row in 1..R {
            sums[row] = [L::start(rows.bases.add(row)); V];
        }
        sums
    }
}

/// Four quads, half a block, from quad `first` on.
///
/// # Safety
/// As [`multiply`]'s.
#[inline(always)]
unsafe fn add_quads<L: Lanes, W: Weights, const R: usize, const V: usize>(
    open: &mut [OpenBlock<L>; V],
    first: usize,
    rows: &RowPointers,
    sums: [[L::Sums; V]; R],
) -> [[L::Sums; V]; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut quads = [L::quads(rows.quants.add(first * QUAD)); R];
        for row in 1..R {
            quads[row] = L::quads(rows.quants.add(row * BLOCK + first * QUAD));
        }
        let sums = add_quad::<L, W, 0, R, V>(open, first, quads, sums);
        let sums = add_quad::<L, W, 1, R, V>(open, first, quads, sums);
        let sums = add_quad::<L, W, 2, R, V>(open, first, quads, sums);
        add_quad::<L, W, 3, R, V>(open, first, quads, sums)
    }
}

/// Quad `PLACE` of those.
///
/// # Safety
/// As [`multiply`]'s.
#[inline(always)]
unsafe fn add_quad<L: Lanes, W: Weights, const PLACE: i32, const R: usize, const V: usize>(
    open: &mut [OpenBlock<L>; V],
    first: usize,
    quads: [L::Quads; R],
    mut sums: [[L::Sums; V]; R],
) -> [[L::Sums; V]; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let quad = first + PLACE as usize;
        let mut weights = [quad_weights::<L, W>(&mut open[0], quad); V];
        for tile in 1..V {
            weights[tile] = quad_weights::<L, W>(&mut open[tile], quad);
        }
        for row in 0..R {
            for tile in 0..V {
                sums[row][tile] = L::dot::<PLACE>(sums[row][tile], weights[tile], quads[row]);
            }
        }
        sums
    }
}

/// The weights of a quad.
///
/// # Safety
/// As [`multiply`]'s.
#[inline(always)]
unsafe fn quad_weights<L: Lanes, W: Weights>(open: &mut OpenBlock<L>, quad: usize) -> L::Weights {
    // SAFETY: the caller's promise.
    unsafe {
        let codes = W::quad(open, quad);
        if W::IS_EXPANDED { L::expanded_weights(codes) } else { L::weights(codes) }
    }
}

/// Adds what a span's sums are worth to `out`, and moves on to the next span's.
///
/// # Safety
/// As [`multiply`]'s.
#[inline(always)]
unsafe fn add_sums<L: Lanes, W: Weights, const R: usize, const V: usize>(
    factors: [(L, L); V],
    rows: &mut RowPointers,
    sums: [[L::Sums; V]; R],
    out: &mut [[L; V]; R],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut scales = [factors[0].0.scale(); V];
        for tile in 1..V {
            scales[tile] = factors[tile].0.scale();
        }
        for row in 0..R {
            let worth = L::splat(*rows.scales.add(row));
            for tile in 0..V {
                let mut term = L::scaled(sums[row][tile], scales[tile]);
                if W::HAS_MINIMA {
                    term = factors[tile].1.mul_add(L::splat(*rows.sums.add(row)), term);
                }
                out[row][tile] = term.mul_add(worth, out[row][tile]);
            }
        }
        rows.bases = rows.bases.add(rows.stride);
        rows.sums = rows.sums.add(rows.stride);
    }
}
