//! Scales for kernels whose activations are 8-bit integers: 12-bit integers and one factor.

use super::MarlinError;
use billfish_tensor::ScaleValues;
use half::{bf16, f16};

/// Scales as integers: `scale ≈ values[i] · factor`.
#[derive(Clone, Debug, PartialEq)]
pub struct Int8Scales {
    /// The integers; the largest scale is 4096.
    pub values: Vec<i16>,
    /// The factor that goes to the scale of the activations.
    pub factor: f32,
}

/// `round(s / max · 4096)` for each scale, ties to even, and `max / 4096`.
///
/// The quotient and the product are rounded to the type in which scales are stored, because that is what a 16-bit
/// tensor does. Only for scales with groups: one scale a column stays as it is, with a factor of 1.
///
/// # Errors
/// [`MarlinError::Value`] when the largest scale is not a positive number, or a scale has no place in an `i16`.
pub fn int8_scales(scales: &ScaleValues) -> Result<Int8Scales, MarlinError> {
    let stored = |v: f32| match scales {
        ScaleValues::F16(_) => f16::from_f32(v).to_f32(),
        ScaleValues::BF16(_) => bf16::from_f32(v).to_f32(),
        ScaleValues::F32(_) => v,
    };
    let remedy = "scales of a quantized weight are finite and their largest is positive: check the checkpoint";
    let (mut at, mut max) = (0, f32::NEG_INFINITY);
    for i in 0..scales.len() {
        let scale = scales.get(i);
        if !scale.is_finite() {
            return Err(MarlinError::value("scales", i, "a finite number", scale, remedy));
        }
        if scale > max {
            (at, max) = (i, scale);
        }
    }
    if max <= 0.0 {
        return Err(MarlinError::value("scales", at, "a largest scale above 0", max, remedy));
    }
    let integer = |i: usize| {
        let value = stored(stored(scales.get(i) / max) * 4096.0).round_ties_even();
        if (f32::from(i16::MIN)..=f32::from(i16::MAX)).contains(&value) {
            return Ok(value as i16);
        }
        let expected = format!("a magnitude of at most 8 times the largest scale {max}");
        Err(MarlinError::value("scales", i, expected, scales.get(i), "use 16-bit activations for this module"))
    };
    Ok(Int8Scales { values: (0..scales.len()).map(integer).collect::<Result<_, _>>()?, factor: max / 4096.0 })
}
