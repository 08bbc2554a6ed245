//! Activations of one matmul input as integer planes, cut into tiles of rows.

use crate::arch::generic::{DigitOrder, QuantizeArgs};
use crate::arch::{Kernels, band_rows};
use crate::floats::Floats;
use crate::pack::{BlockAt, PackedMatrix, STEP};
use crate::threads::Pool;
use billfish_tensor::ActivationScale;
use std::ops::Range;

/// How precisely activations enter a matmul. A property of the request, the same for every row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Activations {
    /// 16-bit integers per block of 128: closer to f32 than half precision is. The default.
    #[default]
    Exact,
    /// 24-bit integers: as good as f32.
    Strict,
    /// 8-bit integers per block of 128: fast prefill, errors of about one per cent. Weights that are `bf16` take activations
    /// rounded to `bf16`, half a unit of whose last bit is 0.4 per cent.
    Int8,
}

impl Activations {
    /// All of them.
    pub const ALL: [Activations; 3] = [Activations::Exact, Activations::Strict, Activations::Int8];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Activations::Exact => "exact",
            Activations::Strict => "strict",
            Activations::Int8 => "int8",
        }
    }

    /// Planes of signed bytes: how many dot products of bytes one product of an activation and a code takes.
    pub fn planes(self) -> usize {
        match self {
            Activations::Int8 => 1,
            Activations::Exact => 2,
            Activations::Strict => 3,
        }
    }
}

/// What a matmul multiplies: `[M, K]` numbers, as they are or made on their way into integers, which saves a pass over
/// memory. The numbers are those that [`Backend::rms_norm`](crate::Backend::rms_norm) and
/// [`Backend::silu_mul`](crate::Backend::silu_mul) give.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// The rows themselves.
    Rows(&'a [f32]),
    /// Root mean square norms of the rows.
    Normed {
        /// `[M, K]`.
        rows: &'a [f32],
        /// `[K]`.
        weight: &'a [f32],
        /// Added to the mean square.
        eps: f32,
    },
    /// `silu(gate) * up`.
    Gated {
        /// Row i begins at `i * stride`.
        gate: &'a [f32],
        /// The same.
        up: &'a [f32],
        /// From one row to the next, at least K.
        stride: usize,
    },
}

impl<'a> Input<'a> {
    /// Checks that there are `m` rows of `k`.
    pub(crate) fn check(&self, m: usize, k: usize) {
        let fits = match *self {
            Input::Rows(x) => x.len() == m * k,
            Input::Normed { rows, weight, .. } => rows.len() == m * k && weight.len() == k,
            Input::Gated { gate, up, stride } => {
                let needed = m.checked_sub(1).map_or(0, |last| last * stride + k);
                stride >= k && gate.len() >= needed && up.len() >= needed
            }
        };
        assert!(fits, "the input must be [M, K]");
    }

    /// What it takes all of row `i`, of `k` numbers, to know before any of them is made.
    fn of_row(&self, kernels: &Kernels, i: usize, k: usize) -> f32 {
        match *self {
            // SAFETY: the table's instruction set is available.
            Input::Normed { rows, eps, .. } => unsafe { (kernels.inverse_rms)(&rows[i * k..(i + 1) * k], eps) },
            Input::Rows(_) | Input::Gated { .. } => 1.0,
        }
    }

    /// Some columns of a row of `k` numbers, in the front of `room` if they have to be made, and how many floats from each of
    /// them is what should be asked for when it is read, because `next` comes next.
    fn piece<'r>(&self, kernels: &Kernels, piece: &Piece, next: &Piece, k: usize, room: &'r mut [f32]) -> (&'r [f32], isize)
    where
        'a: 'r,
    {
        let Piece { row: i, of_row, ref columns } = *piece;
        let at = i * k + columns.start..i * k + columns.end;
        let room = &mut room[..columns.len()];
        match *self {
            Input::Rows(x) => return (&x[at], piece.to(next, k)),
            // SAFETY: the table's instruction set is available; the kernel checks lengths.
            Input::Normed { rows, weight, .. } => unsafe { (kernels.norm)(&rows[at], of_row, &weight[columns.clone()], room) },
            Input::Gated { gate, up, stride } => {
                let at = i * stride + columns.start..i * stride + columns.end;
                // SAFETY: as above.
                unsafe { (kernels.silu_mul)(&gate[at.clone()], &up[at], piece.to(next, stride), room) };
            }
        }
        (room, 0)
    }

    /// Row `i` in `out`, K floats.
    pub(crate) fn make(&self, kernels: &Kernels, i: usize, out: &mut [f32]) {
        let k = out.len();
        if let Input::Rows(x) = *self {
            out.copy_from_slice(&x[i * k..(i + 1) * k]);
        } else {
            let whole = Piece { row: i, of_row: self.of_row(kernels, i, k), columns: 0..k };
            self.piece(kernels, &whole, &whole, k, out);
        }
    }
}

/// Some columns of a row of an input.
#[derive(Clone)]
struct Piece {
    row: usize,
    /// What [`Input::of_row`] gives for the row.
    of_row: f32,
    columns: Range<usize>,
}

impl Piece {
    /// Floats from here to the other one, where rows begin `stride` apart.
    fn to(&self, other: &Piece, stride: usize) -> isize {
        let at = |piece: &Piece| (piece.row * stride + piece.columns.start).cast_signed();
        at(other).wrapping_sub(at(self))
    }
}

/// Rows `start..start + count` computed by a kernel of `rows >= count` rows; the rest are padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tile {
    pub start: usize,
    pub count: usize,
    pub rows: usize,
    /// Where its rows stand among those of all tiles, padding included.
    pub padded_start: usize,
}

/// Cuts `m` rows into tiles of the sizes that kernels exist for (ascending): as few as possible, evenly filled.
pub(crate) fn tiles(m: usize, sizes: &[usize], out: &mut Vec<Tile>) {
    out.clear();
    add_tiles(0..m, sizes, &mut 0, out);
}

/// Cuts a range of rows likewise and adds its tiles to `out`. `padded` counts the rows of all tiles, padding included.
pub(crate) fn add_tiles(range: Range<usize>, sizes: &[usize], padded: &mut usize, out: &mut Vec<Tile>) {
    let largest = sizes.last().copied().unwrap_or(1);
    let m = range.len();
    let count = m.div_ceil(largest);
    let mut start = 0;
    for i in 0..count {
        // as even as can be, those with a row more first: neighbours of one size are multiplied two by two
        let end = start + (m - start).div_ceil(count - i);
        let rows = sizes.iter().copied().find(|&s| s >= end - start).unwrap_or(largest);
        out.push(Tile { start: range.start + start, count: end - start, rows, padded_start: *padded });
        start = end;
        *padded += rows;
    }
}

/// The tiles of an input.
#[derive(Clone, Copy)]
pub(crate) struct Cut<'a> {
    pub tiles: &'a [Tile],
    pub order: DigitOrder,
}

/// Digits of each row of a tile that are made before those of the next columns: so few that those of all rows, which stand
/// between each other, are in the first cache until all of them are written.
const PIECE: usize = 2048;

/// Rows of the largest tile.
const MAX_ROWS: usize = band_rows(1);

/// Quantized activations; the buffers are kept from call to call.
#[derive(Default)]
pub(crate) struct QuantizedInput {
    pub tiles: Vec<Tile>,
    pub planes: usize,
    /// How the digits stand: for tile kernels or for band kernels.
    pub order: DigitOrder,
    /// Quads of one row and plane.
    pub quads: usize,
    pub blocks: usize,
    /// Rows of all tiles, padding included.
    padded: usize,
    digits: Vec<i32>,
    scales: Vec<f32>,
    sums: Vec<i32>,
    /// Room for a row of each tile, for inputs that have to be made whole.
    rows: Floats,
}

impl QuantizedInput {
    fn sum_kinds(&self) -> usize {
        if self.planes == 3 { 2 } else { 1 }
    }

    /// Quantizes the `m` rows of `x` in the row order and blocks of `weight`.
    pub fn fill(&mut self, kernels: &Kernels, pool: &Pool, weight: &PackedMatrix, x: Input<'_>, m: usize, activations: Activations) {
        self.begin(weight, activations);
        // groups that fill no step are left to the vectors: a tile unit would mostly multiply padding
        let blocks: &[BlockAt] = &weight.blocks;
        let filled = !blocks.is_empty() && blocks.len() * STEP <= weight.in_features.next_multiple_of(STEP);
        if filled && m >= kernels.band_from[self.planes - 1] {
            self.order = DigitOrder::Steps;
            self.quads = self.order.quads(blocks);
        }
        self.cut(kernels, 0..m, None);
        x.check(m, weight.in_features);
        self.quantize(kernels, pool, weight, x, 0..self.tiles.len(), None);
    }

    /// Forgets what it holds and takes the blocks of `weight`; tiles are to be cut next.
    pub fn begin(&mut self, weight: &PackedMatrix, activations: Activations) {
        let blocks: &[BlockAt] = &weight.blocks;
        self.planes = activations.planes();
        self.blocks = blocks.len();
        self.order = DigitOrder::Quads;
        self.quads = self.order.quads(blocks);
        self.padded = 0;
        self.tiles.clear();
    }

    /// Adds tiles that are one row each, for `m` rows that tiles cut later are gathered from.
    pub fn cut_singles(&mut self, m: usize) {
        let padded = self.padded;
        self.tiles.extend((0..m).map(|i| Tile { start: i, count: 1, rows: 1, padded_start: padded + i }));
        self.padded += m;
    }

    /// Cuts a range of rows into tiles and returns which tiles they are. With `singles`, row i is the one that stands in
    /// single tile `singles[i]`, so that a tile of one row is that one and needs no place of its own.
    pub fn cut(&mut self, kernels: &Kernels, rows: Range<usize>, singles: Option<&[u32]>) -> Range<usize> {
        let from = self.tiles.len();
        let bands = [band_rows(self.planes)];
        let sizes: &[usize] = if self.order == DigitOrder::Steps { &bands } else { kernels.tile_rows[self.planes - 1] };
        add_tiles(rows, sizes, &mut self.padded, &mut self.tiles);
        if let Some(singles) = singles {
            for tile in self.tiles[from..].iter_mut().filter(|t| t.rows == 1) {
                tile.padded_start = singles[tile.start] as usize;
            }
        }
        from..self.tiles.len()
    }

    /// Makes room for the rows of all tiles. Stale digits of padding rows are harmless: their results are never read.
    fn make_room(&mut self) {
        grow(&mut self.digits, self.padded * self.planes * self.quads);
        grow(&mut self.scales, self.padded * self.blocks);
        let sum_kinds = self.sum_kinds();
        grow(&mut self.sums, self.padded * self.blocks * sum_kinds);
    }

    /// Quantizes the rows of some tiles in the row order and blocks of `weight`. Row i is row `pick[i]` of `x`, if
    /// there is a `pick`.
    pub fn quantize(
        &mut self,
        kernels: &Kernels,
        pool: &Pool,
        weight: &PackedMatrix,
        x: Input<'_>,
        tiles: Range<usize>,
        pick: Option<&[u32]>,
    ) {
        let k = weight.in_features;
        self.make_room();
        let blocks: &[BlockAt] = &weight.blocks;
        let permutation = weight.order.permutation.as_deref();
        assert!(permutation.is_none_or(|p| p.len() == k), "a permutation has K entries");
        // where a block may want any value of its row, or its scale, the row cannot be taken in pieces
        let in_pieces = permutation.is_none() && (self.planes > 1 || weight.activation_scale == ActivationScale::Block);
        self.rows.room(if in_pieces { 0 } else { tiles.len() * k });
        let (digits, scales, sums) = (Out(self.digits.as_mut_ptr()), Out(self.scales.as_mut_ptr()), Out(self.sums.as_mut_ptr()));
        let rows = Out(self.rows.as_mut_ptr());
        let order = self.order;
        let quantize = kernels.quantize[self.planes - 1];
        let at_once = match blocks.iter().map(|b| b.len).max() {
            Some(largest) if in_pieces => (PIECE / self.planes / largest).max(1),
            _ => blocks.len().max(1),
        };
        let this = &*self;
        let one_tile = |i: usize| {
            let t = this.tiles[tiles.start + i];
            let mut made = [0.0; PIECE];
            // SAFETY: tile `i` alone has these K floats of the room that was sized above.
            let room = if in_pieces { &mut made[..] } else { unsafe { std::slice::from_raw_parts_mut(rows.at(i * k), k) } };
            let source = |row: usize| pick.map_or(t.start + row, |p| p[t.start + row] as usize);
            let mut of_rows = [1.0; MAX_ROWS];
            for (row, of_row) in of_rows.iter_mut().enumerate().take(t.count) {
                *of_row = x.of_row(kernels, source(row), k);
            }
            for (first, blocks) in (0..).step_by(at_once).zip(blocks.chunks(at_once)) {
                let last = &blocks[blocks.len() - 1];
                let columns = if in_pieces { blocks[0].k..last.k + last.len } else { 0..k };
                let piece = |row: usize, columns: &Range<usize>| Piece { row: source(row), of_row: of_rows[row], columns: columns.clone() };
                for row in 0..t.count {
                    let next = if row + 1 < t.count { piece(row + 1, &columns) } else { piece(0, &(columns.end..k)) };
                    let (x, ahead) = x.piece(kernels, &piece(row, &columns), &next, k, room);
                    // SAFETY: the table's instruction set is available; blocks and permutation stay inside `x` by how they
                    // were packed; each tile writes its own part of the three buffers, which were sized just above.
                    unsafe {
                        quantize(&QuantizeArgs {
                            x,
                            permutation,
                            blocks,
                            first,
                            ahead,
                            rows: t.rows,
                            row,
                            scale: weight.activation_scale,
                            order,
                            planes: digits.at(t.padded_start * this.planes * this.quads),
                            scales: scales.at(t.padded_start * this.blocks),
                            sums: sums.at(t.padded_start * this.blocks * this.sum_kinds()),
                        });
                    }
                }
            }
        };
        if this.tiles[tiles.clone()].iter().map(|t| t.count).sum::<usize>() * k < 32_768 {
            (0..tiles.len()).for_each(one_tile);
        } else {
            pool.run(tiles.len(), &one_tile);
        }
    }

    /// Copies rows that stand in single tiles into the tiles that were cut after them: row i from single `singles[i]`.
    pub fn gather(&mut self, pool: &Pool, tiles: Range<usize>, singles: &[u32]) {
        self.make_room();
        let widths = [self.planes * self.quads, self.blocks, self.blocks * self.sum_kinds()];
        let rows = self.tiles[tiles.clone()].iter().filter(|t| t.rows > 1).map(|t| t.count).sum::<usize>();
        let (digits, scales, sums) = (Out(self.digits.as_mut_ptr()), Out(self.scales.as_mut_ptr()), Out(self.sums.as_mut_ptr()));
        let all = &self.tiles[tiles];
        let one_tile = |i: usize| {
            let t = all[i];
            // a tile of one row is the single itself
            for row in 0..if t.rows > 1 { t.count } else { 0 } {
                let single = singles[t.start + row] as usize;
                // SAFETY: both lie in the buffers, whose size counts every tile; singles are only read here, and each
                // tile of several rows is written by its own call.
                unsafe {
                    spread(digits.at(single * widths[0]), digits.at(t.padded_start * widths[0] + row), widths[0], t.rows);
                    spread(scales.at(single * widths[1]), scales.at(t.padded_start * widths[1] + row), widths[1], t.rows);
                    spread(sums.at(single * widths[2]), sums.at(t.padded_start * widths[2] + row), widths[2], t.rows);
                }
            }
        };
        if rows * widths[0] < 32_768 {
            (0..all.len()).for_each(one_tile);
        } else {
            pool.run(all.len(), &one_tile);
        }
    }

    /// Its tiles and how their digits stand.
    pub fn cut_tiles(&self) -> Cut<'_> {
        Cut { tiles: &self.tiles, order: self.order }
    }

    /// Digits, scales and sums of a tile.
    pub fn tile(&self, t: &Tile) -> (&[i32], &[f32], &[i32]) {
        (
            &self.digits[t.padded_start * self.planes * self.quads..],
            &self.scales[t.padded_start * self.blocks..],
            &self.sums[t.padded_start * self.blocks * self.sum_kinds()..],
        )
    }
}

/// Copies `len` elements to every `step`th place.
///
/// # Safety
/// Both must be valid for as many elements as that touches, and must not overlap.
unsafe fn spread<T: Copy>(from: *const T, to: *mut T, len: usize, step: usize) {
    for i in 0..len {
        // SAFETY: the caller's.
        unsafe { *to.add(i * step) = *from.add(i) };
    }
}

/// Makes room for `len` elements; what a buffer once had it keeps.
pub(crate) fn grow<T: Default + Clone>(v: &mut Vec<T>, len: usize) {
    if v.len() < len {
        v.resize(len, T::default());
    }
}

/// A pointer that threads may share because each writes its own part.
#[derive(Clone, Copy)]
pub(crate) struct Out<T>(pub *mut T);

// SAFETY: only a way to hand out addresses; every user states why its writes do not overlap.
unsafe impl<T: Send> Send for Out<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Out<T> {}

impl<T> Out<T> {
    /// The address of element `i`.
    pub fn at(&self, i: usize) -> *mut T {
        self.0.wrapping_add(i)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_all_rows_once() {
        let mut out = vec![];
        for sizes in [&[1, 4][..], &[1, 2, 4, 6, 8, 10, 12], &[1]] {
            for m in 0..70 {
                out.clear();
                let mut padded = 5;
                add_tiles(3..3 + m, sizes, &mut padded, &mut out);
                let mut next = (3, 5);
                for t in &out {
                    assert_eq!((t.start, t.padded_start), next);
                    assert!(t.count >= 1 && t.count <= t.rows && sizes.contains(&t.rows));
                    next = (t.start + t.count, t.padded_start + t.rows);
                }
                assert_eq!(next, (3 + m, padded));
            }
        }
    }
}
