//! Activations as bf16, as the CPU's matrix unit multiplies them.
//!
//! Half the bytes of f32 and, unlike 8 bits, no scale of its own for every 32: the unit adds up all inputs. A value is off
//! by at most a 512th of itself. A row's values depend on nothing but that row.

use std::ops::Range;

use crate::format::BLOCK;
use crate::kernels::{self, Level};
use crate::source::{MIN_PARALLEL_ELEMENTS, Source, with_row_buffer};
use crate::storage::{self, CacheLine};
use crate::threads::{SendPointer, Threads};

/// Rows that the unit multiplies together.
pub(crate) const ROW_TILE: usize = 16;

/// Bytes of a tile's block: 32 inputs of 16 rows, row after row.
pub(crate) const BLOCK_BYTES: usize = ROW_TILE * BLOCK * 2;

/// Rows `[T, K]` as bf16, by tile of 16 rows, then by block of 32 inputs, then by row. Made to be filled again and again:
/// memory only grows. Rows that fill up the last tile are whatever was there before; nothing is made of them.
#[derive(Debug, Default)]
pub struct Bf16Rows {
    num_rows: usize,
    num_inputs: usize,
    lines: Vec<CacheLine>,
}

impl Bf16Rows {
    /// Whether this CPU multiplies them, and the system lets it.
    pub fn is_supported() -> bool {
        kernels::matrix_unit::is_available()
    }

    /// Rounds `source` `[T, K]`. Nothing is allocated if as much was rounded before.
    ///
    /// # Panics
    /// If `source` is not whole rows of K, or those are not whole blocks of 32.
    pub fn fill(&mut self, source: Source<'_>, num_inputs: usize, threads: &dyn Threads) {
        assert!(num_inputs > 0 && num_inputs.is_multiple_of(BLOCK), "{num_inputs} inputs are not whole blocks");
        let num_rows = source.num_rows(num_inputs);
        (self.num_rows, self.num_inputs) = (num_rows, num_inputs);
        let tile_bytes = num_inputs / BLOCK * BLOCK_BYTES;
        let num_bytes = num_rows.div_ceil(ROW_TILE) * tile_bytes;
        if size_of_val(self.lines.as_slice()) < num_bytes {
            // Before there is more.
            self.lines = Vec::new();
            self.lines = storage::zeroed_lines(num_bytes);
        }
        let level = Level::detected();
        let at = SendPointer(storage::line_bytes_mut(&mut self.lines).as_mut_ptr());
        let work = |rows: Range<usize>| {
            with_row_buffer(num_inputs, |buffer| {
                for row in rows {
                    let to = at.at(row / ROW_TILE * tile_bytes + row % ROW_TILE * size_of::<CacheLine>());
                    let slots = Bf16Slots(SendPointer(to.cast()));
                    // SAFETY: the row is one of those that there is room for; each is given to one worker, and `run`
                    // returns only after all are done.
                    unsafe { kernels::round_to_bf16(level, source.row(level, row, buffer), slots) };
                }
            });
        };
        if num_rows * num_inputs < MIN_PARALLEL_ELEMENTS { work(0..num_rows) } else { threads.run(num_rows, &work) }
    }

    /// T.
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// K.
    pub fn num_inputs(&self) -> usize {
        self.num_inputs
    }

    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "read by kernels of x86-64"))]
    pub(crate) fn bytes(&self) -> &[u8] {
        storage::line_bytes(&self.lines)
    }
}

/// Where one row's blocks are: 32 values, [`BLOCK_BYTES`] apart.
#[derive(Clone, Copy)]
pub(crate) struct Bf16Slots(SendPointer<u16>);

impl Bf16Slots {
    /// Rounds a row. Inlined, so that it is compiled with the instruction set of whom it is called by.
    ///
    /// # Safety
    /// The slots belong to a row as long as `values`, and to nobody else meanwhile.
    #[expect(clippy::inline_always, reason = "rows are filled with the caller's instruction set")]
    #[inline(always)]
    pub(crate) unsafe fn fill(self, values: &[f32]) {
        for (block, values) in values.as_chunks::<BLOCK>().0.iter().enumerate() {
            let mut rounded = [0; BLOCK];
            rounded.iter_mut().zip(values).for_each(|(rounded, value)| *rounded = round_to_bf16(*value));
            // SAFETY: the caller's promise: the row has so many blocks.
            unsafe { self.0.at(block * BLOCK_BYTES / size_of::<u16>()).cast::<[u16; BLOCK]>().write(rounded) };
        }
    }
}

/// The bits of the nearest bf16, the even one of two; what is no number stays none.
#[inline]
pub(crate) fn round_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet_nan = bits >> 16 | 0x40;
    (if bits & 0x7fff_ffff > f32::INFINITY.to_bits() { quiet_nan } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn values_are_rounded_to_the_nearest() {
        let some =
            (0..u32::MAX).step_by(65_521).chain([0x7f7f_8000, 0x7f80_0000, 0xff80_0000, 0x7f80_0001, 0xffff_ffff]);
        for bits in some {
            let value = f32::from_bits(bits);
            let (found, expected) = (bf16::from_bits(round_to_bf16(value)), bf16::from_f32(value));
            assert!(found == expected || found.is_nan() && expected.is_nan(), "{value} became {found}");
        }
    }
}
