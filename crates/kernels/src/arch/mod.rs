//! Instruction sets. `vector` names the operations, `generic` holds every algorithm once, each ISA module implements
//! the operations and stamps the algorithms out under its `target_feature`s as one table of function pointers.

pub(crate) mod generic;
pub(crate) mod vector;

#[cfg(any(test, target_arch = "x86_64"))]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
#[cfg(target_arch = "x86_64")]
mod bf16;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod dotprod;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
pub(crate) mod processor;
mod scalar;
#[cfg(test)]
mod tests;

use crate::isa::Isa;
use crate::kv::KvType;
use generic::{AttendArgs, DenseArgs, GemmArgs, QuantizeArgs, TileArgs};

/// A kernel over one panel; see [`generic::panel::tile`].
pub(crate) type TileFn = unsafe fn(&TileArgs);
/// A kernel over one dense panel; see [`generic::dense::tile`].
pub(crate) type DenseFn = unsafe fn(&DenseArgs);

/// Finds the kernel for a tile of so many rows and a panel that is narrow or not; see [`generic::rounded::tile`].
pub(crate) type RoundedFor = fn(rows: usize, narrow: bool) -> Option<DenseFn>;

/// A kernel over 1 to [`BAND_TILES`] tiles of [`band_rows`] rows and one panel; see `amx::kernel::band`. It takes what a
/// tile kernel takes, for each tile of rows after another: digits in [`generic::DigitOrder::Steps`], scales and sums; its
/// result is `[half panel][tile][row][32]`.
pub(crate) type BandFn = unsafe fn(a: &TileArgs, tiles: usize);

/// Tiles of rows that a band kernel takes at once, at most.
pub(crate) const BAND_TILES: usize = 4;

/// Rows of a tile of a band kernel: two tiles of a tile unit where there is one plane.
pub(crate) const fn band_rows(planes: usize) -> usize {
    if planes == 1 { 32 } else { 16 }
}

/// An attention kernel; see [`generic::attention::attend`].
pub(crate) type AttendFn = unsafe fn(&AttendArgs);
/// See [`generic::attention::merge`].
pub(crate) type MergeFn = unsafe fn(&mut [f32; 2], &mut [f32], &[f32; 2], &[f32]);

/// Every kernel of one instruction set.
pub(crate) struct Kernels {
    pub isa: Isa,
    /// Rows that a tile kernel exists for, ascending, by number of activation planes - 1.
    pub tile_rows: [&'static [usize]; 3],
    /// The kernel for a panel of `bits`, activations of `planes`, tiles of `rows`.
    pub tile: fn(bits: u32, planes: usize, rows: usize) -> Option<TileFn>,
    /// The kernel for a pair of panels of `bits` and one row of `planes`, where there are any.
    pub pair: fn(bits: u32, planes: usize) -> Option<TileFn>,
    /// The kernel for two tiles that stand one after the other, where there are any: each block of the panel is taken by
    /// both in turn, so that it comes from memory at half the pace.
    pub together: fn(bits: u32, planes: usize, rows: usize) -> Option<TileFn>,
    /// Rows from which band kernels are used, by number of activation planes - 1.
    pub band_from: [usize; 3],
    /// The band kernel for a panel of `bits` and activations of `planes`.
    pub band: fn(bits: u32, planes: usize) -> Option<BandFn>,
    /// Rows that a dense kernel exists for, ascending.
    pub dense_rows: &'static [usize],
    /// The kernel for dense weights of an element size class (see [`generic::dense::Element`]) and tiles of `rows`.
    pub dense: fn(generic::dense::Element, usize) -> Option<DenseFn>,
    /// The kernel for `bf16` weights and tiles of `rows` of rounded activations, for the same rows.
    pub rounded: RoundedFor,
    /// Quantizes one row of activations, by number of planes - 1.
    pub quantize: [unsafe fn(&QuantizeArgs); 3],
    /// Rows that an attention kernel exists for, ascending.
    pub attend_rows: &'static [usize],
    /// Rows that one exists for where blocks are quantized.
    pub attend_coded_rows: &'static [usize],
    /// The attention kernel for blocks of a format and tiles of `rows`.
    pub attend: fn(KvType, usize) -> Option<AttendFn>,
    /// Joins the attention state of a later stretch of pages to that of an earlier one; see [`generic::attention::merge`].
    pub merge: MergeFn,
    /// `1 / sqrt(mean(x^2) + eps)`: `(x, eps)`.
    pub inverse_rms: unsafe fn(&[f32], f32) -> f32,
    /// `out = weight * (x * inverse)`: `(x, inverse, weight, out)`.
    pub norm: unsafe fn(&[f32], f32, &[f32], &mut [f32]),
    /// `out[i] = silu(gate[i]) * up[i]`: `(gate, up, ahead, out)`; see [`generic::elementwise::silu_mul`].
    pub silu_mul: unsafe fn(&[f32], &[f32], isize, &mut [f32]),
    /// Asks the first cache for all of a slice.
    pub ask: unsafe fn(&[f32]),
    /// `x[i] = e^x[i]`.
    pub exp: unsafe fn(&mut [f32]),
    /// Rounds to half precision.
    pub to_f16: unsafe fn(&[f32], &mut [u16]),
    /// Rows and columns of a tile of [`Kernels::gemm`].
    pub gemm_tile: (usize, usize),
    /// See [`generic::gemm`].
    pub gemm: unsafe fn(&GemmArgs),
    /// See [`generic::probe`].
    pub probe_dots: unsafe fn(usize) -> i32,
    /// Multiply-adds of a round of `probe_dots`.
    pub probe_dots_work: usize,
    /// See [`generic::probe`].
    pub probe_fmas: unsafe fn(usize) -> f32,
    /// Multiply-adds of a round of `probe_fmas`.
    pub probe_fmas_work: usize,
    /// See [`generic::probe`].
    pub probe_read: unsafe fn(*const u8, usize) -> i32,
    /// See [`tests::operations`].
    #[cfg(test)]
    pub operations: unsafe fn(&tests::Sample) -> Vec<tests::Outcome>,
}

/// Stamps the generic algorithms out for one implementation of `Vector`. `tiles` lists, for each number of planes, the rows
/// of tiles with the vectors that are taken at a time and how planes are walked; `bytes` what is better for codes of 8 bits,
/// which need no unpacking; `pairs` the planes for which there are kernels of two panels;
/// `together` the rows, by planes, for which there are kernels of two tiles.
macro_rules! stamp {
    (
        isa: $isa:ident,
        features: [$($feature:literal)?],
        tiles: { $($planes:literal: [$($rows:literal => ($nv:literal, $seq:literal)),* $(,)?]),* $(,)? },
        bytes: { $($bplanes:literal: [$($brows:literal => ($bnv:literal, $bseq:literal)),* $(,)?]),* $(,)? },
        pairs: [$($pplanes:literal),*],
        together: { $($tplanes:literal: [$($trows:literal),*]),* $(,)? },
        dense: [$($drows:literal => ($dnv:literal, $dchains:literal)),* $(,)?],
        attend: [$($arows:literal => $anv:literal),* $(,)?],
        gemm: $gmr:literal x $gnv:literal,
    ) => {
        use super::generic;
        use super::{AttendFn, DenseFn, Kernels, TileFn};
        use crate::kv::KvType;

        // SAFETY of the functions below: the dispatcher hands this table out only on a CPU that has the features;
        // their other preconditions are those of the generic algorithm that each one instantiates.
        $(#[target_feature(enable = $feature)])?
        unsafe fn tile<const BITS: u32, const P: usize, const MR: usize, const NV: usize, const SEQ: bool, const TILES: usize>(
            a: &generic::TileArgs,
        ) {
            // SAFETY: see above.
            unsafe { generic::panel::tile::<$isa, BITS, P, MR, NV, SEQ, TILES>(a) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn dense_tile<const E: u8, const MR: usize, const NV: usize, const CHAINS: usize>(a: &generic::DenseArgs) {
            // SAFETY: see above.
            unsafe { generic::dense::tile::<$isa, E, MR, NV, CHAINS>(a) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn narrow_tile<const MR: usize>(a: &generic::DenseArgs) {
            // SAFETY: see above.
            unsafe { generic::narrow::tile::<$isa, MR>(a) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn quantize<const P: usize>(a: &generic::QuantizeArgs) {
            // SAFETY: see above.
            unsafe { generic::quantize::row::<$isa, P>(a) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn attend_tile<const E: u8, const MR: usize, const NV: usize>(a: &generic::AttendArgs) {
            // SAFETY: see above.
            unsafe { generic::attention::attend::<$isa, E, MR, NV>(a) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn merge(stats: &mut [f32; 2], out: &mut [f32], later: &[f32; 2], later_out: &[f32]) {
            // SAFETY: see above.
            unsafe { generic::attention::merge::<$isa>(stats, out, later, later_out) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn inverse_rms(x: &[f32], eps: f32) -> f32 {
            // SAFETY: see above.
            unsafe { generic::elementwise::inverse_rms::<$isa>(x, eps) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn norm(x: &[f32], inverse: f32, weight: &[f32], out: &mut [f32]) {
            generic::elementwise::norm(x, inverse, weight, out);
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn silu_mul(gate: &[f32], up: &[f32], ahead: isize, out: &mut [f32]) {
            // SAFETY: see above.
            unsafe { generic::elementwise::silu_mul::<$isa>(gate, up, ahead, out) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn ask(x: &[f32]) {
            // SAFETY: see above.
            unsafe { generic::elementwise::ask::<$isa>(x) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn exp(x: &mut [f32]) {
            // SAFETY: see above.
            unsafe { generic::elementwise::exp_all::<$isa>(x) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn to_f16(x: &[f32], out: &mut [u16]) {
            // SAFETY: see above.
            unsafe { generic::elementwise::to_f16::<$isa>(x, out) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn gemm(a: &generic::GemmArgs) {
            // SAFETY: see above.
            unsafe { generic::gemm::gemm::<$isa, $gmr, $gnv>(a) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn probe_dots(rounds: usize) -> i32 {
            // SAFETY: see above.
            unsafe { generic::probe::dots::<$isa, { <$isa as $crate::arch::vector::Vector>::CHAINS }>(rounds) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn probe_fmas(rounds: usize) -> f32 {
            // SAFETY: see above.
            unsafe { generic::probe::fmas::<$isa, { <$isa as $crate::arch::vector::Vector>::CHAINS }>(rounds) }
        }
        $(#[target_feature(enable = $feature)])?
        unsafe fn probe_read(p: *const u8, lines: usize) -> i32 {
            // SAFETY: see above.
            unsafe { generic::probe::read::<$isa>(p, lines) }
        }
        #[cfg(test)]
        $(#[target_feature(enable = $feature)])?
        unsafe fn operations(sample: &super::tests::Sample) -> Vec<super::tests::Outcome> {
            // SAFETY: see above.
            unsafe { super::tests::operations::<$isa>(sample) }
        }

        // `bytes` takes precedence
        #[allow(unreachable_patterns)]
        fn tile_for(bits: u32, planes: usize, rows: usize) -> Option<TileFn> {
            match (bits, planes, rows) {
                $($((8, $bplanes, $brows) => Some(tile::<8, $bplanes, $brows, $bnv, $bseq, 1>),)*)*
                $($(
                    (2, $planes, $rows) => Some(tile::<2, $planes, $rows, $nv, $seq, 1>),
                    (3, $planes, $rows) => Some(tile::<3, $planes, $rows, $nv, $seq, 1>),
                    (4, $planes, $rows) => Some(tile::<4, $planes, $rows, $nv, $seq, 1>),
                    (8, $planes, $rows) => Some(tile::<8, $planes, $rows, $nv, $seq, 1>),
                )*)*
                _ => None,
            }
        }

        #[allow(clippy::match_single_binding)] // where there are none
        fn together_for(bits: u32, planes: usize, rows: usize) -> Option<TileFn> {
            match (bits, planes, rows) {
                $($(
                    (2, $tplanes, $trows) => Some(tile::<2, $tplanes, $trows, 2, true, 2>),
                    (3, $tplanes, $trows) => Some(tile::<3, $tplanes, $trows, 2, true, 2>),
                    (4, $tplanes, $trows) => Some(tile::<4, $tplanes, $trows, 2, true, 2>),
                    (8, $tplanes, $trows) => Some(tile::<8, $tplanes, $trows, 2, true, 2>),
                )*)*
                _ => None,
            }
        }

        fn pair_for(bits: u32, planes: usize) -> Option<TileFn> {
            match (bits, planes) {
                $(
                    (2, $pplanes) => Some(tile::<2, $pplanes, 1, { generic::panel::PAIR }, false, 1>),
                    (3, $pplanes) => Some(tile::<3, $pplanes, 1, { generic::panel::PAIR }, false, 1>),
                    (4, $pplanes) => Some(tile::<4, $pplanes, 1, { generic::panel::PAIR }, false, 1>),
                    (8, $pplanes) => Some(tile::<8, $pplanes, 1, { generic::panel::PAIR }, false, 1>),
                )*
                _ => None,
            }
        }

        fn dense_for(element: generic::dense::Element, rows: usize) -> Option<DenseFn> {
            use generic::dense::Element::{BF16, F16, F32, Narrow};
            match (element, rows) {
                $(
                    (F16, $drows) => Some(dense_tile::<{ F16 as u8 }, $drows, $dnv, $dchains>),
                    (BF16, $drows) => Some(dense_tile::<{ BF16 as u8 }, $drows, $dnv, $dchains>),
                    (F32, $drows) => Some(dense_tile::<{ F32 as u8 }, $drows, $dnv, $dchains>),
                    (Narrow, $drows) => Some(narrow_tile::<$drows>),
                )*
                _ => None,
            }
        }

        super::stamp_rounded! {
            vector: $isa, pairs: generic::rounded::Fused, features: [$($feature)?], rows: [$($drows => 2),*]
        }

        fn attend_for(kind: KvType, rows: usize) -> Option<AttendFn> {
            if kind.is_quantized() {
                return attend_coded(kind, rows);
            }
            match (kind, rows) {
                $(
                    (KvType::F16, $arows) => Some(attend_tile::<{ KvType::F16 as u8 }, $arows, $anv>),
                    (KvType::BF16, $arows) => Some(attend_tile::<{ KvType::BF16 as u8 }, $arows, $anv>),
                    (KvType::F32, $arows) => Some(attend_tile::<{ KvType::F32 as u8 }, $arows, $anv>),
                )*
                _ => None,
            }
        }

        pub(super) static KERNELS: Kernels = Kernels {
            isa: crate::isa::Isa::$isa,
            tile_rows: [$(&[$($rows),*]),*],
            tile: tile_for,
            pair: pair_for,
            together: together_for,
            band_from: [usize::MAX; 3],
            band: |_, _| None,
            dense_rows: &[$($drows),*],
            dense: dense_for,
            rounded: rounded_for,
            quantize: [quantize::<1>, quantize::<2>, quantize::<3>],
            attend_rows: &[$($arows),*],
            attend_coded_rows: CODED_ROWS,
            attend: attend_for,
            merge,
            inverse_rms,
            norm,
            silu_mul,
            ask,
            exp,
            to_f16,
            gemm_tile: ($gmr, 8 * $gnv),
            gemm,
            probe_dots,
            probe_dots_work: 64 * <$isa as $crate::arch::vector::Vector>::CHAINS,
            probe_fmas,
            probe_fmas_work: 16 * <$isa as $crate::arch::vector::Vector>::CHAINS,
            probe_read,
            #[cfg(test)]
            operations,
        };
    };
}
use stamp;

/// Stamps out the attention kernels for quantized blocks; apart, because the tables of an instruction set with and without
/// better dot products share them.
macro_rules! stamp_coded {
    (isa: $isa:ident, features: [$($feature:literal)?], attend: [$($rows:literal => $nv:literal),* $(,)?]) => {
        // SAFETY of the function below: as those of `stamp`.
        $(#[target_feature(enable = $feature)])?
        unsafe fn attend_coded_tile<const E: u8, const MR: usize, const NV: usize>(a: &super::generic::AttendArgs) {
            // SAFETY: see above.
            unsafe { super::generic::attention::attend::<$isa, E, MR, NV>(a) }
        }

        pub(super) const CODED_ROWS: &[usize] = &[$($rows),*];

        pub(super) fn attend_coded(kind: crate::kv::KvType, rows: usize) -> Option<super::AttendFn> {
            use crate::kv::KvType::{Fp4E2M1, Fp8E4M3, Fp8E5M2, Int4, Int8};
            match (kind, rows) {
                $(
                    (Int8, $rows) => Some(attend_coded_tile::<{ Int8 as u8 }, $rows, $nv>),
                    (Fp8E4M3, $rows) => Some(attend_coded_tile::<{ Fp8E4M3 as u8 }, $rows, $nv>),
                    (Fp8E5M2, $rows) => Some(attend_coded_tile::<{ Fp8E5M2 as u8 }, $rows, $nv>),
                    (Fp4E2M1, $rows) => Some(attend_coded_tile::<{ Fp4E2M1 as u8 }, $rows, $nv>),
                    (Int4, $rows) => Some(attend_coded_tile::<{ Int4 as u8 }, $rows, $nv>),
                )*
                _ => None,
            }
        }
    };
}
use stamp_coded;

/// Stamps out the kernels for activations rounded to `bf16`; apart, because they exist for one more instruction than tables.
macro_rules! stamp_rounded {
    (vector: $vector:ty, pairs: $pairs:ty, features: [$($feature:literal)?], rows: [$($rows:literal => $nv:literal),*]) => {
        // SAFETY of the function below: as those of `stamp`.
        $(#[target_feature(enable = $feature)])?
        unsafe fn rounded_tile<const MR: usize, const NV: usize, const NARROW: bool>(a: &crate::arch::generic::DenseArgs) {
            // SAFETY: see above.
            unsafe { crate::arch::generic::rounded::tile::<$vector, $pairs, MR, NV, NARROW>(a) }
        }

        pub(super) fn rounded_for(rows: usize, narrow: bool) -> Option<crate::arch::DenseFn> {
            match (rows, narrow) {
                $(
                    ($rows, false) => Some(rounded_tile::<$rows, $nv, false>),
                    ($rows, true) => Some(rounded_tile::<$rows, $nv, true>),
                )*
                _ => None,
            }
        }
    };
}
use stamp_rounded;

/// Kernels for rounded activations that are better than those of the table of `isa`, if this processor has any.
#[cfg(target_arch = "x86_64")]
pub(crate) fn bf16_dots(isa: Isa) -> Option<RoundedFor> {
    let found = matches!(isa, Isa::Avx512 | Isa::Amx) && bf16::works();
    found.then_some(bf16::rounded_for)
}

/// See the other one.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn bf16_dots(_: Isa) -> Option<RoundedFor> {
    None
}

/// The table of `isa`. The caller must have checked [`Isa::is_available`].
pub(crate) fn kernels(isa: Isa) -> &'static Kernels {
    match isa {
        Isa::Scalar => &scalar::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => &avx2::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => &avxvnni::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => &avx512::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Isa::Amx => &amx::KERNELS,
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        Isa::Neon => &neon::KERNELS,
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        Isa::DotProd => &dotprod::KERNELS,
        // those of other architectures, which are never available here
        _ => &scalar::KERNELS,
    }
}
