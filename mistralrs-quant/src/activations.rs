//! Activations in 8 bits, made once for all products that read them.
//!
//! Of each 32 inputs of a row the largest becomes 127 and the others are rounded to nearest: what llama.cpp's `Q8_0` and
//! `Q8_1` do, with the scale in f32 and not in f16. A row's values depend on nothing but that row.

use crate::format::BLOCK;
use crate::kernels::{self, Level};
use crate::threads::{SendPointer, Threads};

/// Rows that lie together: two times six, what kernels take at once. They are interleaved, block by block, so that one pointer reaches all of them.
pub(crate) const STRIP: usize = 12;

/// Where kernels begin to count: 1.5 · 2^23. An i32 sum added to its bits is a float of this plus the sum.
pub(crate) const SUM_ORIGIN: f32 = 12_582_912.0;

/// The largest quantized activation.
const MAX_QUANT: f32 = 127.0;

/// Blocks that reach no further count as zero: their scale's reciprocal would overflow.
const MIN_REACH: f32 = 1e-30;

/// Below this many elements one thread quantizes: waking others costs more than it saves.
const MIN_PARALLEL_ELEMENTS: usize = 16 * 1024;

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

/// Rows `[T, K]` in 8 bits with what kernels need of their sums.
///
/// All vectors go by strip of 12 rows, then by block (or span) of inputs, then by row.
#[derive(Debug)]
pub struct QuantizedRows {
    num_rows: usize,
    num_inputs: usize,
    pub(crate) quants: Vec<i8>,
    /// What a quant is worth, by block.
    pub(crate) scales: Vec<f32>,
    /// Of blocks of 32.
    pub(crate) whole: SpanSums,
    /// Of spans of 16; empty where nobody needs them.
    pub(crate) halves: SpanSums,
    /// What the quants lack to the values.
    pub(crate) rest: Option<Box<Self>>,
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
    fn zeroed(len: usize) -> Self {
        Self { bases: vec![0; len], sums: vec![0.0; len] }
    }
}

impl QuantizedRows {
    /// Quantizes `values` `[T, K]`, K a multiple of 32.
    ///
    /// # Panics
    /// If they are not whole rows of `num_inputs`.
    pub fn new(values: &[f32], num_inputs: usize, spans: SpanSet, threads: &dyn Threads) -> Self {
        Self::new_with(Level::detected(), values, (num_inputs, spans), threads)
    }

    pub(crate) fn new_with(
        level: Level,
        values: &[f32],
        (num_inputs, spans): (usize, SpanSet),
        threads: &dyn Threads,
    ) -> Self {
        let is_whole = num_inputs > 0 && num_inputs.is_multiple_of(BLOCK) && values.len().is_multiple_of(num_inputs);
        assert!(is_whole, "{} values are not rows of {num_inputs}, or that is not whole blocks", values.len());
        let num_blocks = values.len() / BLOCK;
        let num_halves = if spans == SpanSet::WithHalves { 2 * num_blocks } else { 0 };
        let mut rows = Self {
            num_rows: values.len() / num_inputs,
            num_inputs,
            quants: vec![0; values.len()],
            scales: vec![0.0; num_blocks],
            whole: SpanSums::zeroed(num_blocks),
            halves: SpanSums::zeroed(num_halves),
            rest: None,
        };
        rows.fill(level, values, threads);
        rows
    }

    /// Keeps `values`, which these rows were made of, as exactly as `precision` says.
    #[must_use]
    pub fn refined(self, values: &[f32], precision: Precision, threads: &dyn Threads) -> Self {
        self.refined_with(Level::detected(), values, precision, threads)
    }

    pub(crate) fn refined_with(
        self,
        level: Level,
        values: &[f32],
        precision: Precision,
        threads: &dyn Threads,
    ) -> Self {
        if precision == Precision::Bits8 {
            return self;
        }
        let spans = if self.has_halves() { SpanSet::WithHalves } else { SpanSet::Whole };
        let mut rest = values.to_vec();
        for (row, rest) in rest.chunks_exact_mut(self.num_inputs).enumerate() {
            self.subtract_row(row, rest);
        }
        let rest = Self::new_with(level, &rest, (self.num_inputs, spans), threads);
        Self { rest: Some(Box::new(rest)), ..self }
    }

    fn subtract_row(&self, row: usize, values: &mut [f32]) {
        let first_row = row / STRIP * STRIP;
        let stride = STRIP.min(self.num_rows - first_row);
        let first_block = first_row * self.num_inputs / BLOCK + row - first_row;
        for (block, values) in values.chunks_exact_mut(BLOCK).enumerate() {
            let at = first_block + block * stride;
            for (value, quant) in values.iter_mut().zip(&self.quants[at * BLOCK..]) {
                *value -= f32::from(*quant) * self.scales[at];
            }
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
        !self.halves.bases.is_empty()
    }

    fn fill(&mut self, level: Level, values: &[f32], threads: &dyn Threads) {
        let strip_len = STRIP * self.num_inputs;
        let num_strips = values.len().div_ceil(strip_len);
        let halves_per_block = self.halves.sums.len() / self.scales.len().max(1);
        let quants = SendPointer(self.quants.as_mut_ptr());
        let scales = SendPointer(self.scales.as_mut_ptr());
        let whole = (SendPointer(self.whole.bases.as_mut_ptr()), SendPointer(self.whole.sums.as_mut_ptr()));
        let halves = (SendPointer(self.halves.bases.as_mut_ptr()), SendPointer(self.halves.sums.as_mut_ptr()));
        let num_inputs = self.num_inputs;
        let work = |strips: std::ops::Range<usize>| {
            for strip in strips {
                let start = strip * strip_len;
                let values = &values[start..values.len().min(start + strip_len)];
                let (block, num_blocks) = (start / BLOCK, values.len() / BLOCK);
                let (half, num_halves) = (block * halves_per_block, num_blocks * halves_per_block);
                // SAFETY: strips are disjoint parts of vectors that are as long as all of them together, every strip
                // is given to one worker, and `run` returns only after all are done.
                let mut strip = unsafe {
                    use std::slice::from_raw_parts_mut as part;
                    Strip {
                        quants: part(quants.at(start), values.len()),
                        scales: part(scales.at(block), num_blocks),
                        bases: part(whole.0.at(block), num_blocks),
                        sums: part(whole.1.at(block), num_blocks),
                        half_bases: part(halves.0.at(half), num_halves),
                        half_sums: part(halves.1.at(half), num_halves),
                    }
                };
                kernels::quantize(level, values, num_inputs, &mut strip);
            }
        };
        if values.len() < MIN_PARALLEL_ELEMENTS { work(0..num_strips) } else { threads.run(num_strips, &work) }
    }
}

/// The parts of [`QuantizedRows`] that belong to one strip.
pub(crate) struct Strip<'a> {
    quants: &'a mut [i8],
    scales: &'a mut [f32],
    bases: &'a mut [i32],
    sums: &'a mut [f32],
    half_bases: &'a mut [i32],
    half_sums: &'a mut [f32],
}

impl Strip<'_> {
    /// Quantizes the rows of a strip; `quantize` makes a block's quants, what they are worth, and the sums of its halves.
    ///
    /// Inlined, so that it is compiled with the instruction set of whom it is called by.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it is compiled with the caller's instruction set")]
    pub(crate) fn fill(
        &mut self,
        values: &[f32],
        num_inputs: usize,
        quantize: impl Fn(&[f32; BLOCK], &mut [i8; BLOCK]) -> (f32, [i32; 2]),
    ) {
        let num_rows = values.len() / num_inputs;
        let has_halves = !self.half_sums.is_empty();
        for (row, values) in values.chunks_exact(num_inputs).enumerate() {
            for (block, values) in values.as_chunks::<BLOCK>().0.iter().enumerate() {
                let at = block * num_rows + row;
                let (scale, sums) = quantize(values, &mut self.quants.as_chunks_mut::<BLOCK>().0[at]);
                self.scales[at] = scale;
                self.bases[at] = base(sums[0] + sums[1]);
                self.sums[at] = (sums[0] + sums[1]) as f32;
                if has_halves {
                    for (half, sum) in sums.into_iter().enumerate() {
                        let at = (2 * block + half) * num_rows + row;
                        self.half_bases[at] = base(sum);
                        self.half_sums[at] = sum as f32;
                    }
                }
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
