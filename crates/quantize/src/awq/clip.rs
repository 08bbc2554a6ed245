//! The clip search: the range of each group is shrunk where that lowers the error in the output, which is measured with all
//! inputs of the group together.

use super::scales::quadratic;
use crate::gptq::{Grid, Problem, State, Step, WIDEST};
use billfish_kernels::{Backend, Matrix, Part};
use rayon::prelude::*;

/// Shrunk ranges that are tried, each a twentieth narrower than the one before.
const SHRUNK: usize = 10;
/// Rounds in which the scale is fitted again to the codes that it gave.
const ROUNDS: usize = 3;

/// Finds the steps of all groups from the weights as they are; `h` is the mean outer product, `[K, K]`, in the order of the
/// visit. Groups with more inputs than [`WIDEST`] take the plain search, because what two inputs do together grows with
/// their square.
pub(crate) fn steps(backend: &Backend, problem: &Problem<'_>, h: &[f64], state: &mut State) {
    let (k, settings) = (problem.k, problem.settings);
    let groups = problem.visit.groups;
    for (g, at) in problem.members().into_iter().enumerate() {
        let cost: Vec<f64> = at.iter().map(|&i| problem.cost[i]).collect();
        let weights: Vec<f64> = state.w.par_chunks(k).flat_map_iter(|row| at.iter().map(|&i| row[i])).collect();
        let fit = |w: &[f64]| settings.grid.fit(w, &cost, settings.search);
        let first: Vec<Step> = weights.par_chunks(at.len()).map(fit).collect();
        let found = match at.len() <= WIDEST {
            true => {
                let block: Vec<f64> = at.iter().flat_map(|&i| at.iter().map(move |&j| h[i * k + j])).collect();
                Group { backend, grid: &settings.grid, weights: &weights, h: &block, size: at.len() }.best(first)
            }
            false => first,
        };
        state.steps.chunks_exact_mut(groups).zip(found).for_each(|(steps, step)| steps[g] = step);
    }
}

/// One group of all columns.
struct Group<'a> {
    backend: &'a Backend,
    grid: &'a Grid,
    /// `[N, size]`.
    weights: &'a [f64],
    /// `[size, size]`.
    h: &'a [f64],
    size: usize,
}

impl Group<'_> {
    /// The best step of each column, not worse than `first`.
    fn best(&self, first: Vec<Step>) -> Vec<Step> {
        let rows = || self.weights.par_chunks(self.size);
        let mut best: Vec<(f64, Step)> = self.errors(&first).into_iter().zip(first).collect();
        for part in (0..SHRUNK).map(|i| 1.0 - i as f64 / (2 * SHRUNK) as f64) {
            self.take(&mut best, rows().map(|w| self.grid.shrunk(w, part)).collect());
        }
        for _ in 0..ROUNDS {
            let fitted = self.fitted(&best);
            self.take(&mut best, fitted);
        }
        if !self.grid.sym {
            for shift in [-1.0, 1.0] {
                let moved = |(_, step): &(f64, Step)| Step { zero: self.grid.zero(step.zero + shift), ..*step };
                let moved = best.iter().map(moved).collect();
                self.take(&mut best, moved);
            }
            let fitted = self.fitted(&best);
            self.take(&mut best, fitted);
        }
        best.into_iter().map(|(_, step)| step).collect()
    }

    /// Takes those of `steps` that are better.
    fn take(&self, best: &mut [(f64, Step)], steps: Vec<Step>) {
        let found = self.errors(&steps).into_iter().zip(steps);
        best.iter_mut().zip(found).filter(|(old, new)| new.0 < old.0).for_each(|(old, new)| *old = new);
    }

    /// What each column's step costs in the output.
    fn errors(&self, steps: &[Step]) -> Vec<f64> {
        let of = |(w, step): (&[f64], &Step)| -> Vec<f64> {
            w.iter().map(|&v| (self.grid.code(v, step) - step.zero) * step.scale - v).collect()
        };
        let errors: Vec<f64> = self.weights.par_chunks(self.size).zip(steps).flat_map_iter(of).collect();
        quadratic(self.backend, &errors, self.h, self.size)
    }

    /// The scale of least squares for the codes of each column.
    fn fitted(&self, best: &[(f64, Step)]) -> Vec<Step> {
        let size = self.size;
        let of = |(w, (_, step)): (&[f64], &(f64, Step))| -> Vec<f64> { w.iter().map(|&v| self.grid.code(v, step) - step.zero).collect() };
        let levels: Vec<f64> = self.weights.par_chunks(size).zip(best).flat_map_iter(of).collect();
        let mut through = vec![0.0; levels.len()];
        let h = Matrix::new(self.h, size, size, size);
        self.backend.gemm(1.0, Matrix::new(&levels, levels.len() / size, size, size), h, &mut through, size, Part::All);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        let column = |(c, (_, step)): (usize, &(f64, Step))| {
            let at = c * size..(c + 1) * size;
            let below = dot(&levels[at.clone()], &through[at.clone()]);
            let scale = if below > 0.0 { self.grid.store(dot(&self.weights[at.clone()], &through[at]) / below) } else { step.scale };
            Step { scale, ..*step }
        };
        best.iter().enumerate().map(column).collect()
    }
}
