//! The factors of one input: powers of how large its channels are, of which the one is taken that leaves the least error
//! in the outputs of its readers.

use super::Magnitudes;
use crate::gptq::{Hessian, Prepared, Settings};
use billfish_kernels::{Backend, Matrix, Part};
use rayon::prelude::*;

/// Powers that are tried: 0, 1/20 and so on.
const POWERS: usize = 20;
/// Outputs of all readers together that the error is measured on: a power is one number, and more tell the same.
const OUTPUTS: usize = 512;
/// Outputs of each reader at least.
const LEAST: usize = 8;
/// The smallest factor before all of them are made to have the middle 1.
const SMALLEST: f64 = 1e-4;

/// What the search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The power of the magnitudes; 0 leaves all factors at 1.
    pub alpha: f64,
    /// The factor of each channel.
    pub scales: Vec<f64>,
    /// The error that is left, as a part of that without factors.
    pub error: f64,
}

/// A search for the factors of some channels, to which the inputs of all readers are shown one after another: one Hessian is
/// in memory at a time.
///
/// The error of a rounded weight is what it changes in the outputs over all rows seen, `Σ e · H · e`; where later inputs
/// will take errors up ([`Settings::propagate`]), what each costs once they have.
pub struct ScaleSearch {
    /// A power, the factors, and the error with them.
    candidates: Vec<Found>,
    /// Outputs of each module that are rounded at most.
    most: usize,
}

impl ScaleSearch {
    /// For `channels` channels, whose readers have so many `modules` and have `seen` that; `channel` says which one an input is
    /// made of, and `storable` which factors there can be in place of those that are wanted.
    pub fn new(
        seen: &[&Magnitudes],
        modules: usize,
        channels: usize,
        channel: &dyn Fn(usize) -> usize,
        storable: &dyn Fn(&[f64]) -> Vec<f64>,
    ) -> Self {
        let sizes = means(seen, channels, channel);
        let candidate = |step: usize| {
            let alpha = step as f64 / POWERS as f64;
            let scales = if step == 0 { vec![1.0; channels] } else { storable(&powers(&sizes, alpha)) };
            Found { alpha, scales, error: 0.0 }
        };
        Self { candidates: (0..POWERS).map(candidate).collect(), most: most_outputs(modules) }
    }

    /// Rounds `modules` that see the same rows with all factors; of each its weight, `[N, K]`, and how it is quantized.
    pub fn add(&mut self, backend: &Backend, hessian: &Hessian, modules: &[(Vec<f32>, Settings)], channel: &dyn Fn(usize) -> usize) {
        let trial = Trial::new(backend, hessian, modules, self.most);
        for candidate in &mut self.candidates {
            let of_inputs: Vec<f64> = (0..trial.k).map(|i| candidate.scales[channel(i)]).collect();
            candidate.error += trial.error(backend, &of_inputs);
        }
    }

    /// The smallest power with the least error; `error` is a part of that without factors.
    pub fn found(self) -> Found {
        let mut all = self.candidates.into_iter();
        let Some(mut best) = all.next() else { return Found { alpha: 0.0, scales: vec![], error: 1.0 } };
        let without = best.error;
        for candidate in all {
            if candidate.error < best.error {
                best = candidate;
            }
        }
        best.error = if without > 0.0 { best.error / without } else { 1.0 };
        best
    }
}

/// Outputs of each module that are rounded at most, if so many are searched for together.
pub(crate) fn most_outputs(modules: usize) -> usize {
    (OUTPUTS / modules.max(1)).max(LEAST)
}

/// The mean magnitude of each channel.
fn means(seen: &[&Magnitudes], channels: usize, channel: &dyn Fn(usize) -> usize) -> Vec<f64> {
    let (mut sums, mut rows) = (vec![0.0; channels], vec![0u64; channels]);
    for seen in seen {
        for (i, sum) in seen.sums().iter().enumerate() {
            sums[channel(i)] += sum;
            rows[channel(i)] += seen.rows();
        }
    }
    sums.iter().zip(rows).map(|(sum, rows)| sum / rows.max(1) as f64).collect()
}

/// Magnitudes to a power, divided by the geometric middle of the smallest and the largest. A channel that is always zero
/// has the factor 1.
fn powers(magnitudes: &[f64], alpha: f64) -> Vec<f64> {
    let power = |m: f64| m.powf(alpha).max(SMALLEST);
    let alive = || magnitudes.iter().filter(|&&m| m > 0.0).map(|&m| power(m));
    let middle = (alive().fold(0.0, f64::max) * alive().fold(f64::INFINITY, f64::min)).sqrt();
    magnitudes.iter().map(|&m| if m > 0.0 { power(m) / middle } else { 1.0 }).collect()
}

/// Outputs of some readers that are rounded to see what becomes of them.
struct Trial<'a> {
    k: usize,
    /// Of each module `[outputs, K]`, how it is quantized, and how many of its outputs one of these stands for.
    modules: Vec<(Vec<f64>, &'a Settings, f64)>,
    /// What an error of each input costs: its mean square, or what is left of it once later inputs have taken errors up.
    cost: Vec<f64>,
    /// The mean outer product, `[K, K]`; none if the costs say it all.
    h: Option<Vec<f64>>,
    rows: f64,
}

impl<'a> Trial<'a> {
    /// With `most` outputs of each module at most.
    fn new(backend: &Backend, hessian: &Hessian, modules: &'a [(Vec<f32>, Settings)], most: usize) -> Self {
        let (k, diagonal) = (hessian.size(), hessian.diagonal());
        let sample = |(weight, settings): &'a (Vec<f32>, Settings)| {
            let n = weight.len() / k;
            let taken = n.min(most);
            let row = |i: usize| &weight[i * n / taken * k..(i * n / taken + 1) * k];
            // inputs that are always zero get zero weights
            let value = |(&w, &d): (&f32, &f64)| if d > 0.0 { f64::from(w) } else { 0.0 };
            let sample = (0..taken).flat_map(|i| row(i).iter().zip(&diagonal).map(value)).collect();
            (sample, settings, n as f64 / taken.max(1) as f64)
        };
        // modules of one input differ in their settings by rules only, and costs hardly depend on these
        let passed_on = modules.iter().map(|(_, s)| s).find(|s| s.propagate);
        let order: Vec<usize> = (0..k).collect();
        Trial {
            k,
            modules: modules.iter().map(sample).collect(),
            cost: match passed_on {
                Some(settings) => Prepared::new(backend, hessian, settings).costs(),
                None => diagonal.iter().map(|&d| if d > 0.0 { d } else { 1.0 }).collect(),
            },
            h: passed_on.is_none().then(|| hessian.ordered(&order)),
            rows: hessian.rows() as f64,
        }
    }

    /// The error that rounding leaves with these factors of the inputs.
    fn error(&self, backend: &Backend, scales: &[f64]) -> f64 {
        // what an error costs inside the factors
        let inside: Vec<f64> = self.cost.iter().zip(scales).map(|(c, s)| c / (s * s)).collect();
        let of = |(weight, settings, each): &(Vec<f64>, &Settings, f64)| {
            let errors = self.rounding(weight, settings, scales, &inside);
            let sum: f64 = match &self.h {
                Some(h) => quadratic(backend, &errors, h, self.k).iter().sum(),
                None => errors.chunks_exact(self.k).map(|row| row.iter().zip(&self.cost).map(|(e, c)| c * e * e).sum::<f64>()).sum(),
            };
            sum * each
        };
        self.modules.iter().map(of).sum::<f64>() * self.rows
    }

    /// What rounding with the factors changes in the weights.
    fn rounding(&self, weight: &[f64], settings: &Settings, scales: &[f64], inside: &[f64]) -> Vec<f64> {
        let (k, grid) = (self.k, &settings.grid);
        let group = settings.group_size.unwrap_or(k).max(1);
        let mut errors = vec![0.0; weight.len()];
        errors.par_chunks_mut(k).zip(weight.par_chunks(k)).for_each(|(errors, weight)| {
            let scaled: Vec<f64> = weight.iter().zip(scales).map(|(w, s)| w * s).collect();
            for from in (0..k).step_by(group) {
                let at = from..(from + group).min(k);
                let step = grid.fit(&scaled[at.clone()], &inside[at.clone()], settings.search);
                for i in at {
                    errors[i] = (grid.code(scaled[i], &step) - step.zero) * step.scale / scales[i] - weight[i];
                }
            }
        });
        errors
    }
}

/// `e · H · e` of each row of `e`; `h` is `[k, k]`.
pub(super) fn quadratic(backend: &Backend, e: &[f64], h: &[f64], k: usize) -> Vec<f64> {
    let mut through = vec![0.0; e.len()];
    backend.gemm(1.0, Matrix::new(e, e.len() / k, k, k), Matrix::new(h, k, k, k), &mut through, k, Part::All);
    e.chunks_exact(k).zip(through.chunks_exact(k)).map(|(a, b)| a.iter().zip(b).map(|(x, y)| x * y).sum()).collect()
}
