//! Weights of all formats as the unit multiplies them: as bf16, each input's pair beside it.

use std::arch::x86_64::{
    __m256i, __m512, __m512i, _mm256_loadu_si256, _mm512_add_epi32, _mm512_and_si512, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_mul_ps,
    _mm512_or_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_slli_epi32, _mm512_srli_epi32, _mm512_storeu_si512,
    _mm512_sub_ps,
};

use super::multiply::{Multiply, multiply, multiply_both_in_two, multiply_rows_in_two};
use crate::bf16_rows::BLOCK_BYTES;
use crate::format::BLOCK;
use crate::kernels::avx512::Avx512Lanes;
use crate::kernels::lanes::Lanes;
use crate::kernels::weights::{Stored, Weights};
use crate::tile::{PLANE_BYTES, QUADS, TILE};

/// Of 32 bits.
const UPPER_HALF: i32 = 0xffff_0000_u32.cast_signed();

/// Tiles of weights as the unit multiplies them.
pub(super) trait Operand {
    /// Blocks of 32 inputs in a group.
    const BLOCKS: usize;
    /// Bytes of a stored group.
    const GROUP_BYTES: usize;
    /// How many bf16 a weight is.
    const PARTS: usize;
    /// How many bf16 a value of the rows is.
    const ROW_PARTS: usize;
    /// What multiplies so many parts of rows by so many of weights.
    const MULTIPLY: Multiply;

    /// Writes groups of a stored tile to `out` as the unit reads them: of each two inputs the 16 outputs' pairs, a block's first parts
    /// and then its second ones.
    ///
    /// # Safety
    /// `tile` points to so many groups; `out` has room for their blocks; the CPU has AVX-512F, BW and VNNI.
    unsafe fn widen(tile: *const u8, num_groups: usize, out: *mut u8);
}

impl<const FORMAT: usize> Operand for Stored<FORMAT> {
    const BLOCKS: usize = <Self as Weights>::BLOCKS;
    const GROUP_BYTES: usize = <Self as Weights>::GROUP_BYTES;
    const PARTS: usize = 1;
    const ROW_PARTS: usize = 1;
    const MULTIPLY: Multiply = multiply;

    #[inline]
    unsafe fn widen(tile: *const u8, num_groups: usize, out: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { widen_blocks::<Self>(tile, num_groups, out) }
    }
}

/// # Safety
/// As [`Operand::widen`]'s, for groups of layout `S`.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn widen_blocks<S: Weights>(tile: *const u8, num_groups: usize, out: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut to = out;
        for group in 0..num_groups {
            let group = tile.add(group * S::GROUP_BYTES);
            for block in 0..S::BLOCKS {
                let mut open = S::open::<Avx512Lanes>(group, block);
                for span in 0..S::SPANS {
                    let factors = CodeFactors::new(S::factors::<Avx512Lanes>(group, block, span), S::HAS_MINIMA);
                    for quad in span * QUADS / S::SPANS..(span + 1) * QUADS / S::SPANS {
                        let [low, high] = factors.pairs(S::quad(&mut open, quad));
                        _mm512_storeu_si512(to.cast(), low);
                        _mm512_storeu_si512(to.add(PLANE_BYTES).cast(), high);
                        to = to.add(2 * PLANE_BYTES);
                    }
                }
            }
        }
    }
}

/// What the codes of a quad are worth, by output.
struct CodeFactors {
    /// By place in the quad: a code that is not moved to the low end of its 32 bits is worth as much less.
    scales: [Avx512Lanes; 4],
    /// Of a code of zero.
    zero: Avx512Lanes,
}

impl CodeFactors {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn new((scale, minimum): (Avx512Lanes, Avx512Lanes), has_minima: bool) -> Self {
        let times = |factor: f32| Avx512Lanes(_mm512_mul_ps(scale.0, _mm512_set1_ps(factor)));
        // Codes have their zero at 128.
        let zero = times(-128.0);
        // SAFETY: the CPU has AVX-512F.
        let zero = if has_minima { unsafe { zero.add(minimum) } } else { zero };
        Self { scales: [scale, times(1.0 / 256.0), times(1.0 / 65536.0), scale], zero }
    }

    /// The values of the first two inputs of 16 outputs as pairs of bf16, and those of the other two.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn pairs(&self, codes: __m512i) -> [__m512i; 2] {
        let places = [
            _mm512_and_si512(codes, _mm512_set1_epi32(0xff)),
            _mm512_and_si512(codes, _mm512_set1_epi32(0xff00)),
            _mm512_and_si512(codes, _mm512_set1_epi32(0x00ff_0000)),
            _mm512_srli_epi32::<24>(codes),
        ];
        // To nearest: half a unit of what is left is added before the rest is cut off.
        let value = |place: usize| {
            let value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(places[place]), self.scales[place].0, self.zero.0);
            _mm512_add_epi32(_mm512_castps_si512(value), _mm512_set1_epi32(0x8000))
        };
        let pair = |first: usize| {
            let high = _mm512_and_si512(value(first + 1), _mm512_set1_epi32(UPPER_HALF));
            _mm512_or_si512(high, _mm512_srli_epi32::<16>(value(first)))
        };
        [pair(0), pair(2)]
    }
}

/// Bytes of an input's 16 floats of two bytes in a stored tile.
const INPUT_BYTES: usize = 2 * TILE;

/// Elements of BF16.
pub(super) struct Bf16Floats;

impl Operand for Bf16Floats {
    const BLOCKS: usize = 1;
    const GROUP_BYTES: usize = BLOCK * INPUT_BYTES;
    const PARTS: usize = 1;
    const ROW_PARTS: usize = 2;
    const MULTIPLY: Multiply = multiply_rows_in_two;

    #[inline]
    unsafe fn widen(tile: *const u8, num_groups: usize, out: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { pair_bf16(tile, num_groups, out) }
    }
}

/// Elements of F16.
pub(super) struct F16Floats;

impl Operand for F16Floats {
    const BLOCKS: usize = 1;
    const GROUP_BYTES: usize = BLOCK * INPUT_BYTES;
    const PARTS: usize = 2;
    const ROW_PARTS: usize = 2;
    const MULTIPLY: Multiply = multiply_both_in_two;

    #[inline]
    unsafe fn widen(tile: *const u8, num_groups: usize, out: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { split_f16(tile, num_groups, out) }
    }
}

/// # Safety
/// As [`Operand::widen`]'s, for groups of BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn pair_bf16(tile: *const u8, num_groups: usize, out: *mut u8) {
    for pair in 0..num_groups * BLOCK / 2 {
        // SAFETY: the caller's promise: a pair is two inputs of the tile, and a line of what it becomes.
        unsafe {
            let [low, high] = load_pair(tile, pair).map(|elements| _mm512_cvtepu16_epi32(elements));
            let line = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
            _mm512_storeu_si512(out.add(pair * PLANE_BYTES).cast(), line);
        }
    }
}

/// # Safety
/// As [`Operand::widen`]'s, for groups of F16.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn split_f16(tile: *const u8, num_groups: usize, out: *mut u8) {
    for pair in 0..num_groups * BLOCK / 2 {
        let (block, line) = (pair / (BLOCK / 2), pair % (BLOCK / 2));
        // SAFETY: the caller's promise: a pair is two inputs of the tile, and a line of each of its block's parts.
        unsafe {
            let values = load_pair(tile, pair).map(|elements| _mm512_cvtph_ps(elements));
            let nearest = values.map(|value| nearest_bf16(value));
            // Of 11 bits 3 are left: nothing is cut off.
            let rests = [_mm512_sub_ps(values[0], nearest[0]), _mm512_sub_ps(values[1], nearest[1])];
            let to = out.add((block * 2 * BLOCK / 2 + line) * PLANE_BYTES);
            _mm512_storeu_si512(to.cast(), upper_halves(nearest));
            _mm512_storeu_si512(to.add(BLOCK_BYTES).cast(), upper_halves(rests));
        }
    }
}

/// The 16 outputs' elements of two inputs.
///
/// # Safety
/// The tile has them; the CPU has AVX-512F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_pair(tile: *const u8, pair: usize) -> [__m256i; 2] {
    // SAFETY: the caller's promise.
    unsafe { [0, 1].map(|which| _mm256_loadu_si256(tile.add((2 * pair + which) * INPUT_BYTES).cast())) }
}

/// The nearest value with 8 bits; of two the one further from zero.
#[inline]
#[target_feature(enable = "avx512f")]
fn nearest_bf16(value: __m512) -> __m512 {
    let half_up = _mm512_add_epi32(_mm512_castps_si512(value), _mm512_set1_epi32(0x8000));
    _mm512_castsi512_ps(_mm512_and_si512(half_up, _mm512_set1_epi32(UPPER_HALF)))
}

/// By lane, those of both.
#[inline]
#[target_feature(enable = "avx512f")]
fn upper_halves([low, high]: [__m512; 2]) -> __m512i {
    let high = _mm512_and_si512(_mm512_castps_si512(high), _mm512_set1_epi32(UPPER_HALF));
    _mm512_or_si512(high, _mm512_srli_epi32::<16>(_mm512_castps_si512(low)))
}
