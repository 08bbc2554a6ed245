//! Writing the AWQ gemm layout: eight interleaved columns in a word, along the rows of codes and of zero points.

use super::encode::{ModuleShape, Put};
use crate::FormatError;
use crate::strips::AWQ_NIBBLE;
use billfish_tensor::{DType, QuantMatrix};

/// Why the layout cannot hold a module at all.
pub(super) fn refusal(r: &ModuleShape) -> Option<String> {
    match r {
        _ if r.bits != 4 => Some(format!("`{}` has {} bits, and AWQ gemm has 4", r.module, r.bits)),
        _ if r.act_order => Some(format!("`{}` is act-order, and AWQ has no `g_idx`", r.module)),
        _ if !r.out_features.is_multiple_of(8) => Some(format!("`{}` has {} columns, and a word holds 8", r.module, r.out_features)),
        _ => None,
    }
}

pub(super) fn specs(r: &ModuleShape) -> Vec<(&'static str, DType, Vec<usize>)> {
    let (k, n) = (r.in_features, r.out_features);
    vec![("qweight", DType::I32, vec![k, n / 8]), ("qzeros", DType::I32, vec![r.groups, n / 8]), ("scales", r.scales, vec![r.groups, n])]
}

/// One row of codes or zero points as words.
fn words(row: impl ExactSizeIterator<Item = u8>) -> Vec<u8> {
    let mut words = vec![0u32; row.len() / 8];
    for (col, code) in row.enumerate() {
        words[col / 8] |= u32::from(code) << (4 * AWQ_NIBBLE[col % 8]);
    }
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

pub(super) fn qweight(m: &QuantMatrix, put: Put) -> Result<(), FormatError> {
    let (k, n) = (m.in_features(), m.out_features());
    let mut codes = vec![0; 32.min(k) * n];
    for k0 in (0..k).step_by(32) {
        let codes = &mut codes[..(k - k0).min(32) * n];
        m.codes().unpack_rows(m.bits(), n, k0, 0..n, codes);
        for row in codes.chunks_exact(n) {
            put(&words(row.iter().copied()))?;
        }
    }
    Ok(())
}

pub(super) fn qzeros(m: &QuantMatrix, put: Put) -> Result<(), FormatError> {
    for g in 0..m.group_count() {
        put(&words((0..m.out_features()).map(|col| m.zero(g, col).min(15) as u8)))?;
    }
    Ok(())
}
