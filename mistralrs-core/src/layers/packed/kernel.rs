//! The inner loops of [`PackedMatrix`]: one block of R rows by V tiles, generic over format and instruction set.

use std::ops::Range;

use half::{bf16, f16};

use super::format::{BLOCK, LANE_BYTES};
use super::lanes::{Lanes, PlainLanes};
use super::{PackedMatrix, SendPointer, TILE, WeightFormat, bytes};

#[cfg(not(target_endian = "little"))]
compile_error!("tiles hold little-endian values, which kernels load as they are");

/// Instruction sets the loops are compiled for. All give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// No intrinsics.
    Plain,
    /// 256-bit registers, with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 512-bit registers.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// The best level of this CPU.
pub(super) fn detected() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return Level::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            return Level::Avx2;
        }
    }
    Level::Plain
}

/// Tiles a block covers at `num_rows` rows: a unit of work of as many loses nothing to remainders.
pub(super) fn tiles_at_once(level: Level, format: WeightFormat, num_rows: usize) -> usize {
    let is_float = matches!(format, WeightFormat::F32 | WeightFormat::F16 | WeightFormat::Bf16);
    match (level, num_rows) {
        (_, 1) => 4,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, 2..=4) => 3,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, _) => 2 + usize::from(is_float),
        (_, 2) => 2,
        _ => 4,
    }
}

/// The part of a product that one unit of work computes.
pub(super) struct Panel<'a> {
    pub matrix: &'a PackedMatrix,
    /// `[T, K]`.
    pub activations: &'a [f32],
    /// `[T, N]`.
    pub out: SendPointer,
    /// Of the matrix.
    pub tiles: Range<usize>,
    /// Of the activations.
    pub rows: Range<usize>,
}

/// Computes `panel`.
///
/// # Safety
/// The CPU has `level`; `panel.tiles` are in the matrix, `panel.rows` in `activations`; `out` holds a row of N values
/// for every row of `activations`, and nobody else touches this panel's part of it.
pub(super) unsafe fn run(level: Level, panel: &Panel<'_>) {
    // SAFETY: the caller's promise is the callee's.
    unsafe {
        match level {
            Level::Plain => by_format::<PlainLanes>(panel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => super::x86::run_avx2(panel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => super::x86::run_avx512(panel),
        }
    }
}

/// Picks the loops of the matrix's format.
///
/// # Safety
/// As [`run`]'s, for the level of `L`.
#[inline(always)]
pub(super) unsafe fn by_format<L: Lanes>(panel: &Panel<'_>) {
    // SAFETY: the caller's promise is the callee's; the format names how the tiles were packed.
    unsafe {
        match panel.matrix.format {
            WeightFormat::F32 => by_rows::<L, f32>(panel),
            WeightFormat::F16 => by_rows::<L, f16>(panel),
            WeightFormat::Bf16 => by_rows::<L, bf16>(panel),
            WeightFormat::Q4_0 => by_rows::<L, Blocks<4, false>>(panel),
            WeightFormat::Q4_1 => by_rows::<L, Blocks<4, true>>(panel),
            WeightFormat::Q5_0 => by_rows::<L, Blocks<5, false>>(panel),
            WeightFormat::Q5_1 => by_rows::<L, Blocks<5, true>>(panel),
            WeightFormat::Q8_0 => by_rows::<L, Blocks<8, false>>(panel),
        }
    }
}

/// How a tile's groups become f32.
trait Decode {
    const FORMAT: WeightFormat;
    /// Inputs of a group; even.
    const LEN: usize;
    /// What a group's inputs share, in registers.
    type Shared<L: Lanes>: Copy;

    /// # Safety
    /// `group` points to a group of a tile; the CPU has what `L` needs.
    unsafe fn shared<L: Lanes>(group: *const u8) -> Self::Shared<L>;

    /// Weights of inputs `2 * pair` and `2 * pair + 1`.
    ///
    /// # Safety
    /// As `shared`'s; `pair` is less than half of `LEN`.
    unsafe fn pair<L: Lanes>(group: *const u8, pair: usize, shared: Self::Shared<L>) -> [L; 2];
}

/// Splits the panel into strips of as many rows as have room in registers, so that each weight is widened once a strip.
#[inline(always)]
unsafe fn by_rows<L: Lanes, D: Decode>(panel: &Panel<'_>) {
    let is_wide = L::NUM_IN_REGISTERS >= 32;
    let max_rows = if is_wide { 8 } else { 3 };
    let mut row = panel.rows.start;
    while row < panel.rows.end {
        let num_rows = max_rows.min(panel.rows.end - row);
        // R · V sums, what V tiles share, 2 V weights and an activation must fit in the registers.
        // SAFETY: the caller's promise is the callee's.
        unsafe {
            match (is_wide, num_rows) {
                (_, 1) => strip::<L, D, 1, 4>(panel, row),
                (true, 2) => strip::<L, D, 2, 3>(panel, row),
                (true, 3) => strip::<L, D, 3, 3>(panel, row),
                (true, 4) => strip::<L, D, 4, 3>(panel, row),
                (true, 5) => strip::<L, D, 5, 2>(panel, row),
                (true, 6) => strip::<L, D, 6, 2>(panel, row),
                (true, 7) => strip::<L, D, 7, 2>(panel, row),
                (true, _) if D::LEN < BLOCK => strip::<L, D, 8, 3>(panel, row),
                (true, _) => strip::<L, D, 8, 2>(panel, row),
                (false, 2) => strip::<L, D, 2, 2>(panel, row),
                (false, _) => strip::<L, D, 3, 1>(panel, row),
            }
        }
        row += num_rows;
    }
}

/// R rows from `row` on, by all tiles of the panel: V at a time, then one at a time.
#[inline(always)]
unsafe fn strip<L: Lanes, D: Decode, const R: usize, const V: usize>(panel: &Panel<'_>, row: usize) {
    let mut tile = panel.tiles.start;
    // SAFETY: the caller's promise is the callee's.
    unsafe {
        while tile + V <= panel.tiles.end {
            block::<L, D, R, V>(panel, row, tile);
            tile += V;
        }
        while tile < panel.tiles.end {
            block::<L, D, R, 1>(panel, row, tile);
            tile += 1;
        }
    }
}

/// R rows by V tiles: every sum is one chain over the inputs, so R and V never change a result.
#[inline(always)]
unsafe fn block<L: Lanes, D: Decode, const R: usize, const V: usize>(panel: &Panel<'_>, row: usize, tile: usize) {
    let num_inputs = panel.matrix.num_inputs;
    let num_groups = num_inputs / D::LEN;
    let group_bytes = D::FORMAT.group_bytes();
    // SAFETY: the caller's promise: R rows and V tiles from here on exist.
    unsafe {
        let tiles = bytes(&panel.matrix.storage).as_ptr().add(tile * num_groups * group_bytes);
        let activations = panel.activations.as_ptr().add(row * num_inputs);
        let mut sums = [[L::splat(0.0); V]; R];
        for group in 0..num_groups {
            let at = |v: usize| tiles.add((v * num_groups + group) * group_bytes);
            let mut shared = [D::shared::<L>(at(0)); V];
            for (v, shared) in shared.iter_mut().enumerate().skip(1) {
                *shared = D::shared(at(v));
            }
            for pair in 0..D::LEN / 2 {
                let mut weights = [[L::splat(0.0); 2]; V];
                for (v, weights) in weights.iter_mut().enumerate() {
                    *weights = D::pair(at(v), pair, shared[v]);
                }
                let inputs = activations.add(group * D::LEN + 2 * pair);
                for (r, sums) in sums.iter_mut().enumerate() {
                    let even = L::splat(*inputs.add(r * num_inputs));
                    let odd = L::splat(*inputs.add(r * num_inputs + 1));
                    for (sum, weights) in sums.iter_mut().zip(weights) {
                        *sum = odd.mul_add(weights[1], even.mul_add(weights[0], *sum));
                    }
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                store(panel, row + r, tile + v, *sum);
            }
        }
    }
}

/// Writes one tile's sums of one row, without the padding of the last tile.
#[inline(always)]
unsafe fn store<L: Lanes>(panel: &Panel<'_>, row: usize, tile: usize, sums: L) {
    let num_outputs = panel.matrix.num_outputs;
    let column = tile * TILE;
    let out = panel.out.at(row * num_outputs + column);
    // SAFETY: `out` has room for the columns from `column` to N; a shorter tail goes through a buffer.
    unsafe {
        if column + TILE <= num_outputs {
            sums.store(out);
        } else {
            let mut tail = [0f32; TILE];
            sums.store(tail.as_mut_ptr());
            std::ptr::copy_nonoverlapping(tail.as_ptr(), out, num_outputs - column);
        }
    }
}

/// [`Decode`] of a float type: a group is two inputs and shares nothing.
macro_rules! decode_float {
    ($element:ty, $format:ident, $load:ident) => {
        impl Decode for $element {
            const FORMAT: WeightFormat = WeightFormat::$format;
            const LEN: usize = 2;
            type Shared<L: Lanes> = ();

            #[inline(always)]
            unsafe fn shared<L: Lanes>(_group: *const u8) {}

            #[inline(always)]
            unsafe fn pair<L: Lanes>(group: *const u8, _pair: usize, (): ()) -> [L; 2] {
                let elements = group.cast::<$element>();
                // SAFETY: the caller's promise: a group is twice 16 elements.
                unsafe { [L::$load(elements), L::$load(elements.add(TILE))] }
            }
        }
    };
}

decode_float!(f32, F32, load_f32);
decode_float!(f16, F16, load_f16);
decode_float!(bf16, Bf16, load_bf16);

/// [`Decode`] of blocks of `BITS` bits, with minima or with quants centred on zero.
struct Blocks<const BITS: u32, const HAS_MINIMA: bool>;

impl<const BITS: u32, const HAS_MINIMA: bool> Decode for Blocks<BITS, HAS_MINIMA> {
    const FORMAT: WeightFormat = match (BITS, HAS_MINIMA) {
        (4, false) => WeightFormat::Q4_0,
        (4, true) => WeightFormat::Q4_1,
        (5, false) => WeightFormat::Q5_0,
        (5, true) => WeightFormat::Q5_1,
        _ => WeightFormat::Q8_0,
    };
    const LEN: usize = BLOCK;
    /// Scales and minima; the latter are not used where there are none.
    type Shared<L: Lanes> = (L, L);

    #[inline(always)]
    unsafe fn shared<L: Lanes>(group: *const u8) -> (L, L) {
        // SAFETY: the caller's promise: the group holds its scales first and its minima where the layout says.
        unsafe {
            let scales = L::load_f16(group.cast());
            let minima = if HAS_MINIMA { L::load_f16(group.add(Self::FORMAT.layout().minima).cast()) } else { scales };
            (scales, minima)
        }
    }

    #[inline(always)]
    unsafe fn pair<L: Lanes>(group: *const u8, pair: usize, (scales, minima): (L, L)) -> [L; 2] {
        let layout = Self::FORMAT.layout();
        let offset = if HAS_MINIMA { 0.0 } else { (1u32 << (BITS - 1)) as f32 };
        // SAFETY: the caller's promise: the group holds this pair's quants and fifth bits where the layout says.
        unsafe {
            let quants = group.add(layout.quants);
            let [even, odd]: [L; 2] = match BITS {
                4 => L::load_nibbles(quants.add(pair * LANE_BYTES), offset),
                5 => {
                    let masks = group.add(layout.high + 4 * pair).cast::<[u16; 2]>().read_unaligned();
                    L::load_fives(quants.add(pair * LANE_BYTES), masks, offset)
                }
                _ => {
                    let bytes = quants.add(2 * pair * LANE_BYTES).cast();
                    [L::load_i8(bytes), L::load_i8(bytes.add(LANE_BYTES))]
                }
            };
            if HAS_MINIMA {
                [even.mul_add(scales, minima), odd.mul_add(scales, minima)]
            } else {
                [even.mul(scales), odd.mul(scales)]
            }
        }
    }
}
