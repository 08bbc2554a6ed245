//! The tensors of one module that was quantized just now.

use super::{Target, encode};
use crate::{FormatError, TensorSpec};
use billfish_tensor::QuantMatrix;

/// The tensors that hold `m` in a GPTQ folder, with zero points as they are: `gptq_p` if `planar`, else `gptq_v2`. Each is
/// named after `module`.
///
/// # Errors
/// [`FormatError::Lossy`] if the format has no place for such a module.
pub fn gptq_tensors(module: &str, m: &QuantMatrix, planar: bool) -> Result<Vec<(TensorSpec, Vec<u8>)>, FormatError> {
    let target = if planar { Target::GptqP } else { Target::GptqV2 };
    let shape = encode::Shape {
        in_features: m.in_features(),
        out_features: m.out_features(),
        bits: m.bits(),
        groups: m.group_count(),
        scales: m.scales().dtype(),
    };
    if let Some(found) = encode::gptq_refusal(module, &shape, target) {
        return Err(FormatError::Lossy { folder: module.into(), target: target.to_string(), found });
    }
    let mut tensors = vec![];
    for (part, dtype, size) in encode::gptq_specs(&shape, target) {
        let mut bytes = vec![];
        encode::write(m, target, part, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        tensors.push(((format!("{module}.{part}"), dtype, size), bytes));
    }
    Ok(tensors)
}
