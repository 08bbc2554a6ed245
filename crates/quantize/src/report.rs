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
    /// `|W - Wq|² / |W|²`, with the factors of AWQ taken out of `Wq`.
    pub weight_error: f64,
    /// `|x·(W - Wq)|² / |x·W|²` over the rows that were seen.
    pub output_error: f64,
    /// `|W - Wq|² / |W|²` of the inputs of each group. Where there are no factors the stored file gives them again to the last
    /// bit, so a group that was damaged since is found by them.
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
    /// What AWQ made of its inputs, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
}

/// The factors of a module's inputs.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Scaling {
    /// What is divided by them.
    pub maker: String,
    /// The power of the inputs' mean magnitudes that they are; at 0 there are none.
    pub alpha: f64,
    /// The error of the search with them, as a part of that without, over all modules of these inputs.
    pub error: f64,
    /// Why none were looked for.
    pub left_out: Option<String>,
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

/// What the weights of a module were multiplied by, input by input, and divided by, output by output; none for 1.
pub(crate) type Factors<'a> = [Option<&'a [f64]>; 2];

/// The errors of a stored module.
pub(crate) struct Errors {
    pub weight: f64,
    pub output: f64,
    pub groups: Vec<f64>,
    pub worst: Vec<(usize, f64)>,
}

/// The errors of a stored module: of its weights, of its outputs under `h` (`[K, K]`, a multiple of the mean outer product of
/// its input rows), of its groups, and its worst outputs. `weight` is `[N, K]`, that of the source: what is stored is divided
/// by the `factors` of its inputs and multiplied by those of its outputs before. `h` has the factors in it.
pub(crate) fn errors(backend: &Backend, stored: &QuantMatrix, weight: &[f32], h: &[f64], factors: Factors<'_>) -> Errors {
    let k = stored.in_features();
    let mut columns: Vec<[f64; 4]> = Vec::with_capacity(stored.out_features());
    let mut groups = vec![[0.0; 2]; stored.group_count()];
    strips(stored, weight, factors, &mut |errors, w| {
        add_groups(stored, errors, w, &mut groups);
        let count = w.len() / k;
        let as_seen = |rows: &[f64]| match factors[0] {
            Some(inputs) => rows.chunks_exact(k).flat_map(|row| row.iter().zip(inputs).map(|(v, a)| v * a)).collect(),
            None => vec![],
        };
        let (errors_seen, w_seen) = (as_seen(errors), as_seen(w));
        let [of_errors, of_w] = if factors[0].is_some() { [&errors_seen[..], &w_seen] } else { [errors, w] };
        let through = |rows: &[f64]| {
            let mut out = vec![0.0; rows.len()];
            backend.gemm(1.0, Matrix::new(rows, count, k, k), Matrix::new(h, k, k, k), &mut out, k, Part::All);
            out
        };
        let (errors_h, w_h) = (through(of_errors), through(of_w));
        // each column by itself, so that nothing depends on how many threads there are
        let of = |i: usize| {
            let at = i * k..(i + 1) * k;
            let (e, w) = (&errors[at.clone()], &w[at.clone()]);
            let (seen, through) = (dot(&of_errors[at.clone()], &errors_h[at.clone()]), dot(&of_w[at.clone()], &w_h[at]));
            [dot(e, e), dot(w, w), seen, through]
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
    strips(stored, weight, [None; 2], &mut |errors, w| add_groups(stored, errors, w, &mut groups));
    ratios(&groups)
}

/// Hands out what is stored less the weights, and the weights, some columns at a time.
fn strips(stored: &QuantMatrix, weight: &[f32], [inputs, outputs]: Factors<'_>, body: &mut dyn FnMut(&[f64], &[f64])) {
    /// Columns at a time: memory is a few times this many.
    const STRIP: usize = 512;
    let (k, n) = (stored.in_features(), stored.out_features());
    for from in (0..n).step_by(STRIP) {
        let strip = from..n.min(from + STRIP);
        let (mut codes, mut errors) = (vec![], vec![0.0f64; k * strip.len()]);
        stored.dequantize_columns(strip.clone(), &mut codes, &mut errors);
        if inputs.is_some() || outputs.is_some() {
            for (row, c) in errors.chunks_exact_mut(k).zip(strip.clone()) {
                let output = outputs.map_or(1.0, |s| s[c]);
                row.iter_mut().enumerate().for_each(|(i, v)| *v *= output / inputs.map_or(1.0, |s| s[i]));
            }
        }
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
