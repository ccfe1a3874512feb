//! How weights lie in files and in tiles.
//!
//! A file stores a row as *blocks* (ggml's; one element for the float types). A tile stores, for each *group* of
//! inputs, what 16 rows have there: their scales (f16), minima (f16), fifth bits and quants, whichever the format has.
//! Quants of one input lie side by side by row; nibbles pair input 2i (low) with input 2i + 1 (high). A group takes as
//! many bytes as the 16 blocks it was made of.
//! Source of the blocks: ggml's `ggml-common.h`, their meaning: `dequantize_row_*` in `ggml-quants.c`.

use half::{bf16, f16};

use super::{GgmlDType, TILE};

/// Element or block types that tiles can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
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
}

/// Values of a quantized block.
pub(super) const BLOCK: usize = 32;

/// Bytes of the scales, or the minima, of a tile's group.
const SCALE_BYTES: usize = 2 * TILE;

/// Bytes of the fifth bits of a tile's group: a `u16` for each input, bit `l` for row `l`.
pub(super) const HIGH_BYTES: usize = 2 * BLOCK;

/// Bytes of a pair of inputs as nibbles, or of one input as bytes.
pub(super) const LANE_BYTES: usize = TILE;

/// Where the parts of a quantized group begin; a part that is absent begins where the next one does.
#[derive(Clone, Copy)]
pub(super) struct GroupLayout {
    pub minima: usize,
    pub high: usize,
    pub quants: usize,
}

impl WeightFormat {
    /// The format of GGUF's `dtype`, if tiles can hold it.
    pub fn from_ggml(dtype: GgmlDType) -> Option<Self> {
        match dtype {
            GgmlDType::F32 => Some(Self::F32),
            GgmlDType::F16 => Some(Self::F16),
            GgmlDType::BF16 => Some(Self::Bf16),
            GgmlDType::Q4_0 => Some(Self::Q4_0),
            GgmlDType::Q4_1 => Some(Self::Q4_1),
            GgmlDType::Q5_0 => Some(Self::Q5_0),
            GgmlDType::Q5_1 => Some(Self::Q5_1),
            GgmlDType::Q8_0 => Some(Self::Q8_0),
            _ => None,
        }
    }

    /// Little-endian elements of a float format, widened; `None` for quantized ones.
    pub fn widen(self, bytes: &[u8]) -> Option<Vec<f32>> {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => {
                Some(bytes.chunks_exact(self.block_bytes()).map(|element| self.widen_one(element)).collect())
            }
            _ => None,
        }
    }

    /// Values of a file's block.
    pub(super) fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            _ => BLOCK,
        }
    }

    /// Bytes of a file's block.
    pub(super) fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
        }
    }

    /// Inputs of a tile's group. Kernels take inputs by twos, so float formats have groups of two.
    pub(super) fn group_len(self) -> usize {
        self.block_len().max(2)
    }

    /// Bytes of a tile's group.
    pub(super) const fn group_bytes(self) -> usize {
        match self {
            Self::F32 => 2 * 4 * TILE,
            Self::F16 | Self::Bf16 => 2 * 2 * TILE,
            Self::Q4_0 => SCALE_BYTES + BLOCK / 2 * TILE,
            Self::Q4_1 => 2 * SCALE_BYTES + BLOCK / 2 * TILE,
            Self::Q5_0 => SCALE_BYTES + HIGH_BYTES + BLOCK / 2 * TILE,
            Self::Q5_1 => 2 * SCALE_BYTES + HIGH_BYTES + BLOCK / 2 * TILE,
            Self::Q8_0 => SCALE_BYTES + BLOCK * TILE,
        }
    }

    /// Where parts of a group begin; scales come first. Meaningless for float formats.
    pub(super) const fn layout(self) -> GroupLayout {
        let has_minima = matches!(self, Self::Q4_1 | Self::Q5_1);
        let has_high = matches!(self, Self::Q5_0 | Self::Q5_1);
        let high = if has_minima { 2 * SCALE_BYTES } else { SCALE_BYTES };
        GroupLayout { minima: SCALE_BYTES, high, quants: if has_high { high + HIGH_BYTES } else { high } }
    }

    /// Lays `rows` of a file, at most 16, side by side in `tile`, which is zeroed.
    pub(super) fn pack_tile(self, rows: &[&[u8]], tile: &mut [u8]) {
        let groups = tile.chunks_exact_mut(self.group_bytes()).enumerate();
        for (index, group) in groups {
            let bytes = self.group_len() / self.block_len() * self.block_bytes();
            for (lane, row) in rows.iter().enumerate() {
                let source = &row[index * bytes..(index + 1) * bytes];
                match self {
                    Self::F32 | Self::F16 | Self::Bf16 => pack_elements(source, lane, group, self.block_bytes()),
                    _ => self.pack_block(source, lane, group),
                }
            }
        }
    }

    fn pack_block(self, block: &[u8], lane: usize, group: &mut [u8]) {
        let layout = self.layout();
        let mut rest = block;
        let mut take = |len: usize| {
            let (taken, left) = rest.split_at(len);
            rest = left;
            taken
        };
        group[2 * lane..2 * lane + 2].copy_from_slice(take(2));
        if layout.high > layout.minima {
            group[layout.minima + 2 * lane..][..2].copy_from_slice(take(2));
        }
        if layout.quants > layout.high {
            let high = u32::from_le_bytes(take(4).try_into().expect("4 bytes were taken"));
            for input in (0..BLOCK).filter(|input| high >> input & 1 == 1) {
                group[layout.high + 2 * input + lane / 8] |= 1 << (lane % 8);
            }
        }
        let quants = &mut group[layout.quants..];
        if self == Self::Q8_0 {
            for (input, quant) in take(BLOCK).iter().enumerate() {
                quants[input * LANE_BYTES + lane] = *quant;
            }
            return;
        }
        // ggml pairs input i with input i + 16.
        let packed = take(BLOCK / 2);
        let nibble = |input: usize| packed[input % 16] >> (input / 16 * 4) & 15;
        for pair in 0..BLOCK / 2 {
            quants[pair * LANE_BYTES + lane] = nibble(2 * pair) | nibble(2 * pair + 1) << 4;
        }
    }

    /// What row `lane` has in `group`, dequantized.
    pub(super) fn unpack_lane(self, group: &[u8], lane: usize, out: &mut [f32]) {
        let layout = self.layout();
        let half_at = |at: usize| f16::from_le_bytes([group[at + 2 * lane], group[at + 2 * lane + 1]]).to_f32();
        for (input, out) in out.iter_mut().enumerate() {
            let element = |size: usize| &group[(input * TILE + lane) * size..][..size];
            let nibble = || f32::from(group[layout.quants + input / 2 * LANE_BYTES + lane] >> (input % 2 * 4) & 15);
            let fifth = || f32::from((group[layout.high + 2 * input + lane / 8] >> (lane % 8) & 1) << 4);
            *out = match self {
                Self::F32 | Self::F16 | Self::Bf16 => self.widen_one(element(self.block_bytes())),
                Self::Q4_0 => half_at(0) * (nibble() - 8.0),
                Self::Q4_1 => half_at(0) * nibble() + half_at(layout.minima),
                Self::Q5_0 => half_at(0) * (nibble() + fifth() - 16.0),
                Self::Q5_1 => half_at(0) * (nibble() + fifth()) + half_at(layout.minima),
                Self::Q8_0 => half_at(0) * f32::from(group[layout.quants + input * LANE_BYTES + lane].cast_signed()),
            };
        }
    }

    fn widen_one(self, element: &[u8]) -> f32 {
        match *element {
            [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
            [a, b] if self == Self::F16 => f16::from_le_bytes([a, b]).to_f32(),
            [a, b] => bf16::from_le_bytes([a, b]).to_f32(),
            _ => unreachable!("float formats have elements of 2 or 4 bytes"),
        }
    }
}

fn pack_elements(source: &[u8], lane: usize, group: &mut [u8], size: usize) {
    for (input, element) in source.chunks_exact(size).enumerate() {
        group[(input * TILE + lane) * size..][..size].copy_from_slice(element);
    }
}
