//! What the modules of one input see, as AWQ wants to know it.

use crate::gptq::Hessian;
use billfish_kernels::Backend;

/// The sums of the outer products and of the magnitudes of input rows.
#[derive(Clone, Debug)]
pub struct Seen {
    hessian: Hessian,
    magnitudes: Vec<f64>,
}

impl Seen {
    /// Of no rows of `size` numbers.
    pub fn new(size: usize) -> Self {
        Self { hessian: Hessian::new(size), magnitudes: vec![0.0; size] }
    }

    /// Adds rows, `[rows, size]`, but not those that hold a number that is not finite. Each sum is one chain over all rows.
    ///
    /// # Panics
    /// If `rows` is not whole rows.
    pub fn add(&mut self, backend: &Backend, rows: &[f32]) {
        self.hessian.add(backend, rows);
        for row in rows.chunks_exact(self.magnitudes.len()).filter(|r| r.iter().all(|v| v.is_finite())) {
            self.magnitudes.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(v.abs()));
        }
    }

    /// The outer products.
    pub fn hessian(&self) -> &Hessian {
        &self.hessian
    }

    /// The sum of the magnitudes of each input.
    pub fn magnitudes(&self) -> &[f64] {
        &self.magnitudes
    }
}
