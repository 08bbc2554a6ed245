//! The few operations a kernel needs, on sixteen 32-bit lanes.
//!
//! Sixteen lanes on every instruction set, so that an algorithm written once over [`Vector`] adds the same numbers in
//! the same order everywhere: its results are the same to the last bit whether a lane set is one 512-bit register, two
//! of 256 bits or an array.

/// One number of sixteen: each of the first half with that of the second, and so on. The lengths are written out, because
/// the compiler unrolls no loop whose bounds come from an array.
macro_rules! by_halves {
    ($lanes:expr, |$a:ident, $b:ident| $join:expr) => {{
        let v: [f32; 16] = $lanes;
        let v: [f32; 8] = by_halves!(v, 8, |$a, $b| $join);
        let v: [f32; 4] = by_halves!(v, 4, |$a, $b| $join);
        let v: [f32; 2] = by_halves!(v, 2, |$a, $b| $join);
        let [v]: [f32; 1] = by_halves!(v, 1, |$a, $b| $join);
        v
    }};
    ($v:ident, $half:literal, |$a:ident, $b:ident| $join:expr) => {{
        let mut half = [0.0f32; $half];
        for i in 0..$half {
            let ($a, $b) = ($v[i], $v[i + $half]);
            half[i] = $join;
        }
        half
    }};
}

/// Sixteen 32-bit lanes. `I` holds integers (or 64 bytes), `F` floats.
///
/// # Safety
/// Every method needs the instruction set that the implementing type names; pointers need not be aligned but must be
/// valid for the bytes named.
pub(crate) trait Vector: Copy {
    /// Sixteen `i32`, or one 64-byte line.
    type I: Copy;
    /// Sixteen `f32`.
    type F: Copy;
    /// Eight `f64`.
    type D: Copy;
    /// Whether [`Vector::dot`] is one instruction, so that a kernel of few rows waits for memory and not for products.
    const ONE_INSTRUCTION_DOT: bool = false;
    /// Vectors of sixteen lanes that the registers hold.
    const REGISTERS: usize;
    /// Sums of sixteen lanes that the probes of arithmetic keep: enough to hide the latency of a product on two ports, no more
    /// than there are registers for.
    const CHAINS: usize;

    /// Loads 64 bytes.
    unsafe fn load_i(p: *const u8) -> Self::I;
    /// Loads 16 bytes, zero-extended to lanes.
    unsafe fn load_u8(p: *const u8) -> Self::I;
    /// Loads 16 `u16`, zero-extended to lanes.
    unsafe fn load_u16(p: *const u8) -> Self::I;
    /// `v` in every lane.
    unsafe fn splat_i(v: i32) -> Self::I;
    /// Wrapping sum.
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    /// `a - b`, wrapping.
    unsafe fn sub_i(a: Self::I, b: Self::I) -> Self::I;
    /// Low 32 bits of the product.
    unsafe fn mul_i(a: Self::I, b: Self::I) -> Self::I;
    /// Wrapping difference of each byte.
    #[cfg(any(test, target_arch = "x86_64"))]
    unsafe fn sub_bytes(a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise and.
    unsafe fn and_i(a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise or.
    unsafe fn or_i(a: Self::I, b: Self::I) -> Self::I;
    /// The larger of the two lanes.
    unsafe fn max_i(a: Self::I, b: Self::I) -> Self::I;
    /// Logical shift right of each lane.
    unsafe fn shr_i<const N: u32>(a: Self::I) -> Self::I;
    /// Arithmetic shift right of each lane.
    unsafe fn sar_i<const N: u32>(a: Self::I) -> Self::I;
    /// Shift left of each lane.
    unsafe fn shl_i<const N: u32>(a: Self::I) -> Self::I;
    /// Adds to each lane the dot product of its four unsigned bytes in `w` with the four signed bytes of `x`.
    /// `WIDE` says that bytes of `w` may exceed 127 (which needs more work without VNNI).
    unsafe fn dot<const WIDE: bool>(acc: Self::I, w: Self::I, x: i32) -> Self::I;
    /// Of each 16 bytes, byte i is the one of the same 16 of `table` that byte i of `index`, below 16, names.
    unsafe fn pick_bytes(table: Self::I, index: Self::I) -> Self::I;
    /// Of each 16 bytes, the first eight of `a` and of `b` in turn, and the last eight.
    unsafe fn zip_bytes(a: Self::I, b: Self::I) -> [Self::I; 2];
    /// Adds 128 to byte i if bit i of `bits` is set, up to 255.
    unsafe fn mark_bytes(a: Self::I, bits: u64) -> Self::I;
    /// The low byte of each lane.
    unsafe fn low_bytes(a: Self::I) -> [u8; 16];

    /// Nearest float, ties to even.
    unsafe fn to_f(a: Self::I) -> Self::F;
    /// Nearest integer, ties to even, if there is one (anything otherwise).
    unsafe fn to_i(a: Self::F) -> Self::I;
    /// The same bits as floats.
    unsafe fn bits_f(a: Self::I) -> Self::F;

    /// Lane i is the lane of `table` that the four low bits of lane i of `index` name.
    unsafe fn pick(table: Self::F, index: Self::I) -> Self::F;

    /// Loads 16 floats.
    unsafe fn load_f(p: *const f32) -> Self::F;
    /// Stores 16 floats.
    unsafe fn store_f(p: *mut f32, v: Self::F);
    /// Loads 16 half floats.
    unsafe fn load_f16(p: *const u8) -> Self::F;
    /// Stores 16 floats rounded to half, ties to even.
    unsafe fn store_f16(p: *mut u16, v: Self::F);
    /// Loads 16 brain floats.
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self::F {
        // SAFETY: the caller's instruction set and pointer.
        unsafe { Self::bits_f(Self::shl_i::<16>(Self::load_u16(p))) }
    }
    /// `v` in every lane.
    unsafe fn splat_f(v: f32) -> Self::F;
    /// Sum.
    unsafe fn add_f(a: Self::F, b: Self::F) -> Self::F;
    /// Difference.
    unsafe fn sub_f(a: Self::F, b: Self::F) -> Self::F;
    /// Product.
    unsafe fn mul_f(a: Self::F, b: Self::F) -> Self::F;
    /// Quotient.
    unsafe fn div_f(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c` with one rounding.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger of the two lanes; the second if either is NaN (as x86 does).
    unsafe fn max_f(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller of the two lanes; the second if either is NaN.
    unsafe fn min_f(a: Self::F, b: Self::F) -> Self::F;

    /// Eight `f64` from memory.
    unsafe fn load_d(p: *const f64) -> Self::D;
    /// Eight `f64` to memory.
    unsafe fn store_d(p: *mut f64, v: Self::D);
    /// `a * b + c` in each lane, rounded once.
    unsafe fn fma_d(a: f64, b: Self::D, c: Self::D) -> Self::D;

    /// Asks for the cache line at `p` (a hint; any address).
    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}
    /// Asks for the cache line at `p` in the second cache (a hint; any address). More can be under way to it than to the first
    /// (Zen 4: 24 lines, which is 13 GB/s at 120 ns).
    #[inline(always)]
    unsafe fn prefetch_far(_p: *const u8) {}

    /// The lanes as an array.
    #[inline(always)]
    unsafe fn lanes(a: Self::F) -> [f32; 16] {
        let mut out = [0.0; 16];
        // SAFETY: `out` holds 16 floats; the caller's instruction set.
        unsafe { Self::store_f(out.as_mut_ptr(), a) };
        out
    }
    /// The sum of the lanes, by halves: lane i + lane i+8, then i+4, i+2, i+1.
    #[inline(always)]
    unsafe fn sum(a: Self::F) -> f32 {
        // SAFETY: the caller's instruction set.
        by_halves!(unsafe { Self::lanes(a) }, |a, b| a + b)
    }
    /// The sum of the lanes, which wraps.
    #[inline(always)]
    unsafe fn sum_lanes(a: Self::I) -> i32 {
        // SAFETY: the caller's instruction set.
        let v = unsafe { Self::lanes(Self::bits_f(a)) };
        v.iter().fold(0, |sum, x| x.to_bits().cast_signed().wrapping_add(sum))
    }
    /// The largest lane.
    #[inline(always)]
    unsafe fn largest_lane(a: Self::I) -> i32 {
        // SAFETY: the caller's instruction set.
        let v = unsafe { Self::lanes(Self::bits_f(a)) };
        v.iter().fold(i32::MIN, |max, x| x.to_bits().cast_signed().max(max))
    }
    /// The largest lane, if none is NaN.
    #[inline(always)]
    unsafe fn max_lane(a: Self::F) -> f32 {
        // SAFETY: the caller's instruction set.
        by_halves!(unsafe { Self::lanes(a) }, |a, b| if a > b { a } else { b })
    }
}
