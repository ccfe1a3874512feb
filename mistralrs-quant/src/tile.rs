//! How quantized weights lie in memory.
//!
//! A tile holds 16 outputs. For each *group* of inputs (a file's block) it stores what the 16 rows have there: scales
//! (f16 or exponents), minima (f16), step counts, then the codes of 32 inputs at a time. Kernels multiply *quads*: four inputs of 16
//! outputs are 64 bytes, one register, output by output. Codes of fewer than 8 bits are cut up, and each piece lies in
//! the *plane* of its width, eight quads to a block:
//!
//! | plane | bytes | quad j is in |
//! |---|---|---|
//! | single bits | 64 | bit 7 - j |
//! | pairs of bits, two planes | 128 | plane j / 4, from bit 6 - 2 (j % 4) on |
//! | nibbles, four planes | 256 | plane j % 4, low for j < 4 |
//! | bytes, eight planes | 512 | plane j |
//!
//! so that every quad comes out with one shift and one mask per plane. A group takes the bytes of the 16 blocks it was
//! made of, but for step counts, which are bytes here (at most 4 % more).

use half::f16;

use crate::format::{BLOCK, Block, BlockFormat, MAX_SPANS};

/// Outputs of a tile: one AVX-512 register of f32.
pub(crate) const TILE: usize = 16;
/// Inputs that one instruction multiplies and sums.
pub(crate) const QUAD: usize = 4;
/// Quads of a block.
pub(crate) const QUADS: usize = BLOCK / QUAD;
/// A quad of codes of a tile.
pub(crate) const PLANE_BYTES: usize = TILE * QUAD;
/// Where a group's parts begin. A part that a format lacks begins where the next one does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupLayout {
    pub(crate) minima: usize,
    pub(crate) scale_steps: usize,
    pub(crate) minimum_steps: usize,
    pub(crate) codes: usize,
    pub(crate) num_bytes: usize,
    /// Blocks of 32 inputs.
    pub(crate) num_blocks: usize,
}

/// Where the planes of a block's codes begin, from the block on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockLayout {
    pub(crate) bits: u32,
    pub(crate) pairs: usize,
    pub(crate) nibbles: usize,
    pub(crate) num_bytes: usize,
}

impl BlockFormat {
    pub(crate) const fn group_layout(self) -> GroupLayout {
        let num_blocks = self.block_len() / BLOCK;
        let minima = TILE * self.scale_bytes();
        let scale_steps = minima + if self.has_minima() { 2 * TILE } else { 0 };
        let num_step_bytes = if self.has_steps() { self.spans() * num_blocks * TILE } else { 0 };
        let minimum_steps = scale_steps + num_step_bytes;
        let has_minimum_bytes = self.has_minima() && !self.has_shared_steps();
        let codes = minimum_steps + if has_minimum_bytes { num_step_bytes } else { 0 };
        let num_bytes = codes + num_blocks * self.block_layout().num_bytes;
        GroupLayout { minima, scale_steps, minimum_steps, codes, num_bytes, num_blocks }
    }

    pub(crate) const fn block_layout(self) -> BlockLayout {
        let bits = self.bits();
        let pairs = if matches!(bits, 3 | 5) { PLANE_BYTES } else { 0 };
        let nibbles = pairs + if matches!(bits, 2 | 3 | 6) { 2 * PLANE_BYTES } else { 0 };
        BlockLayout { bits, pairs, nibbles, num_bytes: PLANE_BYTES * bits as usize }
    }

    /// Whether a byte of step counts holds the scale's (low) and the minimum's.
    pub(crate) const fn has_shared_steps(self) -> bool {
        matches!(self, Self::Q2K)
    }

    /// Lays the blocks of a tile's rows, by output, into `group`, which is zeroed.
    pub(crate) fn pack_group(self, blocks: &[Block; TILE], group: &mut [u8]) {
        for (lane, block) in blocks.iter().enumerate() {
            self.pack_factors(block, lane, group);
        }
        let planes = group[self.group_layout().codes..].chunks_exact_mut(self.block_layout().num_bytes);
        for (index, planes) in planes.enumerate() {
            if self.bits() == 8 {
                write_quads(blocks, index, planes.as_chunks_mut().0);
                continue;
            }
            let mut quads = [[0; PLANE_BYTES]; QUADS];
            write_quads(blocks, index, &mut quads);
            self.block_layout().write_planes(planes, &quads);
        }
    }

    /// Scale, minimum and steps of output `lane`.
    fn pack_factors(self, block: &Block, lane: usize, group: &mut [u8]) {
        let layout = self.group_layout();
        let scale_bytes = self.scale_bytes();
        group[scale_bytes * lane..][..scale_bytes].copy_from_slice(&block.scale.to_le_bytes()[..scale_bytes]);
        if self.has_minima() {
            group[layout.minima + 2 * lane..][..2].copy_from_slice(&block.minimum.to_le_bytes());
        }
        let num_spans = if self.has_steps() { self.spans() * layout.num_blocks } else { 0 };
        for span in 0..num_spans {
            let at = span * TILE + lane;
            let (scale, minimum) = (block.scale_steps[span], block.minimum_steps[span]);
            if self.has_shared_steps() {
                group[layout.scale_steps + at] = (scale | minimum << 4).cast_unsigned();
                continue;
            }
            group[layout.scale_steps + at] = scale.cast_unsigned();
            if self.has_minima() {
                group[layout.minimum_steps + at] = minimum.cast_unsigned();
            }
        }
    }

    /// Output `lane` of `group`, dequantized as ggml does.
    pub(crate) fn unpack_lane(self, group: &[u8], lane: usize, out: &mut [f32]) {
        let layout = self.group_layout();
        let half_at = |at: usize| u16::from_le_bytes([group[at + 2 * lane], group[at + 2 * lane + 1]]);
        let scale = self.scale(if self.has_exponents() { group[lane].into() } else { half_at(0) });
        let minimum = if self.has_minima() { f16::from_bits(half_at(layout.minima)).to_f32() } else { 0.0 };
        let block_bytes = self.block_layout().num_bytes;
        for (input, out) in out.iter_mut().enumerate() {
            let planes = &group[layout.codes + input / BLOCK * block_bytes..][..block_bytes];
            let code = self.block_layout().read_code(planes, input % BLOCK / QUAD, lane * QUAD + input % QUAD);
            let value = self.value(code);
            let span = input / (BLOCK / self.spans());
            *out = if self.has_steps() {
                let (scale_steps, minimum_steps) = self.steps(group, span * TILE + lane);
                scale * f32::from(scale_steps) * value + minimum * f32::from(minimum_steps)
            } else {
                scale * value + minimum
            };
        }
    }

    fn steps(self, group: &[u8], at: usize) -> (i8, i8) {
        let layout = self.group_layout();
        let scale = group[layout.scale_steps + at];
        if self.has_shared_steps() {
            return ((scale & 15).cast_signed(), (scale >> 4).cast_signed());
        }
        let minimum = if self.has_minima() { group[layout.minimum_steps + at] } else { 0 };
        (scale.cast_signed(), minimum.cast_signed())
    }
}

impl BlockLayout {
    /// Cuts the codes of a block, which have fewer than 8 bits, up and sets their pieces in its planes.
    fn write_planes(self, planes: &mut [u8], quads: &[[u8; PLANE_BYTES]; QUADS]) {
        let planes = planes.as_chunks_mut::<PLANE_BYTES>().0;
        let (bits, rest) = planes.split_at_mut(self.pairs / PLANE_BYTES);
        let (pairs, nibbles) = rest.split_at_mut((self.nibbles - self.pairs) / PLANE_BYTES);
        // A single bit lies above the others.
        let pair_shift = if bits.is_empty() { 6 } else { 5 };
        for plane in bits {
            gather::<QUADS>(plane, quads, |quad, code| (code >> 7) << (7 - quad));
        }
        for (plane, quads) in pairs.iter_mut().zip(quads.as_chunks::<4>().0) {
            gather(plane, quads, |quad, code| (code >> pair_shift & 3) << (6 - quad * 2));
        }
        for (index, plane) in nibbles.iter_mut().enumerate() {
            let quads = [quads[index], quads[index + QUADS / 2]];
            gather(plane, &quads, |quad, code| (code >> (8 - self.bits) & 15) << (quad * 4));
        }
    }

    fn read_code(self, planes: &[u8], quad: usize, place: usize) -> u8 {
        if self.bits == 8 {
            return planes[quad * PLANE_BYTES + place];
        }
        let mut code = 0;
        if self.pairs > 0 {
            code |= planes[place] >> (7 - quad) << 7;
        }
        if self.nibbles > self.pairs {
            let pair = planes[self.pairs + quad / 4 * PLANE_BYTES + place] >> (6 - quad % 4 * 2) & 3;
            code |= pair << if self.pairs > 0 { 5 } else { 6 };
        }
        if self.bits >= 4 {
            let nibble = planes[self.nibbles + quad % 4 * PLANE_BYTES + place] >> (quad / 4 * 4) & 15;
            code |= nibble << (8 - self.bits);
        }
        code
    }
}

/// The codes of 32 inputs, block `index` of `blocks`, which are by output, quad by quad.
#[inline]
fn write_quads(blocks: &[Block; TILE], index: usize, quads: &mut [[u8; PLANE_BYTES]]) {
    for (lane, block) in blocks.iter().enumerate() {
        let codes = &block.codes.as_chunks::<BLOCK>().0[index];
        for (quad, codes) in quads.iter_mut().zip(codes.as_chunks::<QUAD>().0) {
            quad.as_chunks_mut::<QUAD>().0[lane] = *codes;
        }
    }
}

/// Sets each byte of a plane to the pieces of the codes that lie there in `quads`.
#[inline]
fn gather<const N: usize>(
    plane: &mut [u8; PLANE_BYTES],
    quads: &[[u8; PLANE_BYTES]; N],
    piece: impl Fn(usize, u8) -> u8,
) {
    for (quad, codes) in quads.iter().enumerate() {
        for (to, code) in plane.iter_mut().zip(codes) {
            *to |= piece(quad, *code);
        }
    }
}

const _: () = assert!(MAX_SPANS * BLOCK / 2 == crate::format::MAX_BLOCK_LEN, "16 inputs share a scale at least");
