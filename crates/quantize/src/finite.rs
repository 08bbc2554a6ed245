//! Numbers that are not finite are found before anything is computed from them.

use crate::QuantizeError;
use billfish_formats::{Checkpoint, Workers};
use billfish_models::is_computed;
use billfish_tensor::DType;
use std::sync::{Mutex, PoisonError};

/// Refuses a folder in which a weight is NaN or infinite; the first tensor by name is the one that is named.
pub(crate) fn check_finite(source: &Checkpoint, workers: Workers<'_>) -> Result<(), QuantizeError> {
    let floats = |name: &&str| source.info(name).is_some_and(|i| i.dtype.is_float()) && !is_computed(name);
    let names: Vec<&str> = source.tensor_names().filter(floats).collect();
    let found: Vec<Mutex<Result<Option<usize>, QuantizeError>>> = names.iter().map(|_| Mutex::new(Ok(None))).collect();
    workers(names.len(), &|i| *found[i].lock().unwrap_or_else(PoisonError::into_inner) = first_of(source, names[i]));
    for (name, found) in names.iter().zip(found) {
        let Some(at) = found.into_inner().unwrap_or_else(PoisonError::into_inner)? else { continue };
        let columns = source.info(name).and_then(|i| i.shape.last().copied()).unwrap_or(1).max(1);
        let place = format!("NaN or infinity at [{}, {}]", at / columns, at % columns);
        return Err(QuantizeError::setting(name, "finite numbers", place, "the folder is damaged; get it again"));
    }
    Ok(())
}

/// The place of the first number that is not finite.
fn first_of(source: &Checkpoint, name: &str) -> Result<Option<usize>, QuantizeError> {
    let Some(info) = source.info(name) else { return Ok(None) };
    let (mut found, mut seen) = (None, 0);
    source.copy_bytes(name, &mut |piece| {
        let at = match info.dtype {
            DType::F16 => all_ones::<2>(piece, 0x7c00),
            DType::BF16 => all_ones::<2>(piece, 0x7f80),
            _ => all_ones::<4>(piece, 0x7f80_0000),
        };
        found = found.or(at.map(|at| seen + at));
        seen += piece.len() / info.dtype.size();
        Ok(())
    })?;
    Ok(found)
}

/// The first number with an exponent of all ones.
fn all_ones<const SIZE: usize>(bytes: &[u8], exponent: u32) -> Option<usize> {
    let word = |b: &[u8; SIZE]| b.iter().rev().fold(0u32, |word, &byte| word << 8 | u32::from(byte));
    bytes.as_chunks::<SIZE>().0.iter().position(|b| word(b) & exponent == exponent)
}
