//! The rows that tokens become, as they are stored.

use crate::aligned::AlignedBytes;
use crate::{KernelError, Pool};
use billfish_tensor::DType;

/// Bytes that a thread reads at a time.
const STRIP: usize = 1 << 20;

/// A dense matrix of which single rows are taken, row-major in its stored precision.
pub struct Table {
    dtype: DType,
    rows: usize,
    width: usize,
    data: AlignedBytes,
}

impl Table {
    /// A table full of zeros, to be filled.
    ///
    /// # Errors
    /// [`KernelError::Shape`] if there is no element, or the size overflows.
    pub fn empty(dtype: DType, rows: usize, width: usize) -> Result<Self, KernelError> {
        let total = Self::size(dtype, rows, width)?;
        Ok(Self { dtype, rows, width, data: AlignedBytes::zeroed(total) })
    }

    /// Bytes of a table.
    fn size(dtype: DType, rows: usize, width: usize) -> Result<usize, KernelError> {
        let total = rows.checked_mul(width).and_then(|e| e.checked_mul(dtype.size()));
        total.filter(|&t| t > 0 && t <= isize::MAX as usize && dtype.is_float()).ok_or_else(|| KernelError::Shape {
            in_features: width,
            out_features: rows,
            reason: format!("a table of {dtype} must have an element, be of floats and fit in memory"),
        })
    }

    /// Reads the rows, strips of them at once. `read` fills whole rows from the given one on.
    ///
    /// # Errors
    /// The first that `read` gives.
    pub fn fill<E: Send>(&mut self, pool: &Pool, read: &(dyn Fn(usize, &mut [u8]) -> Result<(), E> + Sync)) -> Result<(), E> {
        let row = self.width * self.dtype.size();
        let strip = (STRIP / row).max(1);
        pool.try_chunks_mut(self.data.as_mut_slice(), strip * row, &|i, rows| read(i * strip, rows))
    }

    /// Writes row `i` as `f32` (exact for every dtype).
    ///
    /// # Panics
    /// If there is no such row, or `out` is not as wide.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        assert!(i < self.rows && out.len() == self.width, "one row of the table");
        let row = self.width * self.dtype.size();
        self.dtype.read_f32(&self.data.as_slice()[i * row..][..row], out);
    }
}
