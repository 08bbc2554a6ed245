//! Weights in `bf16` times activations rounded to `bf16`: what `int8` activations are for weights that are not quantized.
//!
//! Processors multiply pairs of such numbers twice as fast as floats. What they compute is defined here, in operations that
//! every instruction set has: for pairs of k in ascending order, the odd one first,
//!
//! ```text
//! y = fma(w[k + 1], x[k + 1], y)
//! y = fma(w[k], x[k], y)
//! ```
//!
//! (an odd K has a 0 behind it) where denormal weights count as 0, as in those instructions. They also round denormal sums
//! to 0, and there are none: activations are 2^64 times as large as they were, and 0 below 2^20, so that every product and
//! every sum is a multiple of 2^-120, the least bit of the least weight (2^-133) times that of the least activation (2^13).
//! The result is divided by 2^64 at the end.

use super::dense::{AT_ONCE, DenseArgs, rows_at_once};
use super::narrow;
use crate::arch::vector::Vector;
use crate::narrow::{RUN, RUN_BYTES};
use crate::pack::PANEL;

/// What activations are multiplied by.
const UP: f32 = (1u128 << 64) as f32;
/// Multiplied activations below this are 0.
const LEAST: f32 = (1 << 20) as f32;

/// Pairs of activations as a kernel takes them: the even one in the low half.
pub(crate) fn pairs(x: &[f32], out: &mut [f32]) {
    for (pair, out) in x.chunks(2).zip(out) {
        let [low, high] = [pair.first(), pair.get(1)].map(|v| u32::from(round(v.copied().unwrap_or(0.0))));
        *out = f32::from_bits(high << 16 | low);
    }
}

/// The nearest `bf16` of an activation times 2^64, ties to even.
fn round(x: f32) -> u16 {
    let up = x * UP;
    if up.abs() < LEAST { 0 } else { half::bf16::from_f32(up).to_bits() }
}

/// How pairs are multiplied: two vectors of columns at a time, in an order of its own.
pub(crate) trait Pairs<V: Vector> {
    /// Pairs of the weights of sixteen columns.
    type W: Copy;
    /// Those of 32 columns, at `even` for one k and at `odd` for the next.
    ///
    /// # Safety
    /// The instruction sets of `V` and of this; both pointers are valid for 64 bytes.
    unsafe fn weights(even: *const u8, odd: *const u8) -> [Self::W; 2];
    /// Those of sixteen columns, each of them a lane with the even one in the low half.
    ///
    /// # Safety
    /// The instruction sets of `V` and of this.
    unsafe fn of(pairs: V::I) -> Self::W;
    /// Adds their products with a pair of activations.
    ///
    /// # Safety
    /// The instruction sets of `V` and of this.
    unsafe fn add(sum: V::F, w: Self::W, x: i32) -> V::F;
    /// Puts sums of 32 columns of [`Pairs::weights`] in the order of the columns.
    ///
    /// # Safety
    /// The instruction sets of `V` and of this.
    unsafe fn in_order(sums: [V::F; 2]) -> [V::F; 2];
}

/// Pairs by fused multiply-adds.
pub(crate) struct Fused;

/// Sixteen weights, those that are denormal as 0.
///
/// # Safety
/// The instruction set of `V`; 32 bytes at `p`.
#[inline(always)]
unsafe fn normal<V: Vector>(p: *const u8) -> V::F {
    // SAFETY: by the contract above.
    unsafe { not_denormal::<V>(V::shl_i::<16>(V::load_u16(p))) }
}

/// The floats of these bits, those that are denormal as 0.
///
/// # Safety
/// The instruction set of `V`.
#[inline(always)]
unsafe fn not_denormal<V: Vector>(bits: V::I) -> V::F {
    // SAFETY: by the contract above.
    unsafe {
        // all ones where the exponent is not 0
        let kept = V::sar_i::<31>(V::add_i(V::and_i(bits, V::splat_i(0x7f80_0000)), V::splat_i(i32::MAX)));
        V::bits_f(V::and_i(bits, kept))
    }
}

impl<V: Vector> Pairs<V> for Fused {
    type W = (V::F, V::F);

    #[inline(always)]
    unsafe fn weights(even: *const u8, odd: *const u8) -> [Self::W; 2] {
        // SAFETY: by the contract above.
        unsafe { [(normal::<V>(even), normal::<V>(odd)), (normal::<V>(even.add(32)), normal::<V>(odd.add(32)))] }
    }

    #[inline(always)]
    unsafe fn of(pairs: V::I) -> Self::W {
        // SAFETY: by the contract above.
        unsafe { (not_denormal::<V>(V::shl_i::<16>(pairs)), not_denormal::<V>(V::and_i(pairs, V::splat_i(-65536)))) }
    }

    #[inline(always)]
    unsafe fn add(sum: V::F, (even, odd): Self::W, x: i32) -> V::F {
        let [low, high] = [x.cast_unsigned() << 16, x.cast_unsigned() & 0xffff_0000].map(f32::from_bits);
        // SAFETY: by the contract above.
        unsafe { V::fma(even, V::splat_f(low), V::fma(odd, V::splat_f(high), sum)) }
    }

    #[inline(always)]
    unsafe fn in_order(sums: [V::F; 2]) -> [V::F; 2] {
        sums
    }
}

/// Pairs of k after which one set of columns gives way to the next; see [`super::dense`]. Where rows, too, give way to
/// others, more comes between, and a stretch is shorter so that it stays in the first cache.
const fn stretch(rows: usize) -> usize {
    if rows > AT_ONCE { 32 } else { 64 }
}

/// One tile of `MR` rows times one panel, `NV` vectors of columns at a time: two or four. Where a stretch is gone through more
/// than once, what comes later is asked for, line after line and evenly: for the second cache two stretches before, for the first
/// one stretch before (Zen 5, from memory: 1.04 times as fast with 16 rows, 1.1 to 1.2 with 4 to 8, than for the second alone).
///
/// # Safety
/// The instruction sets of `V` and `D`; the panel holds `k * 64` elements of `bf16`, in whole runs if it is `NARROW`, the rows
/// of `x` the pairs of `k` activations, `out` and `target` `MR` rows.
#[inline(always)]
pub(crate) unsafe fn tile<V: Vector, D: Pairs<V>, const MR: usize, const NV: usize, const NARROW: bool>(a: &DenseArgs) {
    const ROW: usize = 2 * PANEL;
    static NOTHING: [u8; ROW] = [0; ROW];
    const { assert!(NV == 2 || NV == 4) };
    let rows = const { rows_at_once(MR) };
    let (stretch, lines) = const { (if NARROW { 64 } else { stretch(MR) }, NV * rows_at_once(MR) / MR) };
    let count = a.k.div_ceil(2);
    let passes = 4 / NV * (MR / rows);
    // SAFETY: by the contract above; behind an odd K there is a row of zeros.
    unsafe {
        let table = narrow::table::<V>(&a.sevens);
        for i in 0..MR * 4 {
            V::store_f(a.out.add(16 * i), V::splat_f(0.0));
        }
        for from in (0..count).step_by(stretch) {
            let end = (from + stretch).min(count);
            for v0 in (0..4).step_by(NV) {
                for r0 in (0..MR).step_by(AT_ONCE) {
                    let sum = |r: usize, v: usize| a.out.add((r0 + r) * PANEL + 16 * (v0 + v));
                    let mut acc = [[V::splat_f(0.0); NV]; AT_ONCE];
                    let mut x = [a.x[r0].cast::<i32>(); AT_ONCE];
                    for r in 0..rows {
                        x[r] = a.x[r0 + r].cast::<i32>();
                        for v in 0..NV {
                            acc[r][v] = V::load_f(sum(r, v));
                        }
                    }
                    let pass = v0 / NV * (MR / rows) + r0 / rows;
                    if NARROW {
                        for i in (from..end).step_by(RUN / 2) {
                            let run = a.panel.add(i / (RUN / 2) * RUN_BYTES);
                            narrow::ask::<V>(run, pass, passes, stretch / (RUN / 2));
                            for v in (0..NV).step_by(2) {
                                for pair in 0..RUN / 2 {
                                    let [first, last] = narrow::pairs::<V>(run, (v0 + v) / 2, pair, table);
                                    let w = [D::of(first), D::of(last)];
                                    for r in 0..rows {
                                        let x = *x[r].add(i + pair);
                                        acc[r][v] = D::add(acc[r][v], w[0], x);
                                        acc[r][v + 1] = D::add(acc[r][v + 1], w[1], x);
                                    }
                                }
                            }
                        }
                    } else {
                        for i in from..end {
                            let even = a.panel.add(2 * i * ROW + 32 * v0);
                            let odd = if 2 * i + 1 < a.k { even.add(ROW) } else { NOTHING.as_ptr() };
                            if NV < 4 {
                                // each set of columns and of rows asks for its part of a later stretch
                                let next = (from + stretch) * 2 * ROW + (pass * stretch + i - from) * lines * 64;
                                for line in 0..lines {
                                    let next = a.panel.wrapping_add(next + 64 * line);
                                    V::prefetch_far(next.wrapping_add(stretch * 2 * ROW));
                                    V::prefetch(next);
                                }
                            }
                            for v in (0..NV).step_by(2) {
                                let w = D::weights(even.add(32 * v), odd.add(32 * v));
                                for r in 0..rows {
                                    let x = *x[r].add(i);
                                    acc[r][v] = D::add(acc[r][v], w[0], x);
                                    acc[r][v + 1] = D::add(acc[r][v + 1], w[1], x);
                                }
                            }
                        }
                    }
                    for r in 0..rows {
                        for v in (0..NV).step_by(2) {
                            let mut sums = [acc[r][v], acc[r][v + 1]];
                            let mut to = sum(r, v);
                            if end == count {
                                sums = if NARROW { sums } else { D::in_order(sums) };
                                sums = sums.map(|sum| V::mul_f(sum, V::splat_f(1.0 / UP)));
                                to = a.target.add((r0 + r) * a.stride + 16 * (v0 + v));
                            }
                            V::store_f(to, sums[0]);
                            V::store_f(to.add(16), sums[1]);
                        }
                    }
                }
            }
        }
    }
}
