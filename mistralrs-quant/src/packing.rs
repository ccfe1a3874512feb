//! From rows as a file stores them to tiles.

use std::ops::Range;

use crate::matrix::NotRows;
use crate::storage::Storage;
use crate::threads::{SendPointer, Threads};
use crate::tile::TILE;

/// What is packed before somebody is told that it was read: little beside a model, much beside waking threads.
const STEP_BYTES: usize = 8 << 20;

/// Rows `[N, K]` of a matrix as a file stores them.
#[derive(Clone, Copy)]
pub struct StoredRows<'a> {
    /// Each a whole number of rows; they follow one another.
    pub parts: &'a [&'a [u8]],
    /// Called with what will not be read again, in order, so that its memory can be given back while the rest is packed.
    pub taken: &'a dyn Fn(&[u8]),
}

impl<'a> StoredRows<'a> {
    /// Nobody waits for their memory.
    pub fn new(parts: &'a [&'a [u8]]) -> Self {
        Self { parts, taken: &|_| () }
    }

    /// The rows, if parts are whole rows of `row_bytes`.
    pub(crate) fn split(&self, row_bytes: usize) -> Option<Vec<&'a [u8]>> {
        let is_whole = |part: &&[u8]| row_bytes > 0 && part.len().is_multiple_of(row_bytes);
        let rows = || self.parts.iter().flat_map(|part| part.chunks_exact(row_bytes)).collect();
        self.parts.iter().all(is_whole).then(rows)
    }

    /// Why they are no matrix.
    pub(crate) fn not_rows(&self, num_inputs: usize, format: &'static str) -> NotRows {
        NotRows { num_bytes: self.parts.iter().map(|part| part.len()).sum(), num_inputs, format }
    }

    /// A tile of `tile_bytes` for each 16 of `rows`, which are all of these, filled on all threads.
    pub(crate) fn pack(
        &self,
        rows: &[&[u8]],
        tile_bytes: usize,
        threads: &dyn Threads,
        fill: impl Fn(&[&[u8]], &mut [u8]) + Sync,
    ) -> Storage {
        let mut storage = Storage::zeroed(rows.len().div_ceil(TILE) * tile_bytes);
        let row_bytes = rows.first().map_or(0, |row| row.len());
        let tiles_at_once = (STEP_BYTES / tile_bytes.max(1)).max(1);
        let steps = storage.bytes_mut().chunks_mut(tiles_at_once * tile_bytes.max(1));
        let mut start = 0;
        for (tiles, rows) in steps.zip(rows.chunks(tiles_at_once * TILE)) {
            for_each_tile(tiles, tile_bytes, threads, |tile, bytes| {
                fill(&rows[tile * TILE..rows.len().min((tile + 1) * TILE)], bytes);
            });
            let end = start + rows.len() * row_bytes;
            self.give_back(start..end);
            start = end;
        }
        storage
    }

    /// Says that these bytes of all parts were taken.
    fn give_back(&self, bytes: Range<usize>) {
        let mut start = 0;
        for part in self.parts {
            let within = |place: usize| place.clamp(start, start + part.len()) - start;
            let taken = within(bytes.start)..within(bytes.end);
            if !taken.is_empty() {
                (self.taken)(&part[taken]);
            }
            start += part.len();
        }
    }
}

/// Calls `fill(tile, bytes)` for each tile of `bytes`, on all threads.
fn for_each_tile(bytes: &mut [u8], tile_bytes: usize, threads: &dyn Threads, fill: impl Fn(usize, &mut [u8]) + Sync) {
    let start = SendPointer(bytes.as_mut_ptr());
    threads.run(bytes.len() / tile_bytes, &|tiles| {
        for tile in tiles {
            // SAFETY: the tile is inside `bytes`, each is given to one worker, and `run` returns only after all are done.
            fill(tile, unsafe { std::slice::from_raw_parts_mut(start.at(tile * tile_bytes), tile_bytes) });
        }
    });
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::threads::CallingThread;
    use crate::{BlockFormat, BlockMatrix};

    #[test]
    fn all_that_was_read_is_given_back_in_order_and_in_pieces() {
        // Three steps: the second begins in the first part and ends in the second one.
        let num_inputs = 32 * 1024;
        let row_bytes = num_inputs / 32 * 34;
        let parts = [vec![1; 300 * row_bytes], vec![2; 400 * row_bytes]];
        let taken = RefCell::new(Vec::new());
        let note = |bytes: &[u8]| taken.borrow_mut().push((bytes.as_ptr(), bytes.len()));
        let rows = StoredRows { parts: &[&parts[0], &parts[1]], taken: &note };
        BlockMatrix::pack_rows(BlockFormat::Q8_0, num_inputs, rows, &CallingThread).unwrap();

        let taken = taken.into_inner();
        assert!(taken.len() >= 4 && taken.iter().all(|(_, len)| *len <= STEP_BYTES), "{taken:?}");
        for part in &parts {
            let range = part.as_ptr_range();
            let mut end = range.start;
            for (at, len) in taken.iter().filter(|(at, _)| range.contains(at)) {
                assert_eq!(*at, end, "no gap and no second time");
                end = at.wrapping_add(*len);
            }
            assert_eq!(end, range.end, "to its end");
        }
    }
}
