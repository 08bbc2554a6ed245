//! Dense weights (16-bit or 32-bit floats) times f32 activations.
//!
//! Each output is two chains of fused multiply-adds, one over even k and one over odd k, added at the end: an order
//! fixed by K alone.

use crate::aligned::Lines;
use crate::arch::vector::Vector;
use crate::narrow::Sevens;
use crate::pack::PANEL;

/// How a dense weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F16,
    BF16,
    F32,
    /// `bf16` in 13 bits; see [`crate::narrow`].
    Narrow,
}

/// What a dense kernel works on.
pub(crate) struct DenseArgs {
    /// One panel, `[K][64]` elements, or the runs of a narrow one.
    pub panel: *const u8,
    /// The table of a narrow panel.
    pub sevens: Sevens,
    /// Rows of the panel.
    pub k: usize,
    /// Activations: the rows of the tile, `k` floats each.
    pub x: [*const f32; MAX_ROWS],
    /// Sums on their way, `[MR][64]`.
    pub out: *mut f32,
    /// Where the result goes, `MR` rows of 64 floats; `out`, or where it is wanted.
    pub target: *mut f32,
    /// Floats from one row of the result to the next.
    pub stride: usize,
}

/// Rows of the largest dense tile.
pub(crate) const MAX_ROWS: usize = 16;

/// Rows of a tile that are multiplied at a time, so that registers hold the sums of two vectors of columns of each: a tile of
/// more goes through each stretch of its panel for so many at a time.
pub(crate) const AT_ONCE: usize = 8;

/// How many rows of a tile of `rows` are multiplied at a time. A tile that cannot be gone through whole does not compile.
pub(crate) const fn rows_at_once(rows: usize) -> usize {
    assert!(rows <= MAX_ROWS && (rows <= AT_ONCE || rows.is_multiple_of(AT_ONCE)));
    if rows < AT_ONCE { rows } else { AT_ONCE }
}

/// Rows of k after which the accumulators of one set of columns give way to the next set's, so that a panel is read as
/// one stream. Where a set is one or two vectors of one chain it comes again so often that storing its sums costs a tenth; a
/// stretch twice as long still fits the first cache.
const fn stretch(nv: usize, chains: usize) -> usize {
    if nv * chains <= 2 { 128 } else { 64 }
}

/// One tile of `MR` rows times one dense panel, `NV` vectors of columns and `CHAINS` of the two chains at a time. One chain
/// after the other leaves room for more rows. Where a stretch is gone through more than once the processor does not see where
/// the next one is, and it is asked for: for the second cache two stretches before, for the first one stretch before (Zen 5, 4
/// and 6 rows: 1.7 times as fast as unasked, 4 to 16 rows: 1.03 times as fast as for the second cache alone).
///
/// # Safety
/// The instruction set of `V`; the panel holds `k * 64` elements of type `E`; `x`, `out` and `target` hold `MR` rows.
#[inline(always)]
pub(crate) unsafe fn tile<V: Vector, const E: u8, const MR: usize, const NV: usize, const CHAINS: usize>(a: &DenseArgs) {
    let rows = const { rows_at_once(MR) };
    let size = if E == Element::F32 as u8 { 4 } else { 2 };
    let load = |k: usize, v: usize| {
        // SAFETY: k and v lie inside the panel.
        unsafe {
            let p = a.panel.add((k * PANEL + 16 * v) * size);
            if E == Element::F16 as u8 {
                V::load_f16(p)
            } else if E == Element::BF16 as u8 {
                V::load_bf16(p)
            } else {
                V::load_f(p.cast())
            }
        }
    };
    // SAFETY: by the contract above; `odd` and `out` hold `MR` rows of 64 floats.
    unsafe {
        let Lines(odd) = &mut Lines([[0.0f32; PANEL]; MR]);
        for i in 0..MR * 4 {
            V::store_f(a.out.add(16 * i), V::splat_f(0.0));
        }
        let stretch = const { stretch(NV, CHAINS) };
        for k0 in (0..a.k).step_by(stretch) {
            let end = (k0 + stretch).min(a.k);
            for part in 0..4 / NV * (2 / CHAINS) {
                let (v0, first) = (part / (2 / CHAINS) * NV, part % (2 / CHAINS));
                let odd = odd.as_mut_ptr().cast::<f32>();
                for r0 in (0..MR).step_by(AT_ONCE) {
                    let sum =
                        |r: usize, v: usize, chain: usize| (if chain == 0 { a.out } else { odd }).add((r0 + r) * PANEL + 16 * (v0 + v));
                    let mut acc = [[[V::splat_f(0.0); CHAINS]; NV]; AT_ONCE];
                    for r in 0..rows {
                        for v in 0..NV {
                            for c in 0..CHAINS {
                                acc[r][v][c] = V::load_f(sum(r, v, first + c));
                            }
                        }
                    }
                    let mut k = k0;
                    while k + 1 < end {
                        if NV * CHAINS < 8 {
                            // each set of columns, chains and rows asks for its part of the next stretch
                            let share = 2 * PANEL * size * NV * CHAINS * rows / (8 * MR);
                            let pass = part * (MR / rows) + r0 / rows;
                            let next = (k0 + stretch) * PANEL * size + (pass * stretch + k - k0) / 2 * share;
                            for line in 0..share.div_ceil(64) {
                                let next = a.panel.wrapping_add(next + 64 * line);
                                V::prefetch_far(next.wrapping_add(stretch * PANEL * size));
                                V::prefetch(next);
                            }
                        }
                        for c in 0..CHAINS {
                            let mut w = [V::splat_f(0.0); NV];
                            for v in 0..NV {
                                w[v] = load(k + first + c, v0 + v);
                            }
                            for r in 0..rows {
                                let x = V::splat_f(*a.x[r0 + r].add(k + first + c));
                                for v in 0..NV {
                                    acc[r][v][c] = V::fma(w[v], x, acc[r][v][c]);
                                }
                            }
                        }
                        k += 2;
                    }
                    if k < end && first == 0 {
                        for r in 0..rows {
                            let x = V::splat_f(*a.x[r0 + r].add(k));
                            for v in 0..NV {
                                acc[r][v][0] = V::fma(load(k, v0 + v), x, acc[r][v][0]);
                            }
                        }
                    }
                    for r in 0..rows {
                        for v in 0..NV {
                            for c in 0..CHAINS {
                                V::store_f(sum(r, v, first + c), acc[r][v][c]);
                            }
                        }
                    }
                }
            }
        }
        add_chains::<V, MR>(a, odd);
    }
}

/// The result: the sums over even k, which are in `out`, and those over odd k.
///
/// # Safety
/// The instruction set of `V`; `out` and `target` hold `MR` rows.
#[inline(always)]
pub(super) unsafe fn add_chains<V: Vector, const MR: usize>(a: &DenseArgs, odd: &[[f32; PANEL]; MR]) {
    // SAFETY: by the contract above.
    unsafe {
        for r in 0..MR {
            for v in 0..4 {
                let even = V::load_f(a.out.add(r * PANEL + 16 * v));
                V::store_f(a.target.add(r * a.stride + 16 * v), V::add_f(even, V::load_f(odd[r].as_ptr().add(16 * v))));
            }
        }
    }
}
