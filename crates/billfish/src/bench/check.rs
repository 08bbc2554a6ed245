//! Kernels against the oracle, on a sample of their outputs.

use billfish_kernels::Activations;
use billfish_tensor::{Codes, QuantMatrix, ScaleValues, TensorError, Zeros, oracle};

/// Columns that are looked at.
const COLUMNS: usize = 16;

/// An output that lies too far from the oracle's.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "output [{row}, {column}]: expected {expected:e} within {allowed:e}, found {found:e}; this kernel is wrong, report it with the machine and the command"
)]
pub struct Mismatch {
    /// Row of the output.
    pub row: usize,
    /// Column of the output.
    pub column: usize,
    /// What the oracle says.
    pub expected: f64,
    /// How far off a right result may be.
    pub allowed: f64,
    /// What the kernel says.
    pub found: f32,
}

/// Columns of a matrix as a matrix.
fn columns(m: &QuantMatrix, wanted: &[usize]) -> Result<QuantMatrix, TensorError> {
    let (k, n, groups) = (m.in_features(), m.out_features(), m.group_count());
    let mut codes = vec![0; k * wanted.len()];
    let mut run = [0; 32];
    for (i, &col) in wanted.iter().enumerate() {
        for k0 in (0..k).step_by(32) {
            let rows = (k - k0).min(32);
            m.codes().unpack_rows(m.bits(), n, k0, col..col + 1, &mut run[..rows]);
            for (r, &code) in run[..rows].iter().enumerate() {
                codes[(k0 + r) * wanted.len() + i] = code;
            }
        }
    }
    let pairs = || (0..groups).flat_map(|g| wanted.iter().map(move |&col| (g, col)));
    let scales = ScaleValues::F32(pairs().map(|(g, col)| m.scales().get(g * n + col)).collect());
    let zeros = match m.zeros() {
        Zeros::Midpoint => Zeros::Midpoint,
        Zeros::PerGroup(_) => Zeros::PerGroup(pairs().map(|(g, col)| m.zero(g, col)).collect()),
    };
    let bias = m.bias().map(|b| wanted.iter().map(|&col| b[col]).collect());
    QuantMatrix::new(k, wanted.len(), m.bits(), Codes::Bytes(codes), scales, zeros, m.groups().clone(), bias)
}

/// Compares `y`, `[rows, N]`, with the oracle's product of `x`, `[rows, K]`, and the matrix, on some columns: the first, the
/// last, and others between. A right result is off by at most half a step of the activations, which is the largest of a
/// row over the largest integer of the precision, for each product, and by a few roundings for each block.
///
/// # Errors
/// The first output that lies further off.
pub(super) fn check(m: &QuantMatrix, x: &[f32], y: &[f32], activations: Activations) -> Result<Result<(), Mismatch>, TensorError> {
    let (k, n) = (m.in_features(), m.out_features());
    let last = n - 1;
    let mut wanted: Vec<usize> = (0..COLUMNS).map(|i| last * i / (COLUMNS - 1)).collect();
    wanted.dedup();
    let part = columns(m, &wanted)?;
    let weights = oracle::dequantize(&part);
    let expected = oracle::matmul(x, &part);
    let width = wanted.len();
    let largest_integer = 127.0 * 256f64.powi(activations.planes() as i32 - 1);
    let eps = f64::from(f32::EPSILON);
    let blocks = (k.div_ceil(128) + m.group_count()) as f64;
    for (row, x) in x.chunks_exact(k).enumerate() {
        let amax = x.iter().fold(0.0f64, |a, v| a.max(f64::from(v.abs())));
        for (i, &column) in wanted.iter().enumerate() {
            let (mut step, mut size) = (0.0, part.bias().map_or(0.0, |b| f64::from(b[i].abs())));
            for (v, w) in x.iter().zip(weights[i..].iter().step_by(width)) {
                step += w.abs() * amax * (0.5 / largest_integer + eps);
                size += w.abs() * (f64::from(v.abs()) + amax / largest_integer);
            }
            let allowed = step + size * eps * (blocks + 8.0) + 1e-30;
            let (expected, found) = (expected[row * width + i], y[row * n + column]);
            let off = (f64::from(found) - expected).abs();
            if off.is_nan() || off > allowed {
                return Ok(Err(Mismatch { row, column, expected, allowed, found }));
            }
        }
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::super::{Scheme, random_matrix};
    use super::*;
    use crate::Isa;
    use billfish_kernels::{Backend, Input, MatmulScratch, PackedMatrix, Product, Weight};

    #[test]
    fn right_outputs_pass_and_wrong_ones_do_not() {
        let backend = Backend::new(Isa::choose(None).unwrap(), 1).unwrap();
        for (bits, asym, act_order) in [(4, false, false), (3, true, true), (8, true, false), (2, false, true)] {
            let (k, n, rows) = (200, 130, 3);
            let m = random_matrix(k, n, &Scheme { bits, group_size: Some(48), asym, act_order }, 5).unwrap();
            let x: Vec<f32> = (0..rows * k).map(|i| ((i * 7919) % 1000) as f32 * 1e-3 - 0.5).collect();
            let weight = Weight::Quantized(PackedMatrix::new(&m).unwrap());
            for activations in Activations::ALL {
                let mut y = vec![0.0; rows * n];
                backend.matmul(&mut MatmulScratch::default(), Input::Rows(&x), rows, activations, &mut [Product::new(&weight, &mut y)]);
                check(&m, &x, &y, activations).unwrap().unwrap();
                for (row, column) in [(0, 0), (2, 129)] {
                    let mut wrong = y.clone();
                    wrong[row * n + column] += 1.0;
                    let found = check(&m, &x, &wrong, activations).unwrap().unwrap_err();
                    assert_eq!((found.row, found.column), (row, column));
                }
                y[0] = f32::NAN;
                assert!(check(&m, &x, &y, activations).unwrap().is_err());
            }
        }
    }
}
