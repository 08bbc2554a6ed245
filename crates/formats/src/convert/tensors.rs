//! The tensors of one module that was quantized just now.

use super::Target;
use super::encode::{self, ModuleShape};
use crate::{FormatError, GroupSize, TensorSpec};
use billfish_tensor::{Groups, QuantMatrix, Zeros};

/// The tensors that hold `m` in a GPTQ folder, with zero points as they are: `gptq_p` if `planar`, else `gptq_v2`. Each is
/// named after `module`.
///
/// # Errors
/// [`FormatError::Lossy`] if the format has no place for such a module.
pub fn gptq_tensors(module: &str, m: &QuantMatrix, planar: bool) -> Result<Vec<(TensorSpec, Vec<u8>)>, FormatError> {
    let target = if planar { Target::GptqP } else { Target::GptqV2 };
    let rows = match m.groups() {
        Groups::Contiguous { size } => *size,
        Groups::Index { .. } => m.in_features().div_ceil(m.group_count()),
    };
    let shape = ModuleShape {
        module: module.into(),
        in_features: m.in_features(),
        out_features: m.out_features(),
        bits: m.bits(),
        group_size: GroupSize::Rows(rows),
        groups: m.group_count(),
        act_order: matches!(m.groups(), Groups::Index { .. }),
        sym: *m.zeros() == Zeros::Midpoint,
        scales: m.scales().dtype(),
    };
    let mut tensors = vec![];
    for (name, dtype, size) in super::size::module_tensors(&shape, target)? {
        let part = name.rsplit('.').next().unwrap_or_default();
        let mut bytes = vec![];
        encode::write(m, target, part, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        tensors.push(((name, dtype, size), bytes));
    }
    Ok(tensors)
}
