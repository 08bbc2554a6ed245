//! The one weight layout: K4N16 lines in panels of 64 columns.
//!
//! ```text
//! panel  = 64 columns, one linear stream: [group]{ head | blocks }
//! head   = 64 scales in their stored precision | 64 zero points (absent when all are the midpoint)
//! block  = at most 128 rows of one group: [chunk][v = 0..4][line of the chunk]
//! line   = 64 bytes: dword lane n = column 16 v + n, byte j of the lane = row 4 i + j of the chunk's quads i
//! ```
//!
//! | bits | lines | rows of a chunk | byte of a line, `q_i` = code of quad i |
//! |---|---|---|---|
//! | 8 (and 5, 6, 7) | 1 | 4 | `q_0` |
//! | 4 | 1 | 8 | `q_0 \| q_1 << 4` |
//! | 2 | 1 | 16 | `q_0 \| q_1 << 2 \| q_2 << 4 \| q_3 << 6` |
//! | 3 | 3 | 32 | `L0 = q_0 \| q_1 << 3 \| (q_6 & 3) << 6`, `L1 = q_2 \| q_3 << 3 \| (q_7 & 3) << 6`, `L2 = q_4 \| q_5 << 3 \| (q_6 >> 2) << 6 \| (q_7 >> 2) << 7` |
//!
//! Rows stand in group order (a stable sort by group; the activations are permuted alike), so any `g_idx` is contiguous
//! groups. A block that is not a whole number of chunks is padded with code 0, which meets activation 0; missing columns
//! of the last panel are padded too. Any K, N and group size fits.

use crate::KernelError;
use crate::aligned::AlignedBytes;
use billfish_tensor::{ActivationScale, Codes, DType, DenseTensor, QuantMatrix, RowOrder, ScaleValues, Zeros};
use rayon::prelude::*;
use std::sync::Arc;

/// Columns of a panel.
pub(crate) const PANEL: usize = 64;
/// Most rows of a block: the activations have one scale a block, and 128 products of two bytes stay far inside an `i32`.
pub(crate) const BLOCK: usize = 128;

/// How scales are stored in a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScaleKind {
    F16,
    BF16,
    F32,
}

impl ScaleKind {
    /// Bytes of one scale.
    pub fn bytes(self) -> usize {
        if self == ScaleKind::F32 { 4 } else { 2 }
    }
}

/// How zero points are stored in a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ZeroKind {
    /// Not at all: this value everywhere.
    Midpoint(u16),
    /// One byte each.
    U8,
    /// Two bytes each (8-bit codes with a zero point of 256).
    U16,
}

impl ZeroKind {
    fn bytes(self) -> usize {
        match self {
            ZeroKind::Midpoint(_) => 0,
            ZeroKind::U8 => 1,
            ZeroKind::U16 => 2,
        }
    }
}

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockAt {
    /// First row, in group order.
    pub k: usize,
    /// Rows.
    pub len: usize,
    /// Chunks of weights.
    pub chunks: usize,
    /// Byte offset of the group's head in the panel.
    pub head: usize,
    /// Byte offset of the block's first line in the panel.
    pub data: usize,
    /// Quads of activations before this block (each block takes [`BlockAt::padded_quads`]).
    pub x_quads: usize,
    /// Steps of a tile unit before this block (each block takes [`BlockAt::steps`]).
    pub x_steps: usize,
}

/// Rows of weights that a tile unit takes in a step: sixteen quads, which every chunk size divides.
pub(crate) const STEP: usize = 64;

impl BlockAt {
    /// Quads of activations of this block: whole runs of 32 rows, which every chunk size divides.
    pub fn padded_quads(&self) -> usize {
        self.len.div_ceil(32) * 8
    }

    /// Steps of a tile unit.
    pub fn steps(&self) -> usize {
        self.len.div_ceil(STEP)
    }
}

/// Width of a panel's codes: 5, 6 and 7 bits use the 8-bit panel.
pub(crate) fn panel_bits(bits: u32) -> u32 {
    if bits > 4 { 8 } else { bits }
}

/// Name of the layout that codes of `bits` bits are packed into, for reports.
pub fn kernel_name(bits: u32) -> &'static str {
    match panel_bits(bits) {
        2 => "k4n16-w2",
        3 => "k4n16-w3",
        4 => "k4n16-w4",
        _ => "k4n16-w8",
    }
}

/// Rows of a chunk and lines of a chunk.
fn chunk_shape(panel_bits: u32) -> (usize, usize) {
    match panel_bits {
        2 => (16, 1),
        3 => (32, 3),
        4 => (8, 1),
        _ => (4, 1),
    }
}

/// A quantized weight in kernel layout.
pub struct PackedMatrix {
    pub(crate) in_features: usize,
    pub(crate) out_features: usize,
    bits: u32,
    pub(crate) panel_bits: u32,
    pub(crate) scale: ScaleKind,
    pub(crate) zero: ZeroKind,
    pub(crate) order: Arc<RowOrder>,
    pub(crate) activation_scale: ActivationScale,
    pub(crate) blocks: Vec<BlockAt>,
    pub(crate) panel_bytes: usize,
    data: AlignedBytes,
    pub(crate) bias: Option<Vec<f32>>,
}

impl PackedMatrix {
    /// Packs `m`, strips of columns in parallel. Besides the result it needs K bytes for each column of the strips in
    /// work, never a dequantized or a byte-wide copy of the matrix.
    ///
    /// # Errors
    /// [`KernelError::Shape`] if the packed size overflows.
    pub fn new(m: &QuantMatrix) -> Result<Self, KernelError> {
        let (k, n) = (m.in_features(), m.out_features());
        let overflow = || KernelError::Shape { in_features: k, out_features: n, reason: "the packed size does not fit in memory".into() };
        let scale = match m.scales() {
            ScaleValues::F16(_) => ScaleKind::F16,
            ScaleValues::BF16(_) => ScaleKind::BF16,
            ScaleValues::F32(_) => ScaleKind::F32,
        };
        let zero = match m.zeros() {
            Zeros::Midpoint => ZeroKind::Midpoint(1 << (m.bits() - 1)),
            Zeros::PerGroup(z) if z.iter().any(|&z| z > 255) => ZeroKind::U16,
            Zeros::PerGroup(_) => ZeroKind::U8,
        };
        let order = m.row_order();
        let panel_bits = panel_bits(m.bits());
        let (blocks, panel_bytes) = layout(&order, panel_bits, PANEL * (scale.bytes() + zero.bytes()));
        let panels = n.div_ceil(PANEL);
        let total = panels.checked_mul(panel_bytes).filter(|&t| t <= isize::MAX as usize).ok_or_else(overflow)?;
        let mut data = AlignedBytes::zeroed(total);
        let mut packed = Self {
            in_features: k,
            out_features: n,
            bits: m.bits(),
            panel_bits,
            scale,
            zero,
            order: Arc::new(order),
            activation_scale: m.activation_scale(),
            blocks,
            panel_bytes,
            data: AlignedBytes::zeroed(0),
            bias: m.bias().map(<[f32]>::to_vec),
        };
        data.as_mut_slice().par_chunks_mut(panel_bytes).enumerate().for_each(|(p, panel)| packed.fill_panel(m, p, panel));
        packed.data = data;
        Ok(packed)
    }

    /// Writes panel `p`.
    fn fill_panel(&self, m: &QuantMatrix, p: usize, panel: &mut [u8]) {
        let (k, n) = (self.in_features, self.out_features);
        let cols = p * PANEL..n.min((p + 1) * PANEL);
        let width = cols.len();
        let words = self.words_in_order(m);
        // all rows of these columns as bytes: K * 64
        let mut codes = vec![0u8; if words.is_some() { 0 } else { k * width }];
        for k0 in (0..if words.is_some() { 0 } else { k }).step_by(32) {
            let rows = (k - k0).min(32);
            m.codes().unpack_rows(m.bits(), n, k0, cols.clone(), &mut codes[k0 * width..(k0 + rows) * width]);
        }
        let mut head_done = usize::MAX;
        let mut group = 0;
        let mut rows_left = 0;
        for block in &self.blocks {
            if block.head != head_done {
                while rows_left == 0 {
                    rows_left = self.order.group_rows[group] as usize;
                    group += 1;
                }
                self.fill_head(m, group - 1, cols.clone(), &mut panel[block.head..]);
                head_done = block.head;
            }
            rows_left -= block.len;
            match words {
                Some(words) => self.turn_words(block, words, cols.clone(), &mut panel[block.data..]),
                None => self.fill_block(block, &codes, width, &mut panel[block.data..]),
            }
        }
    }

    /// The words of the codes, if each holds the rows of one chunk: rows stand as they are, and every block begins and
    /// ends with a word.
    fn words_in_order<'m>(&self, m: &'m QuantMatrix) -> Option<&'m [u32]> {
        let Codes::Words { words, .. } = m.codes() else { return None };
        let rows = chunk_shape(self.panel_bits).0;
        let whole = self.blocks.iter().all(|b| b.k.is_multiple_of(rows) && b.len.is_multiple_of(rows));
        // where 32 is a multiple of the width, both packings put 32 / width codes of a column into a word, in order
        (matches!(m.bits(), 2 | 4 | 8) && self.order.permutation.is_none() && whole).then_some(words)
    }

    /// Writes the chunks of a block from words that hold one chunk of a column each.
    fn turn_words(&self, block: &BlockAt, words: &[u32], cols: std::ops::Range<usize>, data: &mut [u8]) {
        match self.panel_bits {
            2 => self.turn_words_with(block, words, cols, data, turn_2),
            4 => self.turn_words_with(block, words, cols, data, turn_4),
            _ => self.turn_words_with(block, words, cols, data, |w| w),
        }
    }

    fn turn_words_with(&self, block: &BlockAt, words: &[u32], cols: std::ops::Range<usize>, data: &mut [u8], turn: impl Fn(u32) -> u32) {
        let first = block.k / chunk_shape(self.panel_bits).0;
        for (c, chunk) in data.as_chunks_mut::<{ 4 * PANEL }>().0.iter_mut().enumerate().take(block.chunks) {
            let row = &words[(first + c) * self.out_features..][cols.clone()];
            for (lane, word) in chunk.as_chunks_mut::<4>().0.iter_mut().zip(row) {
                *lane = turn(*word).to_le_bytes();
            }
        }
    }

    fn fill_head(&self, m: &QuantMatrix, group: usize, cols: std::ops::Range<usize>, head: &mut [u8]) {
        let mut scales = Vec::with_capacity(PANEL * self.scale.bytes());
        for (i, col) in cols.enumerate() {
            m.scales().put_le(group * self.out_features + col, &mut scales);
            let z = m.zero(group, col).to_le_bytes();
            let place = PANEL * self.scale.bytes() + i * self.zero.bytes();
            head[place..place + self.zero.bytes()].copy_from_slice(&z[..self.zero.bytes()]);
        }
        head[..scales.len()].copy_from_slice(&scales);
    }

    fn fill_block(&self, block: &BlockAt, codes: &[u8], width: usize, data: &mut [u8]) {
        match self.panel_bits {
            2 => self.fill_block_of::<2>(block, codes, width, data),
            3 => self.fill_block_of::<3>(block, codes, width, data),
            4 => self.fill_block_of::<4>(block, codes, width, data),
            _ => self.fill_block_of::<8>(block, codes, width, data),
        }
    }

    fn fill_block_of<const BITS: u32>(&self, block: &BlockAt, codes: &[u8], width: usize, data: &mut [u8]) {
        let (rows, lines) = chunk_shape(BITS);
        // row `i` of the block over the panel's columns; rows and columns that are not there hold code 0
        let row = |i: usize| {
            let mut out = [0u8; PANEL];
            if i < block.len {
                let k = self.order.permutation.as_ref().map_or(block.k + i, |p| p[block.k + i] as usize);
                out[..width].copy_from_slice(&codes[k * width..(k + 1) * width]);
            }
            out
        };
        for (c, chunk) in data.chunks_exact_mut(4 * lines * 64).enumerate().take(block.chunks) {
            for j in 0..4 {
                let q: [[u8; PANEL]; 8] = std::array::from_fn(|i| if 4 * i < rows { row(c * rows + 4 * i + j) } else { [0; PANEL] });
                for (v, group) in chunk.chunks_exact_mut(lines * 64).enumerate() {
                    for (l, line) in group.as_chunks_mut::<64>().0.iter_mut().enumerate() {
                        for lane in 0..16 {
                            let q = |i: usize| q[i][16 * v + lane];
                            line[4 * lane + j] = match (BITS, l) {
                                (2, _) => q(0) | q(1) << 2 | q(2) << 4 | q(3) << 6,
                                (3, 0) => q(0) | q(1) << 3 | (q(6) & 3) << 6,
                                (3, 1) => q(2) | q(3) << 3 | (q(7) & 3) << 6,
                                (3, _) => q(4) | q(5) << 3 | (q(6) >> 2) << 6 | (q(7) >> 2) << 7,
                                (4, _) => q(0) | q(1) << 4,
                                _ => q(0),
                            };
                        }
                    }
                }
            }
        }
    }

    /// K: length of the input vector.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// N: length of the output vector.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Width of a code as the file had it.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// Bytes that the packed weight takes.
    pub fn bytes(&self) -> usize {
        self.data.as_slice().len()
    }

    /// Name of the kernel's layout, for reports.
    pub fn kernel(&self) -> &'static str {
        kernel_name(self.bits)
    }

    /// Whether its activations, made integers, serve `other` too.
    pub(crate) fn shares_input(&self, other: &PackedMatrix) -> bool {
        Arc::ptr_eq(&self.order, &other.order) && self.activation_scale == other.activation_scale
    }

    /// The scale that 8-bit activations have.
    pub fn activation_scale(&self) -> ActivationScale {
        self.activation_scale
    }

    /// Takes over `other`'s row order if it is equal, so that modules with one input share one permutation and their
    /// activations are quantized once.
    pub fn share_order(&mut self, other: &PackedMatrix) {
        if self.order == other.order {
            self.order = Arc::clone(&other.order);
        }
    }

    /// First byte of panel `p`.
    pub(crate) fn panel(&self, p: usize) -> &[u8] {
        &self.data.as_slice()[p * self.panel_bytes..(p + 1) * self.panel_bytes]
    }
}

/// Eight codes of 4 bits in order of their rows, as a lane: byte j is row j and, above it, row 4 + j.
fn turn_4(w: u32) -> u32 {
    let low = (w & 0xf) | (w & 0xf0) << 4 | (w & 0xf00) << 8 | (w & 0xf000) << 12;
    let high = (w >> 12 & 0xf0) | (w >> 8 & 0xf000) | (w >> 4 & 0x00f0_0000) | (w & 0xf000_0000);
    low | high
}

/// Sixteen codes of 2 bits in order of their rows, as a lane: byte j is rows j, 4 + j, 8 + j and 12 + j. Byte i and field j
/// change places: a square of four by four fields is turned over, first in halves, then in the halves of each.
fn turn_2(w: u32) -> u32 {
    let swap = |w: u32, mask: u32, by: u32| {
        let t = (w ^ w >> by) & mask;
        w ^ t ^ t << by
    };
    swap(swap(w, 0x0000_f0f0, 12), 0x00cc_00cc, 6)
}

/// Blocks of a panel and its bytes.
fn layout(order: &RowOrder, panel_bits: u32, head_bytes: usize) -> (Vec<BlockAt>, usize) {
    let (chunk_rows, chunk_lines) = chunk_shape(panel_bits);
    let (mut blocks, mut k, mut at, mut x_quads, mut x_steps) = (vec![], 0, 0, 0, 0);
    for &rows in order.group_rows.iter().filter(|&&r| r > 0) {
        let head = at;
        at += head_bytes.next_multiple_of(64);
        let end = k + rows as usize;
        while k < end {
            let len = (end - k).min(BLOCK);
            let chunks = len.div_ceil(chunk_rows);
            let block = BlockAt { k, len, chunks, head, data: at, x_quads, x_steps };
            at += chunks * 4 * chunk_lines * 64;
            x_quads += block.padded_quads();
            x_steps += block.steps();
            blocks.push(block);
            k += len;
        }
    }
    (blocks, at)
}

/// Writes up to 64 rows of `k` elements of `SIZE` bytes as `[k][64]`, some columns at a time so that both sides stay in cache.
fn transpose<const SIZE: usize>(rows: &[u8], k: usize, panel: &mut [u8]) {
    const STRETCH: usize = 32;
    let out = panel.as_chunks_mut::<SIZE>().0;
    for k0 in (0..k).step_by(STRETCH) {
        for (i, row) in rows.chunks_exact(k * SIZE).enumerate() {
            let stretch = &row.as_chunks::<SIZE>().0[k0..k.min(k0 + STRETCH)];
            for (kk, element) in stretch.iter().enumerate() {
                out[(k0 + kk) * PANEL + i] = *element;
            }
        }
    }
}

/// A dense weight in kernel layout: panels of 64 columns, `[K][64]` elements in their stored precision.
pub struct PackedDense {
    pub(crate) in_features: usize,
    pub(crate) out_features: usize,
    pub(crate) dtype: DType,
    data: AlignedBytes,
    pub(crate) bias: Option<Vec<f32>>,
}

impl PackedDense {
    /// Packs a weight stored `[N, K]`, as files store dense linear layers and embeddings.
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
        let wrong = |reason: String| KernelError::Shape { in_features: k, out_features: n, reason };
        if k == 0 || n == 0 {
            return Err(wrong("K and N must be at least 1".into()));
        }
        if let Some(b) = bias.as_ref().filter(|b| b.len() != n) {
            return Err(wrong(format!("a bias of {} elements", b.len())));
        }
        let size = weight.dtype().size();
        let panel_bytes = k * PANEL * size;
        let total = n.div_ceil(PANEL).checked_mul(panel_bytes).filter(|&t| t <= isize::MAX as usize);
        let mut data = AlignedBytes::zeroed(total.ok_or_else(|| wrong("the packed size does not fit in memory".into()))?);
        let source = weight.bytes();
        data.as_mut_slice().par_chunks_mut(panel_bytes).enumerate().for_each(|(p, panel)| {
            let rows = &source[p * PANEL * k * size..n.min((p + 1) * PANEL) * k * size];
            match size {
                2 => transpose::<2>(rows, k, panel),
                _ => transpose::<4>(rows, k, panel),
            }
        });
        Ok(Self { in_features: k, out_features: n, dtype: weight.dtype(), data, bias })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The two that turn words over against the definition of a line, for words in which every field differs.
    #[test]
    fn words_become_lanes() {
        let mut w = 0x9e37_79b9u32;
        for _ in 0..1000 {
            w = w.wrapping_mul(0x85eb_ca6b).rotate_left(13).wrapping_add(1);
            let row = |bits: u32, r: u32| w >> (bits * r) & ((1 << bits) - 1);
            let lane = |bits: u32, of_byte: &dyn Fn(u32) -> Vec<u32>| {
                (0..4).fold(0, |lane, j| {
                    lane | of_byte(j).iter().enumerate().fold(0, |b, (i, &r)| b | row(bits, r) << (bits * i as u32)) << (8 * j)
                })
            };
            assert_eq!(turn_4(w), lane(4, &|j| vec![j, 4 + j]));
            assert_eq!(turn_2(w), lane(2, &|j| vec![j, 4 + j, 8 + j, 12 + j]));
        }
    }
}
