//! Sixteen lanes in two 256-bit registers: AVX2, FMA and F16C (every x86-64 CPU with AVX2 has all three), with the dot
//! product of AVX-VNNI where [`super::avxvnni`] asks for it.

use super::vector::Vector;
use std::arch::x86_64::*;

/// AVX2, FMA, F16C and, if `VNNI`, AVX-VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Ymm<const VNNI: bool>;

/// AVX2, FMA, F16C.
pub(crate) type Avx2 = Ymm<false>;

#[inline(always)]
fn both<T: Copy, U>(a: [T; 2], f: impl Fn(T) -> U) -> [U; 2] {
    [f(a[0]), f(a[1])]
}

#[inline(always)]
fn pair<T: Copy, U>(a: [T; 2], b: [T; 2], f: impl Fn(T, T) -> U) -> [U; 2] {
    [f(a[0], b[0]), f(a[1], b[1])]
}

// SAFETY of every block below: the caller has AVX2, FMA and F16C (and AVX-VNNI if `VNNI`) and pointers valid for the
// bytes that the method names, by the contract of `Vector`.
impl<const VNNI: bool> Vector for Ymm<VNNI> {
    type I = [__m256i; 2];
    type F = [__m256; 2];
    type D = [__m256d; 2];
    const REGISTERS: usize = 8;
    const CHAINS: usize = 5;

    #[inline(always)]
    unsafe fn load_i(p: *const u8) -> Self::I {
        // SAFETY: valid for 64 bytes.
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::I {
        // SAFETY: valid for 16 bytes.
        unsafe {
            let v = _mm_loadu_si128(p.cast());
            [_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))]
        }
    }
    #[inline(always)]
    unsafe fn load_u16(p: *const u8) -> Self::I {
        // SAFETY: valid for 32 bytes.
        unsafe { [_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())), _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(16).cast()))] }
    }
    #[inline(always)]
    unsafe fn splat_i(v: i32) -> Self::I {
        // SAFETY: see above.
        unsafe { [_mm256_set1_epi32(v); 2] }
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        pair(a, b, |x, y| unsafe { _mm256_add_epi32(x, y) })
    }
    #[inline(always)]
    unsafe fn sub_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        pair(a, b, |x, y| unsafe { _mm256_sub_epi32(x, y) })
    }
    #[inline(always)]
    unsafe fn mul_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        pair(a, b, |x, y| unsafe { _mm256_mullo_epi32(x, y) })
    }
    #[inline(always)]
    unsafe fn sub_bytes(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        pair(a, b, |x, y| unsafe { _mm256_sub_epi8(x, y) })
    }
    #[inline(always)]
    unsafe fn and_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        pair(a, b, |x, y| unsafe { _mm256_and_si256(x, y) })
    }
    #[inline(always)]
    unsafe fn or_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        pair(a, b, |x, y| unsafe { _mm256_or_si256(x, y) })
    }
    #[inline(always)]
    unsafe fn max_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        pair(a, b, |x, y| unsafe { _mm256_max_epi32(x, y) })
    }
    #[inline(always)]
    unsafe fn shr_i<const N: u32>(a: Self::I) -> Self::I {
        // SAFETY: see above.
        both(a, |x| unsafe { _mm256_srl_epi32(x, _mm_cvtsi32_si128(N as i32)) })
    }
    #[inline(always)]
    unsafe fn sar_i<const N: u32>(a: Self::I) -> Self::I {
        // SAFETY: see above.
        both(a, |x| unsafe { _mm256_sra_epi32(x, _mm_cvtsi32_si128(N as i32)) })
    }
    #[inline(always)]
    unsafe fn shl_i<const N: u32>(a: Self::I) -> Self::I {
        // SAFETY: see above.
        both(a, |x| unsafe { _mm256_sll_epi32(x, _mm_cvtsi32_si128(N as i32)) })
    }
    /// Without VNNI, `vpmaddubsw` adds two products of an unsigned and a signed byte in 16 bits with saturation:
    /// 2·127·128 still fits, so codes of up to 7 bits need one step; a byte above 127 goes through its two nibbles.
    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(acc: Self::I, w: Self::I, x: i32) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let x = _mm256_set1_epi32(x);
            let one = _mm256_set1_epi16(1);
            if VNNI {
                pair(acc, w, |a, w| _mm256_dpbusd_avx_epi32(a, w, x))
            } else if WIDE {
                let (nibble, sixteen) = (_mm256_set1_epi8(15), _mm256_set1_epi16(16));
                pair(acc, w, |a, w| {
                    let low = _mm256_maddubs_epi16(_mm256_and_si256(w, nibble), x);
                    let high = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16::<4>(w), nibble), x);
                    _mm256_add_epi32(a, _mm256_add_epi32(_mm256_madd_epi16(low, one), _mm256_madd_epi16(high, sixteen)))
                })
            } else {
                pair(acc, w, |a, w| _mm256_add_epi32(a, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), one)))
            }
        }
    }
    #[inline(always)]
    unsafe fn pick_bytes(table: Self::I, index: Self::I) -> Self::I {
        // SAFETY: see above.
        pair(table, index, |t, i| unsafe { _mm256_shuffle_epi8(t, i) })
    }
    #[inline(always)]
    unsafe fn zip_bytes(a: Self::I, b: Self::I) -> [Self::I; 2] {
        // SAFETY: see above.
        unsafe { [pair(a, b, |x, y| _mm256_unpacklo_epi8(x, y)), pair(a, b, |x, y| _mm256_unpackhi_epi8(x, y))] }
    }
    #[inline(always)]
    unsafe fn mark_bytes(a: Self::I, bits: u64) -> Self::I {
        // SAFETY: see above.
        unsafe {
            // to each byte the one that has its bit, then that bit alone
            let bytes = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
            pair(a, [_mm256_set1_epi32(bits as i32), _mm256_set1_epi32((bits >> 32) as i32)], |a, bits| {
                let set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(bits, bytes), bit), bit);
                _mm256_adds_epu8(a, _mm256_and_si256(set, _mm256_set1_epi8(-128)))
            })
        }
    }
    #[inline(always)]
    unsafe fn low_bytes(a: Self::I) -> [u8; 16] {
        let mut lanes = [0i32; 16];
        // SAFETY: `lanes` holds 64 bytes.
        unsafe {
            _mm256_storeu_si256(lanes.as_mut_ptr().cast(), a[0]);
            _mm256_storeu_si256(lanes.as_mut_ptr().add(8).cast(), a[1]);
        }
        lanes.map(|v| v as u8)
    }
    #[inline(always)]
    unsafe fn to_f(a: Self::I) -> Self::F {
        // SAFETY: see above.
        both(a, |x| unsafe { _mm256_cvtepi32_ps(x) })
    }
    #[inline(always)]
    unsafe fn to_i(a: Self::F) -> Self::I {
        // SAFETY: see above.
        both(a, |x| unsafe { _mm256_cvtps_epi32(x) })
    }
    #[inline(always)]
    unsafe fn bits_f(a: Self::I) -> Self::F {
        // SAFETY: see above.
        both(a, |x| unsafe { _mm256_castsi256_ps(x) })
    }
    #[inline(always)]
    unsafe fn pick(table: Self::F, index: Self::I) -> Self::F {
        // SAFETY: see above.
        both(index, |i| unsafe {
            let halves = both(table, |half| _mm256_permutevar8x32_ps(half, i));
            // the fourth bit of the index, as the sign
            _mm256_blendv_ps(halves[0], halves[1], _mm256_castsi256_ps(_mm256_slli_epi32::<28>(i)))
        })
    }
    #[inline(always)]
    unsafe fn load_f(p: *const f32) -> Self::F {
        // SAFETY: valid for 16 floats.
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store_f(p: *mut f32, v: Self::F) {
        // SAFETY: valid for 16 floats.
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        // SAFETY: valid for 32 bytes.
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(16).cast()))] }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: Self::F) {
        // SAFETY: valid for 16 halves.
        unsafe {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<0>(v[0]));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<0>(v[1]));
        }
    }
    #[inline(always)]
    unsafe fn splat_f(v: f32) -> Self::F {
        // SAFETY: see above.
        unsafe { [_mm256_set1_ps(v); 2] }
    }
    #[inline(always)]
    unsafe fn add_f(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        pair(a, b, |x, y| unsafe { _mm256_add_ps(x, y) })
    }
    #[inline(always)]
    unsafe fn sub_f(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        pair(a, b, |x, y| unsafe { _mm256_sub_ps(x, y) })
    }
    #[inline(always)]
    unsafe fn mul_f(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        pair(a, b, |x, y| unsafe { _mm256_mul_ps(x, y) })
    }
    #[inline(always)]
    unsafe fn div_f(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        pair(a, b, |x, y| unsafe { _mm256_div_ps(x, y) })
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn max_f(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        pair(a, b, |x, y| unsafe { _mm256_max_ps(x, y) })
    }
    #[inline(always)]
    unsafe fn min_f(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        pair(a, b, |x, y| unsafe { _mm256_min_ps(x, y) })
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
        unsafe { [_mm256_loadu_pd(p), _mm256_loadu_pd(p.add(4))] }
    }
    #[inline(always)]
    unsafe fn store_d(p: *mut f64, v: Self::D) {
        // SAFETY: valid for 8 floats.
        unsafe {
            _mm256_storeu_pd(p, v[0]);
            _mm256_storeu_pd(p.add(4), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn fma_d(a: f64, b: Self::D, c: Self::D) -> Self::D {
        // SAFETY: see above.
        unsafe {
            let a = _mm256_set1_pd(a);
            [_mm256_fmadd_pd(a, b[0], c[0]), _mm256_fmadd_pd(a, b[1], c[1])]
        }
    }
}

super::stamp_coded! {
    isa: Avx2,
    features: ["avx2,fma,f16c"],
    attend: [1 => 4, 4 => 1]
}

super::stamp! {
    isa: Avx2,
    features: ["avx2,fma,f16c"],
    tiles: {
        1: [1 => (4, false), 2 => (2, false), 3 => (1, true), 4 => (1, true), 6 => (1, true)],
        2: [1 => (2, false), 2 => (1, false), 3 => (1, true), 4 => (1, true), 6 => (1, true)],
        3: [1 => (1, false), 2 => (1, true), 3 => (1, true), 4 => (1, true), 6 => (1, true)],
    },
    bytes: {},
    pairs: [],
    together: {},
    dense: [1 => (2, 2), 2 => (1, 2), 4 => (1, 2)],
    attend: [1 => 4, 2 => 2, 4 => 1, 6 => 1],
    gemm: 6 x 1,
}
