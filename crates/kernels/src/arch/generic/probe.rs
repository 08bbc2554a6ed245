//! What a machine can do at most: the numbers that a kernel's speed is a fraction of.

use super::opaque;
use crate::arch::vector::Vector;
use std::hint::black_box;

/// `rounds` times `CHAINS` (see [`Vector::CHAINS`]) dot products of unsigned and signed bytes, 64 multiply-adds each.
///
/// # Safety
/// The instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn dots<V: Vector, const CHAINS: usize>(rounds: usize) -> i32 {
    // other bytes for each chain and each lane, the former read anew in each round: nothing of a dot product can be done once
    // for several chains, nor for several of the registers that hold the lanes
    let x: [i32; CHAINS] = black_box(std::array::from_fn(|i| 0x0102_0304 + i as i32));
    let w: [u8; 64] = black_box(std::array::from_fn(|i| i as u8));
    // SAFETY: arithmetic on lanes; `x` holds a dword for each chain, `w` a line.
    unsafe {
        let w = V::load_i(w.as_ptr());
        let mut acc = [V::splat_i(0); CHAINS];
        for _ in 0..rounds {
            let x = opaque(x.as_ptr());
            for (i, acc) in acc.iter_mut().enumerate() {
                *acc = V::dot::<false>(*acc, w, *x.add(i));
            }
        }
        let sum = acc.into_iter().reduce(|a, b| V::add_i(a, b)).unwrap_or(w);
        // of every lane: registers that nobody looks at would not be computed
        V::sum_lanes(sum)
    }
}

/// `rounds` times `CHAINS` (see [`Vector::CHAINS`]) fused multiply-adds of sixteen lanes.
///
/// # Safety
/// The instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn fmas<V: Vector, const CHAINS: usize>(rounds: usize) -> f32 {
    let x = black_box(0.5);
    let w: [f32; 16] = black_box(std::array::from_fn(|i| 0.5 + i as f32 / 64.0));
    // SAFETY: arithmetic on lanes; `w` holds sixteen.
    unsafe {
        let w = V::load_f(w.as_ptr());
        let mut acc = [V::splat_f(1.0); CHAINS];
        for _ in 0..rounds {
            for acc in &mut acc {
                *acc = V::fma(w, V::splat_f(x), *acc);
            }
        }
        let sum = acc.into_iter().reduce(|a, b| V::add_f(a, b)).unwrap_or(w);
        V::sum(sum)
    }
}

/// Reads `lines` lines of 64 bytes as one stream, with the prefetch distance of the kernels.
///
/// # Safety
/// The instruction set of `V`; `p` is valid for `64 * lines` bytes.
#[inline(always)]
pub(crate) unsafe fn read<V: Vector>(p: *const u8, lines: usize) -> i32 {
    // SAFETY: every line lies inside the stretch; a prefetch may name any address.
    unsafe {
        let mut acc = [V::splat_i(0); 4];
        for line in (0..lines / 4 * 4).step_by(4) {
            for (i, acc) in acc.iter_mut().enumerate() {
                let at = p.add(64 * (line + i));
                V::prefetch(at.wrapping_add(6144));
                *acc = V::or_i(*acc, V::load_i(at));
            }
        }
        let all = acc.into_iter().reduce(|a, b| V::or_i(a, b)).unwrap_or(V::splat_i(0));
        V::sum_lanes(all)
    }
}
