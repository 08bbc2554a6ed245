//! `QuantMatrix`: what every quantized weight in every file format becomes.

use crate::{Codes, DType, TensorError};
use half::{bf16, f16};
use std::ops::Range;

/// Scales in their stored precision, row-major `[groups, N]`.
#[derive(Clone, Debug)]
pub enum ScaleValues {
    /// 16-bit IEEE floats.
    F16(Vec<f16>),
    /// Truncated 32-bit floats.
    BF16(Vec<bf16>),
    /// 32-bit floats.
    F32(Vec<f32>),
}

impl ScaleValues {
    /// Number of scales.
    pub fn len(&self) -> usize {
        match self {
            ScaleValues::F16(v) => v.len(),
            ScaleValues::BF16(v) => v.len(),
            ScaleValues::F32(v) => v.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Scale `i` (exact).
    pub fn get(&self, i: usize) -> f32 {
        match self {
            ScaleValues::F16(v) => v[i].to_f32(),
            ScaleValues::BF16(v) => v[i].to_f32(),
            ScaleValues::F32(v) => v[i],
        }
    }

    /// Appends the stored bytes of scale `i`, little-endian.
    pub fn put_le(&self, i: usize, out: &mut Vec<u8>) {
        match self {
            ScaleValues::F16(v) => out.extend(v[i].to_le_bytes()),
            ScaleValues::BF16(v) => out.extend(v[i].to_le_bytes()),
            ScaleValues::F32(v) => out.extend(v[i].to_le_bytes()),
        }
    }

    /// Writes the stored bytes of scales `range`, little-endian.
    ///
    /// # Panics
    /// If there are no such scales, or `out` has not room for just them.
    pub fn copy_le(&self, range: Range<usize>, out: &mut [u8]) {
        assert_eq!(out.len(), range.len() * self.dtype().size(), "room for these scales");
        match self {
            ScaleValues::F16(v) => out.as_chunks_mut::<2>().0.iter_mut().zip(&v[range]).for_each(|(o, s)| *o = s.to_le_bytes()),
            ScaleValues::BF16(v) => out.as_chunks_mut::<2>().0.iter_mut().zip(&v[range]).for_each(|(o, s)| *o = s.to_le_bytes()),
            ScaleValues::F32(v) => out.as_chunks_mut::<4>().0.iter_mut().zip(&v[range]).for_each(|(o, s)| *o = s.to_le_bytes()),
        }
    }

    /// The first scale that is no finite number.
    fn first_infinite(&self) -> Option<usize> {
        match self {
            ScaleValues::F16(v) => v.iter().position(|s| !s.is_finite()),
            ScaleValues::BF16(v) => v.iter().position(|s| !s.is_finite()),
            ScaleValues::F32(v) => v.iter().position(|s| !s.is_finite()),
        }
    }

    /// The stored type.
    pub fn dtype(&self) -> DType {
        match self {
            ScaleValues::F16(_) => DType::F16,
            ScaleValues::BF16(_) => DType::BF16,
            ScaleValues::F32(_) => DType::F32,
        }
    }
}

/// Zero points: the code that stands for 0. True values, never a file's v1 or v2 encoding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Zeros {
    /// `2^(bits-1)` everywhere (symmetric quantization).
    Midpoint,
    /// One per group and column, row-major `[groups, N]`, each in `0..=2^bits`.
    PerGroup(Vec<u16>),
}

/// How many of a token's activations share a scale where they are made 8-bit integers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ActivationScale {
    /// Those of a block of rows: the kernels' own choice.
    #[default]
    Block,
    /// All of them, as checkpoints that were made for 8-bit activations ask.
    Token,
}

/// Which group an input row belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Groups {
    /// Row `k` belongs to group `k / size`; the last group may be short.
    Contiguous {
        /// Rows of a full group, at least 1.
        size: usize,
    },
    /// Row `k` belongs to group `g_idx[k]` (act-order). Any map onto `0..count` is legal.
    Index {
        /// Group of each row, `[K]`.
        g_idx: Vec<u32>,
        /// Number of groups (rows of `scales`).
        count: usize,
    },
}

/// Rows in group order: see [`QuantMatrix::row_order`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RowOrder {
    /// `permutation[i]` is the original row at sorted place `i`; `None` when rows already stand in group order.
    pub permutation: Option<Vec<u32>>,
    /// Rows of each group, in order; their sum is K. A group may be empty.
    pub group_rows: Vec<u32>,
}

/// A quantized weight `W[k, n] = (codes[k, n] - zeros[g, n]) * scales[g, n]`, `g` the group of row `k`; `y = x · W`.
#[derive(Clone, Debug)]
pub struct QuantMatrix {
    in_features: usize,
    out_features: usize,
    bits: u32,
    codes: Codes,
    scales: ScaleValues,
    zeros: Zeros,
    groups: Groups,
    bias: Option<Vec<f32>>,
    activation_scale: ActivationScale,
}

impl QuantMatrix {
    /// Puts the parts together and checks every size and value: lengths, `bits` in 2..=8, zeros in `0..=2^bits`,
    /// `g_idx` below the group count, finite scales and bias.
    ///
    /// # Errors
    /// [`TensorError`] naming the part that is wrong.
    #[allow(clippy::too_many_arguments)] // one argument a part; a builder would only hide which are required
    pub fn new(
        in_features: usize,
        out_features: usize,
        bits: u32,
        codes: Codes,
        scales: ScaleValues,
        zeros: Zeros,
        groups: Groups,
        bias: Option<Vec<f32>>,
    ) -> Result<Self, TensorError> {
        let size = |what, expected: &str, found: String| TensorError::Size { what, expected: expected.into(), found };
        if !(2..=8).contains(&bits) {
            return Err(size("bits", "2 to 8", bits.to_string()));
        }
        if in_features == 0 || out_features == 0 || in_features > u32::MAX as usize || out_features > u32::MAX as usize {
            return Err(size("shape", "K and N from 1 to 2^32 - 1", format!("[{in_features}, {out_features}]")));
        }
        codes.check(bits, in_features, out_features)?;
        let count = match &groups {
            Groups::Contiguous { size: 0 } => return Err(size("group_size", "at least 1", "0".into())),
            Groups::Contiguous { size } => in_features.div_ceil(*size),
            Groups::Index { g_idx, count } => {
                if g_idx.len() != in_features {
                    return Err(TensorError::Length { part: "g_idx", expected: in_features, found: g_idx.len() });
                }
                if let Some(index) = g_idx.iter().position(|&g| g as usize >= *count) {
                    return Err(TensorError::Value {
                        part: "g_idx",
                        index,
                        expected: format!("a group below {count}"),
                        found: g_idx[index].to_string(),
                    });
                }
                *count
            }
        };
        let per_group = count
            .checked_mul(out_features)
            .ok_or_else(|| size("scales", "a size that fits in memory", format!("[{count}, {out_features}]")))?;
        if scales.len() != per_group {
            return Err(TensorError::Length { part: "scales", expected: per_group, found: scales.len() });
        }
        if let Some(index) = scales.first_infinite() {
            return Err(TensorError::Value {
                part: "scales",
                index,
                expected: "a finite number".into(),
                found: scales.get(index).to_string(),
            });
        }
        if let Zeros::PerGroup(z) = &zeros {
            if z.len() != per_group {
                return Err(TensorError::Length { part: "zeros", expected: per_group, found: z.len() });
            }
            if let Some(index) = z.iter().position(|&z| u32::from(z) > 1 << bits) {
                return Err(TensorError::Value {
                    part: "zeros",
                    index,
                    expected: format!("0 to {}", 1u32 << bits),
                    found: z[index].to_string(),
                });
            }
        }
        if let Some(b) = &bias {
            if b.len() != out_features {
                return Err(TensorError::Length { part: "bias", expected: out_features, found: b.len() });
            }
            if let Some(index) = b.iter().position(|v| !v.is_finite()) {
                return Err(TensorError::Value { part: "bias", index, expected: "a finite number".into(), found: b[index].to_string() });
            }
        }
        Ok(Self { in_features, out_features, bits, codes, scales, zeros, groups, bias, activation_scale: ActivationScale::default() })
    }

    /// The same weight, made for activations with another scale. Precisions above 8 bit do not look at it.
    #[must_use]
    pub fn with_activation_scale(self, activation_scale: ActivationScale) -> Self {
        Self { activation_scale, ..self }
    }

    /// The scale that 8-bit activations are to have.
    pub fn activation_scale(&self) -> ActivationScale {
        self.activation_scale
    }

    /// K: length of the input vector.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// N: length of the output vector.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// The words of the codes, if they are words: room for those of another matrix.
    pub fn into_words(self) -> Option<Vec<u32>> {
        match self.codes {
            Codes::Words { words, .. } => Some(words),
            Codes::Bytes(_) => None,
        }
    }

    /// Width of a code, 2 to 8.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// The codes.
    pub fn codes(&self) -> &Codes {
        &self.codes
    }

    /// The scales, `[groups, N]`.
    pub fn scales(&self) -> &ScaleValues {
        &self.scales
    }

    /// The zero points.
    pub fn zeros(&self) -> &Zeros {
        &self.zeros
    }

    /// Group membership of the rows.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Bias, `[N]`.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// Number of groups (rows of `scales`).
    pub fn group_count(&self) -> usize {
        self.scales.len() / self.out_features
    }

    /// Group of row `k`.
    pub fn group_of(&self, k: usize) -> usize {
        match &self.groups {
            Groups::Contiguous { size } => k / size,
            Groups::Index { g_idx, .. } => g_idx[k] as usize,
        }
    }

    /// Zero point of group `g`, column `n`.
    pub fn zero(&self, g: usize, n: usize) -> u16 {
        match &self.zeros {
            Zeros::Midpoint => 1 << (self.bits - 1),
            Zeros::PerGroup(z) => z[g * self.out_features + n],
        }
    }

    /// The order in which rows stand group by group: a stable sort by group, so that any `g_idx`, also one with groups
    /// of unequal size, becomes contiguous groups plus one permutation of the activations.
    pub fn row_order(&self) -> RowOrder {
        let mut group_rows = vec![0u32; self.group_count()];
        (0..self.in_features).for_each(|k| group_rows[self.group_of(k)] += 1);
        let permutation = match &self.groups {
            Groups::Index { g_idx, .. } if !g_idx.is_sorted() => {
                let mut p: Vec<u32> = (0..self.in_features as u32).collect();
                p.sort_by_key(|&k| g_idx[k as usize]);
                Some(p)
            }
            _ => None,
        };
        RowOrder { permutation, group_rows }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Packing;

    fn parts(k: usize, n: usize, groups: Groups, count: usize) -> Result<QuantMatrix, TensorError> {
        let codes = Codes::pack(&vec![3; k * n], n, 4, Packing::Continuous);
        QuantMatrix::new(k, n, 4, codes, ScaleValues::F32(vec![1.0; count * n]), Zeros::Midpoint, groups, None)
    }

    #[test]
    fn act_order_rows_sort_stably() {
        let g_idx = vec![0, 1, 0, 1, 1, 0, 0, 1];
        let m = parts(8, 2, Groups::Index { g_idx, count: 2 }, 2).unwrap();
        let order = m.row_order();
        assert_eq!(order.permutation, Some(vec![0, 2, 5, 6, 1, 3, 4, 7]));
        assert_eq!(order.group_rows, [4, 4]);
    }

    #[test]
    fn sorted_index_needs_no_permutation_even_with_unequal_groups() {
        let m = parts(4, 1, Groups::Index { g_idx: vec![0, 0, 0, 2], count: 3 }, 3).unwrap();
        assert_eq!(m.row_order(), RowOrder { permutation: None, group_rows: vec![3, 0, 1] });
    }

    #[test]
    fn short_last_group() {
        let m = parts(10, 1, Groups::Contiguous { size: 4 }, 3).unwrap();
        assert_eq!(m.row_order().group_rows, [4, 4, 2]);
        assert_eq!(m.group_of(9), 2);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        assert!(matches!(parts(8, 1, Groups::Contiguous { size: 0 }, 1), Err(TensorError::Size { .. })));
        assert!(matches!(parts(8, 1, Groups::Contiguous { size: 4 }, 1), Err(TensorError::Length { part: "scales", .. })));
        let out_of_range = Groups::Index { g_idx: vec![0, 2], count: 2 };
        assert!(matches!(parts(2, 1, out_of_range, 2), Err(TensorError::Value { part: "g_idx", index: 1, .. })));
        let nan = QuantMatrix::new(
            1,
            1,
            4,
            Codes::Bytes(vec![1]),
            ScaleValues::F32(vec![f32::NAN]),
            Zeros::Midpoint,
            Groups::Contiguous { size: 1 },
            None,
        );
        assert!(matches!(nan, Err(TensorError::Value { part: "scales", .. })));
        let zero = QuantMatrix::new(
            1,
            1,
            4,
            Codes::Bytes(vec![1]),
            ScaleValues::F32(vec![1.0]),
            Zeros::PerGroup(vec![17]),
            Groups::Contiguous { size: 1 },
            None,
        );
        assert!(matches!(zero, Err(TensorError::Value { part: "zeros", .. })));
    }
}
