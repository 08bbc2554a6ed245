//! Dense weights (16-bit or 32-bit floats) times f32 activations.
//!
//! Each output is two chains of fused multiply-adds, one over even k and one over odd k, added at the end: an order
//! fixed by K alone.

use crate::arch::vector::Vector;
use crate::pack::PANEL;

/// How a dense weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F16,
    BF16,
    F32,
}

/// What a dense kernel works on.
pub(crate) struct DenseArgs {
    /// One panel, `[K][64]` elements.
    pub panel: *const u8,
    /// Rows of the panel.
    pub k: usize,
    /// Activations: the rows of the tile, `k` floats each.
    pub x: [*const f32; MAX_ROWS],
    /// Result, `[MR][64]`.
    pub out: *mut f32,
}

/// Rows of the largest dense tile.
pub(crate) const MAX_ROWS: usize = 6;

/// Rows of k after which the accumulators of one set of columns give way to the next set's, so that a panel is read as
/// one stream.
const STRETCH: usize = 64;

/// One tile of `MR` rows times one dense panel, `NV` vectors of columns at a time.
///
/// # Safety
/// The instruction set of `V`; the panel holds `k * 64` elements of type `E`; `x` and `out` hold `MR` rows.
#[inline(always)]
pub(crate) unsafe fn tile<V: Vector, const E: u8, const MR: usize, const NV: usize>(a: &DenseArgs) {
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
        let mut odd = [[0.0f32; PANEL]; MR];
        for i in 0..MR * 4 {
            V::store_f(a.out.add(16 * i), V::splat_f(0.0));
        }
        for k0 in (0..a.k).step_by(STRETCH) {
            let end = (k0 + STRETCH).min(a.k);
            for v0 in (0..4).step_by(NV) {
                let mut acc = [[[V::splat_f(0.0); 2]; NV]; MR];
                for r in 0..MR {
                    for v in 0..NV {
                        acc[r][v][0] = V::load_f(a.out.add(r * PANEL + 16 * (v0 + v)));
                        acc[r][v][1] = V::load_f(odd[r].as_ptr().add(16 * (v0 + v)));
                    }
                }
                let mut k = k0;
                while k + 1 < end {
                    for parity in 0..2 {
                        let w: [V::F; NV] = std::array::from_fn(|v| load(k + parity, v0 + v));
                        for r in 0..MR {
                            let x = V::splat_f(*a.x[r].add(k + parity));
                            for v in 0..NV {
                                acc[r][v][parity] = V::fma(w[v], x, acc[r][v][parity]);
                            }
                        }
                    }
                    k += 2;
                }
                if k < end {
                    for r in 0..MR {
                        let x = V::splat_f(*a.x[r].add(k));
                        for v in 0..NV {
                            acc[r][v][0] = V::fma(load(k, v0 + v), x, acc[r][v][0]);
                        }
                    }
                }
                for r in 0..MR {
                    for v in 0..NV {
                        V::store_f(a.out.add(r * PANEL + 16 * (v0 + v)), acc[r][v][0]);
                        V::store_f(odd[r].as_mut_ptr().add(16 * (v0 + v)), acc[r][v][1]);
                    }
                }
            }
        }
        for r in 0..MR {
            for v in 0..4 {
                let out = a.out.add(r * PANEL + 16 * v);
                V::store_f(out, V::add_f(V::load_f(out), V::load_f(odd[r].as_ptr().add(16 * v))));
            }
        }
    }
}
