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
use crate::stored::Stored;
use crate::threads::Pool;
use billfish_tensor::{ActivationScale, Codes, DType, QuantMatrix, RowOrder, ScaleValues, Zeros};
use std::ops::Range;
use std::sync::Arc;

/// Columns of a panel.
pub(crate) const PANEL: usize = 64;
/// Most rows of a block: the activations have one scale a block, and 128 products of two bytes stay far inside an `i32`.
pub(crate) const BLOCK: usize = 128;
/// Strips of columns that each thread packs: enough to balance.
const STRIPS: usize = 4;

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

impl ScaleKind {
    fn dtype(self) -> DType {
        match self {
            ScaleKind::F16 => DType::F16,
            ScaleKind::BF16 => DType::BF16,
            ScaleKind::F32 => DType::F32,
        }
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

/// Number of the layout of packed bytes, of both kinds of weights. It changes when a byte of them changes its meaning.
pub const LAYOUT: u32 = 2;

/// What a [`PackedMatrix`] is besides its bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// K.
    pub in_features: usize,
    /// N.
    pub out_features: usize,
    /// Width of a code as the file had it.
    pub bits: u32,
    /// Type of the scales.
    pub scales: DType,
    /// Bytes of a zero point; 0 if all are the midpoint.
    pub zero_bytes: usize,
    /// The order of the rows.
    pub order: RowOrder,
    /// The scale that 8-bit activations have.
    pub activation_scale: ActivationScale,
    /// `[N]`.
    pub bias: Option<Vec<f32>>,
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
    data: Stored,
    pub(crate) bias: Option<Vec<f32>>,
}

impl PackedMatrix {
    /// Packs `m` on this thread. Besides the result it needs K bytes for each column of a panel, never a dequantized or a
    /// byte-wide copy of the matrix.
    ///
    /// # Errors
    /// [`KernelError::Shape`] if the packed size overflows.
    pub fn new(m: &QuantMatrix) -> Result<Self, KernelError> {
        let (mut packed, mut data) = Self::empty(m)?;
        packed.fill(m, 0, data.as_mut_slice());
        packed.data = Stored::own(data);
        Ok(packed)
    }

    /// The same on all threads of `pool`, strips of columns at once.
    ///
    /// # Errors
    /// As [`PackedMatrix::new`].
    pub fn packed_by(m: &QuantMatrix, pool: &Pool) -> Result<Self, KernelError> {
        let (mut packed, mut data) = Self::empty(m)?;
        let panels = packed.out_features.div_ceil(PANEL);
        let strip = panels.div_ceil(STRIPS * pool.threads());
        pool.chunks_mut(data.as_mut_slice(), strip * packed.panel_bytes, &|i, panels| packed.fill(m, i * strip, panels));
        packed.data = Stored::own(data);
        Ok(packed)
    }

    /// The matrix without its data, and room for them.
    fn empty(m: &QuantMatrix) -> Result<(Self, AlignedBytes), KernelError> {
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
        let packed = Self {
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
            data: Stored::own(AlignedBytes::zeroed(0)),
            bias: m.bias().map(<[f32]>::to_vec),
        };
        Ok((packed, AlignedBytes::to_fill(total)))
    }

    /// Columns of panel `p`.
    fn columns(&self, p: usize) -> Range<usize> {
        p * PANEL..self.out_features.min((p + 1) * PANEL)
    }

    /// Writes the panels from `first` on. Where words are turned, the panels take turns at each block: so rows of words
    /// are read along, not down.
    fn fill(&self, m: &QuantMatrix, first: usize, panels: &mut [u8]) {
        let groups = self.groups();
        if let Some(words) = self.words_in_order(m) {
            for (i, block) in self.blocks.iter().enumerate() {
                for (p, panel) in panels.chunks_exact_mut(self.panel_bytes).enumerate() {
                    let cols = self.columns(first + p);
                    if let Some(group) = groups[i] {
                        self.fill_head(m, group, cols.clone(), &mut panel[block.head..]);
                    }
                    self.turn_words(block, words, cols, &mut panel[block.data..]);
                }
            }
            return;
        }
        // all rows of a panel's columns as bytes: K * 64
        let mut codes = vec![];
        for (p, panel) in panels.chunks_exact_mut(self.panel_bytes).enumerate() {
            let cols = self.columns(first + p);
            let width = cols.len();
            codes.resize(self.in_features * width, 0);
            for (i, rows) in codes.chunks_mut(32 * width).enumerate() {
                m.codes().unpack_rows(m.bits(), self.out_features, 32 * i, cols.clone(), rows);
            }
            for (block, group) in self.blocks.iter().zip(&groups) {
                if let Some(group) = *group {
                    self.fill_head(m, group, cols.clone(), &mut panel[block.head..]);
                }
                self.fill_block(block, &codes, width, &mut panel[block.data..]);
            }
        }
    }

    /// The group of each block that is the first of one, and so has its head before it.
    fn groups(&self) -> Vec<Option<usize>> {
        let mut groups = self.order.group_rows.iter().enumerate().filter(|(_, rows)| **rows > 0).map(|(g, _)| g);
        let mut head_done = usize::MAX;
        let first = |b: &BlockAt| std::mem::replace(&mut head_done, b.head) != b.head;
        self.blocks.iter().map(first).map(|first| if first { groups.next() } else { None }).collect()
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
    fn turn_words(&self, block: &BlockAt, words: &[u32], cols: Range<usize>, data: &mut [u8]) {
        match self.panel_bits {
            2 => self.turn_words_with(block, words, cols, data, turn_2),
            4 => self.turn_words_with(block, words, cols, data, turn_4),
            _ => self.turn_words_with(block, words, cols, data, |w| w),
        }
    }

    fn turn_words_with(&self, block: &BlockAt, words: &[u32], cols: Range<usize>, data: &mut [u8], turn: impl Fn(u32) -> u32) {
        let first = block.k / chunk_shape(self.panel_bits).0;
        for (c, chunk) in data.as_chunks_mut::<{ 4 * PANEL }>().0.iter_mut().enumerate().take(block.chunks) {
            let row = &words[(first + c) * self.out_features..][cols.clone()];
            for (lane, word) in chunk.as_chunks_mut::<4>().0.iter_mut().zip(row) {
                *lane = turn(*word).to_le_bytes();
            }
        }
    }

    fn fill_head(&self, m: &QuantMatrix, group: usize, cols: Range<usize>, head: &mut [u8]) {
        let (width, at) = (cols.len(), group * self.out_features + cols.start);
        let (scales, zeros) = head.split_at_mut(PANEL * self.scale.bytes());
        m.scales().copy_le(at..at + width, &mut scales[..width * self.scale.bytes()]);
        let Zeros::PerGroup(values) = m.zeros() else { return };
        let values = &values[at..at + width];
        match self.zero {
            ZeroKind::Midpoint(_) => {}
            ZeroKind::U8 => zeros.iter_mut().zip(values).for_each(|(o, &z)| *o = z as u8),
            ZeroKind::U16 => zeros.as_chunks_mut::<2>().0.iter_mut().zip(values).for_each(|(o, &z)| *o = z.to_le_bytes()),
        }
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

    /// The packed bytes.
    pub fn data(&self) -> &[u8] {
        self.data.as_slice()
    }

    /// What it is besides its bytes.
    pub fn description(&self) -> Description {
        Description {
            in_features: self.in_features,
            out_features: self.out_features,
            bits: self.bits,
            scales: self.scale.dtype(),
            zero_bytes: self.zero.bytes(),
            order: RowOrder::clone(&self.order),
            activation_scale: self.activation_scale,
            bias: self.bias.clone(),
        }
    }

    /// The matrix that was described so, of bytes that were packed before. All that kernels rely on is checked: sizes, the
    /// order of rows, and that there are as many bytes as they read.
    ///
    /// # Errors
    /// [`KernelError::Shape`] naming what does not fit.
    pub fn restore(description: Description, data: Stored) -> Result<Self, KernelError> {
        let Description { in_features: k, out_features: n, bits, scales, zero_bytes, order, activation_scale, bias } = description;
        let wrong = |reason: String| KernelError::Shape { in_features: k, out_features: n, reason };
        if !(2..=8).contains(&bits) || k == 0 || n == 0 || k > u32::MAX as usize || n > u32::MAX as usize {
            return Err(wrong(format!("K and N from 1 to 2^32 - 1 and 2 to 8 bits were expected, found {bits} bits")));
        }
        let scale = match scales {
            DType::F16 => ScaleKind::F16,
            DType::BF16 => ScaleKind::BF16,
            DType::F32 => ScaleKind::F32,
            other => return Err(wrong(format!("scales of {other}"))),
        };
        let zero = match zero_bytes {
            0 => ZeroKind::Midpoint(1 << (bits - 1)),
            1 => ZeroKind::U8,
            2 => ZeroKind::U16,
            other => return Err(wrong(format!("zero points of {other} bytes"))),
        };
        // before anything is as large as K: every row has its codes in a panel
        if data.as_slice().len() / (PANEL * panel_bits(bits) as usize / 8) < k {
            return Err(wrong(format!("{} bytes of packed codes are too few", data.as_slice().len())));
        }
        check_order(&order, k).map_err(wrong)?;
        if bias.as_ref().is_some_and(|b| b.len() != n || b.iter().any(|v| !v.is_finite())) {
            return Err(wrong("a bias must have N finite elements".into()));
        }
        let (blocks, panel_bytes) = layout(&order, panel_bits(bits), PANEL * (scale.bytes() + zero.bytes()));
        if n.div_ceil(PANEL).checked_mul(panel_bytes) != Some(data.as_slice().len()) {
            return Err(wrong(format!("{} bytes of packed codes are not {} panels", data.as_slice().len(), n.div_ceil(PANEL))));
        }
        let (panel_bits, order) = (panel_bits(bits), Arc::new(order));
        Ok(Self {
            in_features: k,
            out_features: n,
            bits,
            panel_bits,
            scale,
            zero,
            order,
            activation_scale,
            blocks,
            panel_bytes,
            data,
            bias,
        })
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

/// Checks that an order is one of `k` rows.
fn check_order(order: &RowOrder, k: usize) -> Result<(), String> {
    let rows: u64 = order.group_rows.iter().map(|&r| u64::from(r)).sum();
    if rows != k as u64 {
        return Err(format!("the groups have {rows} rows"));
    }
    let Some(permutation) = &order.permutation else { return Ok(()) };
    let mut seen = vec![false; k];
    let once = |&row: &u32| seen.get_mut(row as usize).is_some_and(|seen| !std::mem::replace(seen, true));
    if permutation.len() != k || !permutation.iter().all(once) {
        return Err("the order of rows is no permutation".into());
    }
    Ok(())
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
