//! Writing the Marlin layout: tiles of codes, and scales in the order of a kernel's lanes.
//!
//! What may be written is what the programs that read such folders took: 4 bit, symmetric, groups of 128 rows or one a column,
//! no act-order, K a multiple of 128 and N of 64 (vLLM; AutoGPTQ asked for multiples of 256).

use super::encode::{ModuleShape, Put};
use crate::marlin::{Activations, Tiling, scale_order, tiled};
use crate::{FormatError, GroupSize};
use billfish_tensor::{DType, QuantMatrix};
use half::f16;

/// The zero point of every group.
pub(super) const ZERO: u16 = 8;

/// Why the layout cannot hold a module at all.
pub(super) fn refusal(r: &ModuleShape) -> Option<String> {
    let (module, k, n) = (&r.module, r.in_features, r.out_features);
    match r.group_size {
        _ if r.bits != 4 => Some(format!("`{module}` has {} bits, and marlin has 4", r.bits)),
        _ if r.act_order => Some(format!("`{module}` is act-order, and marlin has no `g_idx`")),
        GroupSize::Rows(rows) if rows != 128 => {
            Some(format!("`{module}` has groups of {rows} rows, and marlin has groups of 128 or one a column"))
        }
        _ if !k.is_multiple_of(128) || !n.is_multiple_of(64) => {
            Some(format!("`{module}` is [{k}, {n}], and marlin has multiples of 128 rows and 64 columns"))
        }
        _ => None,
    }
}

pub(super) fn specs(r: &ModuleShape) -> Vec<(&'static str, DType, Vec<usize>)> {
    let (k, n) = (r.in_features, r.out_features);
    vec![("B", DType::I32, vec![k / 16, 2 * n]), ("s", DType::F16, vec![r.groups, n])]
}

/// Scale `i` in the layout's type, or the nearest finite number of it.
pub(super) fn scale(m: &QuantMatrix, i: usize) -> f16 {
    f16::from_f32(m.scales().get(i)).clamp(f16::MIN, f16::MAX)
}

pub(super) fn write(m: &QuantMatrix, part: &str, put: Put) -> Result<(), FormatError> {
    if part == "B" { codes(m, put) } else { scales(m, put) }
}

/// Codes about the one zero point; where it is another, they move with it as far as there are codes.
fn codes(m: &QuantMatrix, put: Put) -> Result<(), FormatError> {
    const ROWS: usize = 32;
    let (k, n, bits) = (m.in_features(), m.out_features(), m.bits());
    let mut codes = vec![0; ROWS * n];
    for k0 in (0..k).step_by(ROWS) {
        m.codes().unpack_rows(bits, n, k0, 0..n, &mut codes);
        for (i, code) in codes.iter_mut().enumerate() {
            *code = (u16::from(*code) + ZERO).saturating_sub(m.zero(m.group_of(k0 + i / n), i % n)).min(15) as u8;
        }
        let words = tiled(Tiling::CHECKPOINT, &codes, ROWS, n);
        put(&words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    Ok(())
}

/// Rows of scales in the order of the lanes.
fn scales(m: &QuantMatrix, put: Put) -> Result<(), FormatError> {
    let (k, n, groups) = (m.in_features(), m.out_features(), m.group_count());
    let order = scale_order(k, GroupSize::Rows(k / groups), Activations::Bits16);
    for g in 0..groups {
        let mut row = vec![f16::ZERO; n];
        (0..n).for_each(|col| row[order.place(col)] = scale(m, g * n + col));
        put(&row.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<u8>>())?;
    }
    Ok(())
}
