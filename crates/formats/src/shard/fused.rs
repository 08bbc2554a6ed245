//! Modules that are fused into one share one `g_idx`.

use super::{GptqTensors, ShardError};

/// Checks that modules which are to be fused (queries, keys and values; gate and up) put each row into the same group.
///
/// Loaders that keep one `g_idx` for the fused module keep that of the module that came last, and do not look.
///
/// # Errors
/// [`ShardError::FusedOrder`] naming the first row for which two modules differ, [`ShardError::Tensors`] when one is
/// broken in itself or has another number of rows.
pub fn check_fused_order(modules: &[(&str, &GptqTensors)]) -> Result<(), ShardError> {
    let Some(((first, model), others)) = modules.split_first() else { return Ok(()) };
    model.check()?;
    for (second, other) in others {
        other.check()?;
        let rows = model.in_features;
        if other.in_features != rows {
            let (expected, found) = (format!("{rows} rows, as {first} has"), format!("{} in {second}", other.in_features));
            return Err(ShardError::Tensors { part: "fused modules", expected, found });
        }
        if let Some(row) = (0..rows).find(|&k| model.group_of(k) != other.group_of(k)) {
            return Err(ShardError::FusedOrder { first: (*first).into(), second: (*second).into(), row });
        }
    }
    Ok(())
}
