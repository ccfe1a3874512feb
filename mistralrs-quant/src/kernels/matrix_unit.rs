//! The CPU's matrix unit (AMX): whether there is one, and setting it up. For the `amx` kernels of this crate and of attention's, which
//! takes this file as a module of its own: crates of kernels do not depend on each other.

use std::sync::OnceLock;

/// Whether the CPU has the unit, with products of bf16, and the system lets this process use it. Where that is so it has
/// AVX-512F, BW and VNNI too.
pub(crate) fn is_available() -> bool {
    static IS_AVAILABLE: OnceLock<bool> = OnceLock::new();
    *IS_AVAILABLE.get_or_init(|| has_unit() && may_use_unit())
}

/// AMX-TILE and AMX-BF16. Source: Intel 64 and IA-32 Architectures Software Developer's Manual, CPUID leaf 7.
#[cfg(target_arch = "x86_64")]
fn has_unit() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    const TILE_AND_BF16: u32 = 1 << 24 | 1 << 22;
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
        && __cpuid(0).eax >= 7
        && __cpuid_count(7, 0).edx & TILE_AND_BF16 == TILE_AND_BF16
}

#[cfg(not(target_arch = "x86_64"))]
fn has_unit() -> bool {
    false
}

/// Asks the system, which keeps 8 KiB more for every thread that uses the unit. Source: Linux, x86/xstate.rst.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn may_use_unit() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call takes two numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn may_use_unit() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::MatrixUnit;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::marker::PhantomData;

    /// The unit of this thread, its eight registers set up for whole tiles of 16 rows of 64 bytes until this is dropped.
    #[derive(Debug)]
    #[must_use]
    pub(crate) struct MatrixUnit(PhantomData<*const ()>);

    /// What `ldtilecfg` reads.
    #[repr(C, align(64))]
    struct Shapes {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        num_rows: [u8; 16],
    }

    impl MatrixUnit {
        /// # Safety
        /// The unit [`is_available`](super::is_available), and this thread has not set it up already.
        pub(crate) unsafe fn set_up() -> Self {
            let mut shapes =
                Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], num_rows: [0; 16] };
            shapes.row_bytes[..8].fill(64);
            shapes.num_rows[..8].fill(16);
            // SAFETY: the caller's promise; the shapes are the palette's 16 rows of 64 bytes.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly)) };
            Self(PhantomData)
        }
    }

    impl Drop for MatrixUnit {
        fn drop(&mut self) {
            // SAFETY: the unit was set up. Released, it costs the system nothing when it switches threads.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }
}
