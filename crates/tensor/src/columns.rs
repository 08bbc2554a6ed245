//! Columns of a quantized matrix as exact numbers, a few at a time: for those who look at every weight of a matrix that
//! would not fit in memory as floats. The oracle has a loop of its own, so that the two can be compared.

use crate::QuantMatrix;
use std::ops::{Mul, Range};

impl QuantMatrix {
    /// Writes columns `cols` as `(code - zero) * scale`, which is exact in `f64`, and in `f32` if the scales have 16 bits
    /// (9 bits times 11 are 20) and nothing overflows. One column after the other: the weight of row `k` and column `cols.start + c` goes to
    /// `out[c * K + k]`, as a dense `[N, K]` weight has it. `codes` is scratch, kept by the caller between calls.
    ///
    /// # Panics
    /// If the columns do not exist or `out` is not K times their number.
    pub fn dequantize_columns<T>(&self, cols: Range<usize>, codes: &mut Vec<u8>, out: &mut [T])
    where
        T: Copy + From<f32> + Mul<Output = T>,
    {
        let (k, n, width) = (self.in_features(), self.out_features(), cols.len());
        assert!(cols.end <= n && out.len() == k * width, "columns exist and `out` has their size");
        if width == 0 {
            return;
        }
        codes.resize(32 * width, 0);
        let mut runs: Vec<(usize, usize, usize)> = Vec::with_capacity(32);
        for k0 in (0..k).step_by(32) {
            let rows = (k - k0).min(32);
            let codes = &mut codes[..rows * width];
            self.codes().unpack_rows(self.bits(), n, k0, cols.clone(), codes);
            // runs of rows in one group, which share a zero point and a scale in each column
            runs.clear();
            for i in 0..rows {
                let g = self.group_of(k0 + i);
                match runs.last_mut() {
                    Some((group, _, to)) if *group == g => *to = i + 1,
                    _ => runs.push((g, i, i + 1)),
                }
            }
            for c in 0..width {
                let column = &mut out[c * k + k0..][..rows];
                for &(g, from, to) in &runs {
                    let zero = i32::from(self.zero(g, cols.start + c));
                    let scale = T::from(self.scales().get(g * n + cols.start + c));
                    let codes = codes[from * width + c..].iter().step_by(width);
                    for (weight, &code) in column[from..to].iter_mut().zip(codes) {
                        // an integer of at most nine bits: exact
                        *weight = T::from((i32::from(code) - zero) as f32) * scale;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Codes, Groups, Packing, QuantMatrix, ScaleValues, Zeros, oracle};

    /// Any cut into columns gives the oracle's values, with a short last run, unequal groups and every width.
    #[test]
    fn agrees_with_the_oracle() {
        let (k, n) = (75, 13);
        for bits in 2..=8u32 {
            for packing in [Packing::Continuous, Packing::Planar] {
                let codes: Vec<u8> = (0..k * n).map(|i| ((i * 7 + i / 5) % (1 << bits)) as u8).collect();
                let scales = (0..3 * n).map(|i| (i as f32 - 11.0) * 0.037).collect();
                let zeros = (0..3 * n).map(|i| (i % ((1 << bits) + 1)) as u16).collect();
                let groups = Groups::Index { g_idx: (0..k as u32).map(|i| i * i % 3).collect(), count: 3 };
                let codes = Codes::pack(&codes, n, bits, packing);
                let m = QuantMatrix::new(k, n, bits, codes, ScaleValues::F32(scales), Zeros::PerGroup(zeros), groups, None).unwrap();
                let want = oracle::dequantize(&m);
                for step in [1, 4, 13] {
                    let mut scratch = vec![];
                    for from in (0..n).step_by(step) {
                        let cols = from..(from + step).min(n);
                        let mut out = vec![f64::NAN; cols.len() * k];
                        m.dequantize_columns(cols.clone(), &mut scratch, &mut out);
                        for (c, col) in cols.enumerate() {
                            (0..k).for_each(|row| assert_eq!(out[c * k + row].to_bits(), want[row * n + col].to_bits()));
                        }
                    }
                }
            }
        }
    }
}
