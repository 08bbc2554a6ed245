//! Scales and biases: the order of columns that the lanes of a warp read.

use super::error::{check_len, check_multiple};
use super::{Activations, MarlinError};
use crate::GroupSize;

/// Order of 64 columns of scales when there are groups: place `i` holds column `SCALE_PERM[i]`.
pub const SCALE_PERM: [usize; 64] = {
    let mut perm = [0; 64];
    let mut i = 0;
    while i < 64 {
        perm[i] = i / 8 + 8 * (i % 8);
        i += 1;
    }
    perm
};

/// Order of 32 columns of scales when there is one group a column, and of biases.
pub const SCALE_PERM_SINGLE: [usize; 32] = {
    let pairs = [0, 1, 8, 9, 16, 17, 24, 25];
    let mut perm = [0; 32];
    let mut i = 0;
    while i < 32 {
        perm[i] = 2 * (i / 8) + pairs[i % 8];
        i += 1;
    }
    perm
};

/// Which of the two orders scales have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleOrder {
    /// [`SCALE_PERM`]: scales are applied to weights, before the multiplication.
    Grouped,
    /// [`SCALE_PERM_SINGLE`]: scales are applied to results, after it.
    Single,
}

impl ScaleOrder {
    /// Where the scale of column `n` stands in its row.
    pub fn place(self, n: usize) -> usize {
        match self {
            ScaleOrder::Grouped => n / 64 * 64 + 8 * (n % 8) + n % 64 / 8,
            ScaleOrder::Single => n / 32 * 32 + 8 * (n % 8 / 2) + 2 * (n % 32 / 8) + n % 2,
        }
    }

    fn table(self) -> &'static [usize] {
        match self {
            ScaleOrder::Grouped => &SCALE_PERM,
            ScaleOrder::Single => &SCALE_PERM_SINGLE,
        }
    }
}

/// The order of the scales of a matrix of `size_k` rows. One group that holds all rows counts as no groups.
///
/// `size_k` is the matrix's own number of rows: for the first matrix of an expert that is the hidden size, not the
/// intermediate one.
pub fn scale_order(size_k: usize, group_size: GroupSize, activations: Activations) -> ScaleOrder {
    match group_size {
        GroupSize::Rows(rows) if rows < size_k && activations == Activations::Bits16 => ScaleOrder::Grouped,
        _ => ScaleOrder::Single,
    }
}

/// Puts the columns of `[groups, n]` scales in order; any type of scale.
///
/// # Errors
/// [`MarlinError`] unless `n` is a multiple of the order's length and there is a whole number of rows.
pub fn permute_scales<T: Copy>(scales: &[T], n: usize, order: ScaleOrder) -> Result<Vec<T>, MarlinError> {
    check("scales", scales.len(), n, order)?;
    Ok(gather(scales, order.table()))
}

/// The inverse of [`permute_scales`].
///
/// # Errors
/// As [`permute_scales`].
pub fn unpermute_scales<T: Copy>(scales: &[T], n: usize, order: ScaleOrder) -> Result<Vec<T>, MarlinError> {
    check("scales", scales.len(), n, order)?;
    Ok(gather(scales, &inverse(order.table())))
}

/// Puts a bias `[n]` in order: always [`ScaleOrder::Single`].
///
/// # Errors
/// [`MarlinError`] unless its length is a multiple of 32.
pub fn permute_bias<T: Copy>(bias: &[T]) -> Result<Vec<T>, MarlinError> {
    check("bias", bias.len(), bias.len(), ScaleOrder::Single)?;
    Ok(gather(bias, &SCALE_PERM_SINGLE))
}

/// The inverse of [`permute_bias`].
///
/// # Errors
/// As [`permute_bias`].
pub fn unpermute_bias<T: Copy>(bias: &[T]) -> Result<Vec<T>, MarlinError> {
    check("bias", bias.len(), bias.len(), ScaleOrder::Single)?;
    Ok(gather(bias, &inverse(&SCALE_PERM_SINGLE)))
}

/// Each run of `order.len()` values, reordered.
pub(super) fn gather<T: Copy>(values: &[T], order: &[usize]) -> Vec<T> {
    values.chunks_exact(order.len()).flat_map(|chunk| order.iter().map(|&i| chunk[i])).collect()
}

/// The permutation that undoes `order`.
pub(super) fn inverse(order: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; order.len()];
    for (i, &o) in order.iter().enumerate() {
        inverse[o] = i;
    }
    inverse
}

fn check(part: &'static str, len: usize, n: usize, order: ScaleOrder) -> Result<(), MarlinError> {
    check_multiple("N (columns)", n, order.table().len())?;
    check_len(part, len.div_ceil(n) * n, len)
}
