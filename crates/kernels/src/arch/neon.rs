//! Sixteen lanes in four 128-bit registers: NEON, which every 64-bit Arm CPU has, with the dot product of Armv8.2 where
//! [`super::dotprod`] asks for it.

use super::vector::Vector;
use std::arch::aarch64::*;
use std::arch::asm;

/// NEON and, if `DOT`, DotProd.
#[derive(Clone, Copy)]
pub(crate) struct Quads<const DOT: bool>;

/// NEON.
pub(crate) type Neon = Quads<false>;

#[inline(always)]
fn map<T: Copy, U>(a: [T; 4], f: impl Fn(T) -> U) -> [U; 4] {
    [f(a[0]), f(a[1]), f(a[2]), f(a[3])]
}

#[inline(always)]
fn zip<T: Copy, S: Copy, U>(a: [T; 4], b: [S; 4], f: impl Fn(T, S) -> U) -> [U; 4] {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

/// Sixteen `u16` to lanes.
///
/// # Safety
/// NEON.
#[inline(always)]
unsafe fn widen(low: uint16x8_t, high: uint16x8_t) -> [int32x4_t; 4] {
    // SAFETY: the caller's instruction set.
    unsafe {
        let quads = [vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low), vmovl_u16(vget_low_u16(high)), vmovl_high_u16(high)];
        map(quads, |a| vreinterpretq_s32_u32(a))
    }
}

/// Adds to each lane the dot product of its four signed bytes in `w` with those in `x`.
///
/// # Safety
/// DotProd.
#[inline(always)]
unsafe fn sdot(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    let mut sum = acc;
    // the intrinsic is not stable yet
    // SAFETY: changes no register but `sum`; the caller has the instruction.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {x:v}.16b",
            sum = inout(vreg) sum, w = in(vreg) w, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// The same from products of bytes. Pairs of products are added in 16 bits where they fit, which takes bytes of `w`
/// above -128 (`2 * 127 * 128`); `FULL` says that they may be -128.
///
/// # Safety
/// NEON.
#[inline(always)]
unsafe fn dot_of_products<const FULL: bool>(acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's instruction set.
    unsafe {
        let (low, high) = (vmull_s8(vget_low_s8(w), vget_low_s8(x)), vmull_high_s8(w, x));
        if FULL { vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high))) } else { vpadalq_s16(acc, vpaddq_s16(low, high)) }
    }
}

// SAFETY of every block below: the caller has NEON, DotProd if `DOT`, and pointers valid for the bytes that the method
// names, by the contract of `Vector`.
impl<const DOT: bool> Vector for Quads<DOT> {
    type I = [int32x4_t; 4];
    type F = [float32x4_t; 4];
    type D = [float64x2_t; 4];
    const REGISTERS: usize = 8;
    const CHAINS: usize = 6;

    #[inline(always)]
    unsafe fn load_i(p: *const u8) -> Self::I {
        // SAFETY: valid for 64 bytes.
        unsafe { map([0, 16, 32, 48], |at| vreinterpretq_s32_u8(vld1q_u8(p.add(at)))) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::I {
        // SAFETY: valid for 16 bytes.
        unsafe {
            let bytes = vld1q_u8(p);
            widen(vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes))
        }
    }
    #[inline(always)]
    unsafe fn load_u16(p: *const u8) -> Self::I {
        // SAFETY: valid for 32 bytes.
        unsafe { widen(vld1q_u16(p.cast()), vld1q_u16(p.add(16).cast())) }
    }
    #[inline(always)]
    unsafe fn splat_i(v: i32) -> Self::I {
        // SAFETY: see above.
        unsafe { [vdupq_n_s32(v); 4] }
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { zip(a, b, |a, b| vaddq_s32(a, b)) }
    }
    #[inline(always)]
    unsafe fn sub_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { zip(a, b, |a, b| vsubq_s32(a, b)) }
    }
    #[inline(always)]
    unsafe fn mul_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { zip(a, b, |a, b| vmulq_s32(a, b)) }
    }
    #[cfg(test)]
    #[inline(always)]
    unsafe fn sub_bytes(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { zip(a, b, |a, b| vreinterpretq_s32_s8(vsubq_s8(vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)))) }
    }
    #[inline(always)]
    unsafe fn and_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { zip(a, b, |a, b| vandq_s32(a, b)) }
    }
    #[inline(always)]
    unsafe fn or_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { zip(a, b, |a, b| vorrq_s32(a, b)) }
    }
    #[inline(always)]
    unsafe fn max_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { zip(a, b, |a, b| vmaxq_s32(a, b)) }
    }
    #[inline(always)]
    unsafe fn shr_i<const N: u32>(a: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe {
            // a shift by a variable, which is to the right where it is negative: N is not of the type that immediates have
            map(a, |a| vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-(N as i32)))))
        }
    }
    #[inline(always)]
    unsafe fn sar_i<const N: u32>(a: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { map(a, |a| vshlq_s32(a, vdupq_n_s32(-(N as i32)))) }
    }
    #[inline(always)]
    unsafe fn shl_i<const N: u32>(a: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { map(a, |a| vshlq_s32(a, vdupq_n_s32(N as i32))) }
    }
    /// There is no product of unsigned and signed bytes: codes of up to 7 bits are signed bytes as well, and for others
    /// `w * x = (w - 128) * x + 128 * x`.
    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(acc: Self::I, w: Self::I, x: i32) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x));
            // 128 times the sum of the four bytes of x
            let offset = vshlq_n_s32::<7>(vpaddlq_s16(vpaddlq_s8(x)));
            zip(acc, w, |acc, w| {
                let w = vreinterpretq_s8_s32(w);
                let (acc, w) = if WIDE { (vaddq_s32(acc, offset), veorq_s8(w, vdupq_n_s8(-128))) } else { (acc, w) };
                if DOT { sdot(acc, w, x) } else { dot_of_products::<WIDE>(acc, w, x) }
            })
        }
    }
    #[inline(always)]
    unsafe fn pick_bytes(table: Self::I, index: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { zip(table, index, |t, i| vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_s32(t), vreinterpretq_u8_s32(i)))) }
    }
    #[inline(always)]
    unsafe fn zip_bytes(a: Self::I, b: Self::I) -> [Self::I; 2] {
        // SAFETY: see above.
        unsafe {
            [
                zip(a, b, |a, b| vreinterpretq_s32_u8(vzip1q_u8(vreinterpretq_u8_s32(a), vreinterpretq_u8_s32(b)))),
                zip(a, b, |a, b| vreinterpretq_s32_u8(vzip2q_u8(vreinterpretq_u8_s32(a), vreinterpretq_u8_s32(b)))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn mark_bytes(a: Self::I, bits: u64) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
            zip(a, [0, 16, 32, 48], |a, at| {
                let bits = (bits >> at) as u16;
                let bytes = vcombine_u8(vdup_n_u8(bits as u8), vdup_n_u8((bits >> 8) as u8));
                let marks = vandq_u8(vtstq_u8(bytes, bit), vdupq_n_u8(128));
                vreinterpretq_s32_u8(vqaddq_u8(vreinterpretq_u8_s32(a), marks))
            })
        }
    }
    #[inline(always)]
    unsafe fn low_bytes(a: Self::I) -> [u8; 16] {
        // SAFETY: `out` holds 16 bytes.
        unsafe {
            let [a, b, c, d] = map(a, |a| vmovn_s32(a));
            let bytes = vcombine_s8(vmovn_s16(vcombine_s16(a, b)), vmovn_s16(vcombine_s16(c, d)));
            let mut out = [0u8; 16];
            vst1q_u8(out.as_mut_ptr(), vreinterpretq_u8_s8(bytes));
            out
        }
    }
    #[inline(always)]
    unsafe fn to_f(a: Self::I) -> Self::F {
        // SAFETY: see above.
        unsafe { map(a, |a| vcvtq_f32_s32(a)) }
    }
    #[inline(always)]
    unsafe fn to_i(a: Self::F) -> Self::I {
        // SAFETY: see above.
        unsafe { map(a, |a| vcvtnq_s32_f32(a)) }
    }
    #[inline(always)]
    unsafe fn bits_f(a: Self::I) -> Self::F {
        // SAFETY: see above.
        unsafe { map(a, |a| vreinterpretq_f32_s32(a)) }
    }
    #[inline(always)]
    unsafe fn pick(table: Self::F, index: Self::I) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let bytes = map(table, |t| vreinterpretq_u8_f32(t));
            let bytes = uint8x16x4_t(bytes[0], bytes[1], bytes[2], bytes[3]);
            map(index, |i| {
                // the four bytes of a lane stand at four times its index
                let first = vmulq_n_u32(vandq_u32(vreinterpretq_u32_s32(i), vdupq_n_u32(15)), 0x0404_0404);
                let places = vaddq_u32(first, vdupq_n_u32(0x0302_0100));
                vreinterpretq_f32_u8(vqtbl4q_u8(bytes, vreinterpretq_u8_u32(places)))
            })
        }
    }
    #[inline(always)]
    unsafe fn load_f(p: *const f32) -> Self::F {
        // SAFETY: valid for 16 floats.
        unsafe { map([0, 4, 8, 12], |at| vld1q_f32(p.add(at))) }
    }
    #[inline(always)]
    unsafe fn store_f(p: *mut f32, v: Self::F) {
        // SAFETY: valid for 16 floats.
        unsafe {
            for (i, v) in v.into_iter().enumerate() {
                vst1q_f32(p.add(4 * i), v);
            }
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        // SAFETY: valid for 32 bytes.
        unsafe { map([0, 8, 16, 24], |at| vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p.add(at).cast())))) }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: Self::F) {
        // SAFETY: valid for 16 halves.
        unsafe {
            for (i, v) in v.into_iter().enumerate() {
                vst1_u16(p.add(4 * i), vreinterpret_u16_f16(vcvt_f16_f32(v)));
            }
        }
    }
    #[inline(always)]
    unsafe fn splat_f(v: f32) -> Self::F {
        // SAFETY: see above.
        unsafe { [vdupq_n_f32(v); 4] }
    }
    #[inline(always)]
    unsafe fn add_f(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { zip(a, b, |a, b| vaddq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn sub_f(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { zip(a, b, |a, b| vsubq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn mul_f(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { zip(a, b, |a, b| vmulq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn div_f(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { zip(a, b, |a, b| vdivq_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { std::array::from_fn(|i| vfmaq_f32(c[i], a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn max_f(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe {
            // FMAX would give a NaN for a NaN on either side
            zip(a, b, |a, b| vbslq_f32(vcgtq_f32(a, b), a, b))
        }
    }
    #[inline(always)]
    unsafe fn min_f(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { zip(a, b, |a, b| vbslq_f32(vcltq_f32(a, b), a, b)) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a hint, valid for any address.
        unsafe { asm!("prfm pldl1keep, [{0}]", in(reg) p, options(readonly, nostack, preserves_flags)) }
    }
    #[inline(always)]
    unsafe fn prefetch_far(p: *const u8) {
        // SAFETY: a hint, valid for any address.
        unsafe { asm!("prfm pldl2keep, [{0}]", in(reg) p, options(readonly, nostack, preserves_flags)) }
    }
    #[inline(always)]
    unsafe fn load_d(p: *const f64) -> Self::D {
        // SAFETY: valid for 8 floats.
        unsafe { [vld1q_f64(p), vld1q_f64(p.add(2)), vld1q_f64(p.add(4)), vld1q_f64(p.add(6))] }
    }
    #[inline(always)]
    unsafe fn store_d(p: *mut f64, v: Self::D) {
        // SAFETY: valid for 8 floats.
        unsafe { (0..4).for_each(|i| vst1q_f64(p.add(2 * i), v[i])) }
    }
    #[inline(always)]
    unsafe fn fma_d(a: f64, b: Self::D, c: Self::D) -> Self::D {
        // SAFETY: see above.
        unsafe {
            let a = vdupq_n_f64(a);
            [vfmaq_f64(c[0], a, b[0]), vfmaq_f64(c[1], a, b[1]), vfmaq_f64(c[2], a, b[2]), vfmaq_f64(c[3], a, b[3])]
        }
    }
}

super::stamp_coded! {
    isa: Neon,
    features: ["neon"],
    attend: [1 => 4, 4 => 1]
}

super::stamp! {
    isa: Neon,
    features: ["neon"],
    tiles: {
        1: [1 => (4, false), 2 => (2, false), 4 => (1, true)],
        2: [1 => (2, false), 2 => (1, false), 4 => (1, true)],
        3: [1 => (1, false), 2 => (1, false), 4 => (1, true)],
    },
    bytes: {},
    pairs: [],
    together: {},
    dense: [1 => (2, 2), 2 => (1, 2), 3 => (1, 2)],
    attend: [1 => 4, 2 => 2, 4 => 1, 6 => 1],
    gemm: 6 x 1,
}
