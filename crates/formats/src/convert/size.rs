//! How large a folder will be, from the shapes of its modules alone.

use super::encode::{ModuleShape, refusal, specs};
use super::output::{bytes_of, index, split};
use super::{Target, list};
use crate::writer::header;
use crate::{FormatError, TensorSpec};

/// Bytes of a folder's weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Of all tensors: what [`Converted::bytes`](crate::Converted) will say.
    pub tensors: u64,
    /// Of the files that hold them, headers and the index of shards included; no other file of the folder.
    pub files: u64,
    /// Those files, without the index.
    pub shards: usize,
}

/// Name, type and shape of each tensor that `target` has for a module.
///
/// # Errors
/// [`FormatError::Lossy`] if the format has no place for such a module.
pub fn module_tensors(module: &ModuleShape, target: Target) -> Result<Vec<TensorSpec>, FormatError> {
    if let Some(found) = refusal(module, target) {
        return Err(FormatError::Lossy { folder: module.module.clone(), target: target.to_string(), found });
    }
    let parts = specs(module, target).into_iter();
    Ok(parts.map(|(part, dtype, shape)| (format!("{}.{part}", module.module), dtype, shape)).collect())
}

/// The sizes that [`convert()`](crate::convert()) gives a folder of these quantized modules and of `others`, tensors that are
/// written as they are. `folder` is for messages.
///
/// # Errors
/// [`FormatError::Lossy`] listing the modules that the format has no place for, [`FormatError::Tensor`] for two tensors of
/// one name.
pub fn folder_sizes(folder: &str, modules: &[ModuleShape], others: Vec<TensorSpec>, target: Target) -> Result<Sizes, FormatError> {
    let lossy = |found: String| FormatError::Lossy { folder: folder.into(), target: target.to_string(), found };
    let mut refusals: Vec<String> = modules.iter().filter_map(|m| refusal(m, target)).collect();
    let first = modules.first().map(|m| m.group_size);
    if let (Target::Awq | Target::Marlin, Some(first)) = (target, first) {
        let others = modules.iter().filter(|m| m.group_size != first);
        let odd = |m: &ModuleShape| format!("`{}` has groups of {} and not of {first}, and {target} has one size", m.module, m.group_size);
        refusals.extend(others.map(odd));
    }
    if !refusals.is_empty() {
        return Err(lossy(list(&refusals)));
    }
    let mut tensors = others;
    for module in modules {
        tensors.extend(module_tensors(module, target)?);
    }
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let shards = split(tensors, |spec| spec);
    let mut sizes = Sizes { shards: shards.len(), ..Sizes::default() };
    for shard in &shards {
        // which refuses sizes that overflow
        let header = header(folder, shard)?.0;
        let bytes: u64 = shard.iter().map(bytes_of).sum();
        sizes.tensors += bytes;
        // a length of eight bytes stands before the header
        sizes.files += bytes + 8 + header.len() as u64;
    }
    if let Some(text) = index(&shards.iter().map(|s| s.iter().collect()).collect::<Vec<_>>()) {
        sizes.files += text.len() as u64;
    }
    Ok(sizes)
}
