//! Kernels, compiled for each instruction set and chosen by what the CPU has.

#![expect(clippy::inline_always, reason = "a call would keep a kernel's registers from staying where they are")]
#![expect(clippy::needless_range_loop, reason = "an iterator that is not inlined would keep registers in memory")]

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod elementwise;
mod lanes;
pub(crate) mod matrix_unit;
#[cfg(target_arch = "aarch64")]
mod neon;
mod product;
mod weights;

pub(crate) use product::{Job, MAX_EXPANDED_BYTES, TILES_AT_ONCE};

use std::ops::Range;
#[cfg(target_arch = "x86_64")]
use std::sync::OnceLock;

use crate::activations::{self, RowSlots};
use crate::bf16_rows::{Bf16Rows, Bf16Slots};
use crate::matrix::Output;
use crate::weight_format::WeightFormat;
use lanes::PlainLanes;

#[cfg(not(target_endian = "little"))]
compile_error!("tiles hold little-endian values, which kernels load as they are");

/// Instruction sets that kernels are compiled for. All give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// No intrinsics.
    Plain,
    /// 256-bit registers with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// The same with dot products of bytes.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// 512-bit registers with dot products of bytes.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 128-bit registers.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// The same with dot products of bytes.
    #[cfg(target_arch = "aarch64")]
    NeonDotProd,
}

impl Level {
    /// The best of this CPU.
    pub(crate) fn detected() -> Self {
        *Self::available().last().expect("plain kernels run everywhere")
    }

    /// All that this CPU has, best last.
    pub(crate) fn available() -> &'static [Self] {
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let has_avx_vnni = has_avx2 && is_x86_feature_detected!("avxvnni");
            let has_avx512 = has_avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vnni");
            match (has_avx512, has_avx_vnni, has_avx2) {
                (true, true, _) => &[Self::Plain, Self::Avx2, Self::AvxVnni, Self::Avx512],
                (true, false, _) => &[Self::Plain, Self::Avx2, Self::Avx512],
                (false, true, _) => &[Self::Plain, Self::Avx2, Self::AvxVnni],
                (false, false, true) => &[Self::Plain, Self::Avx2],
                (false, false, false) => &[Self::Plain],
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            let has_neon = std::arch::is_aarch64_feature_detected!("neon");
            match (has_neon, has_neon && std::arch::is_aarch64_feature_detected!("dotprod")) {
                (_, true) => &[Self::Plain, Self::Neon, Self::NeonDotProd],
                (true, false) => &[Self::Plain, Self::Neon],
                (false, false) => &[Self::Plain],
            }
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        &[Self::Plain]
    }
}

/// Whether AMD made this CPU, whose caches want to be used in another way than Intel's.
#[cfg(target_arch = "x86_64")]
pub(crate) fn is_made_by_amd() -> bool {
    use std::arch::x86_64::__cpuid;

    static IS_MADE_BY_AMD: OnceLock<bool> = OnceLock::new();
    *IS_MADE_BY_AMD.get_or_init(|| {
        let maker = __cpuid(0);
        [maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
    })
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn is_made_by_amd() -> bool {
    false
}

/// Computes `job`.
///
/// # Safety
/// The CPU has `level`; the rest as [`product::run`] says.
pub(crate) unsafe fn run(level: Level, job: &mut Job<'_>) {
    // SAFETY: the caller's promise is the callee's.
    unsafe {
        match level {
            Level::Plain => product::run::<PlainLanes>(job),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => product::run::<avx2::Avx2Lanes>(job),
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni => product::run::<avx2::AvxVnniLanes>(job),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => product::run::<avx512::Avx512Lanes>(job),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => product::run::<neon::NeonLanes>(job),
            #[cfg(target_arch = "aarch64")]
            Level::NeonDotProd => product::run::<neon::DotProdLanes>(job),
        }
    }
}

/// A matrix that is multiplied as bf16.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "read by kernels of x86-64"))]
pub(crate) struct Bf16Weights<'a> {
    /// Tiles of 16 outputs.
    pub(crate) bytes: &'a [u8],
    /// Not F32.
    pub(crate) format: WeightFormat,
    /// Of a tile: a group is a block of the file, or 32 floats of each output.
    pub(crate) num_groups: usize,
}

/// The part of a product of bf16 that one unit of work computes.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "read by kernels of x86-64"))]
pub(crate) struct Bf16Job<'a> {
    pub(crate) weights: Bf16Weights<'a>,
    pub(crate) rows: &'a Bf16Rows,
    pub(crate) out: Output<'a>,
    /// Of the matrix.
    pub(crate) tiles: Range<usize>,
    /// Of the rows.
    pub(crate) row_tiles: Range<usize>,
    /// [`bf16_scratch_bytes`] of memory.
    pub(crate) scratch: &'a mut [u8],
}

/// Of a job with so many tiles of outputs and rows.
pub(crate) fn bf16_scratch_bytes(num_tiles: usize, num_row_tiles: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    return amx::scratch_bytes(num_tiles, num_row_tiles);
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("there is no matrix unit for {num_tiles} by {num_row_tiles} tiles")
}

/// Computes `job`.
///
/// # Safety
/// [`matrix_unit::is_available`]; the rest as `amx::run` says.
pub(crate) unsafe fn run_bf16(job: &mut Bf16Job<'_>) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise is the callee's.
    unsafe {
        amx::run(job);
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("there is no matrix unit for {} tiles", job.tiles.len())
}

/// Rounds a row.
///
/// # Safety
/// As [`Bf16Slots::fill`]'s.
pub(crate) unsafe fn round_to_bf16(level: Level, values: &[f32], slots: Bf16Slots) {
    // SAFETY: the caller's promise. Only CPUs with AVX-512 have the matrix unit.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if level == Level::Avx512 {
            return avx512::round_to_bf16(slots, values);
        }
        let _ = level;
        slots.fill(values);
    }
}

/// Compiles a function of [`elementwise`] or of [`RowSlots`] for each instruction set, and chooses.
macro_rules! for_each_level {
    ($level:expr, $function:ident($($argument:expr),*), $plain:expr) => {
        match $level {
            Level::Plain => $plain,
            // SAFETY: the CPU has the level, as all that `Level` gives out; the rest is the caller's promise.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 | Level::AvxVnni => unsafe { avx2::$function($($argument),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::$function($($argument),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Level::Neon | Level::NeonDotProd => unsafe { neon::$function($($argument),*) },
        }
    };
}

/// Quantizes a row.
///
/// # Safety
/// As [`RowSlots::fill`]'s.
pub(crate) unsafe fn quantize(level: Level, values: &[f32], slots: RowSlots) {
    // SAFETY: the caller's promise.
    for_each_level!(level, quantize(values, slots), unsafe { slots.fill(values, activations::quantize_block) });
}

/// Takes from `values` what the quants made of them are worth.
///
/// # Safety
/// As [`RowSlots::subtract`]'s.
pub(crate) unsafe fn subtract(level: Level, slots: RowSlots, values: &mut [f32]) {
    // SAFETY: the caller's promise.
    for_each_level!(level, subtract(slots, values), unsafe { slots.subtract(values) });
}

/// `out = input / sqrt(mean(input²) + eps) · weight`, a row.
pub(crate) fn rms_norm(level: Level, input: &[f32], norm: (&[f32], f32), out: &mut [f32]) {
    for_each_level!(level, rms_norm(input, norm, out), elementwise::rms_norm(input, norm, out));
}

/// `out = silu(gate) · up`, a row.
pub(crate) fn swiglu(level: Level, gate: &[f32], up: &[f32], out: &mut [f32]) {
    for_each_level!(level, swiglu(gate, up, out), elementwise::swiglu(gate, up, out));
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    fn the_maker_is_who_the_system_says() {
        let system = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        assert_eq!(super::is_made_by_amd(), system.contains("AuthenticAMD"));
    }
}
