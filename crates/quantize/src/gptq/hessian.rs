//! What a linear module sees: the sum of the outer products of its input rows.

use super::linalg::{NotPositive, inverse_factor};
use billfish_kernels::{Backend, Matrix, Part};

/// Rows that are made `f64` at a time. The sums do not depend on it.
const ROWS: usize = 2048;

/// `Σ x · xᵀ` over the input rows of a module, in `f64`, and how many there were.
#[derive(Clone, Debug)]
pub struct Hessian {
    size: usize,
    /// `[size, size]`, of which the lower half counts.
    sum: Vec<f64>,
    rows: u64,
    dropped: u64,
}

/// The factor of a damped Hessian.
#[derive(Clone, Debug)]
pub struct Factor {
    /// Upper triangular `U` with `(H + damping)⁻¹ = Uᵀ · U`, `[size, size]`, rows and columns in the order asked for.
    pub upper: Vec<f64>,
    /// The part of the mean diagonal that was added to the diagonal.
    pub damp: f64,
    /// Whether the diagonal was also raised to a floor.
    pub floored: bool,
}

impl Hessian {
    /// Of no rows of `size` numbers.
    pub fn new(size: usize) -> Self {
        Self { size, sum: vec![0.0; size * size], rows: 0, dropped: 0 }
    }

    /// Numbers of an input row.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Rows that were added.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Rows that were left out, because they held a number that is not finite.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Adds rows, `[rows, size]`. Each sum is one chain over all rows in the order in which they come, so it does not
    /// depend on how they are cut into calls, nor on threads.
    ///
    /// # Panics
    /// If `rows` is not whole rows.
    pub fn add(&mut self, backend: &Backend, rows: &[f32]) {
        assert!(rows.len().is_multiple_of(self.size.max(1)), "rows of {}", self.size);
        for chunk in rows.chunks(ROWS * self.size) {
            let whole = chunk.chunks_exact(self.size).filter(|r| r.iter().all(|v| v.is_finite()));
            let kept: Vec<f64> = whole.flatten().map(|v| f64::from(*v)).collect();
            let count = kept.len() / self.size;
            let x = Matrix::new(&kept, count, self.size, self.size);
            backend.gemm(1.0, x.transposed(), x, &mut self.sum, self.size, Part::Lower);
            self.rows += count as u64;
            self.dropped += (chunk.len() / self.size - count) as u64;
        }
    }

    /// The half of the sums that counts, row after row.
    pub(crate) fn lower(&self) -> impl Iterator<Item = &[f64]> {
        self.sum.chunks(self.size.max(1)).enumerate().map(|(i, row)| &row[..=i])
    }

    /// The same, to be filled.
    pub(crate) fn lower_mut(&mut self) -> impl Iterator<Item = &mut [f64]> {
        self.sum.chunks_mut(self.size.max(1)).enumerate().map(|(i, row)| &mut row[..=i])
    }

    /// Says of how many rows the sums are, and how many were left out.
    pub(crate) fn set_rows(&mut self, rows: u64, dropped: u64) {
        (self.rows, self.dropped) = (rows, dropped);
    }

    /// Divides each input of the rows that were seen.
    ///
    /// # Panics
    /// If there are not as many divisors as inputs.
    pub(crate) fn divide(&mut self, by: &[f64]) {
        assert_eq!(by.len(), self.size, "a divisor for each input");
        self.sum.chunks_exact_mut(self.size).zip(by).for_each(|(row, a)| row.iter_mut().zip(by).for_each(|(v, b)| *v /= a * b));
    }

    /// Mean square of each input.
    pub fn diagonal(&self) -> Vec<f64> {
        let scale = self.scale();
        (0..self.size).map(|i| self.sum[i * self.size + i] * scale).collect()
    }

    fn scale(&self) -> f64 {
        1.0 / (self.rows.max(1) as f64)
    }

    /// The sum of outer products, `[size, size]`, both halves. An input that is always zero has zeros, unlike in
    /// [`Hessian::ordered`]; if no row was seen, all inputs count alike.
    pub fn whole(&mut self) -> &[f64] {
        let n = self.size;
        if self.rows == 0 {
            (0..n).for_each(|i| self.sum[i * n + i] = 1.0);
        }
        for i in 0..n {
            for j in i + 1..n {
                self.sum[i * n + j] = self.sum[j * n + i];
            }
        }
        &self.sum
    }

    /// The mean outer product `[size, size]`, both halves, rows and columns in the order `order`. An input that is
    /// always zero gets a one on the diagonal.
    pub fn ordered(&self, order: &[usize]) -> Vec<f64> {
        let (n, scale) = (self.size, self.scale());
        let mut h = vec![0.0; n * n];
        for (i, &a) in order.iter().enumerate() {
            for (j, &b) in order.iter().enumerate() {
                h[i * n + j] = self.sum[a.max(b) * n + a.min(b)] * scale;
            }
            if h[i * n + i] == 0.0 {
                h[i * n + i] = 1.0;
            }
        }
        h
    }

    /// Factors the mean outer product in the order `order`, with `damp` times the mean diagonal added to the diagonal;
    /// with more, in steps of a hundredth, if it is not positive definite then; and at last with a floor under the
    /// diagonal.
    ///
    /// # Errors
    /// [`NotPositive`] if nothing helps.
    pub fn factor(&self, backend: &Backend, order: &[usize], damp: f64) -> Result<Factor, NotPositive> {
        /// Floors that are tried, each ten times the one before.
        const FLOORS: i32 = 6;
        let n = self.size;
        let ones = |d: f64| if d == 0.0 { 1.0 } else { d };
        let diagonal: Vec<f64> = self.diagonal().into_iter().map(ones).collect();
        let mean = order.iter().map(|&i| diagonal[i]).sum::<f64>() / n.max(1) as f64;
        let with = |add: f64, floor: f64| {
            // made anew each time: most need one, and a second copy would be the largest thing in memory
            let mut damped = self.ordered(order);
            for i in 0..n {
                let d = &mut damped[i * n + i];
                *d = (*d + add + floor).max(floor);
            }
            inverse_factor(backend, damped, n)
        };
        let mut tried = damp;
        while tried < 1.0 {
            if let Ok(upper) = with(tried * mean, 0.0) {
                return Ok(Factor { upper, damp: tried, floored: false });
            }
            tried += 0.01;
        }
        let largest = diagonal.iter().map(|d| d.abs()).fold(0.0, f64::max);
        for round in 0..FLOORS {
            if let Ok(upper) = with(mean, largest * 1e-6 * 10f64.powi(round)) {
                return Ok(Factor { upper, damp: 1.0, floored: true });
            }
        }
        Err(NotPositive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gptq::{Grid, Order, Prepared, Search, Settings};
    use billfish_kernels::Isa;
    use billfish_tensor::DType;

    /// No rows give such a sum; rounding may come near it.
    fn indefinite(off: f64) -> Hessian {
        Hessian { size: 2, sum: vec![1.0, 0.0, off, 1.0], rows: 1, dropped: 0 }
    }

    #[test]
    fn what_is_not_positive_is_damped_then_raised_then_given_up() {
        let backend = Backend::new(Isa::choose(None).unwrap(), 1).unwrap();
        let factor = |off| indefinite(off).factor(&backend, &[0, 1], 0.01);
        let damped = factor(1.055).unwrap();
        assert!((damped.damp - 0.06).abs() < 1e-9 && !damped.floored, "{damped:?}");
        let raised = factor(2.05).unwrap();
        assert!(raised.damp == 1.0 && raised.floored, "{raised:?}");
        assert_eq!(factor(5.0).unwrap_err(), NotPositive);

        // then weights become their nearest levels, and the solution says so
        let grid = Grid { bits: 4, sym: true, signed: false, lowest_zero: 0, stored: DType::F16 };
        let (order, search) = (Order::None, Search::MinMax);
        let settings = Settings { grid, group_size: None, order, search, damp: 0.01, propagate: true, sweeps: 2, clip: false };
        let weight = [0.75, -0.33];
        let found = Prepared::new(&backend, &indefinite(5.0), &settings).solve(&backend, &weight, &settings);
        assert!(found.fallback && found.damp == 0.0);
        let step = f64::from(found.scales[0]);
        // the largest weight lies half a step above the largest level
        let nearest = weight.map(|w| ((f64::from(w) / step).round() + 8.0).min(15.0));
        assert_eq!(found.codes.iter().map(|&c| f64::from(c)).collect::<Vec<_>>(), nearest);
    }

    #[test]
    fn the_whole_sum_has_both_halves() {
        let backend = Backend::new(Isa::choose(None).unwrap(), 1).unwrap();
        let mut h = Hessian::new(3);
        assert_eq!(h.clone().whole(), [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], "nothing was seen");
        h.add(&backend, &[1.0, 2.0, 0.0, 3.0, 4.0, 0.0]);
        assert_eq!(h.whole(), [10.0, 14.0, 0.0, 14.0, 20.0, 0.0, 0.0, 0.0, 0.0]);
    }
}
