//! The lanes as plain arrays: runs anywhere and is the twin of every other instruction set.

use super::vector::Vector;
use half::f16;

/// Sixteen lanes in an array; no instruction set needed.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

#[inline(always)]
fn map<T: Copy, U: Copy>(a: [T; 16], f: impl Fn(T) -> U) -> [U; 16] {
    std::array::from_fn(|i| f(a[i]))
}

#[inline(always)]
fn zip<T: Copy, U: Copy>(a: [T; 16], b: [T; 16], f: impl Fn(T, T) -> U) -> [U; 16] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// The bytes of all lanes.
#[inline(always)]
fn bytes(a: [i32; 16]) -> [u8; 64] {
    std::array::from_fn(|i| a[i / 4].to_le_bytes()[i % 4])
}

/// Lanes of these bytes.
#[inline(always)]
fn lanes(b: [u8; 64]) -> [i32; 16] {
    std::array::from_fn(|i| i32::from_le_bytes([b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]]))
}

// SAFETY of every block below: the pointer is valid for the bytes that the method names, by the contract of `Vector`.
impl Vector for Scalar {
    type I = [i32; 16];
    type F = [f32; 16];
    type D = [f64; 8];
    const REGISTERS: usize = 8;
    const CHAINS: usize = 1;

    #[inline(always)]
    unsafe fn load_i(p: *const u8) -> Self::I {
        // SAFETY: valid for 64 bytes.
        let bytes = unsafe { p.cast::<[[u8; 4]; 16]>().read_unaligned() };
        map(bytes, i32::from_le_bytes)
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::I {
        // SAFETY: valid for 16 bytes.
        let bytes = unsafe { p.cast::<[u8; 16]>().read_unaligned() };
        map(bytes, i32::from)
    }
    #[inline(always)]
    unsafe fn load_u16(p: *const u8) -> Self::I {
        // SAFETY: valid for 32 bytes.
        let bytes = unsafe { p.cast::<[[u8; 2]; 16]>().read_unaligned() };
        map(bytes, |b| i32::from(u16::from_le_bytes(b)))
    }
    #[inline(always)]
    unsafe fn splat_i(v: i32) -> Self::I {
        [v; 16]
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn sub_i(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    unsafe fn mul_i(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_mul)
    }
    #[cfg(any(test, target_arch = "x86_64"))]
    #[inline(always)]
    unsafe fn sub_bytes(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |x, y| {
            let (x, y) = (x.to_le_bytes(), y.to_le_bytes());
            i32::from_le_bytes(std::array::from_fn(|j| x[j].wrapping_sub(y[j])))
        })
    }
    #[inline(always)]
    unsafe fn and_i(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |x, y| x & y)
    }
    #[inline(always)]
    unsafe fn or_i(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |x, y| x | y)
    }
    #[inline(always)]
    unsafe fn max_i(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::max)
    }
    #[inline(always)]
    unsafe fn shr_i<const N: u32>(a: Self::I) -> Self::I {
        map(a, |x| ((x as u32) >> N) as i32)
    }
    #[inline(always)]
    unsafe fn sar_i<const N: u32>(a: Self::I) -> Self::I {
        map(a, |x| x >> N)
    }
    #[inline(always)]
    unsafe fn shl_i<const N: u32>(a: Self::I) -> Self::I {
        map(a, |x| x << N)
    }
    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(acc: Self::I, w: Self::I, x: i32) -> Self::I {
        let x = x.to_le_bytes().map(|b| i32::from(b as i8));
        zip(acc, w, |a, w| {
            let w = w.to_le_bytes();
            (0..4).fold(a, |a, j| a.wrapping_add(i32::from(w[j]) * x[j]))
        })
    }
    #[inline(always)]
    unsafe fn pick_bytes(table: Self::I, index: Self::I) -> Self::I {
        let (table, index) = (bytes(table), bytes(index));
        lanes(std::array::from_fn(|i| table[i / 16 * 16 + usize::from(index[i] & 15)]))
    }
    #[inline(always)]
    unsafe fn zip_bytes(a: Self::I, b: Self::I) -> [Self::I; 2] {
        let both = [bytes(a), bytes(b)];
        [0, 8].map(|first| lanes(std::array::from_fn(|i| both[i % 2][i / 16 * 16 + first + i % 16 / 2])))
    }
    #[inline(always)]
    unsafe fn mark_bytes(a: Self::I, bits: u64) -> Self::I {
        let a = bytes(a);
        lanes(std::array::from_fn(|i| a[i].saturating_add(((bits >> i & 1) as u8) << 7)))
    }
    #[inline(always)]
    unsafe fn low_bytes(a: Self::I) -> [u8; 16] {
        map(a, |x| x as u8)
    }
    #[inline(always)]
    unsafe fn to_f(a: Self::I) -> Self::F {
        map(a, |x| x as f32)
    }
    #[inline(always)]
    unsafe fn to_i(a: Self::F) -> Self::I {
        map(a, |x| x.round_ties_even() as i32)
    }
    #[inline(always)]
    unsafe fn bits_f(a: Self::I) -> Self::F {
        map(a, |x| f32::from_bits(x as u32))
    }
    #[inline(always)]
    unsafe fn pick(table: Self::F, index: Self::I) -> Self::F {
        map(index, |i| table[(i & 15) as usize])
    }
    #[inline(always)]
    unsafe fn load_f(p: *const f32) -> Self::F {
        // SAFETY: valid for 16 floats.
        unsafe { p.cast::<[f32; 16]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_f(p: *mut f32, v: Self::F) {
        // SAFETY: valid for 16 floats.
        unsafe { p.cast::<[f32; 16]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        // SAFETY: valid for 32 bytes.
        let bytes = unsafe { p.cast::<[[u8; 2]; 16]>().read_unaligned() };
        map(bytes, |b| f16::from_le_bytes(b).to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: Self::F) {
        // SAFETY: valid for 16 halves.
        unsafe { p.cast::<[u16; 16]>().write_unaligned(map(v, |x| f16::from_f32(x).to_bits())) }
    }
    #[inline(always)]
    unsafe fn splat_f(v: f32) -> Self::F {
        [v; 16]
    }
    #[inline(always)]
    unsafe fn add_f(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| x + y)
    }
    #[inline(always)]
    unsafe fn sub_f(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| x - y)
    }
    #[inline(always)]
    unsafe fn mul_f(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| x * y)
    }
    #[inline(always)]
    unsafe fn div_f(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| x / y)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max_f(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    unsafe fn min_f(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    unsafe fn load_d(p: *const f64) -> Self::D {
        // SAFETY: valid for 8 floats.
        unsafe { p.cast::<[f64; 8]>().read() }
    }
    #[inline(always)]
    unsafe fn store_d(p: *mut f64, v: Self::D) {
        // SAFETY: valid for 8 floats.
        unsafe { p.cast::<[f64; 8]>().write(v) }
    }
    #[inline(always)]
    unsafe fn fma_d(a: f64, b: Self::D, c: Self::D) -> Self::D {
        std::array::from_fn(|i| a.mul_add(b[i], c[i]))
    }
}

super::stamp_coded! {
    isa: Scalar,
    features: [],
    attend: [1 => 1, 4 => 1]
}

super::stamp! {
    isa: Scalar,
    features: [],
    tiles: {
        1: [1 => (4, false), 4 => (1, true)],
        2: [1 => (2, false), 4 => (1, true)],
        3: [1 => (2, false), 4 => (1, true)],
    },
    bytes: {},
    pairs: [],
    together: {},
    dense: [1 => (2, 2), 4 => (1, 2)],
    attend: [1 => 1, 4 => 1],
    gemm: 4 x 1,
}
