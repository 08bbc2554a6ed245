//! Dense weights in kernel layout: panels of 64 columns, `[K][64]` elements in their stored precision or narrow ones.

use crate::KernelError;
use crate::aligned::AlignedBytes;
use crate::narrow::{self, Sevens};
use crate::pack::PANEL;
use crate::stored::Stored;
use crate::threads::{Fill, Pool};
use billfish_tensor::{DType, DenseTensor};
use std::sync::{Mutex, PoisonError};

/// How a dense weight is laid out. Products have the same bits with either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenseLayout {
    /// Elements as they are stored.
    Stored,
    /// `bf16` in 13 bits, without loss, where K is a multiple of 8 and few panels have exponents too different for it; others
    /// as they are stored. For instruction sets that widen them as fast as memory gives them.
    Narrow,
}

impl DenseLayout {
    /// What reports call the layout of a weight of this type.
    pub fn kernel_name(self, dtype: DType) -> &'static str {
        match (dtype, self) {
            (DType::F16, _) => "dense-f16",
            (DType::BF16, DenseLayout::Narrow) => "dense-bf16-13bit",
            (DType::BF16, DenseLayout::Stored) => "dense-bf16",
            _ => "dense-f32",
        }
    }
}

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

/// A dense weight in kernel layout: panels of 64 columns, `[K][64]` elements in their stored precision, or narrow ones: first
/// their tables, then the panels, then those that are not narrow.
pub struct PackedDense {
    pub(crate) in_features: usize,
    pub(crate) out_features: usize,
    pub(crate) dtype: DType,
    data: Stored,
    /// Bytes of `data` that are in use.
    len: usize,
    /// Where each panel is, if they are narrow. What the bytes say is read once, so that none of a mapped file decides later
    /// where a kernel reads.
    narrow: Option<Vec<PanelAt>>,
    pub(crate) bias: Option<Vec<f32>>,
}

/// Where a panel begins, and its table if it is narrow.
#[derive(Clone, Copy)]
struct PanelAt {
    at: usize,
    sevens: Option<Sevens>,
}

/// A panel as a kernel reads it.
pub(crate) struct Panel<'a> {
    pub bytes: &'a [u8],
    /// The table, if it is narrow.
    pub sevens: Option<Sevens>,
}

/// Sizes of a narrow weight.
struct NarrowSizes {
    panels: usize,
    /// Bytes of all tables.
    tables: usize,
    /// Bytes of a panel.
    panel: usize,
    /// Bytes of one that is not narrow.
    stored: usize,
}

/// Bytes of a table, or of what stands in its place where a panel is not narrow: [`STORED`] and the number of the panel among
/// those, a little-endian u32.
const TABLE: usize = size_of::<Sevens>();
/// The first byte in place of a table: no upper seven bits of an exponent.
const STORED: u8 = 0xff;

impl NarrowSizes {
    /// Those of a weight that can be narrow.
    fn of(dtype: DType, k: usize, n: usize) -> Option<Self> {
        let panels = n.div_ceil(PANEL);
        let panel = narrow::panel_bytes(k).filter(|_| dtype == DType::BF16)?;
        Some(Self { panels, tables: (panels * TABLE).next_multiple_of(64), panel, stored: k * PANEL * dtype.size() })
    }

    /// Bytes with `stored` panels that are not narrow.
    fn bytes(&self, stored: usize) -> usize {
        self.tables + self.panels * self.panel + stored * self.stored
    }

    /// Most panels that are not narrow; with more, little would be gained.
    fn most_stored(&self) -> usize {
        self.panels / 8
    }

    /// What the tables of packed bytes say, if it fits their number.
    fn read(&self, data: &[u8]) -> Option<Vec<PanelAt>> {
        let stored = data.len().checked_sub(self.bytes(0))? / self.stored;
        if data.len() != self.bytes(stored) {
            return None;
        }
        let tables = data.as_chunks::<TABLE>().0.iter().take(self.panels).enumerate();
        let place = |(p, table): (usize, &Sevens)| match table {
            [STORED, _, _, _, index @ ..] => {
                let index = u32::from_le_bytes(*index.first_chunk()?) as usize;
                (index < stored).then(|| PanelAt { at: self.bytes(index), sevens: None })
            }
            _ => Some(PanelAt { at: self.tables + p * self.panel, sevens: Some(*table) }),
        };
        tables.map(place).collect()
    }
}

/// Calls `fill` for each panel of `panel` bytes, with all threads of `pool` or this one.
fn each_panel<E: Send>(pool: Option<&Pool>, bytes: &mut [u8], panel: usize, fill: &Fill<'_, E>) -> Result<(), E> {
    match pool {
        Some(pool) => pool.try_chunks_mut(bytes, panel, fill),
        None => bytes.chunks_mut(panel).enumerate().try_for_each(|(p, panel)| fill(p, panel)),
    }
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
        Self::from_rows(weight.dtype(), (k, n), bias, DenseLayout::Stored, None, &|first, rows| {
            rows.copy_from_slice(&weight.bytes()[first * row..][..rows.len()]);
            Ok(())
        })
    }

    /// Packs the rows of a weight stored `[N, K]`, 64 of them in memory at a time: all threads of `pool` each have so many,
    /// or this thread alone does. `read` fills whole rows from the given one on; it may be asked for them twice.
    ///
    /// # Errors
    /// [`KernelError::Shape`] if K or N is 0, the bias does not fit, or the size overflows, else the first error of `read`.
    pub fn from_rows<E: Send + From<KernelError>>(
        dtype: DType,
        (in_features, out_features): (usize, usize),
        bias: Option<Vec<f32>>,
        layout: DenseLayout,
        pool: Option<&Pool>,
        read: &Fill<'_, E>,
    ) -> Result<Self, E> {
        let (k, n, size) = (in_features, out_features, dtype.size());
        let len = Self::size(dtype, k, n, bias.as_deref())?;
        let fill_panel = |p: usize, panel: &mut [u8]| -> Result<(), E> {
            let mut rows = vec![0; (n - p * PANEL).min(PANEL) * k * size];
            read(p * PANEL, &mut rows)?;
            match size {
                2 => transpose::<2>(&rows, k, panel),
                _ => transpose::<4>(&rows, k, panel),
            }
            Ok(())
        };
        if let Some(sizes) = NarrowSizes::of(dtype, k, n).filter(|_| layout == DenseLayout::Narrow)
            && let Some((data, len)) = narrowed(&sizes, pool, &fill_panel)?
        {
            let narrow = sizes.read(&data.as_slice()[..len]);
            return Ok(Self { in_features: k, out_features: n, dtype, data: Stored::own(data), len, narrow, bias });
        }
        let mut data = AlignedBytes::to_fill(len);
        each_panel(pool, data.as_mut_slice(), k * PANEL * size, &fill_panel)?;
        Ok(Self { in_features: k, out_features: n, dtype, data: Stored::own(data), len, narrow: None, bias })
    }

    /// A weight of this size without values, which keeps a place until another takes it. Multiplying by it panics.
    pub fn placeholder(in_features: usize, out_features: usize) -> Self {
        let data = Stored::own(AlignedBytes::to_fill(0));
        Self { in_features, out_features, dtype: DType::F16, data, len: 0, narrow: None, bias: None }
    }

    /// The weight of bytes that were packed before, in whichever layout.
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
        let len = data.as_slice().len();
        // a narrow weight is always smaller
        let narrow = if len == expected { None } else { NarrowSizes::of(dtype, in_features, out_features) };
        let narrow = narrow.and_then(|sizes| sizes.read(data.as_slice()));
        if len != expected && narrow.is_none() {
            let reason = format!("{expected} packed bytes were expected, or those of narrow panels, found {len}");
            return Err(KernelError::Shape { in_features, out_features, reason });
        }
        Ok(Self { in_features, out_features, dtype, data, len, narrow, bias })
    }

    /// Bytes that a weight takes, if all of its panels can be narrow where that is asked for.
    ///
    /// # Errors
    /// [`KernelError::Shape`] if K or N is 0, or the size overflows.
    pub fn expected_bytes(dtype: DType, (k, n): (usize, usize), layout: DenseLayout) -> Result<usize, KernelError> {
        let stored = Self::size(dtype, k, n, None)?;
        let narrow = NarrowSizes::of(dtype, k, n).filter(|_| layout == DenseLayout::Narrow);
        Ok(narrow.map_or(stored, |sizes| sizes.bytes(0)))
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
        &self.data.as_slice()[..self.len]
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
        self.len
    }

    /// How it is laid out.
    pub fn layout(&self) -> DenseLayout {
        if self.narrow.is_some() { DenseLayout::Narrow } else { DenseLayout::Stored }
    }

    /// Bytes of a panel; of most of them, where some are not narrow.
    pub(crate) fn panel_bytes(&self) -> usize {
        self.len / self.out_features.div_ceil(PANEL).max(1)
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
            if let Some(sevens) = &panel.sevens {
                *o = half::bf16::from_bits(narrow::element(panel.bytes, sevens, k, n % PANEL)).to_f32();
                continue;
            }
            let b = &panel.bytes[(k * PANEL + n % PANEL) * size..];
            *o = match self.dtype {
                DType::F16 => half::f16::from_le_bytes([b[0], b[1]]).to_f32(),
                DType::BF16 => half::bf16::from_le_bytes([b[0], b[1]]).to_f32(),
                _ => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            };
        }
    }

    pub(crate) fn panel(&self, p: usize) -> Panel<'_> {
        let stored = self.in_features * PANEL * self.dtype.size();
        let PanelAt { at, sevens } = self.narrow.as_ref().map_or(PanelAt { at: p * stored, sevens: None }, |panels| panels[p]);
        let narrow = narrow::panel_bytes(self.in_features).filter(|_| sevens.is_some());
        Panel { bytes: &self.data()[at..at + narrow.unwrap_or(stored)], sevens }
    }
}

/// The bytes of a narrow weight, and how many of them are in use; none if too many panels cannot be narrow. `fill` gives a
/// panel as it is stored.
fn narrowed<E: Send>(sizes: &NarrowSizes, pool: Option<&Pool>, fill: &Fill<'_, E>) -> Result<Option<(AlignedBytes, usize)>, E> {
    // what is not used of it is never touched, and takes no memory
    let mut data = AlignedBytes::to_fill(sizes.bytes(sizes.most_stored()));
    let tables = Mutex::new(vec![[0; TABLE]; sizes.panels]);
    let stored = Mutex::new(vec![]);
    let panels = &mut data.as_mut_slice()[sizes.tables..][..sizes.panels * sizes.panel];
    each_panel(pool, panels, sizes.panel, &|p, out| {
        if stored.lock().unwrap_or_else(PoisonError::into_inner).len() > sizes.most_stored() {
            return Ok(());
        }
        let mut panel = vec![0; sizes.stored];
        fill(p, &mut panel)?;
        match narrow::encode(&panel, out) {
            Some(sevens) => tables.lock().unwrap_or_else(PoisonError::into_inner)[p] = sevens,
            None => stored.lock().unwrap_or_else(PoisonError::into_inner).push((p, panel)),
        }
        Ok(())
    })?;
    let mut tables = tables.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut stored = stored.into_inner().unwrap_or_else(PoisonError::into_inner);
    if stored.len() > sizes.most_stored() {
        return Ok(None);
    }
    // the same bytes whichever thread came first
    stored.sort_unstable_by_key(|&(p, _)| p);
    let bytes = data.as_mut_slice();
    for (i, (p, panel)) in stored.iter().enumerate() {
        tables[*p][0] = STORED;
        tables[*p][4..8].copy_from_slice(&(i as u32).to_le_bytes());
        bytes[sizes.bytes(i)..][..sizes.stored].copy_from_slice(panel);
    }
    bytes[..sizes.panels * TABLE].copy_from_slice(tables.as_flattened());
    Ok(Some((data, sizes.bytes(stored.len()))))
}
