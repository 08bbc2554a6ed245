//! Dense matrices that are read some rows at a time, so that they need not be in memory as they are stored.

use crate::checkpoint::Tensor;
use crate::module::Module;
use crate::{BiasRule, Checkpoint, FormatError};
use billfish_tensor::{DType, DenseTensor, QuantMatrix};

/// A linear module of which the dense weight is not yet read.
pub enum LinearRows<'a> {
    /// A quantized one; its bias is inside.
    Quantized(QuantMatrix),
    /// A dense one.
    Dense {
        /// `[N, K]`.
        weight: Rows<'a>,
        /// `[N]`.
        bias: Option<Vec<f32>>,
    },
}

/// A dense matrix of a checkpoint, `[rows, columns]`.
pub struct Rows<'a> {
    tensor: Tensor<'a>,
    shape: [usize; 2],
}

impl Checkpoint {
    /// A dense matrix of exactly this shape, to be read some rows at a time.
    ///
    /// # Errors
    /// As [`Checkpoint::dense`].
    pub fn dense_rows(&self, name: &str, shape: [usize; 2]) -> Result<Rows<'_>, FormatError> {
        let tensor = self.need_dense(name, &shape)?;
        tensor.mark_read();
        Ok(Rows { tensor, shape })
    }

    /// Reads linear module `module` like [`Checkpoint::linear`], but leaves a dense weight where it is, to be read some rows at a
    /// time.
    ///
    /// # Errors
    /// As [`Checkpoint::linear`].
    pub fn linear_rows(&self, module: &str, k: usize, n: usize, bias: BiasRule) -> Result<LinearRows<'_>, FormatError> {
        let quantized = self.is_quantized(module)?;
        let bias = self.bias(module, n, bias)?;
        if quantized {
            return Ok(LinearRows::Quantized(Module::find(self, module, Some((k, n)))?.read(bias)?));
        }
        Ok(LinearRows::Dense { weight: self.dense_rows(&format!("{module}.weight"), [n, k])?, bias })
    }
}

impl Rows<'_> {
    /// Type of the elements: a float.
    pub fn dtype(&self) -> DType {
        self.tensor.info.dtype
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Fills `out` with the stored bytes of whole rows from row `first` on.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] when the matrix does not have so many rows, [`FormatError::Io`].
    pub fn read(&self, first: usize, out: &mut [u8]) -> Result<(), FormatError> {
        let row = self.shape[1] * self.dtype().size();
        let start = first.checked_mul(row).filter(|start| start.checked_add(out.len()).is_some_and(|end| end <= self.tensor.info.bytes));
        match start {
            Some(start) => self.tensor.read_range(start, out),
            None => {
                let (expected, found) = (format!("{} rows", self.shape[0]), format!("a read of {} bytes from row {first} on", out.len()));
                Err(self.tensor.wrong(expected, found, "read rows that exist"))
            }
        }
    }

    /// All of it.
    ///
    /// # Errors
    /// [`FormatError::Io`].
    pub fn all(&self) -> Result<DenseTensor, FormatError> {
        let mut bytes = vec![0; self.tensor.info.bytes];
        self.tensor.read_bytes(&mut bytes)?;
        DenseTensor::new(self.dtype(), self.shape.to_vec(), bytes)
            .map_err(|e| self.tensor.wrong("a dense tensor", e.to_string(), crate::error::DAMAGED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;

    #[test]
    fn rows_are_those_of_the_whole_and_no_others() {
        let header = r#"{"w":{"dtype":"F16","shape":[3,2],"data_offsets":[0,12]},"x":{"dtype":"F16","shape":[1],"data_offsets":[12,14]}}"#;
        let data: Vec<u8> = (0..14).collect();
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
        let files = vec![("config.json".into(), Cow::Borrowed(&b"{}"[..])), ("model.safetensors".into(), Cow::Owned(file))];
        let checkpoint = Checkpoint::from_files("m", files).unwrap();
        let rows = checkpoint.dense_rows("w", [3, 2]).unwrap();
        assert!(rows.dtype() == DType::F16 && rows.shape() == [3, 2] && checkpoint.unread() == ["x"]);
        let mut two = [0; 8];
        rows.read(1, &mut two).unwrap();
        assert_eq!(two, [4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(rows.all().unwrap().bytes(), &data[..12]);
        // the next tensor's bytes are no row of this one
        assert!(rows.read(2, &mut two).is_err() && rows.read(usize::MAX, &mut two).is_err());
        assert!(checkpoint.dense_rows("w", [2, 3]).is_err());
    }
}
