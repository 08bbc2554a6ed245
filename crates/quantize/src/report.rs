//! What became of each module, from the bytes that were stored.

use billfish_kernels::{Backend, Matrix, Part};
use billfish_tensor::QuantMatrix;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::Duration;

/// How well one module was quantized.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct ModuleQuality {
    /// Its name.
    pub module: String,
    /// Width of a code.
    pub bits: u32,
    /// Inputs of a group, -1 for one group a column.
    pub group_size: i64,
    /// Whether zero points are the midpoint.
    pub sym: bool,
    /// Whether groups are formed in the order of the inputs' size.
    pub desc_act: bool,
    /// Inputs.
    pub in_features: usize,
    /// Outputs.
    pub out_features: usize,
    /// Bytes of its codes, scales and zero points.
    pub bytes: u64,
    /// `|W - Wq|² / |W|²`.
    pub weight_error: f64,
    /// `|x·(W - Wq)|² / |x·W|²` over the rows that were seen.
    pub output_error: f64,
    /// `|W - Wq|² / |W|²` of the inputs of each group. The stored file gives them again to the last bit, so a group that was
    /// damaged since is found by them.
    pub group_errors: Vec<f64>,
    /// Outputs with the largest errors of their own, the worst first, each with its `output_error`.
    pub worst: Vec<(usize, f64)>,
    /// Rows that the module saw.
    pub rows: u64,
    /// Rows that were left out, because they held numbers that are not finite.
    pub dropped_rows: u64,
    /// The damping that was needed.
    pub damp: f64,
    /// Why weights were rounded to their nearest levels although more was asked for.
    pub fallback: Option<String>,
    /// What else was out of the ordinary.
    pub notes: Vec<String>,
}

impl ModuleQuality {
    /// The rule of a quantization config that says so.
    pub(crate) fn rule(&self) -> (String, Value) {
        let rule = json!({"bits": self.bits, "group_size": self.group_size, "sym": self.sym, "desc_act": self.desc_act});
        (format!("+:^{}$", self.module.replace('.', "\\.")), rule)
    }
}

/// Where the time went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    /// Running the network.
    pub forward: Duration,
    /// Summing outer products.
    pub hessian: Duration,
    /// Factorizing Hessians.
    pub factor: Duration,
    /// Choosing codes.
    pub solve: Duration,
    /// Reading, writing and checking.
    pub files: Duration,
}

/// Outputs that are named as the worst.
const WORST: usize = 5;

/// The errors of a stored module.
pub(crate) struct Errors {
    pub weight: f64,
    pub output: f64,
    pub groups: Vec<f64>,
    pub worst: Vec<(usize, f64)>,
}

/// The errors of a stored module: of its weights, of its outputs under `h` (`[K, K]`, a multiple of the mean outer product of
/// its input rows), of its groups, and its worst outputs. `weight` is `[N, K]`.
pub(crate) fn errors(backend: &Backend, stored: &QuantMatrix, weight: &[f32], h: &[f64]) -> Errors {
    let k = stored.in_features();
    let mut columns: Vec<[f64; 4]> = Vec::with_capacity(stored.out_features());
    let mut groups = vec![[0.0; 2]; stored.group_count()];
    strips(stored, weight, &mut |errors, w| {
        add_groups(stored, errors, w, &mut groups);
        let count = w.len() / k;
        let through = |rows: &[f64]| {
            let mut out = vec![0.0; rows.len()];
            backend.gemm(1.0, Matrix::new(rows, count, k, k), Matrix::new(h, k, k, k), &mut out, k, Part::All);
            out
        };
        let (errors_h, w_h) = (through(errors), through(w));
        // each column by itself, so that nothing depends on how many threads there are
        let of = |i: usize| {
            let at = i * k..(i + 1) * k;
            let (e, w) = (&errors[at.clone()], &w[at.clone()]);
            [dot(e, e), dot(w, w), dot(e, &errors_h[at.clone()]), dot(w, &w_h[at])]
        };
        columns.par_extend((0..count).into_par_iter().map(of));
    });
    let sum = |at: usize| columns.iter().map(|c| c[at]).sum::<f64>();
    let mut worst: Vec<(usize, f64)> = columns.iter().map(|c| ratio(c[2], c[3])).enumerate().collect();
    worst.sort_by(|a, b| b.1.total_cmp(&a.1));
    worst.truncate(WORST);
    Errors { weight: ratio(sum(0), sum(1)), output: ratio(sum(2), sum(3)), groups: ratios(&groups), worst }
}

/// The errors of the groups of a stored module alone.
pub fn group_errors(stored: &QuantMatrix, weight: &[f32]) -> Vec<f64> {
    let mut groups = vec![[0.0; 2]; stored.group_count()];
    strips(stored, weight, &mut |errors, w| add_groups(stored, errors, w, &mut groups));
    ratios(&groups)
}

/// Hands out what is stored less the weights, and the weights, some columns at a time.
fn strips(stored: &QuantMatrix, weight: &[f32], body: &mut dyn FnMut(&[f64], &[f64])) {
    /// Columns at a time: memory is a few times this many.
    const STRIP: usize = 512;
    let (k, n) = (stored.in_features(), stored.out_features());
    for from in (0..n).step_by(STRIP) {
        let strip = from..n.min(from + STRIP);
        let (mut codes, mut errors) = (vec![], vec![0.0f64; k * strip.len()]);
        stored.dequantize_columns(strip.clone(), &mut codes, &mut errors);
        let w: Vec<f64> = weight[strip.start * k..strip.end * k].iter().map(|v| f64::from(*v)).collect();
        errors.iter_mut().zip(&w).for_each(|(e, w)| *e -= w);
        body(&errors, &w);
    }
}

/// Adds the squares of some columns to their groups'.
fn add_groups(stored: &QuantMatrix, errors: &[f64], w: &[f64], groups: &mut [[f64; 2]]) {
    let k = stored.in_features();
    let group: Vec<usize> = (0..k).map(|i| stored.group_of(i)).collect();
    for (errors, w) in errors.chunks_exact(k).zip(w.chunks_exact(k)) {
        for ((e, w), &g) in errors.iter().zip(w).zip(&group) {
            groups[g][0] += e * e;
            groups[g][1] += w * w;
        }
    }
}

fn ratios(groups: &[[f64; 2]]) -> Vec<f64> {
    groups.iter().map(|g| ratio(g[0], g[1])).collect()
}

/// `a / b` as a finite number, because JSON has no other: an error in what is nothing but zeros counts as all of it.
fn ratio(a: f64, b: f64) -> f64 {
    match (a, b) {
        (0.0, _) => 0.0,
        (_, 0.0) => 1.0,
        _ => a / b,
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}
