//! The algorithms, each written once over [`Vector`](super::vector::Vector).

pub(crate) mod attention;
pub(crate) mod dense;
pub(crate) mod elementwise;
pub(crate) mod gemm;
pub(crate) mod math;
pub(crate) mod narrow;
pub(crate) mod panel;
pub(crate) mod probe;
pub(crate) mod quantize;
pub(crate) mod rounded;

pub(crate) use attention::AttendArgs;
pub(crate) use dense::DenseArgs;
pub(crate) use gemm::GemmArgs;
pub(crate) use panel::{Target, TileArgs};
pub(crate) use quantize::{DigitOrder, QuantizeArgs};

/// Hides where a pointer comes from, at no cost: without it the compiler hoists every broadcast of a loop out of it and
/// spills registers to do so.
#[inline(always)]
pub(crate) fn opaque<T>(p: *const T) -> *const T {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    {
        let mut p = p;
        // SAFETY: an empty instruction that only claims to change the register.
        unsafe { std::arch::asm!("/* {0} */", inout(reg) p, options(readonly, nostack, preserves_flags)) };
        p
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    p
}
