//! The exponential, as a polynomial of our own: no two libraries round theirs alike.

use crate::arch::vector::Vector;

/// `e^x` to about 1e-7 relative, for x in [-87, 88] (clamped outside): `2^n * p(r)`, `r = x - n ln 2`, with the Taylor
/// polynomial of degree 7 on |r| <= ln 2 / 2 (its remainder there is below 6e-9). NaN and infinities give NaN: nothing
/// that is not a number may look like one later.
///
/// # Safety
/// The instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn exp<V: Vector>(x: V::F) -> V::F {
    // SAFETY: arithmetic on lanes.
    unsafe {
        let poison = V::mul_f(x, V::splat_f(0.0));
        let x = V::min_f(V::max_f(x, V::splat_f(-87.0)), V::splat_f(88.0));
        let n = V::to_i(V::mul_f(x, V::splat_f(std::f32::consts::LOG2_E)));
        let nf = V::to_f(n);
        // ln 2 in two parts: the first has 11 significant bits, so n * first is exact
        let r = V::fma(nf, V::splat_f(-0.693_359_4), x);
        let r = V::fma(nf, V::splat_f(2.121_944_4e-4), r);
        let mut p = V::splat_f(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = V::fma(p, r, V::splat_f(c));
        }
        V::fma(p, V::bits_f(V::shl_i::<23>(V::add_i(n, V::splat_i(127)))), poison)
    }
}
