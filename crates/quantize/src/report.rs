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
    /// Choosing codes, factorizations included.
    pub solve: Duration,
    /// Reading, writing and checking.
    pub files: Duration,
}

/// Outputs that are named as the worst.
const WORST: usize = 5;

/// The errors of a stored module: of its weights, of its outputs under `h` (`[K, K]`, the mean outer product of its input
/// rows), and its worst outputs. `weight` is `[N, K]`. Stored weights are divided by the factors of their inputs and
/// multiplied by those of their outputs before: the errors are those of the weights that the source has.
pub(crate) fn errors(
    backend: &Backend,
    stored: &QuantMatrix,
    weight: &[f32],
    h: &[f64],
    [inputs, outputs]: [Option<&[f64]>; 2],
) -> (f64, f64, Vec<(usize, f64)>) {
    /// Columns at a time: memory is a few times this many.
    const STRIP: usize = 512;
    let (k, n) = (stored.in_features(), stored.out_features());
    let mut columns: Vec<[f64; 4]> = Vec::with_capacity(n);
    for from in (0..n).step_by(STRIP) {
        let strip = from..n.min(from + STRIP);
        let (mut codes, mut errors) = (vec![], vec![0.0f64; k * strip.len()]);
        stored.dequantize_columns(strip.clone(), &mut codes, &mut errors);
        for (row, c) in errors.chunks_exact_mut(k).zip(strip.clone()) {
            let output = outputs.map_or(1.0, |s| s[c]);
            row.iter_mut().enumerate().for_each(|(i, v)| *v *= output / inputs.map_or(1.0, |s| s[i]));
        }
        let w: Vec<f64> = weight[strip.start * k..strip.end * k].iter().map(|v| f64::from(*v)).collect();
        errors.iter_mut().zip(&w).for_each(|(e, w)| *e -= w);
        let through = |rows: &[f64]| {
            let mut out = vec![0.0; rows.len()];
            backend.gemm(1.0, Matrix::new(rows, strip.len(), k, k), Matrix::new(h, k, k, k), &mut out, k, Part::All);
            out
        };
        let (errors_h, w_h) = (through(&errors), through(&w));
        // each column by itself, so that nothing depends on how many threads there are
        let of = |i: usize| {
            let at = i * k..(i + 1) * k;
            let (e, w) = (&errors[at.clone()], &w[at.clone()]);
            [dot(e, e), dot(w, w), dot(e, &errors_h[at.clone()]), dot(w, &w_h[at])]
        };
        columns.par_extend((0..strip.len()).into_par_iter().map(of));
    }
    let sum = |at: usize| columns.iter().map(|c| c[at]).sum::<f64>();
    let ratio = |a: f64, b: f64| if a == 0.0 { 0.0 } else { a / b };
    let mut worst: Vec<(usize, f64)> = columns.iter().map(|c| ratio(c[2], c[3])).enumerate().collect();
    worst.sort_by(|a, b| b.1.total_cmp(&a.1));
    worst.truncate(WORST);
    (ratio(sum(0), sum(1)), ratio(sum(2), sum(3)), worst)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}
