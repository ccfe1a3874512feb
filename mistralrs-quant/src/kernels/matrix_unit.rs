//! The CPU's matrix unit (AMX): whether there is one, and setting it up. Kernels that use it are in `amx` files, here and
//! of attention.

use std::sync::OnceLock;

/// Whether the CPU has the unit, with products of bf16, and the system lets this process use it. Where that is so it has
/// AVX-512F, BW and VNNI too.
pub fn is_available() -> bool {
    static IS_AVAILABLE: OnceLock<bool> = OnceLock::new();
    *IS_AVAILABLE.get_or_init(|| has_unit() && may_use_unit())
}

/// AMX-TILE and AMX-BF16. Source: Intel 64 and IA-32 Architectures Software Developer's Manual, CPUID leaf 7.
#[cfg(target_arch = "x86_64")]
fn has_unit() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    const TILE_AND_BF16: u32 = 1 << 24 | 1 << 22;
    super::Level::detected() == super::Level::Avx512
        && __cpuid(0).eax >= 7
        && __cpuid_count(7, 0).edx & TILE_AND_BF16 == TILE_AND_BF16
}

#[cfg(not(target_arch = "x86_64"))]
fn has_unit() -> bool {
    false
}

/// Asks the system, which keeps 8 KiB more for every thread that uses the unit. Source: Linux, x86/xstate.rst.
#[cfg(target_os = "linux")]
fn may_use_unit() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call takes two numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn may_use_unit() -> bool {
    false
}

/// The unit, its eight registers set up for whole tiles of 16 rows of 64 bytes until this is dropped.
#[cfg(target_arch = "x86_64")]
#[derive(Debug)]
pub struct MatrixUnit(());

/// What `ldtilecfg` reads.
#[cfg(target_arch = "x86_64")]
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    num_rows: [u8; 16],
}

#[cfg(target_arch = "x86_64")]
impl MatrixUnit {
    /// # Safety
    /// [`is_available`], and this thread has not set it up already.
    pub unsafe fn set_up() -> Self {
        let mut shapes = Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], num_rows: [0; 16] };
        shapes.row_bytes[..8].fill(64);
        shapes.num_rows[..8].fill(16);
        // SAFETY: the caller's promise; the shapes are the palette's 16 rows of 64 bytes.
        unsafe { std::arch::asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly)) };
        Self(())
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for MatrixUnit {
    fn drop(&mut self) {
        // SAFETY: the unit was set up. Released, it costs the system nothing when it switches threads.
        unsafe { std::arch::asm!("tilerelease", options(nostack, nomem)) };
    }
}
