//! Dense weights in kernel layout: panels of 64 columns, `[K][64]` elements in their stored precision.

use crate::KernelError;
use crate::aligned::AlignedBytes;
use crate::pack::PANEL;
use crate::stored::Stored;
use crate::threads::{Fill, Pool};
use billfish_tensor::{DType, DenseTensor};

/// Writes up to 64 rows of `k` elements of `SIZE` bytes as `[k][64]`, some columns at a time so that both sides stay in
/// cache, and eight by eight where there are so many.
fn transpose<const SIZE: usize>(rows: &[u8], k: usize, panel: &mut [u8]) {
    const STRETCH: usize = 32;
    const SQUARE: usize = 8;
    let (rows, out) = (rows.as_chunks::<SIZE>().0, panel.as_chunks_mut::<SIZE>().0);
    let count = rows.len() / k;
    for k0 in (0..k).step_by(STRETCH) {
        let end = k.min(k0 + STRETCH);
        for i0 in (0..count).step_by(SQUARE) {
            let squares = if count - i0 >= SQUARE { (end - k0) / SQUARE * SQUARE } else { 0 };
            for k1 in (k0..k0 + squares).step_by(SQUARE) {
                let mut square = [[[0; SIZE]; SQUARE]; SQUARE];
                for i in 0..SQUARE {
                    let row = &rows[(i0 + i) * k + k1..][..SQUARE];
                    for j in 0..SQUARE {
                        square[j][i] = row[j];
                    }
                }
                for j in 0..SQUARE {
                    out[(k1 + j) * PANEL + i0..][..SQUARE].copy_from_slice(&square[j]);
                }
            }
            for i in i0..count.min(i0 + SQUARE) {
                for kk in k0 + squares..end {
                    out[kk * PANEL + i] = rows[i * k + kk];
                }
            }
        }
    }
}

/// A dense weight in kernel layout: panels of 64 columns, `[K][64]` elements in their stored precision.
pub struct PackedDense {
    pub(crate) in_features: usize,
    pub(crate) out_features: usize,
    pub(crate) dtype: DType,
    data: Stored,
    pub(crate) bias: Option<Vec<f32>>,
}

impl PackedDense {
    /// Packs a weight stored `[N, K]`, as files store dense linear layers and embeddings, on this thread.
    ///
    /// # Errors
    /// [`KernelError::Shape`] if the tensor is not a matrix, the bias does not fit, or the size overflows.
    pub fn new(weight: &DenseTensor, bias: Option<Vec<f32>>) -> Result<Self, KernelError> {
        let &[n, k] = weight.shape() else {
            return Err(KernelError::Shape {
                in_features: 0,
                out_features: 0,
                reason: format!("a weight must have two dimensions, found {:?}", weight.shape()),
            });
        };
        let row = k * weight.dtype().size();
        Self::from_rows(weight.dtype(), (k, n), bias, None, &|first, rows| {
            rows.copy_from_slice(&weight.bytes()[first * row..][..rows.len()]);
            Ok(())
        })
    }

    /// Packs the rows of a weight stored `[N, K]`, 64 of them in memory at a time: all threads of `pool` each have so many,
    /// or this thread alone does. `read` fills whole rows from the given one on.
    ///
    /// # Errors
    /// [`KernelError::Shape`] if K or N is 0, the bias does not fit, or the size overflows, else the first error of `read`.
    pub fn from_rows<E: Send + From<KernelError>>(
        dtype: DType,
        (in_features, out_features): (usize, usize),
        bias: Option<Vec<f32>>,
        pool: Option<&Pool>,
        read: &Fill<'_, E>,
    ) -> Result<Self, E> {
        let (k, n, size) = (in_features, out_features, dtype.size());
        let mut data = AlignedBytes::to_fill(Self::size(dtype, k, n, bias.as_deref())?);
        let panel_bytes = k * PANEL * size;
        let fill_panel = |p: usize, panel: &mut [u8]| -> Result<(), E> {
            let mut rows = vec![0; (n - p * PANEL).min(PANEL) * k * size];
            read(p * PANEL, &mut rows)?;
            match size {
                2 => transpose::<2>(&rows, k, panel),
                _ => transpose::<4>(&rows, k, panel),
            }
            Ok(())
        };
        match pool {
            Some(pool) => pool.try_chunks_mut(data.as_mut_slice(), panel_bytes, &fill_panel)?,
            None => data.as_mut_slice().chunks_mut(panel_bytes).enumerate().try_for_each(|(p, panel)| fill_panel(p, panel))?,
        }
        Ok(Self { in_features: k, out_features: n, dtype, data: Stored::own(data), bias })
    }

    /// A weight of this size without values, which keeps a place until another takes it. Multiplying by it panics.
    pub fn placeholder(in_features: usize, out_features: usize) -> Self {
        Self { in_features, out_features, dtype: DType::F16, data: Stored::own(AlignedBytes::to_fill(0)), bias: None }
    }

    /// The weight of bytes that were packed before.
    ///
    /// # Errors
    /// [`KernelError::Shape`] naming what does not fit.
    pub fn restore(
        dtype: DType,
        (in_features, out_features): (usize, usize),
        bias: Option<Vec<f32>>,
        data: Stored,
    ) -> Result<Self, KernelError> {
        let expected = Self::size(dtype, in_features, out_features, bias.as_deref())?;
        if data.as_slice().len() != expected {
            let reason = format!("{expected} packed bytes were expected, found {}", data.as_slice().len());
            return Err(KernelError::Shape { in_features, out_features, reason });
        }
        Ok(Self { in_features, out_features, dtype, data, bias })
    }

    /// Bytes of a weight, whose bias must fit.
    fn size(dtype: DType, k: usize, n: usize, bias: Option<&[f32]>) -> Result<usize, KernelError> {
        let wrong = |reason: String| KernelError::Shape { in_features: k, out_features: n, reason };
        if k == 0 || n == 0 || !dtype.is_float() {
            return Err(wrong(format!("K and N must be at least 1, and the elements floats, found {dtype}")));
        }
        if let Some(b) = bias.filter(|b| b.len() != n) {
            return Err(wrong(format!("a bias of {} elements", b.len())));
        }
        let panel = k.checked_mul(PANEL * dtype.size());
        let total = panel.and_then(|p| p.checked_mul(n.div_ceil(PANEL))).filter(|&t| t <= isize::MAX as usize);
        total.ok_or_else(|| wrong("the packed size does not fit in memory".into()))
    }

    /// The packed bytes.
    pub fn data(&self) -> &[u8] {
        self.data.as_slice()
    }

    /// Bias, `[N]`.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// K: length of the input vector.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// N: length of the output vector.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes that the packed weight takes.
    pub fn bytes(&self) -> usize {
        self.data.as_slice().len()
    }

    /// Writes column `n` as `f32`: the embedding of token `n` when the weight is an embedding.
    ///
    /// # Panics
    /// If `n` is not a column or `out` not K long.
    pub fn column(&self, n: usize, out: &mut [f32]) {
        assert!(n < self.out_features && out.len() == self.in_features);
        let size = self.dtype.size();
        let panel = self.panel(n / PANEL);
        for (k, o) in out.iter_mut().enumerate() {
            let b = &panel[(k * PANEL + n % PANEL) * size..];
            *o = match self.dtype {
                DType::F16 => half::f16::from_le_bytes([b[0], b[1]]).to_f32(),
                DType::BF16 => half::bf16::from_le_bytes([b[0], b[1]]).to_f32(),
                _ => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            };
        }
    }

    pub(crate) fn panel(&self, p: usize) -> &[u8] {
        let bytes = self.in_features * PANEL * self.dtype.size();
        &self.data.as_slice()[p * bytes..(p + 1) * bytes]
    }
}
