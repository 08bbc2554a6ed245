//! How large the inputs of some modules are.

/// The sums of the magnitudes of input rows.
#[derive(Clone, Debug)]
pub struct Magnitudes {
    sums: Vec<f64>,
    rows: u64,
}

impl Magnitudes {
    /// Of no rows of `size` numbers.
    pub fn new(size: usize) -> Self {
        Self { sums: vec![0.0; size], rows: 0 }
    }

    /// Adds rows, `[rows, size]`, but not those that hold a number that is not finite. Each sum is one chain over all rows.
    ///
    /// # Panics
    /// If `rows` is not whole rows.
    pub fn add(&mut self, rows: &[f32]) {
        assert!(rows.len().is_multiple_of(self.sums.len()), "whole rows");
        for row in rows.chunks_exact(self.sums.len()).filter(|r| r.iter().all(|v| v.is_finite())) {
            self.sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(v.abs()));
            self.rows += 1;
        }
    }

    /// The sum of each input.
    pub fn sums(&self) -> &[f64] {
        &self.sums
    }

    /// Rows that were added.
    pub fn rows(&self) -> u64 {
        self.rows
    }
}
