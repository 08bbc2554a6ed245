//! The innermost part of a product of `f64` matrices: what the quantizers' factorizations are made of.

use crate::arch::vector::Vector;

/// Two packed slices and the tile that their product is added to.
pub(crate) struct GemmArgs {
    /// Terms of each sum.
    pub k: usize,
    /// `[k][MR]`.
    pub a: *const f64,
    /// `[k][8 * NV]`.
    pub b: *const f64,
    /// `[MR]` rows of `8 * NV`.
    pub c: *mut f64,
    /// Elements from one row of `c` to the next.
    pub stride: usize,
}

/// `c[r][n] = fma(a[k][r], b[k][n], c[r][n])` for ascending `k`: one chain for each element, so its bits depend neither
/// on the instruction set nor on how the matrix was cut.
///
/// # Safety
/// The instruction set of `V`; the pointers are valid for what their docs say; `c` does not overlap `a` and `b`.
#[inline(always)]
pub(crate) unsafe fn gemm<V: Vector, const MR: usize, const NV: usize>(args: &GemmArgs) {
    // SAFETY: by the contract above.
    unsafe {
        let at = |r: usize, v: usize| args.c.add(r * args.stride + 8 * v);
        let mut sums: [[V::D; NV]; MR] = std::array::from_fn(|r| std::array::from_fn(|v| V::load_d(at(r, v))));
        for k in 0..args.k {
            let b: [V::D; NV] = std::array::from_fn(|v| V::load_d(args.b.add((k * NV + v) * 8)));
            for r in 0..MR {
                let a = *args.a.add(k * MR + r);
                for v in 0..NV {
                    sums[r][v] = V::fma_d(a, b[v], sums[r][v]);
                }
            }
        }
        for r in 0..MR {
            for v in 0..NV {
                V::store_d(at(r, v), sums[r][v]);
            }
        }
    }
}
