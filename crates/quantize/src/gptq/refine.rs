//! Coordinate descent after the loop: codes and scales are changed one at a time where that lowers the error in the
//! output, `Σ δᵀ · H · δ` with `δ` the errors of a column's weights. It never rises.

use super::grid::{Grid, Step};
use super::solve::{BLOCK, Problem, State};
use billfish_kernels::{Backend, Matrix, Part};
use rayon::prelude::*;

/// Inputs of a group up to which its scale is fitted to all of them together; the curvature takes their number squared.
pub(crate) const WIDEST: usize = 512;

/// Sweeps over all inputs. `original` are the weights, `[N, K]`, and `h` is the damped Hessian, `[K, K]`, both in the
/// order of the visit.
pub(super) fn refine(backend: &Backend, problem: &Problem<'_>, original: &[f64], h: &[f64], state: &mut State, sweeps: usize) {
    let (k, visit) = (problem.k, problem.visit);
    let n = original.len() / k;
    if sweeps == 0 {
        return;
    }
    // half the gradient of each column's error: H · δ
    let difference: Vec<f64> = state.w.par_iter().zip(original).map(|(a, b)| a - b).collect();
    let mut gradient = vec![0.0; n * k];
    backend.gemm(1.0, Matrix::new(&difference, n, k, k), Matrix::new(h, k, k, k), &mut gradient, k, Part::All);
    drop(difference);
    for sweep in 1..=sweeps {
        let mut from = 0;
        while from < k {
            let group = visit.group[from];
            let end = (from..k).find(|&i| visit.group[i] != group).unwrap_or(k);
            // a scale is fitted where all of its weights stand together
            let whole = problem.settings.order.in_runs() && end - from <= WIDEST;
            let to = if whole { end } else { end.min(from + BLOCK) };
            let width = to - from;
            let mut change = vec![0.0; n * width];
            let rows = state.w.par_chunks_mut(k).zip(state.codes.par_chunks_mut(k)).zip(state.steps.par_chunks_mut(visit.groups));
            rows.zip(gradient.par_chunks(k)).zip(change.par_chunks_mut(width)).for_each(|((((w, codes), steps), gradient), change)| {
                let mut run = Run { grid: &problem.settings.grid, h, k, from, gradient: gradient[from..to].to_vec() };
                let (w, step) = (&mut w[from..to], &mut steps[group]);
                change.copy_from_slice(w);
                run.codes(w, &mut codes[from..to], step);
                if whole {
                    run.scale(w, &codes[from..to], step);
                }
                change.iter_mut().zip(w).for_each(|(c, w)| *c = *w - *c);
            });
            // in the last sweep nobody comes back to what lies before
            let first = if sweep == sweeps { to } else { 0 };
            if first < k {
                let rows = Matrix::new(&h[from * k + first..], width, k - first, k);
                backend.gemm(1.0, Matrix::new(&change, n, width, width), rows, &mut gradient[first..], k, Part::All);
            }
            from = to;
        }
    }
}

/// Neighbouring inputs of one column.
struct Run<'a> {
    grid: &'a Grid,
    h: &'a [f64],
    k: usize,
    from: usize,
    /// Half the gradient at these inputs, as it is after each change of one of them.
    gradient: Vec<f64>,
}

impl Run<'_> {
    /// Row `i` of the Hessian at the inputs of the run.
    fn row(&self, i: usize) -> &[f64] {
        &self.h[(self.from + i) * self.k + self.from..][..self.gradient.len()]
    }

    /// Gives each input the level that is best while all others stay.
    fn codes(&mut self, w: &mut [f64], codes: &mut [u8], step: &Step) {
        for i in 0..w.len() {
            let best = self.grid.code(w[i] - self.gradient[i] / self.row(i)[i], step);
            if best as u8 == codes[i] {
                continue;
            }
            let level = (best - step.zero) * step.scale;
            let change = level - w[i];
            let row = &self.h[(self.from + i) * self.k + self.from..][..w.len()];
            self.gradient.iter_mut().zip(row).for_each(|(g, h)| *g += change * h);
            (codes[i], w[i]) = (best as u8, level);
        }
    }

    /// Gives the group the scale that is best for its codes, if the file can hold a better one.
    fn scale(&self, w: &mut [f64], codes: &[u8], step: &mut Step) {
        let levels: Vec<f64> = codes.iter().map(|&c| f64::from(c) - step.zero).collect();
        let slope = dot(&levels, &self.gradient);
        // what is below the diagonal counts for what is above it
        let of = |(i, l): (usize, &f64)| l * (2.0 * dot(&self.row(i)[..i], &levels[..i]) + self.row(i)[i] * l);
        let curvature: f64 = levels.iter().enumerate().map(of).sum();
        if curvature.is_nan() || curvature <= 0.0 {
            return;
        }
        let scale = self.grid.store(step.scale - slope / curvature);
        let change = scale - step.scale;
        if change * (2.0 * slope + change * curvature) < 0.0 {
            step.scale = scale;
            w.iter_mut().zip(&levels).for_each(|(w, l)| *w = l * scale);
        }
    }
}

/// A dot product in eight sums side by side: one would wait for each addition.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, rest_a), (b, rest_b)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f64>() + rest_a.iter().zip(rest_b).map(|(x, y)| x * y).sum::<f64>()
}
