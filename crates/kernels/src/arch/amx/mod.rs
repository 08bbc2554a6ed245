//! AMX: eight tiles of 16 rows of 64 bytes, and an instruction that multiplies two of them (Sapphire Rapids and later).
//!
//! Everything is AVX-512's but products of quantized weights with many rows, which go to the tiles: `kernel.rs` is the
//! algorithm over `unit.rs`, the few operations of a tile unit; `tmm.rs` is the real one, `emulated.rs` one of plain
//! arrays for tests on machines without tiles. `detect.rs` decides whether this machine may use them.

#[cfg(target_arch = "x86_64")]
mod detect;
#[cfg(test)]
mod emulated;
mod kernel;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tmm;
mod unit;

#[cfg(target_arch = "x86_64")]
pub(crate) use detect::missing;

/// Rows from which tiles are faster than AVX-512's dot products, by number of planes - 1: a product with fewer takes
/// them as long as one with a full tile of rows.
const FROM: [usize; 3] = [13, 8, 8];

/// Stamps the band kernels out for one vector and one tile unit, as a table that has `$base` for all else.
macro_rules! stamp_bands {
    (name: $name:ident, vector: $vector:ty, unit: $unit:ty, features: [$($feature:literal)?], base: $base:expr) => {
        // SAFETY of the functions below: the dispatcher hands this table out only on a machine that has the features and
        // the tiles; their other preconditions are those of the generic algorithm that each one instantiates.
        $(#[target_feature(enable = $feature)])?
        unsafe fn band<const BITS: u32, const P: usize>(a: &crate::arch::generic::TileArgs, tiles: usize) {
            // SAFETY: see above.
            unsafe { super::kernel::band::<$vector, $unit, BITS, P>(a, tiles) }
        }
        unsafe fn probe_dots(rounds: usize) -> i32 {
            // SAFETY: see above.
            unsafe { super::kernel::probe::<$unit>(rounds) }
        }
        fn band_for(bits: u32, planes: usize) -> Option<super::super::BandFn> {
            match (bits, planes) {
                (2, 1) => Some(band::<2, 1>),
                (2, 2) => Some(band::<2, 2>),
                (2, 3) => Some(band::<2, 3>),
                (3, 1) => Some(band::<3, 1>),
                (3, 2) => Some(band::<3, 2>),
                (3, 3) => Some(band::<3, 3>),
                (4, 1) => Some(band::<4, 1>),
                (4, 2) => Some(band::<4, 2>),
                (4, 3) => Some(band::<4, 3>),
                (8, 1) => Some(band::<8, 1>),
                (8, 2) => Some(band::<8, 2>),
                (8, 3) => Some(band::<8, 3>),
                _ => None,
            }
        }
        pub(crate) static $name: super::super::Kernels = super::super::Kernels {
            isa: crate::isa::Isa::Amx,
            band_from: super::FROM,
            band: band_for,
            probe_dots,
            probe_dots_work: super::kernel::PROBE_WORK,
            ..$base
        };
    };
}

#[cfg(target_arch = "x86_64")]
mod real {
    stamp_bands! {
        name: KERNELS,
        vector: super::super::avx512::Avx512,
        unit: super::tmm::Tmm,
        features: ["avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"],
        base: super::super::avx512::KERNELS
    }
}
#[cfg(target_arch = "x86_64")]
pub(crate) use real::KERNELS;

/// The algorithm on emulated tiles with portable vectors: for tests on any machine.
#[cfg(test)]
pub(crate) mod portable {
    stamp_bands! {
        name: KERNELS,
        vector: super::super::scalar::Scalar,
        unit: super::emulated::Emulated,
        features: [],
        base: super::super::scalar::KERNELS
    }
}

/// The algorithm on emulated tiles with the vectors that the real ones have beside them: for tests on AVX-512.
#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) mod wide {
    stamp_bands! {
        name: KERNELS,
        vector: super::super::avx512::Avx512,
        unit: super::emulated::Emulated,
        features: ["avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"],
        base: super::super::avx512::KERNELS
    }
}
