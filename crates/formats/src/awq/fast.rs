//! The layout of AutoAWQ's gemv_fast and of llm-awq: `qweight` `[N/4, K]` in 16-bit words ([`crate::strips::quads`]),
//! `scales` `[8 · words, N]` that end in padding, and beside them, of the same shape, zero points times the negative scale,
//! rounded to the type of the scales: `qzeros`, or `scaled_zeros` in folders of llm-awq.

use super::{Parts, padded_words};
use crate::FormatError;
use crate::checkpoint::Tensor;
use crate::module::{Layout, Module, SIZES, check_size, two_dimensions, wrong_shape};
use billfish_tensor::{DType, ScaleValues};
use half::{bf16, f16};

pub(super) fn find<'a>(parts: Parts<'a>, size: Option<(usize, usize)>) -> Result<Module<'a>, FormatError> {
    let Parts { qweight, scales, scheme, .. } = &parts;
    let part = |part: &str| parts.checkpoint.find(&format!("{}.{part}", parts.name));
    let scaled = match part("scaled_zeros") {
        Some(scaled) => scaled,
        None => parts.checkpoint.need(&format!("{}.qzeros", parts.name))?,
    };
    for tensor in [scales, &scaled] {
        tensor.check_dtype(&[DType::F16, DType::BF16])?;
    }
    let (k, n) = match size {
        Some(size) => size,
        None => two_dimensions(qweight).map(|[fours, k]| (k, fours.saturating_mul(4)))?,
    };
    check_size(qweight, k, n)?;
    if !n.is_multiple_of(4) || !k.is_multiple_of(64) || qweight.info.shape != [n / 4, k] {
        let expected = format!("shape [{}, {k}] (16-bit words of a [{k}, {n}] weight, K a multiple of 64 and N of 4)", n / 4);
        return Err(qweight.wrong(expected, format!("shape {:?}", qweight.info.shape), SIZES));
    }
    let rows = 8 * padded_words(scales, k, scheme.group_size)?;
    for tensor in [scales, &scaled] {
        if tensor.info.shape != [rows, n] {
            return Err(wrong_shape(tensor, &[rows, n], &format!("group_size {}, padded", scheme.group_size)));
        }
    }
    if scaled.info.dtype != scales.info.dtype {
        let expected = format!("dtype {}, as `{}`", scales.info.dtype, scales.name);
        return Err(scaled.wrong(expected, format!("dtype {}", scaled.info.dtype), crate::error::DAMAGED));
    }
    let count = k / scheme.group_size.rows(k);
    parts.module(Layout::AwqFast, [k, n], scaled, count)
}

/// Zero points, `[groups, N]`: the integers whose product with the negative scale rounds to what is stored.
pub(super) fn zeros(module: &Module<'_>, tensor: &Tensor<'_>) -> Result<Vec<u16>, FormatError> {
    let scales = module.read_scales()?;
    let stored = tensor.read_elements(u16::from_le)?;
    let zero = |i: usize| {
        let (scale, bits) = (scales.get(i), stored[i]);
        // the product as its writer rounds it
        let (value, product): (f32, fn(f32) -> f32) = match scales {
            ScaleValues::F16(_) => (f16::from_bits(bits).to_f32(), |v| f16::from_f32(v).to_f32()),
            _ => (bf16::from_bits(bits).to_f32(), |v| bf16::from_f32(v).to_f32()),
        };
        // with a scale of 0 any zero point gives the same weights
        let zero = if scale == 0.0 { 0.0 } else { (-value / scale).round() };
        let legal = (0.0..=15.0).contains(&zero) && product(-(scale * zero)) == value;
        if legal {
            return Ok(zero as u16);
        }
        let expected = format!("an integer from 0 to 15 times the negative scale {scale}, rounded to {}", tensor.info.dtype);
        Err(tensor.wrong(expected, format!("{value} at [{}, {}]", i / module.n, i % module.n), crate::error::DAMAGED))
    };
    (0..module.count * module.n).map(zero).collect()
}
