//! Dense tensors of a folder.

use crate::checkpoint::Tensor;
use crate::{Checkpoint, FormatError};
use billfish_tensor::{DType, DenseTensor};
use std::ops::Range;

impl Checkpoint {
    /// Reads a dense tensor of exactly this shape.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] when it is missing, not F32, F16 or BF16, or of another shape; [`FormatError::Io`].
    pub fn dense(&self, name: &str, shape: &[usize]) -> Result<DenseTensor, FormatError> {
        let tensor = self.need_dense(name, shape)?;
        let mut bytes = vec![0; tensor.info.bytes];
        tensor.read_bytes(&mut bytes)?;
        tensor.mark_read();
        DenseTensor::new(tensor.info.dtype, shape.to_vec(), bytes)
            .map_err(|e| tensor.wrong("a dense tensor", e.to_string(), crate::error::DAMAGED))
    }

    /// Reads some rows of matrix `i` of a stack of dense matrices `[count, N, K]`, such as the experts of a layer in one
    /// tensor.
    ///
    /// # Errors
    /// As [`Checkpoint::dense`].
    ///
    /// # Panics
    /// If a stack of that shape has no such rows.
    pub fn dense_of_stack(&self, name: &str, shape: [usize; 3], i: usize, rows: Range<usize>) -> Result<DenseTensor, FormatError> {
        let [count, n, k] = shape;
        assert!(i < count && rows.start < rows.end && rows.end <= n, "rows {rows:?} of matrix {i} of {shape:?}");
        let tensor = self.need_dense(name, &shape)?;
        let row = k * tensor.info.dtype.size();
        let mut bytes = vec![0; rows.len() * row];
        tensor.read_range((i * n + rows.start) * row, &mut bytes)?;
        tensor.mark_read();
        DenseTensor::new(tensor.info.dtype, vec![rows.len(), k], bytes)
            .map_err(|e| tensor.wrong("a dense tensor", e.to_string(), crate::error::DAMAGED))
    }

    /// A dense tensor of exactly this shape.
    pub(crate) fn need_dense(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, FormatError> {
        let tensor = self.need(name)?;
        tensor.check_dtype(&[DType::F32, DType::F16, DType::BF16])?;
        if tensor.info.shape != shape {
            let remedy = "check config.json against the tensors: they are of different models, or the architecture is not this one";
            return Err(tensor.wrong(format!("shape {shape:?}"), format!("shape {:?}", tensor.info.shape), remedy));
        }
        Ok(tensor)
    }
}
