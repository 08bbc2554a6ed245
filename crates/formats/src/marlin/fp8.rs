//! 4-bit codes for kernels whose activations are FP8 E4M3: nibbles that such a kernel turns into a byte with few steps.
//!
//! The byte is the E4M3 number `(q - z) · 2^-9`, exact for every difference from -15 to 15, so scales are multiplied by
//! 512. It needs no table because the numbers below `2^-5` in E4M3 are evenly spaced: their bit pattern *is* the integer.

use super::MarlinError;
use super::error::{check_len, check_multiple, product};
use billfish_tensor::ScaleValues;
use half::{bf16, f16};

/// What scales are multiplied by: the inverse of the smallest E4M3 number.
pub const FP8_SCALE_FACTOR: f32 = 512.0;

/// The nibble for code `q` (0 to 15) with the zero point 8.
pub fn fp8_nibble(q: u8) -> u8 {
    let q = q & 15;
    if q >= 8 { q - 8 } else { 15 - q }
}

/// The nibble for code `q` with zero point `z`, each 0 to 15.
pub fn fp8_nibble_with_zero(q: u8, z: u8) -> u8 {
    let (q, z) = (q & 15, z & 15);
    if q >= z { q - z } else { 15 - q }
}

/// What a kernel makes of a nibble of [`fp8_nibble`]: the bits of the E4M3 number `(q - 8) · 2^-9`.
pub fn fp8_byte(nibble: u8) -> u8 {
    let sign = nibble >> 3 & 1;
    sign << 7 | ((nibble & 7) + sign)
}

/// What a kernel makes of a nibble of [`fp8_nibble_with_zero`]: the bits of the E4M3 number `(q - z) · 2^-9`.
pub fn fp8_byte_with_zero(nibble: u8, z: u8) -> u8 {
    let sum = (nibble & 15) + (z & 15);
    if sum >= 16 { 0x80 | ((sum + 1) & 15) } else { nibble & 15 }
}

/// [`fp8_nibble`] for all eight nibbles of each word, whatever their order.
pub fn fp8_words(words: &[u32]) -> Vec<u32> {
    words.iter().map(|&w| nibbles(w, |q, _| fp8_nibble(q), 0)).collect()
}

/// [`fp8_nibble_with_zero`] for words packed along the columns (AWQ): `words` is `[k, n / 8]`, `zeros` is
/// `[k / group_rows, n / 8]` in the same order of columns.
///
/// # Errors
/// [`MarlinError`] unless `k` is a multiple of 32 and of `group_rows`, `group_rows` and `n` of 8, and the lengths fit.
pub fn fp8_words_with_zeros(words: &[u32], zeros: &[u32], k: usize, n: usize, group_rows: usize) -> Result<Vec<u32>, MarlinError> {
    check_multiple("K (rows)", k, 32)?;
    check_multiple("N (columns)", n, 8)?;
    check_multiple("group_size", group_rows, 8)?;
    check_multiple("K (rows), in groups", k, group_rows)?;
    let row = n / 8;
    check_len("words", product("K × N / 8", k, row)?, words.len())?;
    check_len("zeros", k / group_rows * row, zeros.len())?;
    let zero = |i: usize| zeros[i / row / group_rows * row + i % row];
    Ok(words.iter().enumerate().map(|(i, &w)| nibbles(w, fp8_nibble_with_zero, zero(i))).collect())
}

/// Scales times 512, in their stored type.
///
/// # Errors
/// [`MarlinError::Value`] when a product is not finite in that type.
pub fn fp8_scales(scales: &ScaleValues) -> Result<ScaleValues, MarlinError> {
    let product = |i: usize, stored: f32| {
        if stored.is_finite() {
            return Ok(stored);
        }
        let expected = format!("a scale whose product with 512 is finite in {:?}", scales.dtype());
        Err(MarlinError::value("scales", i, expected, scales.get(i), "use 16-bit activations for this module"))
    };
    let wide = |i: usize| scales.get(i) * FP8_SCALE_FACTOR;
    let all = 0..scales.len();
    Ok(match scales {
        ScaleValues::F16(_) => {
            ScaleValues::F16(all.map(|i| product(i, f16::from_f32(wide(i)).to_f32()).map(f16::from_f32)).collect::<Result<_, _>>()?)
        }
        ScaleValues::BF16(_) => {
            ScaleValues::BF16(all.map(|i| product(i, bf16::from_f32(wide(i)).to_f32()).map(bf16::from_f32)).collect::<Result<_, _>>()?)
        }
        ScaleValues::F32(_) => ScaleValues::F32(all.map(|i| product(i, wide(i))).collect::<Result<_, _>>()?),
    })
}

fn nibbles(word: u32, f: impl Fn(u8, u8) -> u8, zeros: u32) -> u32 {
    (0..8).fold(0, |out, p| out | u32::from(f((word >> (4 * p) & 15) as u8, (zeros >> (4 * p) & 15) as u8)) << (4 * p))
}
