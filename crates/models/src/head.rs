//! A float output head rounded to 8 bits while it is loaded: half the bytes of every decode step's largest matrix.

use billfish_tensor::{Codes, DenseTensor, Groups, Packing, QuantMatrix, ScaleValues, TensorError, Zeros};

/// Rows of a group.
const GROUP: usize = 128;

/// What rounding the head did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadRounding {
    /// Bits of a code.
    pub bits: u32,
    /// Rows of a group.
    pub group_size: usize,
    /// Bytes of the floats.
    pub bytes_before: usize,
    /// Bytes of codes and scales.
    pub bytes_after: usize,
    /// Root mean square of the differences over that of the weights.
    pub relative_error: f64,
}

/// Rounds `weight`, `[N, K]`, to 8-bit codes: `scale = amax / 127` for each column and group of 128 rows, the code the
/// nearest integer to `w / scale` (ties to even), the zero point the midpoint. `bytes_after` is left 0.
pub(crate) fn round(weight: &DenseTensor, bias: Option<Vec<f32>>) -> Result<(QuantMatrix, HeadRounding), TensorError> {
    let &[n, k] = weight.shape() else {
        let found = format!("{:?}", weight.shape());
        return Err(TensorError::Size { what: "head", expected: "two dimensions".into(), found });
    };
    let groups = k.div_ceil(GROUP);
    let mut words = vec![0u32; k.div_ceil(4) * n];
    let mut scales = vec![0.0f32; groups * n];
    let mut row = vec![0.0f32; k];
    let (mut error, mut size) = (0.0, 0.0);
    for column in 0..n {
        weight.read_f32(column * k, &mut row);
        for (g, values) in row.chunks(GROUP).enumerate() {
            let amax = values.iter().fold(0.0f32, |a, v| a.max(v.abs()));
            let scale = amax / 127.0;
            scales[g * n + column] = scale;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            for (i, four) in values.chunks(4).enumerate() {
                let mut word = 0;
                for (byte, &value) in four.iter().enumerate() {
                    let code = (value * inverse).round_ties_even().clamp(-127.0, 127.0);
                    word |= ((code + 128.0) as u32) << (8 * byte);
                    let off = f64::from(value) - f64::from(code) * f64::from(scale);
                    error += off * off;
                    size += f64::from(value) * f64::from(value);
                }
                words[(g * GROUP / 4 + i) * n + column] = word;
            }
        }
    }
    let codes = Codes::Words { words, packing: Packing::Continuous };
    let matrix = QuantMatrix::new(k, n, 8, codes, ScaleValues::F32(scales), Zeros::Midpoint, Groups::Contiguous { size: GROUP }, bias)?;
    let relative_error = if size > 0.0 { (error / size).sqrt() } else { 0.0 };
    let bytes_before = weight.bytes().len();
    Ok((matrix, HeadRounding { bits: 8, group_size: GROUP, bytes_before, bytes_after: 0, relative_error }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use billfish_tensor::oracle;

    #[test]
    fn every_weight_is_within_half_a_step() {
        for (k, n) in [(1, 1), (130, 3), (256, 17), (127, 5)] {
            let values: Vec<f32> =
                (0..n * k).map(|i| ((i * 7919 % 1009) as f32 - 504.0) * if i % 300 < 128 { 1e-3 } else { 0.2 }).collect();
            let weight = DenseTensor::from_f32(vec![n, k], &values).unwrap();
            let (m, rounding) = round(&weight, Some(vec![0.5; n])).unwrap();
            let (mut error, mut size) = (0.0, 0.0);
            let w = oracle::dequantize(&m);
            for column in 0..n {
                for row in 0..k {
                    let group = row / 128 * 128..k.min((row / 128 + 1) * 128);
                    let amax = group.map(|r| f64::from(values[column * k + r].abs())).fold(0.0, f64::max);
                    let off = w[row * n + column] - f64::from(values[column * k + row]);
                    assert!(off.abs() <= amax / 127.0 * 0.500_01, "[{row}, {column}]: {off}");
                    error += off * off;
                    size += f64::from(values[column * k + row]).powi(2);
                }
            }
            assert!((rounding.relative_error - (error / f64::max(size, 1e-300)).sqrt()).abs() < 1e-9);
            assert!(m.bias() == Some(&vec![0.5; n][..]) && rounding.bytes_before == 4 * n * k);
        }
        let zero = DenseTensor::from_f32(vec![2, 4], &[0.0; 8]).unwrap();
        assert!(oracle::dequantize(&round(&zero, None).unwrap().0).iter().all(|w| *w == 0.0));
    }
}
