//! Sixteen lanes in one 512-bit register: AVX-512 F, BW, VL, DQ and VNNI (Ice Lake, Zen 4 and later).

use super::vector::Vector;
use std::arch::x86_64::*;

/// AVX-512 F, BW, VL, DQ, VNNI, with FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

// SAFETY of every block below: the caller has the instruction sets named above and pointers valid for the bytes that
// the method names, by the contract of `Vector`.
impl Vector for Avx512 {
    type I = __m512i;
    type F = __m512;
    type D = __m512d;
    const ONE_INSTRUCTION_DOT: bool = true;
    const REGISTERS: usize = 32;
    const CHAINS: usize = 12;

    #[inline(always)]
    unsafe fn load_i(p: *const u8) -> Self::I {
        // SAFETY: valid for 64 bytes.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::I {
        // SAFETY: valid for 16 bytes.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_u16(p: *const u8) -> Self::I {
        // SAFETY: valid for 32 bytes.
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn splat_i(v: i32) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_set1_epi32(v) }
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn sub_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_mullo_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn sub_bytes(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_sub_epi8(a, b) }
    }
    #[inline(always)]
    unsafe fn and_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn or_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn max_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_max_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn shr_i<const N: u32>(a: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_srli_epi32::<N>(a) }
    }
    #[inline(always)]
    unsafe fn sar_i<const N: u32>(a: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_srai_epi32::<N>(a) }
    }
    #[inline(always)]
    unsafe fn shl_i<const N: u32>(a: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_slli_epi32::<N>(a) }
    }
    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(acc: Self::I, w: Self::I, x: i32) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x)) }
    }
    #[inline(always)]
    unsafe fn pick_bytes(table: Self::I, index: Self::I) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_shuffle_epi8(table, index) }
    }
    #[inline(always)]
    unsafe fn zip_bytes(a: Self::I, b: Self::I) -> [Self::I; 2] {
        // SAFETY: see above.
        unsafe { [_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b)] }
    }
    #[inline(always)]
    unsafe fn mark_bytes(a: Self::I, bits: u64) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_mask_adds_epu8(a, bits, a, _mm512_set1_epi8(-128)) }
    }
    #[inline(always)]
    unsafe fn low_bytes(a: Self::I) -> [u8; 16] {
        let mut out = [0u8; 16];
        // SAFETY: `out` holds 16 bytes.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(a)) };
        out
    }
    #[inline(always)]
    unsafe fn to_f(a: Self::I) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn to_i(a: Self::F) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_cvtps_epi32(a) }
    }
    #[inline(always)]
    unsafe fn bits_f(a: Self::I) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_castsi512_ps(a) }
    }
    #[inline(always)]
    unsafe fn pick(table: Self::F, index: Self::I) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_permutexvar_ps(index, table) }
    }
    #[inline(always)]
    unsafe fn load_f(p: *const f32) -> Self::F {
        // SAFETY: valid for 16 floats.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store_f(p: *mut f32, v: Self::F) {
        // SAFETY: valid for 16 floats.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        // SAFETY: valid for 32 bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: Self::F) {
        // SAFETY: valid for 16 halves.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<0>(v)) }
    }
    #[inline(always)]
    unsafe fn splat_f(v: f32) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    unsafe fn add_f(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub_f(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_f(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div_f(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max_f(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min_f(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a hint, valid for any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_far(p: *const u8) {
        // SAFETY: a hint, valid for any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_d(p: *const f64) -> Self::D {
        // SAFETY: valid for 8 floats.
        unsafe { _mm512_loadu_pd(p) }
    }
    #[inline(always)]
    unsafe fn store_d(p: *mut f64, v: Self::D) {
        // SAFETY: valid for 8 floats.
        unsafe { _mm512_storeu_pd(p, v) }
    }
    #[inline(always)]
    unsafe fn fma_d(a: f64, b: Self::D, c: Self::D) -> Self::D {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_pd(_mm512_set1_pd(a), b, c) }
    }
}

super::stamp_coded! {
    isa: Avx512,
    features: ["avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"],
    attend: [1 => 4, 4 => 4, 8 => 2]
}

super::stamp! {
    isa: Avx512,
    features: ["avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"],
    tiles: {
        1: [1 => (4, false), 2 => (4, false), 3 => (4, false), 4 => (4, false), 5 => (4, false), 6 => (2, true), 8 => (2, true), 10 => (2, true), 11 => (2, true), 12 => (2, true)],
        2: [1 => (4, false), 2 => (4, false), 3 => (4, false), 4 => (2, false), 5 => (2, false), 6 => (2, false), 8 => (2, true), 10 => (2, true), 11 => (2, true), 12 => (2, true)],
        3: [1 => (4, false), 2 => (4, false), 3 => (2, false), 4 => (2, false), 5 => (2, true), 6 => (2, true), 8 => (2, true), 10 => (2, true), 12 => (2, true)],
    },
    bytes: {
        2: [4 => (4, true), 5 => (4, true), 6 => (4, true)],
        3: [4 => (4, true), 6 => (4, true)],
    },
    pairs: [1, 2, 3],
    together: { 1: [8, 10, 11, 12], 2: [8, 10, 11, 12], 3: [8, 10, 12] },
    dense: [1 => (4, 2), 2 => (4, 2), 4 => (2, 2), 6 => (2, 2), 8 => (2, 1), 16 => (2, 1)],
    attend: [1 => 4, 2 => 4, 4 => 4, 6 => 4, 8 => 2, 10 => 2, 12 => 2],
    gemm: 6 x 4,
}
