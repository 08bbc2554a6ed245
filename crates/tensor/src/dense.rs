//! A dense tensor as stored: bytes of one float type and a shape.

use crate::{DType, TensorError};

/// A dense tensor in its stored precision, row-major, little-endian.
#[derive(Clone, Debug)]
pub struct DenseTensor {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl DenseTensor {
    /// Wraps `bytes`; they must hold exactly the elements of `shape`, and `dtype` must be a float.
    ///
    /// # Errors
    /// [`TensorError::Size`] for another dtype, [`TensorError::Length`] for a wrong number of bytes.
    pub fn new(dtype: DType, shape: Vec<usize>, bytes: Vec<u8>) -> Result<Self, TensorError> {
        if !dtype.is_float() {
            return Err(TensorError::Size { what: "dtype", expected: "F32, F16 or BF16".into(), found: dtype.to_string() });
        }
        let expected = shape.iter().try_fold(dtype.size(), |a, &b| a.checked_mul(b)).ok_or_else(|| TensorError::Size {
            what: "shape",
            expected: "a size that fits in memory".into(),
            found: format!("{shape:?}"),
        })?;
        if expected != bytes.len() {
            return Err(TensorError::Length { part: "dense", expected, found: bytes.len() });
        }
        Ok(Self { dtype, shape, bytes })
    }

    /// Wraps `f32` values.
    ///
    /// # Errors
    /// As [`DenseTensor::new`].
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Result<Self, TensorError> {
        Self::new(DType::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The stored bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Writes elements `start..start + out.len()` as `f32` (exact for every supported dtype).
    ///
    /// # Panics
    /// If the range is not inside the tensor.
    pub fn read_f32(&self, start: usize, out: &mut [f32]) {
        let size = self.dtype.size();
        self.dtype.read_f32(&self.bytes[start * size..(start + out.len()) * size], out);
    }

    /// All elements as `f32`.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        self.read_f32(0, &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_each_dtype_exactly() {
        let f = DenseTensor::from_f32(vec![2], &[1.5, -2.0]).unwrap();
        assert_eq!(f.to_f32(), [1.5, -2.0]);
        let h = DenseTensor::new(DType::F16, vec![1, 2], [0x3e00u16, 0xc000].iter().flat_map(|v| v.to_le_bytes()).collect()).unwrap();
        assert_eq!(h.to_f32(), [1.5, -2.0]);
        let b = DenseTensor::new(DType::BF16, vec![2], [0x3fc0u16, 0xc000].iter().flat_map(|v| v.to_le_bytes()).collect()).unwrap();
        assert_eq!(b.to_f32(), [1.5, -2.0]);
    }

    #[test]
    fn refuses_wrong_lengths_and_types() {
        assert!(DenseTensor::new(DType::F16, vec![3], vec![0; 4]).is_err());
        assert!(DenseTensor::new(DType::I32, vec![1], vec![0; 4]).is_err());
        assert!(DenseTensor::new(DType::F16, vec![usize::MAX, 4], vec![]).is_err());
    }
}
