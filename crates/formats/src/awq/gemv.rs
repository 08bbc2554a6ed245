//! The gemv layout: `qweight` `[N, K/8]` and `qzeros` `[N, words]` in natural order, `scales` `[N, 8 · words]`. Rows of zero
//! points and scales end in padding.

use super::{Parts, padded_words};
use crate::FormatError;
use crate::checkpoint::Tensor;
use crate::module::{Layout, Module, SCALES, check_size, two_dimensions, wrong_shape};
use billfish_tensor::DType;

pub(super) fn find<'a>(parts: Parts<'a>, size: Option<(usize, usize)>) -> Result<Module<'a>, FormatError> {
    let Parts { qweight, scales, scheme, .. } = &parts;
    let qzeros = parts.checkpoint.need(&format!("{}.qzeros", parts.name))?;
    for tensor in [qweight, &qzeros] {
        tensor.check_dtype(&[DType::I32, DType::U32])?;
    }
    scales.check_dtype(&SCALES)?;
    let (k, n) = match size {
        Some(size) => size,
        None => two_dimensions(qweight).map(|[n, words]| (words.saturating_mul(8), n))?,
    };
    check_size(qweight, k, n)?;
    if !k.is_multiple_of(8) || qweight.info.shape != [n, k / 8] {
        let why = format!("eight 4-bit codes in a word of a [{k}, {n}] weight, outputs first");
        return Err(wrong_shape(qweight, &[n, k.div_ceil(8)], &why));
    }
    let words = padded_words(scales, k, scheme.group_size)?;
    for (tensor, columns) in [(scales, 8 * words), (&qzeros, words)] {
        if tensor.info.shape != [n, columns] {
            return Err(wrong_shape(tensor, &[n, columns], &format!("group_size {}, padded", scheme.group_size)));
        }
    }
    let count = k / scheme.group_size.rows(k);
    parts.module(Layout::AwqGemv, [k, n], qzeros, count)
}

/// Zero points, `[groups, N]`.
pub(super) fn zeros(module: &Module<'_>, tensor: &Tensor<'_>) -> Result<Vec<u16>, FormatError> {
    let words = tensor.read_u32()?;
    let (n, row) = (module.n, words.len() / module.n);
    Ok((0..n * module.count).map(|i| (words[i % n * row + i / n / 8] >> (4 * (i / n % 8)) & 15) as u16).collect())
}
