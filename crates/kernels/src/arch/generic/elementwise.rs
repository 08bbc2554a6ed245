//! Norms and activations of one row.

use super::math::exp;
use crate::arch::vector::Vector;

/// Loads up to sixteen floats from the front of `x`, zeros behind them.
#[inline(always)]
unsafe fn load_some<V: Vector>(x: &[f32]) -> V::F {
    let mut lanes = [0.0f32; 16];
    lanes[..x.len()].copy_from_slice(x);
    // SAFETY: `lanes` holds 16 floats.
    unsafe { V::load_f(lanes.as_ptr()) }
}

/// `1 / sqrt(mean(x^2) + eps)`; the sum runs over sixteen lanes, then over the lanes by halves.
///
/// # Safety
/// The instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn inverse_rms<V: Vector>(x: &[f32], eps: f32) -> f32 {
    let (chunks, tail) = x.as_chunks::<16>();
    // SAFETY: chunks are 16 floats.
    let sum = unsafe {
        let mut acc = V::splat_f(0.0);
        for c in chunks {
            let v = V::load_f(c.as_ptr());
            acc = V::fma(v, v, acc);
        }
        let v = load_some::<V>(tail);
        V::sum(V::fma(v, v, acc))
    };
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}

/// `out = weight * (x * inverse)`.
#[inline(always)]
pub(crate) fn norm(x: &[f32], inverse: f32, weight: &[f32], out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len());
    for ((o, &v), &w) in out.iter_mut().zip(x).zip(weight) {
        *o = w * (v * inverse);
    }
}

/// `v / (1 + e^-v) * u`. A function and no closure: closures do not inherit the instruction set, and are then called.
///
/// # Safety
/// The instruction set of `V`.
#[inline(always)]
unsafe fn gated<V: Vector>(v: V::F, u: V::F) -> V::F {
    // SAFETY: arithmetic on lanes.
    unsafe {
        let e = exp::<V>(V::sub_f(V::splat_f(0.0), v));
        V::mul_f(V::div_f(v, V::add_f(V::splat_f(1.0), e)), u)
    }
}

/// `out[i] = gate[i] / (1 + e^-gate[i]) * up[i]`. What lies `ahead` floats further is asked for.
///
/// # Safety
/// The instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn silu_mul<V: Vector>(gate: &[f32], up: &[f32], ahead: isize, out: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == out.len());
    let ((gates, gate), (ups, up), (outs, out)) = (gate.as_chunks::<16>(), up.as_chunks::<16>(), out.as_chunks_mut::<16>());
    for ((g, u), out) in gates.iter().zip(ups).zip(outs) {
        // SAFETY: chunks are 16 floats.
        unsafe {
            V::prefetch(g.as_ptr().wrapping_offset(ahead).cast());
            V::prefetch(u.as_ptr().wrapping_offset(ahead).cast());
            V::store_f(out.as_mut_ptr(), gated::<V>(V::load_f(g.as_ptr()), V::load_f(u.as_ptr())));
        }
    }
    // SAFETY: loads through padded copies; the result is an array.
    let last = unsafe { V::lanes(gated::<V>(load_some::<V>(gate), load_some::<V>(up))) };
    out.copy_from_slice(&last[..out.len()]);
}

/// Asks for all of `x`.
///
/// # Safety
/// The instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn ask<V: Vector>(x: &[f32]) {
    for line in x.chunks(16) {
        // SAFETY: a hint.
        unsafe { V::prefetch(line.as_ptr().cast()) };
    }
}

/// `x[i] = e^x[i]`, see [`exp`].
///
/// # Safety
/// The instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn exp_all<V: Vector>(x: &mut [f32]) {
    let (chunks, rest) = x.as_chunks_mut::<16>();
    for c in chunks {
        // SAFETY: chunks are 16 floats.
        unsafe { V::store_f(c.as_mut_ptr(), exp::<V>(V::load_f(c.as_ptr()))) };
    }
    // SAFETY: the load goes through a padded copy; the result is an array.
    let last = unsafe { V::lanes(exp::<V>(load_some::<V>(rest))) };
    rest.copy_from_slice(&last[..rest.len()]);
}

/// Rounds to half precision, ties to even.
///
/// # Safety
/// The instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn to_f16<V: Vector>(x: &[f32], out: &mut [u16]) {
    assert_eq!(x.len(), out.len());
    let ((floats, x), (halves, out)) = (x.as_chunks::<16>(), out.as_chunks_mut::<16>());
    for (x, out) in floats.iter().zip(halves) {
        // SAFETY: chunks are 16 floats and 16 halves.
        unsafe { V::store_f16(out.as_mut_ptr(), V::load_f(x.as_ptr())) };
    }
    let mut lanes = [0u16; 16];
    // SAFETY: `lanes` holds 16 halves.
    unsafe { V::store_f16(lanes.as_mut_ptr(), load_some::<V>(x)) };
    out.copy_from_slice(&lanes[..out.len()]);
}
