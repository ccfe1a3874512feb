//! How quantized weights lie in files.
//!
//! A file stores a row as *blocks* of 32 or 256 inputs. Every type here says the same of an input: its *code* q of a
//! few bits means `scale · (q - zero) + minimum`, where scale and minimum belong to 32 or 16 inputs, a *span*. In a block
//! of 256 they are small integers (*step counts*) times the block's own f16 pair. Where steps between values are uneven the
//! code is a place in a *code book*, and the value there stands for `q - zero`.
//! Source of the blocks: ggml's `ggml-common.h`, their meaning: `dequantize_row_*` in `ggml-quants.c`.

use half::f16;

use crate::packing::MatrixShape;

/// Block types that tiles can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockFormat {
    /// 32 values `d · (q - 8)`, q of 4 bits.
    Q4_0,
    /// 32 values `d · q + m`, q of 4 bits.
    Q4_1,
    /// 32 values `d · (q - 16)`, q of 5 bits.
    Q5_0,
    /// 32 values `d · q + m`, q of 5 bits.
    Q5_1,
    /// 32 values `d · q`, q of 8 bits with sign.
    Q8_0,
    /// 256 values; of each 16: `d · s · q - d' · s'`, q of 2 bits, s and s' of 4.
    Q2K,
    /// 256 values; of each 16: `d · s · (q - 4)`, q of 3 bits, s of 6 with sign.
    Q3K,
    /// 256 values; of each 32: `d · s · q - d' · s'`, q of 4 bits, s and s' of 6.
    Q4K,
    /// 256 values; of each 32: `d · s · q - d' · s'`, q of 5 bits, s and s' of 6.
    Q5K,
    /// 256 values; of each 16: `d · s · (q - 32)`, q of 6 bits, s of 8 with sign.
    Q6K,
    /// 32 values `d · v`, v in [`NON_LINEAR`] at a code of 4 bits.
    Iq4Nl,
    /// 256 values; of each 32: `d · s · v`, v as in IQ4_NL, s of 6 bits with sign.
    Iq4Xs,
    /// 32 values `2^e · v`, v a float of 4 bits: see [`E2M1`].
    Mxfp4,
}

/// Values of IQ4_NL and IQ4_XS by code: denser around zero, as weights are.
const NON_LINEAR: [u8; 16] = code_book([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]);

/// Values of MXFP4 by code, doubled to be whole: a sign, two bits of exponent, one of mantissa.
/// Source: Open Compute Project, Microscaling Formats (MX) 1.0, 5.3.3.
const E2M1: [u8; 16] = code_book([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]);

/// The largest exponent of MXFP4 that sums can be multiplied by, 2^104 at zero being 128; larger ones count as this.
const MAX_EXPONENT: u8 = 232;

/// `values` as tiles' codes are: with their zero at 128.
const fn code_book(values: [i8; 16]) -> [u8; 16] {
    let mut codes = [0; 16];
    let mut place = 0;
    while place < codes.len() {
        codes[place] = values[place].cast_unsigned() ^ 0x80;
        place += 1;
    }
    codes
}

/// Inputs whose codes lie together in a tile and that share an activation scale.
pub(crate) const BLOCK: usize = 32;

/// Inputs of the largest block.
pub(crate) const MAX_BLOCK_LEN: usize = 256;

/// Spans of the largest block.
pub(crate) const MAX_SPANS: usize = 16;

/// What a file's block says, type by type the same.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    /// By input; the code fills the high bits of its byte and zero is 128, so that all types subtract the same.
    pub(crate) codes: [u8; MAX_BLOCK_LEN],
    /// f16 bits of the scale, or of its step; an exponent, where that is all there is. See [`BlockFormat::scale`].
    pub(crate) scale: u16,
    /// f16 bits of what is added, or of its step; zero where a type has none.
    pub(crate) minimum: u16,
    /// By span: how many steps the scale has. Unused in blocks of 32.
    pub(crate) scale_steps: [i8; MAX_SPANS],
    /// By span: how many steps the minimum has.
    pub(crate) minimum_steps: [i8; MAX_SPANS],
}

impl Block {
    /// Says nothing; what it says of a row is zero.
    pub(crate) const EMPTY: Self = Self {
        codes: [0; MAX_BLOCK_LEN],
        scale: 0,
        minimum: 0,
        scale_steps: [0; MAX_SPANS],
        minimum_steps: [0; MAX_SPANS],
    };
}

impl BlockFormat {
    /// All of them; a kernel's format is an index into this.
    pub const ALL: [Self; 13] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
        Self::Iq4Xs,
        Self::Mxfp4,
    ];

    /// As ggml calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Iq4Nl => "IQ4_NL",
            Self::Iq4Xs => "IQ4_XS",
            Self::Mxfp4 => "MXFP4",
        }
    }

    /// Values of a file's block.
    pub const fn block_len(self) -> usize {
        if self.has_steps() { MAX_BLOCK_LEN } else { BLOCK }
    }

    /// Bytes of a file's block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Mxfp4 => 17,
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Iq4Xs => 136,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of a packed matrix; `None` where K is not whole blocks, or the number has no room.
    pub fn num_packed_bytes(self, shape: MatrixShape) -> Option<usize> {
        shape.num_packed_bytes(self.block_len(), self.group_layout().num_bytes)
    }

    /// Bits of a code.
    pub(crate) const fn bits(self) -> u32 {
        match self {
            Self::Q2K => 2,
            Self::Q3K => 3,
            Self::Q4_0 | Self::Q4_1 | Self::Q4K | Self::Iq4Nl | Self::Iq4Xs | Self::Mxfp4 => 4,
            Self::Q5_0 | Self::Q5_1 | Self::Q5K => 5,
            Self::Q6K => 6,
            Self::Q8_0 => 8,
        }
    }

    /// Whether scales are multiples of a step that 256 inputs share.
    pub(crate) const fn has_steps(self) -> bool {
        matches!(self, Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs)
    }

    /// Whether something is added to what codes mean.
    pub(crate) const fn has_minima(self) -> bool {
        matches!(self, Self::Q4_1 | Self::Q5_1 | Self::Q2K | Self::Q4K | Self::Q5K)
    }

    /// Spans of 32 inputs: 2 where 16 share a scale.
    pub(crate) const fn spans(self) -> usize {
        if matches!(self, Self::Q2K | Self::Q3K | Self::Q6K) { 2 } else { 1 }
    }

    /// What codes are places in; its values have their zero at 128.
    pub(crate) const fn code_book(self) -> Option<&'static [u8; 16]> {
        match self {
            Self::Iq4Nl | Self::Iq4Xs => Some(&NON_LINEAR),
            Self::Mxfp4 => Some(&E2M1),
            _ => None,
        }
    }

    /// Whether a scale is an exponent in one byte (E8M0) and not an f16.
    pub(crate) const fn has_exponents(self) -> bool {
        matches!(self, Self::Mxfp4)
    }

    /// Bytes of a scale.
    pub(crate) const fn scale_bytes(self) -> usize {
        if self.has_exponents() { 1 } else { 2 }
    }

    /// What [`Block::scale`] means.
    pub(crate) fn scale(self, bits: u16) -> f32 {
        if self.has_exponents() { exponent_scale(bits) } else { f16::from_bits(bits).to_f32() }
    }

    /// What one of [`Block::codes`] means before scale and minimum.
    pub(crate) fn value(self, code: u8) -> f32 {
        let shift = 8 - self.bits();
        let zero = if self.has_minima() { 0 } else { 128 >> shift };
        f32::from(match self.code_book() {
            Some(book) => i16::from(book[usize::from(code >> shift)]) - 128,
            None => i16::from(code >> shift) - zero,
        })
    }

    /// Reads a file's block over `block`, which is empty or one of this type.
    pub(crate) fn read_block(self, bytes: &[u8], block: &mut Block) {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Iq4Nl | Self::Mxfp4 => {
                self.read_nibbles(bytes, block);
            }
            Self::Q8_0 => {
                let [scale, codes] = split(bytes, [2, 32]);
                let codes = runs::<BLOCK>(codes);
                block.scale = half_bits(scale);
                fill::<BLOCK>(&mut block.codes[..BLOCK], |run, place| codes[run][place] ^ 0x80);
            }
            Self::Q2K => read_q2k(bytes, block),
            Self::Q3K => read_q3k(bytes, block),
            Self::Q4K | Self::Q5K => self.read_q4k_or_q5k(bytes, block),
            Self::Q6K => read_q6k(bytes, block),
            Self::Iq4Xs => read_iq4_xs(bytes, block),
        }
    }

    /// Blocks of 32 with codes of 4 or 5 bits.
    fn read_nibbles(self, bytes: &[u8], block: &mut Block) {
        let num_minimum_bytes = if self.has_minima() { 2 } else { 0 };
        let num_fifth_bytes = if self.bits() == 5 { 4 } else { 0 };
        let parts = [self.scale_bytes(), num_minimum_bytes, num_fifth_bytes, 16];
        let [scale, minimum, fifths, nibbles] = split(bytes, parts);
        block.scale = if self.has_exponents() { scale[0].min(MAX_EXPONENT).into() } else { half_bits(scale) };
        if self.has_minima() {
            block.minimum = half_bits(minimum);
        }
        // Input i shares a byte with input i + 16.
        let nibbles = runs::<16>(nibbles);
        let nibble = |run: usize, place: usize| nibbles[0][place] >> (run * 4) & 15;
        let codes = &mut block.codes[..BLOCK];
        if let &[a, b, c, d] = fifths {
            let fifths = [u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])];
            let fifth = |run: usize, place: usize| (fifths[run] >> place & 1) as u8;
            fill::<16>(codes, |run, place| nibble(run, place) << 3 | fifth(run, place) << 7);
        } else {
            fill::<16>(codes, |run, place| nibble(run, place) << 4);
        }
    }

    fn read_q4k_or_q5k(self, bytes: &[u8], block: &mut Block) {
        let num_fifth_bytes = if self.bits() == 5 { 32 } else { 0 };
        let [scale, minimum, steps, fifths, nibbles] = split(bytes, [2, 2, 12, num_fifth_bytes, 128]);
        block.scale = half_bits(scale);
        block.minimum = negated(half_bits(minimum));
        for span in 0..8 {
            // Six bits each: four spans whole, and the other four in what those leave of their bytes.
            let (scale, minimum) = if span < 4 {
                (steps[span] & 63, steps[span + 4] & 63)
            } else {
                let low = steps[span + 4];
                (low & 15 | steps[span - 4] >> 6 << 4, low >> 4 | steps[span] >> 6 << 4)
            };
            block.scale_steps[span] = scale.cast_signed();
            block.minimum_steps[span] = minimum.cast_signed();
        }
        // Spans 2i and 2i + 1 are the low and high nibbles of 32 bytes.
        let nibbles = runs::<32>(nibbles);
        let nibble = |run: usize, place: usize| nibbles[run / 2][place] >> (run % 2 * 4) & 15;
        if let [fifths] = runs::<32>(fifths) {
            let fifth = |run: usize, place: usize| fifths[place] >> run & 1;
            fill::<32>(&mut block.codes, |run, place| nibble(run, place) << 3 | fifth(run, place) << 7);
        } else {
            fill::<32>(&mut block.codes, |run, place| nibble(run, place) << 4);
        }
    }
}

fn read_q2k(bytes: &[u8], block: &mut Block) {
    let [steps, codes, scale, minimum] = split(bytes, [16, 64, 2, 2]);
    block.scale = half_bits(scale);
    block.minimum = negated(half_bits(minimum));
    for (span, steps) in steps.iter().enumerate() {
        block.scale_steps[span] = (steps & 15).cast_signed();
        block.minimum_steps[span] = (steps >> 4).cast_signed();
    }
    let codes = runs::<32>(codes);
    fill::<32>(&mut block.codes, |run, place| two_bits(codes, run, place) << 6);
}

fn read_q3k(bytes: &[u8], block: &mut Block) {
    let [thirds, codes, steps, scale] = split(bytes, [32, 64, 12, 2]);
    block.scale = half_bits(scale);
    for span in 0..MAX_SPANS {
        let low = steps[span % 8] >> (span / 8 * 4) & 15;
        let high = steps[8 + span % 4] >> (span / 4 * 2) & 3;
        block.scale_steps[span] = (low | high << 4).cast_signed() - 32;
    }
    let (thirds, codes) = (runs::<32>(thirds), runs::<32>(codes));
    let third = |run: usize, place: usize| thirds[0][place] >> run & 1;
    fill::<32>(&mut block.codes, |run, place| two_bits(codes, run, place) << 5 | third(run, place) << 7);
}

fn read_q6k(bytes: &[u8], block: &mut Block) {
    let [nibbles, pairs, steps, scale] = split(bytes, [128, 64, 16, 2]);
    block.scale = half_bits(scale);
    for (to, step) in block.scale_steps.iter_mut().zip(steps) {
        *to = step.cast_signed();
    }
    // Of each 128 inputs the first 64 are low nibbles.
    let (nibbles, pairs) = (runs::<32>(nibbles), runs::<32>(pairs));
    let nibble = |run: usize, place: usize| nibbles[run / 4 * 2 + run % 2][place] >> (run / 2 % 2 * 4) & 15;
    fill::<32>(&mut block.codes, |run, place| nibble(run, place) << 2 | two_bits(pairs, run, place) << 6);
}

fn read_iq4_xs(bytes: &[u8], block: &mut Block) {
    let [scale, high_steps, low_steps, nibbles] = split(bytes, [2, 2, 4, 128]);
    block.scale = half_bits(scale);
    for span in 0..8 {
        let low = low_steps[span / 2] >> (span % 2 * 4) & 15;
        let high = high_steps[span / 4] >> (span % 4 * 2) & 3;
        block.scale_steps[span] = (low | high << 4).cast_signed() - 32;
    }
    // Of each 32 inputs the first 16 are low nibbles.
    let nibbles = runs::<16>(nibbles);
    fill::<16>(&mut block.codes, |run, place| (nibbles[run / 2][place] >> (run % 2 * 4) & 15) << 4);
}

/// Pairs of bits as all k-quants keep them: of each 128 inputs, every 32 in the same bits of 32 bytes.
fn two_bits(pairs: &[[u8; 32]], run: usize, place: usize) -> u8 {
    pairs[run / 4][place] >> (run % 4 * 2) & 3
}

/// Sets codes run by run, by run and place in it. Within a run all come out of neighbouring bytes by the same shift, which
/// is what the compiler needs to take them sixteen at a time.
#[inline]
fn fill<const RUN: usize>(codes: &mut [u8], code: impl Fn(usize, usize) -> u8) {
    for (run, codes) in codes.as_chunks_mut::<RUN>().0.iter_mut().enumerate() {
        for (place, to) in codes.iter_mut().enumerate() {
            *to = code(run, place);
        }
    }
}

fn runs<const RUN: usize>(bytes: &[u8]) -> &[[u8; RUN]] {
    bytes.as_chunks().0
}

/// `bytes` in parts of these lengths.
fn split<const N: usize>(bytes: &[u8], lens: [usize; N]) -> [&[u8]; N] {
    let mut rest = bytes;
    lens.map(|len| {
        let (part, left) = rest.split_at(len);
        rest = left;
        part
    })
}

fn half_bits(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[0], bytes[1]])
}

/// Half a power of two, as the values it scales are doubled. The smallest exponent is a subnormal number.
fn exponent_scale(exponent: u16) -> f32 {
    0.5 * f32::from_bits((u32::from(exponent) << 23).max(SMALLEST_POWER))
}

/// f32 bits of 2^-127, what an exponent of zero means.
pub(crate) const SMALLEST_POWER: u32 = 1 << 22;

/// k-quants subtract their minima; tiles add them.
fn negated(half_bits: u16) -> u16 {
    half_bits ^ 0x8000
}
