//! Rows of bf16 by a matrix, in units of work for the matrix units of all threads.

use crate::bf16_rows::{Bf16Rows, ROW_TILE};
use crate::kernels::{self, Bf16Job, Bf16Weights};
use crate::matrix::{Columns, Output, with_scratch};
use crate::threads::Threads;
use crate::tile::TILE;

/// Tiles of outputs that a unit of work multiplies rows by, at most: the more, the less often rows are read. So many fit a
/// second-level cache of 2 MB, which all CPUs with the matrix unit have, beside a part of 512 rows and all their sums.
const MAX_TILES: usize = 16;

/// Units of a product for each thread, at least: they are not equally fast.
const UNITS_PER_THREAD: usize = 3;

/// Tiles of rows in a unit of work.
const ROW_TILES: usize = 512 / ROW_TILE;

/// `rows` `[T, K]` times `weights` `[N, K]` → `out` `[T, N]`.
///
/// # Panics
/// If sizes differ, or the CPU does not multiply such rows.
pub(crate) fn matmul(
    weights: &Bf16Weights<'_>,
    (num_outputs, num_inputs): (usize, usize),
    rows: &Bf16Rows,
    out: Columns<'_>,
    threads: &dyn Threads,
) {
    assert_eq!(rows.num_inputs(), num_inputs, "inputs of the rows");
    out.check(rows.num_rows(), num_outputs);
    if rows.num_rows() == 0 {
        return;
    }
    assert!(Bf16Rows::is_supported(), "no matrix unit for rows of bf16");
    let out = Output::new(out, num_outputs);
    let (num_tiles, num_row_tiles) = (num_outputs.div_ceil(TILE), rows.num_rows().div_ceil(ROW_TILE));
    let num_chunks = num_row_tiles.div_ceil(ROW_TILES);
    let min_runs = (UNITS_PER_THREAD * threads.count()).div_ceil(num_chunks);
    let run_tiles = num_tiles.div_ceil(min_runs).next_multiple_of(2).min(MAX_TILES);
    let num_runs = num_tiles.div_ceil(run_tiles);
    threads.run(num_chunks * num_runs, &|units| {
        for unit in units {
            let (chunk, run) = (unit / num_runs, unit % num_runs);
            let tiles = run * run_tiles..num_tiles.min((run + 1) * run_tiles);
            let row_tiles = chunk * ROW_TILES..num_row_tiles.min((chunk + 1) * ROW_TILES);
            with_scratch(kernels::bf16_scratch_bytes(tiles.len(), row_tiles.len()), |scratch| {
                let mut job = Bf16Job { weights: *weights, rows, out, tiles, row_tiles, scratch };
                // SAFETY: the CPU has the unit; tiles are counted from the sizes asserted above, units are disjoint in
                // (row, tile), and `run` returns only after all are done.
                unsafe { kernels::run_bf16(&mut job) };
            });
        }
    });
}
