//! Activations in 8 bits, made once for all products that read them.
//!
//! Of each 32 inputs of a row the largest becomes 127 and the others are rounded to nearest: what llama.cpp's `Q8_0` and
//! `Q8_1` do, with the scale in f32 and not in f16. A row's values depend on nothing but that row.

#![expect(clippy::inline_always, reason = "rows are filled with the caller's instruction set")]

use crate::format::BLOCK;
use crate::kernels::{self, Level};
use crate::source::{MIN_PARALLEL_ELEMENTS, Source, with_row_buffer};
use crate::threads::{SendPointer, Threads};

/// Rows that lie together: two times six, what kernels take at once. They are interleaved, block by block, so that one
/// pointer reaches all of them.
pub(crate) const STRIP: usize = 12;

/// Where kernels begin to count: 1.5 · 2^23. An i32 sum added to its bits is a float of this plus the sum.
pub(crate) const SUM_ORIGIN: f32 = 12_582_912.0;

/// The largest quantized activation.
const MAX_QUANT: f32 = 127.0;

/// Blocks that reach no further count as zero: their scale's reciprocal would overflow.
const MIN_REACH: f32 = 1e-30;

/// How many inputs share a scale in the matrices to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanSet {
    /// 32 in all of them.
    Whole,
    /// 16 in some.
    WithHalves,
}

/// How exactly activations are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// In 8 bits: off by at most a 254th of the largest of 32.
    Bits8,
    /// In twice 8 bits, and products take twice as long: what rounding leaves over is rounded again.
    Bits16,
}

/// What a quantization asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowShape {
    /// K, a multiple of 32.
    pub num_inputs: usize,
    /// Sums that the matrices to come need.
    pub spans: SpanSet,
    /// How exactly values are kept.
    pub precision: Precision,
}

/// Rows `[T, K]` in 8 bits with what kernels need of their sums. Made to be filled again and again: memory only grows.
///
/// All vectors go by strip of 12 rows, then by block (or span) of inputs, then by row.
#[derive(Debug, Default)]
pub struct QuantizedRows {
    num_rows: usize,
    num_inputs: usize,
    has_halves: bool,
    has_rest: bool,
    pub(crate) quants: Vec<i8>,
    /// What a quant is worth, by block.
    pub(crate) scales: Vec<f32>,
    /// Of blocks of 32.
    pub(crate) whole: SpanSums,
    /// Of spans of 16, where somebody needs them.
    pub(crate) halves: SpanSums,
    /// What the quants lack to the values, where somebody asked for it before.
    rest: Option<Box<Self>>,
}

/// Sums of a span's quants.
#[derive(Debug, Default)]
pub(crate) struct SpanSums {
    /// See [`base`].
    pub(crate) bases: Vec<i32>,
    /// As they are.
    pub(crate) sums: Vec<f32>,
}

/// What the sum of a span's products starts from, given the sum of its quants: codes have their zero at 128.
fn base(sum: i32) -> i32 {
    SUM_ORIGIN.to_bits().cast_signed() - 128 * sum
}

impl SpanSums {
    fn grow(&mut self, len: usize) {
        grow(&mut self.bases, len);
        grow(&mut self.sums, len);
    }

    fn slots(&mut self) -> SumSlots {
        SumSlots { bases: SendPointer(self.bases.as_mut_ptr()), sums: SendPointer(self.sums.as_mut_ptr()) }
    }
}

/// What a longer step left over is not cleared: a fill writes all that its rows read.
fn grow<T: Copy + Default>(values: &mut Vec<T>, len: usize) {
    if values.len() < len {
        values.resize(len, T::default());
    }
}

impl QuantizedRows {
    /// Quantizes `source` `[T, K]`. Nothing is allocated if as much was quantized before.
    ///
    /// # Panics
    /// If `source` is not whole rows of K, or those are not whole blocks of 32.
    pub fn fill(&mut self, source: Source<'_>, shape: RowShape, threads: &dyn Threads) {
        self.fill_with(Level::detected(), source, shape, threads);
    }

    pub(crate) fn fill_with(&mut self, level: Level, source: Source<'_>, shape: RowShape, threads: &dyn Threads) {
        let num_inputs = shape.num_inputs;
        assert!(num_inputs > 0 && num_inputs.is_multiple_of(BLOCK), "{num_inputs} inputs are not whole blocks");
        let num_rows = source.num_rows(num_inputs);
        self.reserve(num_rows, shape);
        let slots = self.slots();
        let rest = if self.has_rest { self.rest.as_deref_mut().map(Self::slots) } else { None };
        let work = |rows: std::ops::Range<usize>| {
            with_row_buffer(num_inputs, |buffer| {
                for row in rows {
                    // SAFETY: the row is one of those that memory was just reserved for; each is given to one worker,
                    // and `run` returns only after all are done.
                    unsafe {
                        let Some(rest) = &rest else {
                            let values = source.row(level, row, buffer);
                            kernels::quantize(level, values, slots.row(row, num_rows, num_inputs));
                            continue;
                        };
                        let values = source.make(level, row, buffer);
                        let of_row = slots.row(row, num_rows, num_inputs);
                        kernels::quantize(level, values, of_row);
                        kernels::subtract(level, of_row, values);
                        kernels::quantize(level, values, rest.row(row, num_rows, num_inputs));
                    }
                }
            });
        };
        if num_rows * num_inputs < MIN_PARALLEL_ELEMENTS { work(0..num_rows) } else { threads.run(num_rows, &work) }
    }

    /// Makes room, here and for the rest.
    fn reserve(&mut self, num_rows: usize, shape: RowShape) {
        let RowShape { num_inputs, spans, precision } = shape;
        let num_blocks = num_rows * num_inputs / BLOCK;
        (self.num_rows, self.num_inputs) = (num_rows, num_inputs);
        self.has_halves = spans == SpanSet::WithHalves;
        self.has_rest = precision == Precision::Bits16;
        grow(&mut self.quants, num_blocks * BLOCK);
        grow(&mut self.scales, num_blocks);
        self.whole.grow(num_blocks);
        if self.has_halves {
            self.halves.grow(2 * num_blocks);
        }
        if self.has_rest {
            let rest = self.rest.get_or_insert_default();
            rest.reserve(num_rows, RowShape { precision: Precision::Bits8, ..shape });
        }
    }

    fn slots(&mut self) -> Slots {
        Slots {
            quants: SendPointer(self.quants.as_mut_ptr()),
            scales: SendPointer(self.scales.as_mut_ptr()),
            whole: self.whole.slots(),
            halves: self.has_halves.then(|| self.halves.slots()),
        }
    }

    /// T.
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// K.
    pub fn num_inputs(&self) -> usize {
        self.num_inputs
    }

    /// Whether the sums of 16 are there.
    pub(crate) fn has_halves(&self) -> bool {
        self.has_halves
    }

    /// What the quants lack to the values, where they are kept in 16 bits.
    pub(crate) fn rest(&self) -> Option<&Self> {
        self.rest.as_deref().filter(|_| self.has_rest)
    }
}

/// Where all rows' parts are.
struct Slots {
    quants: SendPointer<i8>,
    scales: SendPointer<f32>,
    whole: SumSlots,
    halves: Option<SumSlots>,
}

#[derive(Clone, Copy)]
struct SumSlots {
    bases: SendPointer<i32>,
    sums: SendPointer<f32>,
}

/// Where one row's parts are: block after block, `stride` blocks apart.
#[derive(Clone, Copy)]
pub(crate) struct RowSlots {
    quants: SendPointer<i8>,
    scales: SendPointer<f32>,
    whole: SumSlots,
    halves: Option<SumSlots>,
    stride: usize,
}

impl SumSlots {
    fn from(self, index: usize) -> Self {
        Self { bases: SendPointer(self.bases.at(index)), sums: SendPointer(self.sums.at(index)) }
    }

    /// # Safety
    /// The index is inside.
    #[inline(always)]
    unsafe fn set(self, index: usize, sum: i32) {
        // SAFETY: the caller's promise.
        unsafe {
            *self.bases.at(index) = base(sum);
            *self.sums.at(index) = sum as f32;
        }
    }
}

impl Slots {
    /// Of row `row` of `num_rows`.
    fn row(&self, row: usize, num_rows: usize, num_inputs: usize) -> RowSlots {
        let first_row = row / STRIP * STRIP;
        let stride = STRIP.min(num_rows - first_row);
        let (first_block, in_strip) = (first_row * num_inputs / BLOCK, row - first_row);
        let block = first_block + in_strip;
        RowSlots {
            quants: SendPointer(self.quants.at(block * BLOCK)),
            scales: SendPointer(self.scales.at(block)),
            whole: self.whole.from(block),
            halves: self.halves.map(|halves| halves.from(2 * first_block + in_strip)),
            stride,
        }
    }
}

impl RowSlots {
    /// Quantizes a row; `quantize` makes a block's quants, what they are worth, and the sums of its halves.
    ///
    /// Inlined, so that it is compiled with the instruction set of whom it is called by.
    ///
    /// # Safety
    /// The slots belong to a row as long as `values`, and to nobody else meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn fill(
        self,
        values: &[f32],
        quantize: impl Fn(&[f32; BLOCK], &mut [i8; BLOCK]) -> (f32, [i32; 2]),
    ) {
        for (block, values) in values.as_chunks::<BLOCK>().0.iter().enumerate() {
            let at = block * self.stride;
            // SAFETY: the caller's promise: the row has so many blocks, two halves each.
            unsafe {
                let (scale, [low, high]) = quantize(values, &mut *self.quants.at(at * BLOCK).cast());
                *self.scales.at(at) = scale;
                self.whole.set(at, low + high);
                if let Some(halves) = self.halves {
                    halves.set(2 * at, low);
                    halves.set(2 * at + self.stride, high);
                }
            }
        }
    }

    /// Takes from `values` what the quants made of them are worth. Inlined as [`Self::fill`].
    ///
    /// # Safety
    /// The slots were filled from so many values.
    #[inline(always)]
    pub(crate) unsafe fn subtract(self, values: &mut [f32]) {
        for (block, values) in values.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let at = block * self.stride;
            // Read before anything is written: else compilers go value by value, lest one of those be a quant.
            // SAFETY: the caller's promise.
            let (quants, scale) = unsafe { (*self.quants.at(at * BLOCK).cast::<[i8; BLOCK]>(), *self.scales.at(at)) };
            for (value, quant) in values.iter_mut().zip(quants) {
                *value -= f32::from(quant) * scale;
            }
        }
    }
}

/// What a quant is worth in a block that reaches so far, and what values are multiplied by: zero for both if that is
/// next to nothing, no number if it is none, so that products show it.
#[inline]
pub(crate) fn scale_and_factor(reach: f32) -> (f32, f32) {
    if reach < MIN_REACH { (0.0, 0.0) } else { (reach / MAX_QUANT, MAX_QUANT / reach) }
}

/// Rounds `values` to `quants`; what a quant is worth, and the sums of both halves. Defines what other instruction sets do.
pub(crate) fn quantize_block(values: &[f32; BLOCK], quants: &mut [i8; BLOCK]) -> (f32, [i32; 2]) {
    // As bits: the order of magnitudes, with NaN on top, and any order of comparing gives the same.
    let reach = values.iter().map(|value| value.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
    let (scale, factor) = scale_and_factor(f32::from_bits(reach));
    let mut sums = [0; 2];
    for (index, (quant, value)) in quants.iter_mut().zip(values).enumerate() {
        // Adding the origin rounds to a whole number, ties to even, and leaves it in the low bits.
        *quant = (value * factor + SUM_ORIGIN).to_bits() as i8;
        sums[index / (BLOCK / 2)] += i32::from(*quant);
    }
    (scale, sums)
}
