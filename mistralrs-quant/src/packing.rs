//! From rows as a file stores them to tiles, and from tiles that were kept to tiles again.

use std::ops::Range;

use crate::matrix::NotRows;
use crate::storage::Storage;
use crate::threads::{SendPointer, Threads};
use crate::tile::TILE;

/// What is packed before somebody is told that it was read: little beside a model, much beside waking threads.
const STEP_BYTES: usize = 8 << 20;

/// What a tile's bytes mean, as a number: it changes with any format's tiles, and those kept under another one are of no
/// use. A test knows what goes with it.
pub const TILE_LAYOUT: u32 = 1;

/// Bytes of kept tiles that are asked for at once: little enough that all threads get some of a matrix, and that what one
/// was given is in its second-level cache when it looks at it again.
pub const PIECE_BYTES: usize = 512 << 10;

/// The sizes of a matrix `[N, K]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixShape {
    /// N.
    pub num_outputs: usize,
    /// K.
    pub num_inputs: usize,
}

impl MatrixShape {
    /// Bytes of its tiles, of which each has `group_bytes` for so many inputs; `None` where K is not whole groups.
    pub(crate) fn num_packed_bytes(self, group_len: usize, group_bytes: usize) -> Option<usize> {
        let num_groups = self.num_inputs.is_multiple_of(group_len).then_some(self.num_inputs / group_len)?;
        self.num_outputs.div_ceil(TILE).checked_mul(num_groups)?.checked_mul(group_bytes)
    }
}

/// Gives tiles that were kept: fills a piece, [`PIECE_BYTES`] long but for the last, which begins at an offset of the
/// matrix. Called on all threads, once for each piece.
pub type FillPiece<'a> = &'a (dyn Fn(usize, &mut [u8]) + Sync);

/// `num_bytes` of tiles as `fill` gives them.
pub(crate) fn fill_pieces(num_bytes: usize, fill: FillPiece<'_>, threads: &dyn Threads) -> Storage {
    let mut storage = Storage::zeroed(num_bytes);
    for_each_piece(storage.bytes_mut(), PIECE_BYTES, threads, |piece, bytes| fill(piece * PIECE_BYTES, bytes));
    storage
}

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
            for_each_piece(tiles, tile_bytes, threads, |tile, bytes| {
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

/// Calls `fill(index, piece)` for each `size` of `bytes`, on all threads; the last may have fewer.
fn for_each_piece(bytes: &mut [u8], size: usize, threads: &dyn Threads, fill: impl Fn(usize, &mut [u8]) + Sync) {
    let (start, len) = (SendPointer(bytes.as_mut_ptr()), bytes.len());
    threads.run(len.div_ceil(size), &|pieces| {
        for piece in pieces {
            let offset = piece * size;
            // SAFETY: the piece is inside `bytes`, each is given to one worker, and `run` returns only after all are done.
            fill(piece, unsafe { std::slice::from_raw_parts_mut(start.at(offset), size.min(len - offset)) });
        }
    });
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::threads::CallingThread;
    use crate::{BlockFormat, BlockMatrix, FloatFormat, FloatMatrix};

    /// Bytes of no meaning, the same in every run.
    fn arbitrary(num_bytes: usize) -> Vec<u8> {
        (0..num_bytes as u32).map(|index| (index.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect()
    }

    /// The tiles of `num_outputs` rows of 256 inputs, and those of a matrix that was made of them.
    fn packed_and_kept(format: BlockFormat, num_outputs: usize) -> (BlockMatrix, BlockMatrix) {
        let shape = MatrixShape { num_outputs, num_inputs: 256 };
        let stored = arbitrary(num_outputs * 256 / format.block_len() * format.block_bytes());
        let packed = BlockMatrix::pack(format, 256, &[&stored], &CallingThread).unwrap();
        let fill =
            |offset: usize, piece: &mut [u8]| piece.copy_from_slice(&packed.packed_bytes()[offset..][..piece.len()]);
        let kept = BlockMatrix::from_tiles(format, shape, &fill, &CallingThread).unwrap();
        assert_eq!(format.num_packed_bytes(shape), Some(packed.num_bytes()));
        (packed, kept)
    }

    #[test]
    fn tiles_that_were_kept_are_the_same_matrix() {
        for format in BlockFormat::ALL {
            // Several pieces, of which the last is not whole, and outputs that do not fill a tile.
            let (packed, kept) = packed_and_kept(format, PIECE_BYTES / 80);
            assert!(packed.num_bytes() > PIECE_BYTES && !packed.num_bytes().is_multiple_of(PIECE_BYTES), "{format:?}");
            assert!(packed.packed_bytes() == kept.packed_bytes(), "{format:?}");
            assert_eq!((kept.num_outputs(), kept.num_inputs()), (packed.num_outputs(), packed.num_inputs()));
        }
        for format in [FloatFormat::F32, FloatFormat::F16, FloatFormat::Bf16] {
            let shape = MatrixShape { num_outputs: 37, num_inputs: 6 };
            let stored = arbitrary(37 * 6 * format.element_bytes());
            let packed = FloatMatrix::pack(format, 6, &[&stored], &CallingThread).unwrap();
            let fill = |_: usize, piece: &mut [u8]| piece.copy_from_slice(packed.packed_bytes());
            let kept = FloatMatrix::from_tiles(format, shape, &fill, &CallingThread).unwrap();
            assert_eq!(kept.packed_bytes(), packed.packed_bytes());
            assert_eq!(format.num_packed_bytes(shape), Some(packed.num_bytes()));
        }
    }

    #[test]
    fn shapes_that_no_matrix_has_are_refused() {
        let fill = |_: usize, _: &mut [u8]| unreachable!("there is nothing to fill");
        let shape = |num_outputs, num_inputs| MatrixShape { num_outputs, num_inputs };
        for shape in [shape(16, 33), shape(usize::MAX, 1 << 20)] {
            assert!(BlockMatrix::from_tiles(BlockFormat::Q8_0, shape, &fill, &CallingThread).is_none());
            assert!(FloatMatrix::from_tiles(FloatFormat::F16, shape, &fill, &CallingThread).is_none());
        }
    }

    #[test]
    fn a_change_of_the_layout_changes_its_number() {
        // FNV-1a over the tiles of all formats. Should this fail, raise TILE_LAYOUT: servers keep tiles on disk.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut add = |bytes: &[u8]| {
            for byte in bytes {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
            }
        };
        for format in BlockFormat::ALL {
            add(packed_and_kept(format, 17).0.packed_bytes());
        }
        for format in [FloatFormat::F32, FloatFormat::F16, FloatFormat::Bf16] {
            let stored = arbitrary(17 * 6 * format.element_bytes());
            add(FloatMatrix::pack(format, 6, &[&stored], &CallingThread).unwrap().packed_bytes());
        }
        assert_eq!((TILE_LAYOUT, hash), (1, 0x4f3b_236c_b993_c66a));
    }

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
