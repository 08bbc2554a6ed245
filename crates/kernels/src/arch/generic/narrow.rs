//! Weights in 13 bits (see [`crate::narrow`]) times f32 activations: what [`super::dense`] computes of the same weights in 16,
//! bit by bit.

use super::dense::{DenseArgs, add_chains};
use crate::aligned::Lines;
use crate::arch::vector::Vector;
use crate::narrow::{HALF_BYTES, NUMBERS, RUN, RUN_BYTES, SIGNS, Sevens};
use crate::pack::PANEL;

/// Lines of a run.
const LINES: usize = RUN_BYTES / 64;
/// Runs after which the sums of some rows and columns give way to others, so that a panel is read as one stream.
const STRETCH: usize = 16;
/// Bytes that a run is asked for ahead of its use, where it is gone through once (Zen 5, one row: 8 KiB are 1.15 times as fast
/// as what the processor foresees by itself).
const AHEAD: usize = 8192;

/// The table of a panel, once for each 16 bytes of a line.
///
/// # Safety
/// The instruction set of `V`.
#[inline(always)]
pub(super) unsafe fn table<V: Vector>(sevens: &Sevens) -> V::I {
    let lines = Lines([*sevens; 4]);
    // SAFETY: 64 bytes; the caller's instruction set.
    unsafe { V::load_i(lines.0.as_ptr().cast()) }
}

/// Pair `pair` of the rows of a run, of half `half`: 32 columns, each of them a lane with the even row in the low half.
///
/// # Safety
/// The instruction set of `V`; a run at `run`.
#[inline(always)]
pub(super) unsafe fn pairs<V: Vector>(run: *const u8, half: usize, pair: usize, table: V::I) -> [V::I; 2] {
    // SAFETY: by the contract above.
    unsafe {
        let (at, signs) = (run.add(half * HALF_BYTES), run.add(SIGNS + 8 * (half * RUN / 2 + pair)));
        let numbers = V::load_i(at.add(NUMBERS + pair / 2 * 64));
        let numbers = if pair.is_multiple_of(2) { numbers } else { V::shr_i::<4>(numbers) };
        let sevens = V::pick_bytes(table, V::and_i(numbers, V::splat_i(0x0f0f_0f0f)));
        let high = V::mark_bytes(sevens, u64::from_le_bytes(signs.cast::<[u8; 8]>().read()));
        V::zip_bytes(V::load_i(at.add(pair * 64)), high)
    }
}

/// Asks for what comes after a run: a run that is gone through once, or pass `pass` of several over a stretch of `stretch`
/// runs for its part, for the second cache two stretches before and for the first one stretch before.
///
/// # Safety
/// The instruction set of `V`.
#[inline(always)]
pub(super) unsafe fn ask<V: Vector>(run: *const u8, pass: usize, passes: usize, stretch: usize) {
    let share = LINES.div_ceil(passes);
    // SAFETY: hints, valid for any address.
    unsafe {
        for line in 0..share {
            if passes == 1 {
                V::prefetch(run.wrapping_add(AHEAD + 64 * line));
            } else {
                // some lines twice: a loop over as many as there are would take longer
                let next = run.wrapping_add(stretch * RUN_BYTES + 64 * (pass * share + line));
                V::prefetch_far(next.wrapping_add(stretch * RUN_BYTES));
                V::prefetch(next);
            }
        }
    }
}

/// How much of a tile of `rows` rows is multiplied at a time, so that registers hold the sums: rows, and halves of the panel.
/// Half as many rows of all vectors are better than as many of one, for which both of a pair are widened (Zen 5, 16 rows: 0.91
/// of the time).
const fn at_once(rows: usize, registers: usize) -> (usize, usize) {
    match rows {
        _ if registers < 32 => (1, 1),
        0..=2 => (rows, 2),
        _ if rows.is_multiple_of(4) => (4, 1),
        _ if rows.is_multiple_of(3) => (3, 1),
        _ => (1, 1),
    }
}

/// Most rows that are multiplied at a time.
const AT_ONCE: usize = 4;

/// One tile of `MR` rows times one panel of whole runs.
///
/// # Safety
/// The instruction set of `V`; the panel holds `k / 8` runs; `x`, `out` and `target` hold `MR` rows.
#[inline(always)]
pub(crate) unsafe fn tile<V: Vector, const MR: usize>(a: &DenseArgs) {
    let (rows, halves) = const { at_once(MR, V::REGISTERS) };
    let (runs, passes) = (a.k / RUN, 2 / halves * (MR / rows));
    // SAFETY: by the contract above; `odd` and `out` hold `MR` rows of 64 floats.
    unsafe {
        let table = table::<V>(&a.sevens);
        let Lines(odd) = &mut Lines([[0.0f32; PANEL]; MR]);
        for i in 0..MR * 4 {
            V::store_f(a.out.add(16 * i), V::splat_f(0.0));
        }
        for from in (0..runs).step_by(STRETCH) {
            let end = (from + STRETCH).min(runs);
            for half in (0..2).step_by(halves) {
                for row in (0..MR).step_by(rows) {
                    let odd = odd.as_mut_ptr().cast::<f32>();
                    let sum =
                        |r: usize, v: usize, c: usize| (if c == 0 { a.out } else { odd }).add((row + r) * PANEL + 16 * (2 * half + v));
                    let mut acc = [[[V::splat_f(0.0); 2]; 4]; AT_ONCE];
                    for r in 0..rows {
                        for v in 0..2 * halves {
                            for c in 0..2 {
                                acc[r][v][c] = V::load_f(sum(r, v, c));
                            }
                        }
                    }
                    for i in from..end {
                        let run = a.panel.add(i * RUN_BYTES);
                        ask::<V>(run, half * (MR / rows) + row / rows, passes, STRETCH);
                        for h in 0..halves {
                            for pair in 0..RUN / 2 {
                                let w = pairs::<V>(run, half + h, pair, table);
                                for v in 0..2 {
                                    let even = V::bits_f(V::shl_i::<16>(w[v]));
                                    let odd = V::bits_f(V::and_i(w[v], V::splat_i(-65536)));
                                    for r in 0..rows {
                                        let x = a.x[row + r].add(RUN * i + 2 * pair);
                                        let acc = &mut acc[r][2 * h + v];
                                        acc[0] = V::fma(even, V::splat_f(*x), acc[0]);
                                        acc[1] = V::fma(odd, V::splat_f(*x.add(1)), acc[1]);
                                    }
                                }
                            }
                        }
                    }
                    for r in 0..rows {
                        for v in 0..2 * halves {
                            for c in 0..2 {
                                V::store_f(sum(r, v, c), acc[r][v][c]);
                            }
                        }
                    }
                }
            }
        }
        add_chains::<V, MR>(a, odd);
    }
}
