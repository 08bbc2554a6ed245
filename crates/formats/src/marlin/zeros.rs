//! Zero points at run time: true values in the order of the scales, then packed along the columns.
//!
//! They have the order of grouped scales even where the scales have the other one.

use super::error::{check_codes, check_len, check_multiple};
use super::scales::{SCALE_PERM, gather, inverse};
use super::table::{interleave, word};
use super::{Activations, MarlinError, Tiling};

/// Packs zero points `[groups, n]` to `[groups, n · bits / 32]` words. They are true values; what a file stores in their
/// place (one less, another order of columns) has been undone.
///
/// # Errors
/// [`MarlinError`] unless `n` is a multiple of 64, there is a whole number of rows, and every value fits `bits`: a zero
/// point of `2^bits` has no place in this layout.
pub fn pack_zeros(tiling: Tiling, zeros: &[u8], n: usize) -> Result<Vec<u32>, MarlinError> {
    check_multiple("N (columns)", n, 64)?;
    check_len("zeros", zeros.len().div_ceil(n) * n, zeros.len())?;
    check_codes("zeros", zeros, tiling.bits())?;
    let mut ordered = gather(zeros, &SCALE_PERM);
    if tiling.activations() == Activations::Bits16 {
        ordered = gather(&ordered, interleave(tiling));
    }
    Ok(ordered.chunks_exact(tiling.pack_factor()).map(|zeros| word(zeros, tiling.bits())).collect())
}

/// The inverse of [`pack_zeros`].
///
/// # Errors
/// [`MarlinError`] unless `n` is a multiple of 64 and there is a whole number of rows.
pub fn unpack_zeros(tiling: Tiling, words: &[u32], n: usize) -> Result<Vec<u8>, MarlinError> {
    check_multiple("N (columns)", n, 64)?;
    let row = n / tiling.pack_factor();
    check_len("zeros", words.len().div_ceil(row) * row, words.len())?;
    let (bits, mask) = (tiling.bits(), (1 << tiling.bits()) - 1);
    let fields = |w: &u32| {
        (0..tiling.pack_factor() as u32).map({
            let w = *w;
            move |p| (w >> (bits * p) & mask) as u8
        })
    };
    let mut zeros: Vec<u8> = words.iter().flat_map(fields).collect();
    if tiling.activations() == Activations::Bits16 {
        zeros = gather(&zeros, &inverse(interleave(tiling)));
    }
    Ok(gather(&zeros, &inverse(&SCALE_PERM)))
}
