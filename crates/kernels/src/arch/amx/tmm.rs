//! The tiles of the processor. The compiler knows neither their intrinsics nor their features yet, so each operation is
//! an `asm!` block. None is `nomem`: vector loads and stores then stay between the tile operations where the kernel has
//! put them. The compiler never uses a tile of its own, so what they hold lives from block to block.

use super::unit::{CONFIG, TILE_BYTES, TileUnit};
use std::arch::asm;

/// The tiles of this thread, set up.
pub(crate) struct Tmm;

/// Bytes from one row of a tile to the next.
const ROW: usize = TILE_BYTES / 16;

// SAFETY of every block below: the caller has AMX-TILE and AMX-INT8, the system's permission to use tiles and pointers
// valid for a tile, by the contract of `TileUnit`; no block touches the stack or the flags.
impl TileUnit for Tmm {
    #[inline(always)]
    unsafe fn begin() -> Self {
        // SAFETY: see above; the configuration is one of palette 1, which detection has checked.
        unsafe { asm!("ldtilecfg [{}]", in(reg) CONFIG.0.as_ptr(), options(nostack, preserves_flags)) };
        Tmm
    }
    #[inline(always)]
    unsafe fn load<const T: u8>(&mut self, p: *const u8) {
        // SAFETY: see above.
        unsafe {
            asm!("tileloadd tmm{t}, [{p} + 1*{row}]", t = const T, p = in(reg) p, row = in(reg) ROW, options(nostack, preserves_flags));
        }
    }
    #[inline(always)]
    unsafe fn store<const T: u8>(&mut self, p: *mut u8) {
        // SAFETY: see above.
        unsafe {
            asm!("tilestored [{p} + 1*{row}], tmm{t}", t = const T, p = in(reg) p, row = in(reg) ROW, options(nostack, preserves_flags));
        }
    }
    #[inline(always)]
    unsafe fn zero<const T: u8>(&mut self) {
        // SAFETY: see above.
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, preserves_flags)) };
    }
    #[inline(always)]
    unsafe fn dot<const C: u8, const A: u8, const B: u8>(&mut self) {
        // SAFETY: see above.
        unsafe {
            asm!("tdpbssd tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B, options(nostack, preserves_flags));
        }
    }
    #[inline(always)]
    unsafe fn end(self) {
        // SAFETY: see above.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags)) };
    }
}
