//! Products of `f64` matrices: not for running a model, but for the Hessians and factorizations of its quantizers.

use crate::activations::Out;
use crate::arch::generic::GemmArgs;
use crate::backend::Backend;

/// A matrix to read: element `(r, c)` is `data[r * row_stride + c * column_stride]`, so that a transpose is a view.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f64],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A matrix whose rows begin `stride` elements apart.
    ///
    /// # Panics
    /// If it does not lie inside `data`.
    pub fn new(data: &'a [f64], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(
            rows == 0 || columns == 0 || (columns <= stride && (rows - 1) * stride + columns <= data.len()),
            "a matrix inside its data"
        );
        Self { data, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// Its transpose.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    #[cfg(test)]
    fn at(&self, r: usize, c: usize) -> f64 {
        self.data[r * self.row_stride + c * self.column_stride]
    }
}

/// Which elements of a result are wanted; the others may or may not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of them.
    All,
    /// Those on and below the diagonal.
    Lower,
}

/// Terms that are summed before the next rows and columns come: slices of both factors fit the second cache.
const DEPTH: usize = 256;
/// Rows of a piece of work, if there is enough for all threads: their slice of the left factor fits the second cache.
const ROWS: usize = 256;
/// Columns of a piece: the more, the less often the left factor is packed. What they read goes through the first cache once.
const COLUMNS: usize = 1024;

impl Backend {
    /// `c += alpha · a · b`: `a` is `[m, k]`, `b` is `[k, n]`, `c` holds `m` rows of `n`, `stride` elements apart.
    ///
    /// Each element is one chain of fused multiply-adds over ascending `k`; its bits depend neither on the threads nor on
    /// the instruction set nor on the part that is asked for.
    ///
    /// # Panics
    /// If the sizes do not fit.
    pub fn gemm(&self, alpha: f64, a: Matrix<'_>, b: Matrix<'_>, c: &mut [f64], stride: usize, part: Part) {
        let (m, n, depth) = (a.rows, b.columns, a.columns);
        assert_eq!(depth, b.rows, "as many columns as rows");
        if m == 0 || n == 0 {
            return;
        }
        assert!(n <= stride && (m - 1) * stride + n <= c.len(), "c holds the result");
        let (mut height, mut width) = (ROWS, COLUMNS);
        while height > 64 && m.div_ceil(height) * n.div_ceil(width) < 4 * self.threads() {
            (height, width) = if width > height { (height, width / 2) } else { (height / 2, width / 2) };
        }
        let piece = |i: usize, j: usize| {
            let rows = (i * height, (i * height + height).min(m));
            // of a lower half, nothing behind the last row's diagonal
            let end = if part == Part::Lower { n.min(rows.1) } else { n };
            Piece { rows, columns: (j * width, (j * width + width).min(end)), part }
        };
        let all = (0..m.div_ceil(height)).flat_map(|i| (0..n.div_ceil(width)).map(move |j| piece(i, j)));
        let pieces: Vec<Piece> = all.filter(|p| p.columns.0 < p.columns.1).collect();
        let out = Out(c.as_mut_ptr());
        self.pool().run(pieces.len(), &|p| self.piece(alpha, a, b, out, stride, &pieces[p], depth));
    }

    #[allow(clippy::too_many_arguments)] // what a piece of a product is made of
    fn piece(&self, alpha: f64, a: Matrix<'_>, b: Matrix<'_>, c: Out<f64>, stride: usize, piece: &Piece, depth: usize) {
        let (mr, nr) = self.kernels.gemm_tile;
        let (rows, columns) = (piece.rows.1 - piece.rows.0, piece.columns.1 - piece.columns.0);
        let mut left = vec![0.0; rows.next_multiple_of(mr) * DEPTH.min(depth)];
        let mut right = vec![0.0; columns.next_multiple_of(nr) * DEPTH.min(depth)];
        let mut edge = vec![0.0; mr * nr];
        for from in (0..depth).step_by(DEPTH) {
            let k = DEPTH.min(depth - from);
            // slices of `mr` rows and `nr` columns, `k` apart; what is missing at the edges stays 0
            pack(&mut left, mr, a.transposed(), (from, k), (piece.rows.0, rows), alpha);
            pack(&mut right, nr, b, (from, k), (piece.columns.0, columns), 1.0);
            for n in (0..columns).step_by(nr) {
                for r in (0..rows).step_by(mr) {
                    let at = c.at((piece.rows.0 + r) * stride + piece.columns.0 + n);
                    let (height, width) = (mr.min(rows - r), nr.min(columns - n));
                    if piece.part == Part::Lower && piece.columns.0 + n >= piece.rows.0 + r + height {
                        continue;
                    }
                    let whole = height == mr && width == nr;
                    let (to, apart) = if whole { (at, stride) } else { (edge.as_mut_ptr(), nr) };
                    if !whole {
                        for i in 0..height {
                            // SAFETY: these rows and columns lie inside `c`, and this piece alone has them.
                            let row = unsafe { std::slice::from_raw_parts(at.add(i * stride), width) };
                            edge[i * nr..i * nr + width].copy_from_slice(row);
                        }
                    }
                    let args = GemmArgs { k, a: left[r * k..].as_ptr(), b: right[n * k..].as_ptr(), c: to, stride: apart };
                    // SAFETY: the table's instruction set is available; both slices hold `k` terms, and `to` a whole tile
                    // that no other piece has.
                    unsafe { (self.kernels.gemm)(&args) };
                    if !whole {
                        for i in 0..height {
                            // SAFETY: as above.
                            let row = unsafe { std::slice::from_raw_parts_mut(at.add(i * stride), width) };
                            row.copy_from_slice(&edge[i * nr..i * nr + width]);
                        }
                    }
                }
            }
        }
    }
}

/// Rows and columns of a result, and which of its elements are wanted.
struct Piece {
    rows: (usize, usize),
    columns: (usize, usize),
    part: Part,
}

/// Packs columns (or, of a transposed view, rows) `first..first + count` of the rows `from..from + k` of `m` into slices of
/// `width`, `[slice][k][width]`; what is missing in the last slice is 0.
fn pack(to: &mut [f64], width: usize, m: Matrix<'_>, rows: (usize, usize), columns: (usize, usize), factor: f64) {
    let ((from, k), (first, count)) = (rows, columns);
    for (s, slice) in to.chunks_exact_mut(width * k).take(count.div_ceil(width)).enumerate() {
        let have = width.min(count - s * width);
        let start = from * m.row_stride + (first + s * width) * m.column_stride;
        if have < width {
            slice.fill(0.0);
        }
        if m.column_stride == 1 {
            for (t, group) in slice.chunks_exact_mut(width).enumerate() {
                let row = &m.data[start + t * m.row_stride..][..have];
                group.iter_mut().zip(row).for_each(|(to, v)| *to = factor * v);
            }
        } else {
            // elements of a column stand together
            for i in 0..have {
                let column = &m.data[start + i * m.column_stride..][..(k - 1) * m.row_stride + 1];
                let places = slice[i..].iter_mut().step_by(width);
                places.zip(column.iter().step_by(m.row_stride)).for_each(|(to, v)| *to = factor * v);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use proptest::prelude::*;

    fn numbers(count: usize, seed: u64) -> Vec<f64> {
        let mut state = seed | 1;
        (0..count)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn each_element_is_one_chain(m in 1usize..150, n in 1usize..150, k in 1usize..600, seed in any::<u64>(), turned in any::<bool>()) {
            let (a, b, c) = (numbers(m * k, seed), numbers(k * n, seed ^ 77), numbers(m * (n + 3), seed ^ 99));
            let view = if turned { Matrix::new(&a, k, m, m).transposed() } else { Matrix::new(&a, m, k, k) };
            let mut expected = c.clone();
            for i in 0..m {
                for j in 0..n {
                    let chain = |sum: f64, t: usize| (-0.5 * view.at(i, t)).mul_add(b[t * n + j], sum);
                    expected[i * (n + 3) + j] = (0..k).fold(c[i * (n + 3) + j], chain);
                }
            }
            for isa in Isa::available() {
                for threads in [1, 2] {
                    let backend = Backend::new(isa, threads).unwrap();
                    let mut all = c.clone();
                    backend.gemm(-0.5, view, Matrix::new(&b, k, n, n), &mut all, n + 3, Part::All);
                    prop_assert_eq!(&all, &expected, "{} {}", isa.name(), threads);
                    let mut lower = c.clone();
                    backend.gemm(-0.5, view, Matrix::new(&b, k, n, n), &mut lower, n + 3, Part::Lower);
                    for i in 0..m {
                        let wanted = i * (n + 3)..i * (n + 3) + (i + 1).min(n);
                        prop_assert_eq!(&lower[wanted.clone()], &expected[wanted]);
                    }
                }
            }
        }
    }
}
