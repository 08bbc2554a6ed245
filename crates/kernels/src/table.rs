//! The rows that tokens become, as they are stored.

use crate::aligned::AlignedBytes;
use crate::stored::Stored;
use crate::threads::Fill;
use crate::{KernelError, Pool};
use billfish_tensor::DType;

/// Bytes that a thread reads at a time.
const STRIP: usize = 1 << 20;

/// A dense matrix of which single rows are taken, row-major in its stored precision.
pub struct Table {
    dtype: DType,
    rows: usize,
    width: usize,
    data: Stored,
}

impl Table {
    /// Reads a table, strips of its rows at once. `read` fills whole rows from the given one on.
    ///
    /// # Errors
    /// [`KernelError::Shape`] if there is no element, or the size overflows, else the first error of `read`.
    pub fn from_rows<E: Send + From<KernelError>>(
        dtype: DType,
        [rows, width]: [usize; 2],
        pool: &Pool,
        read: &Fill<'_, E>,
    ) -> Result<Self, E> {
        let mut data = AlignedBytes::to_fill(Self::size(dtype, rows, width)?);
        let row = width * dtype.size();
        let strip = (STRIP / row).max(1);
        pool.try_chunks_mut(data.as_mut_slice(), strip * row, &|i, rows| read(i * strip, rows))?;
        Ok(Self { dtype, rows, width, data: Stored::own(data) })
    }

    /// The table of bytes that were read before.
    ///
    /// # Errors
    /// [`KernelError::Shape`] if they are not those of such a table.
    pub fn restore(dtype: DType, [rows, width]: [usize; 2], data: Stored) -> Result<Self, KernelError> {
        let expected = Self::size(dtype, rows, width)?;
        if data.as_slice().len() != expected {
            let reason = format!("{expected} bytes were expected, found {}", data.as_slice().len());
            return Err(KernelError::Shape { in_features: width, out_features: rows, reason });
        }
        Ok(Self { dtype, rows, width, data })
    }

    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.width]
    }

    /// The stored bytes.
    pub fn data(&self) -> &[u8] {
        self.data.as_slice()
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
