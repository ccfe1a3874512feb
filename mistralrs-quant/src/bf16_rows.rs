//! Activations as bf16, as the CPU's matrix unit multiplies them.
//!
//! Unlike 8 bits they have no scale of their own for every 32: the unit adds up all inputs. As one bf16 a value is off by at most a
//! 256th of itself; as two, the nearest and what that leaves, by a 131072nd. A row's values depend on nothing but that row.

use std::ops::Range;

use crate::format::BLOCK;
use crate::kernels::{self, Level};
use crate::source::{MIN_PARALLEL_ELEMENTS, Source, with_row_buffer};
use crate::storage::{self, CacheLine};
use crate::threads::{SendPointer, Threads};

/// Rows that the unit multiplies together.
pub(crate) const ROW_TILE: usize = 16;

/// Bytes of a part of a tile's block: 32 inputs of 16 rows, row after row.
pub(crate) const BLOCK_BYTES: usize = ROW_TILE * BLOCK * 2;

/// How many bf16 a value is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Bf16Parts {
    /// The nearest, beside quantized weights.
    #[default]
    One,
    /// And what it leaves, beside floats, whose products are to be as exact as in f32.
    Two,
}

impl Bf16Parts {
    pub(crate) const fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

/// Rows `[T, K]` as bf16, by tile of 16 rows, then by block of 32 inputs, then by part, then by row. Made to be filled again and
/// again: memory only grows. Rows that fill up the last tile are whatever was there before; nothing is made of them.
#[derive(Debug, Default)]
pub struct Bf16Rows {
    num_rows: usize,
    num_inputs: usize,
    parts: Bf16Parts,
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
    pub fn fill(&mut self, source: Source<'_>, (num_inputs, parts): (usize, Bf16Parts), threads: &dyn Threads) {
        assert!(num_inputs > 0 && num_inputs.is_multiple_of(BLOCK), "{num_inputs} inputs are not whole blocks");
        let num_rows = source.num_rows(num_inputs);
        (self.num_rows, self.num_inputs, self.parts) = (num_rows, num_inputs, parts);
        let tile_bytes = self.tile_bytes();
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
                    let slots = Bf16Slots { at: SendPointer(to.cast()), parts };
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

    /// How many bf16 a value is.
    pub fn parts(&self) -> Bf16Parts {
        self.parts
    }

    /// Of 16 rows.
    pub(crate) fn tile_bytes(&self) -> usize {
        self.num_inputs / BLOCK * self.parts.count() * BLOCK_BYTES
    }

    #[cfg_attr(not(any(test, target_arch = "x86_64")), expect(dead_code, reason = "read by kernels of x86-64"))]
    pub(crate) fn bytes(&self) -> &[u8] {
        storage::line_bytes(&self.lines)
    }
}

/// Where one row's blocks are: 32 values, [`BLOCK_BYTES`] apart, and as many again with what those leave, if asked for.
#[derive(Clone, Copy)]
pub(crate) struct Bf16Slots {
    at: SendPointer<u16>,
    parts: Bf16Parts,
}

impl Bf16Slots {
    /// Rounds a row. Inlined, so that it is compiled with the instruction set of whom it is called by.
    ///
    /// # Safety
    /// The slots belong to a row as long as `values`, and to nobody else meanwhile.
    #[expect(clippy::inline_always, reason = "rows are filled with the caller's instruction set")]
    #[inline(always)]
    pub(crate) unsafe fn fill(self, values: &[f32]) {
        // SAFETY: the caller's promise: the row has so many blocks, of so many parts.
        unsafe {
            match self.parts {
                Bf16Parts::One => self.fill_parts::<1>(values),
                Bf16Parts::Two => self.fill_parts::<2>(values),
            }
        }
    }

    /// # Safety
    /// As [`Self::fill`]'s; there are so many parts.
    #[expect(clippy::inline_always, reason = "as above")]
    #[inline(always)]
    unsafe fn fill_parts<const PARTS: usize>(self, values: &[f32]) {
        for (block, values) in values.as_chunks::<BLOCK>().0.iter().enumerate() {
            let mut left = *values;
            for part in 0..PARTS {
                let mut rounded = [0; BLOCK];
                for (rounded, left) in rounded.iter_mut().zip(&mut left) {
                    *rounded = round_to_bf16(*left);
                    *left -= f32::from_bits(u32::from(*rounded) << 16);
                }
                let at = (block * PARTS + part) * BLOCK_BYTES / size_of::<u16>();
                // SAFETY: the caller's promise.
                unsafe { self.at.at(at).cast::<[u16; BLOCK]>().write(rounded) };
            }
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
    use crate::threads::CallingThread;

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

    #[test]
    fn two_parts_are_a_value_but_for_its_last_bits() {
        let values: Vec<f32> = (0..96u32).map(|index| (index as f32 - 40.0) * 0.123_456_7).collect();
        let mut rows = Bf16Rows::default();
        for (num_inputs, num_rows) in [(32, 3), (96, 1)] {
            rows.fill(Source::Rows(&values), (num_inputs, Bf16Parts::Two), &CallingThread);
            assert_eq!((rows.num_rows(), rows.parts()), (num_rows, Bf16Parts::Two));
            let elements = rows.bytes().as_chunks::<2>().0;
            let part = |row: usize, input: usize, part: usize| {
                let at = (input / BLOCK * 2 + part) * BLOCK_BYTES / 2 + row * BLOCK + input % BLOCK;
                bf16::from_le_bytes(elements[at]).to_f32()
            };
            for (index, value) in values.iter().enumerate() {
                let [first, second] = [0, 1].map(|which| part(index / num_inputs, index % num_inputs, which));
                assert_eq!(first.to_bits(), bf16::from_f32(*value).to_f32().to_bits());
                assert!(
                    (first + second - value).abs() <= value.abs() / 131_072.0,
                    "{first} and {second} are not {value}"
                );
            }
        }
    }
}
