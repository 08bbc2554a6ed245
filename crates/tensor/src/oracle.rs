//! The oracle: what a quantized matrix means, in plain `f64` loops that share nothing with the kernels.

use crate::QuantMatrix;

/// `W[k, n] = (code - zero) * scale` for the whole matrix, row-major `[K, N]`. Exact: the product of a small integer
/// and an `f32` fits in an `f64`.
pub fn dequantize(m: &QuantMatrix) -> Vec<f64> {
    let (k, n) = (m.in_features(), m.out_features());
    let mut codes = vec![0u8; 32.min(k) * n];
    let mut out = Vec::with_capacity(k * n);
    for k0 in (0..k).step_by(32) {
        let rows = (k - k0).min(32);
        m.codes().unpack_rows(m.bits(), n, k0, 0..n, &mut codes[..rows * n]);
        for i in 0..rows {
            let g = m.group_of(k0 + i);
            for col in 0..n {
                let q = f64::from(codes[i * n + col]) - f64::from(m.zero(g, col));
                out.push(q * f64::from(m.scales().get(g * n + col)));
            }
        }
    }
    out
}

/// `y = x · W + bias` with every product and sum in `f64`; `x` is `[M, K]`, the result `[M, N]`, row-major.
///
/// # Panics
/// If `x` is not a whole number of rows.
pub fn matmul(x: &[f32], m: &QuantMatrix) -> Vec<f64> {
    let (k, n) = (m.in_features(), m.out_features());
    assert_eq!(x.len() % k, 0, "x must be [M, K]");
    let w = dequantize(m);
    let mut y = Vec::with_capacity(x.len() / k * n);
    for row in x.chunks_exact(k) {
        let start = y.len();
        y.extend((0..n).map(|col| m.bias().map_or(0.0, |b| f64::from(b[col]))));
        for (i, &v) in row.iter().enumerate() {
            for col in 0..n {
                y[start + col] += f64::from(v) * w[i * n + col];
            }
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Codes, Groups, ScaleValues, Zeros};

    /// The worked example of the GPTQ semantics reference, section 3.6: computed there by hand.
    #[test]
    fn worked_example() {
        let codes = (0..64).map(|i| ((3 * (i / 8) + 5 * (i % 8)) % 16) as u8).collect();
        let zeros = vec![8, 7, 6, 5, 4, 3, 2, 1, 8, 9, 10, 11, 12, 13, 14, 16];
        let scales = [[0.5f32; 8], [0.25; 8]].concat();
        let groups = Groups::Index { g_idx: vec![0, 1, 0, 1, 1, 0, 0, 1], count: 2 };
        let m = QuantMatrix::new(8, 8, 4, Codes::Bytes(codes), ScaleValues::F32(scales), Zeros::PerGroup(zeros), groups, None).unwrap();
        let w = dequantize(&m);
        assert_eq!(w[..8], [-4.0, -1.0, 2.0, 5.0, 0.0, 3.0, 6.0, 1.0]);
        assert_eq!(w[8..16], [-1.25, -0.25, 0.75, -2.25, -1.25, -0.25, -3.25, -2.5]);
        let x: Vec<f32> = (1..=8).map(|v| v as f32).collect();
        assert_eq!(matmul(&x, &m), [-9.5, -7.5, 22.5, -3.5, -9.5, 44.5, -5.5, 3.75]);
    }
}
