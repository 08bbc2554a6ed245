//! Dot products of pairs of `bf16`: AVX512_BF16 (Cooper Lake, Zen 4 and later), beside the table of AVX-512.

use super::avx512::{self, Avx512};
use super::generic::DenseArgs;
use super::generic::rounded::{self, Pairs};
use crate::aligned::Lines;
use crate::pack::PANEL;
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// Pairs by one instruction. The manuals describe what it does as what [`rounded`] does: two fused multiply-adds, the odd
/// one first.
struct Dots;

impl Pairs<Avx512> for Dots {
    type W = __m512i;

    #[inline(always)]
    unsafe fn weights(even: *const u8, odd: *const u8) -> [__m512i; 2] {
        // SAFETY: both are valid for 64 bytes; the caller's instruction sets.
        unsafe {
            let [even, odd] = [even, odd].map(|p| _mm512_loadu_si512(p.cast()));
            // of each eight columns the first four, and the last four
            [_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd)]
        }
    }

    #[inline(always)]
    unsafe fn of(pairs: __m512i) -> __m512i {
        pairs
    }

    #[inline(always)]
    unsafe fn add(sum: __m512, w: __m512i, x: i32) -> __m512 {
        // SAFETY: registers of the same size, whose bits are pairs of `bf16`; the caller's instruction sets.
        unsafe {
            let [w, x] = [w, _mm512_set1_epi32(x)].map(|v| std::mem::transmute::<__m512i, __m512bh>(v));
            _mm512_dpbf16_ps(sum, w, x)
        }
    }

    #[inline(always)]
    unsafe fn in_order([first, last]: [__m512; 2]) -> [__m512; 2] {
        // SAFETY: the caller's instruction sets.
        unsafe {
            let [low, high] = [_mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15)];
            let [first, last] = [first, last].map(|v| _mm512_castps_pd(v));
            [low, high].map(|order| _mm512_castpd_ps(_mm512_permutex2var_pd(first, order, last)))
        }
    }
}

super::stamp_rounded! {
    vector: Avx512,
    pairs: Dots,
    features: ["avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,avx512bf16"],
    rows: [1 => 4, 2 => 4, 4 => 2, 6 => 2, 8 => 2, 16 => 2]
}

/// Whether this processor has the instruction and it gives the bits of the definition; found out once. The caller has
/// checked for AVX-512.
pub(super) fn works() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| is_x86_feature_detected!("avx512bf16") && agrees())
}

/// Compares a product of numbers of every size, denormals among them, with that of fused multiply-adds.
fn agrees() -> bool {
    const K: usize = 255;
    const ROWS: usize = 4;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 20) as u32
    };
    let Lines(panel) = &mut Lines([[0u16; PANEL]; K]);
    for w in panel.as_flattened_mut() {
        // exponents from 0 to 143, half of them close together so that sums cancel
        let exponent = if next() % 2 == 0 { next() % 144 } else { 120 + next() % 4 };
        *w = (next() & 0x807f | exponent << 7) as u16;
    }
    let x: [f32; ROWS * K] = std::array::from_fn(|_| f32::from_bits(next() & 0x807f_ffff | (70 + next() % 70) << 23));
    let mut pairs = [[0.0f32; K.div_ceil(2)]; ROWS];
    x.chunks(K).zip(&mut pairs).for_each(|(x, pairs)| rounded::pairs(x, pairs));
    let run = |find: super::RoundedFor| {
        let Lines(result) = &mut Lines([0.0f32; ROWS * PANEL]);
        let x = std::array::from_fn(|r| pairs[r % ROWS].as_ptr());
        let out = result.as_mut_ptr();
        let args = DenseArgs { panel: panel.as_ptr().cast(), sevens: [0; 16], k: K, x, out, target: out, stride: PANEL };
        if let Some(kernel) = find(ROWS, false) {
            // SAFETY: the instruction sets were detected; the panel holds K rows, each row of `x` the pairs of K
            // activations, and the result so many rows.
            unsafe { kernel(&args) };
        }
        result.map(f32::to_bits)
    };
    run(rounded_for) == run(avx512::KERNELS.rounded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instruction_gives_the_bits_of_the_definition() {
        if is_x86_feature_detected!("avx512bf16") && crate::Isa::Avx512.is_available() {
            assert!(works(), "dot products of this processor differ from two fused multiply-adds, and are not used");
        }
    }
}
