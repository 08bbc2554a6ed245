//! AWQ words: codes packed along the columns, interleaved inside each word.

use super::error::{check_len, check_multiple, product};
use super::{MarlinError, Tiling, pack};

/// Field of a word that holds column `c` of its run of columns.
fn fields(bits: u32) -> Result<&'static [u32], MarlinError> {
    match bits {
        4 => Ok(&[0, 4, 1, 5, 2, 6, 3, 7]),
        8 => Ok(&[0, 2, 1, 3]),
        _ => Err(MarlinError::unsupported("bits", "4 or 8", bits, "use a layout that has this width")),
    }
}

/// The codes, row-major `[rows, n]`, of AWQ words `[rows, n · bits / 32]`: of a `qweight` (one row for each input) or of
/// `qzeros` (one for each group; the values are true zero points).
///
/// # Errors
/// [`MarlinError`] unless `bits` is 4 or 8, `n` fills whole words and their number is right.
pub fn awq_codes(bits: u32, words: &[u32], rows: usize, n: usize) -> Result<Vec<u8>, MarlinError> {
    let fields = fields(bits)?;
    check_multiple("N (columns)", n, fields.len())?;
    check_len("words", product("rows × N", rows, n)? / fields.len(), words.len())?;
    let mask = (1 << bits) - 1;
    Ok(words.iter().flat_map(|&word| fields.iter().map(move |&field| (word >> (bits * field) & mask) as u8)).collect())
}

/// Repacks an AWQ `qweight`, `[k, n · bits / 32]`.
///
/// # Errors
/// As [`awq_codes`] and [`pack`].
pub fn repack_awq(tiling: Tiling, qweight: &[u32], k: usize, n: usize) -> Result<Vec<u32>, MarlinError> {
    tiling.words(k, n)?;
    pack(tiling, &awq_codes(tiling.bits(), qweight, k, n)?, k, n)
}
