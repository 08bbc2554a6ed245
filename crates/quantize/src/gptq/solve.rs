//! The GPTQ loop: weights are rounded one input after another, and what each rounding does to the output is taken back by
//! the inputs that come later (Frantar et al., "GPTQ", 2022). Columns of a weight are independent of each other.

use super::grid::{Grid, Search, Step};
use super::hessian::{Factor, Hessian};
use super::order::{Order, Visit};
use super::refine::refine;
use billfish_kernels::{Backend, Matrix, Part};
use rayon::prelude::*;

/// Inputs that are visited before the correction of all later ones is done as one product of matrices.
pub(super) const BLOCK: usize = 128;

/// How a module is quantized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Scales, zero points and codes.
    pub grid: Grid,
    /// Inputs of a group; all of them if none.
    pub group_size: Option<usize>,
    /// The order of the inputs.
    pub order: Order,
    /// How scales are found.
    pub search: Search,
    /// The part of the mean diagonal of the Hessian that is added to its diagonal.
    pub damp: f64,
    /// Whether errors are passed on to later inputs; without, each weight is rounded to its nearest level.
    pub propagate: bool,
    /// Sweeps of coordinate descent over codes and scales after the loop.
    pub sweeps: usize,
    /// Whether scales are found before anything is rounded, by the error of a group's inputs together: AWQ's clip search.
    pub clip: bool,
}

/// What was found. `K` inputs, `N` outputs, `G` groups.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// `[K, N]`, in the order of the inputs.
    pub codes: Vec<u8>,
    /// `[G, N]`, as stored.
    pub scales: Vec<f32>,
    /// `[G, N]`, true values.
    pub zeros: Vec<u16>,
    /// The group of each input, if groups are not runs of neighbours.
    pub g_idx: Option<Vec<u32>>,
    /// Groups.
    pub groups: usize,
    /// The damping that was used.
    pub damp: f64,
    /// Whether the Hessian could not be factored, so that weights were rounded to their nearest levels.
    pub fallback: bool,
}

/// What is known of all columns: everything in the order of the visit.
pub(crate) struct Problem<'a> {
    pub settings: &'a Settings,
    pub visit: &'a Visit,
    pub k: usize,
    /// What a squared error of each input costs.
    pub cost: &'a [f64],
    /// `[K, K]`, upper triangular; none if errors are not passed on.
    pub upper: Option<&'a [f64]>,
    /// Whether steps are found before anything is rounded.
    steps_first: bool,
}

/// The state of all columns, a row of `k` for each.
pub(crate) struct State {
    /// Weights as they are corrected, then levels times scales.
    pub w: Vec<f64>,
    /// Codes.
    pub codes: Vec<u8>,
    /// `[N, G]`.
    pub steps: Vec<Step>,
}

/// What the modules of one input have in common: the order of the inputs, the factor of the Hessian. Modules whose
/// settings agree in order, group size, damping and sweeps share it.
pub struct Prepared {
    visit: Visit,
    /// Inputs that are always zero, in the order of the visit.
    dead: Vec<bool>,
    cost: Vec<f64>,
    factor: Option<Factor>,
    /// The damped Hessian in the order of the visit, where sweeps will want it.
    damped: Option<Vec<f64>>,
    /// The Hessian in the order of the visit, where the clip search will want it.
    plain: Option<Vec<f64>>,
    fallback: bool,
}

impl Prepared {
    /// Factors `hessian` for `settings`.
    pub fn new(backend: &Backend, hessian: &Hessian, settings: &Settings) -> Self {
        let k = hessian.size();
        let diagonal = hessian.diagonal();
        let visit = settings.order.visit(&diagonal, settings.group_size.unwrap_or(k));
        let seen = hessian.rows() > 0;
        let factor = if settings.propagate && seen { hessian.factor(backend, &visit.input, settings.damp).ok() } else { None };
        let cost = match &factor {
            Some(f) => (0..k).map(|i| f.upper[i * k + i].powi(-2)).collect(),
            None => visit.input.iter().map(|&i| if diagonal[i] > 0.0 { diagonal[i] } else { 1.0 }).collect(),
        };
        let damped = factor.as_ref().filter(|_| settings.sweeps > 0).map(|f| {
            let mut h = hessian.ordered(&visit.input);
            let mean = (0..k).map(|i| h[i * k + i]).sum::<f64>() / k as f64;
            (0..k).for_each(|i| h[i * k + i] += f.damp * mean);
            h
        });
        let dead = visit.input.iter().map(|&i| diagonal[i] == 0.0 && seen).collect();
        let plain = (settings.clip && seen).then(|| hessian.ordered(&visit.input));
        Self { plain, fallback: settings.propagate && factor.is_none(), visit, dead, cost, factor, damped }
    }

    /// What a squared error of each input costs once later ones have taken it up, in the order of the inputs.
    pub(crate) fn costs(&self) -> Vec<f64> {
        let mut costs = vec![0.0; self.cost.len()];
        self.visit.input.iter().zip(&self.cost).for_each(|(&i, &c)| costs[i] = c);
        costs
    }

    /// Quantizes `weight`, `[N, K]`. Inputs that are always zero get zero weights.
    ///
    /// The result does not depend on the number of threads, and a column's does not depend on the other columns.
    ///
    /// # Panics
    /// If the sizes do not fit.
    pub fn solve(&self, backend: &Backend, weight: &[f32], settings: &Settings) -> Solution {
        let k = self.visit.input.len();
        assert!(k > 0 && weight.len().is_multiple_of(k), "columns of {k} inputs");
        let n = weight.len() / k;
        let ordered = |row: &'_ [f32]| -> Vec<f64> {
            let of = |(&i, &dead): (&usize, &bool)| if dead { 0.0 } else { f64::from(row[i]) };
            self.visit.input.iter().zip(&self.dead).map(of).collect()
        };
        let original: Vec<f64> = weight.par_chunks(k).flat_map_iter(ordered).collect();
        let upper = self.factor.as_ref().map(|f| f.upper.as_slice());
        let steps_first = self.plain.is_some() || !settings.order.in_runs();
        let problem = Problem { settings, visit: &self.visit, k, cost: &self.cost, upper, steps_first };
        let mut state =
            State { w: original.clone(), codes: vec![0; n * k], steps: vec![Step { scale: 1.0, zero: 0.0 }; n * self.visit.groups] };
        match &self.plain {
            Some(h) => crate::awq::clipped_steps(backend, &problem, h, &mut state),
            None if steps_first => problem.steps_first(&mut state),
            None => {}
        }
        for from in (0..k).step_by(BLOCK) {
            problem.block(backend, &mut state, from, (from + BLOCK).min(k));
        }
        if let Some(h) = &self.damped {
            refine(backend, &problem, &original, h, &mut state, settings.sweeps);
        }
        problem.finish(&state, n, self.factor.as_ref().map_or(0.0, |f| f.damp), self.fallback)
    }
}

/// Quantizes `weight`, `[N, K]`, whose input rows are summed up in `hessian`; see [`Prepared`].
///
/// # Panics
/// If the sizes do not fit.
pub fn solve(backend: &Backend, weight: &[f32], hessian: &Hessian, settings: &Settings) -> Solution {
    Prepared::new(backend, hessian, settings).solve(backend, weight, settings)
}

impl Problem<'_> {
    /// The positions of each group.
    pub(crate) fn members(&self) -> Vec<Vec<usize>> {
        let mut members = vec![vec![]; self.visit.groups];
        self.visit.group.iter().enumerate().for_each(|(at, &g)| members[g].push(at));
        members
    }

    /// Finds the steps of all groups from the weights as they are.
    fn steps_first(&self, state: &mut State) {
        let members = self.members();
        state.steps.par_chunks_mut(self.visit.groups).zip(state.w.par_chunks(self.k)).for_each(|(steps, w)| {
            for (step, members) in steps.iter_mut().zip(&members) {
                let (w, cost): (Vec<f64>, Vec<f64>) = members.iter().map(|&at| (w[at], self.cost[at])).unzip();
                *step = self.settings.grid.fit(&w, &cost, self.settings.search);
            }
        });
    }

    /// Rounds the inputs `from..to` of all columns and corrects what comes later.
    fn block(&self, backend: &Backend, state: &mut State, from: usize, to: usize) {
        let (k, width) = (self.k, to - from);
        let n = state.w.len() / k;
        let mut errors = vec![0.0; n * width];
        let rows = state.w.par_chunks_mut(k).zip(state.codes.par_chunks_mut(k)).zip(state.steps.par_chunks_mut(self.visit.groups));
        rows.zip(errors.par_chunks_mut(width)).for_each(|(((w, codes), steps), errors)| self.column(w, codes, steps, errors, from, to));
        if let Some(upper) = self.upper.filter(|_| to < k) {
            let later = Matrix::new(&upper[from * k + to..], width, k - to, k);
            backend.gemm(-1.0, Matrix::new(&errors, n, width, width), later, &mut state.w[to..], k, Part::All);
        }
    }

    /// The same for one column; `errors` takes what later blocks are to correct.
    fn column(&self, w: &mut [f64], codes: &mut [u8], steps: &mut [Step], errors: &mut [f64], from: usize, to: usize) {
        let grid = &self.settings.grid;
        for at in from..to {
            let group = self.visit.group[at];
            let begins = at == 0 || self.visit.group[at - 1] != group;
            if begins && !self.steps_first {
                let end = (at..self.k).find(|&i| self.visit.group[i] != group).unwrap_or(self.k);
                steps[group] = grid.fit(&w[at..end], &self.cost[at..end], self.settings.search);
            }
            let step = &steps[group];
            let code = grid.code(w[at], step);
            let level = (code - step.zero) * step.scale;
            codes[at] = code as u8;
            if let Some(upper) = self.upper {
                let row = &upper[at * self.k..(at + 1) * self.k];
                let error = (w[at] - level) / row[at];
                w[at + 1..to].iter_mut().zip(&row[at + 1..to]).for_each(|(w, u)| *w -= error * u);
                errors[at - from] = error;
            }
            w[at] = level;
        }
    }

    /// Turns the state into what a file holds.
    fn finish(&self, state: &State, n: usize, damp: f64, fallback: bool) -> Solution {
        let (k, groups) = (self.k, self.visit.groups);
        let mut codes = vec![0; k * n];
        for (c, row) in state.codes.chunks_exact(k).enumerate() {
            for (at, &code) in row.iter().enumerate() {
                codes[self.visit.input[at] * n + c] = code;
            }
        }
        let step = |g: usize, c: usize| &state.steps[c * groups + g];
        let each = || (0..groups).flat_map(|g| (0..n).map(move |c| (g, c)));
        let g_idx = (self.settings.order == Order::Desc).then(|| {
            let mut g_idx = vec![0; k];
            self.visit.input.iter().zip(&self.visit.group).for_each(|(&i, &g)| g_idx[i] = g as u32);
            g_idx
        });
        Solution {
            codes,
            scales: each().map(|(g, c)| step(g, c).scale as f32).collect(),
            zeros: each().map(|(g, c)| step(g, c).zero as u16).collect(),
            g_idx,
            groups,
            damp,
            fallback,
        }
    }
}

impl Solution {
    /// Solutions of some columns after another as one; `k` inputs.
    pub fn joined(parts: Vec<Solution>, k: usize) -> Solution {
        fn beside<T: Copy>(rows: usize, parts: &[&[T]]) -> Vec<T> {
            let row = |r: usize| parts.iter().flat_map(move |p| p[r * p.len() / rows..(r + 1) * p.len() / rows].iter().copied());
            (0..rows).flat_map(row).collect()
        }
        let groups = parts.first().map_or(0, |p| p.groups);
        let of = |f: fn(&Solution) -> &[f32]| beside(groups, &parts.iter().map(f).collect::<Vec<_>>());
        Solution {
            codes: beside(k, &parts.iter().map(|p| p.codes.as_slice()).collect::<Vec<_>>()),
            scales: of(|p| &p.scales),
            zeros: beside(groups, &parts.iter().map(|p| p.zeros.as_slice()).collect::<Vec<_>>()),
            g_idx: parts.first().and_then(|p| p.g_idx.clone()),
            groups,
            damp: parts.first().map_or(0.0, |p| p.damp),
            fallback: parts.iter().any(|p| p.fallback),
        }
    }

    /// The weights that the file gives, `[N, K]`.
    pub fn weights(&self, k: usize, group_size: Option<usize>) -> Vec<f32> {
        let n = self.codes.len() / k;
        let size = group_size.unwrap_or(k);
        let group = |i: usize| self.g_idx.as_ref().map_or(i / size, |g| g[i] as usize);
        let value = |c: usize, i: usize| {
            let at = group(i) * n + c;
            (f64::from(self.codes[i * n + c]) - f64::from(self.zeros[at])) * f64::from(self.scales[at])
        };
        (0..n).flat_map(|c| (0..k).map(move |i| value(c, i) as f32)).collect()
    }
}
