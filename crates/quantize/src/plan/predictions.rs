//! What becomes of the predictions when one unit of modules is disturbed.

use super::sensitivity::{Study, Variant, matrix_error};
use crate::QuantizeError;
use crate::rows::LogSoftmax;
use billfish_formats::{BiasRule, LinearWeight};
use billfish_kernels::{Activations, Input, MatmulScratch, PackedDense, Product, Weight};
use billfish_models::{DecoderConfig, Linear};
use rayon::prelude::*;
use std::sync::Arc;

/// Rows of logits that exist at a time.
const ROWS: usize = 128;

/// Mean divergence of the predictions that follow from each variant from those that follow from `base`: rows that come out
/// of the last layer.
pub(super) fn divergences(job: &Study<'_>, config: &DecoderConfig, base: &[f32], variants: &[Variant]) -> Result<Vec<f64>, QuantizeError> {
    let head = head(job, config)?;
    let mut scratch = MatmulScratch::default();
    let mut logits = |rows: &[f32]| -> Result<Vec<f32>, QuantizeError> {
        let normed = billfish_models::final_norm(job.source, config, &job.backend, rows)?;
        let m = rows.len() / config.hidden_size;
        let mut out = vec![0.0; m * config.vocab_size];
        job.backend.matmul(&mut scratch, Input::Rows(&normed), m, Activations::Strict, &mut [Product::new(&head, &mut out)]);
        Ok(out)
    };
    let mut sums = vec![0.0; variants.len()];
    let mut at = 0;
    for chunk in base.chunks(ROWS * config.hidden_size) {
        let expected = logits(chunk)?;
        for (v, sum) in variants.iter().zip(&mut sums) {
            let found = logits(&v.rows[at..at + chunk.len()])?;
            let rows = expected.par_chunks_exact(config.vocab_size).zip(found.par_chunks_exact(config.vocab_size));
            // never below zero but for rounding; added up in the order of the rows
            let klds: Vec<f64> = rows.map(|(p, q)| LogSoftmax::new(p).divergence(&LogSoftmax::new(q)).max(0.0)).collect();
            *sum += klds.iter().sum::<f64>();
        }
        at += chunk.len();
    }
    let predictions = (base.len() / config.hidden_size).max(1) as f64;
    Ok(sums.into_iter().map(|sum| sum / predictions).collect())
}

/// The output head, which is the embedding where there is no other.
fn head(job: &Study<'_>, config: &DecoderConfig) -> Result<Weight, QuantizeError> {
    let name = if config.tie_word_embeddings { "model.embed_tokens" } else { "lm_head" };
    let linear = Linear { name: name.into(), in_features: config.hidden_size, out_features: config.vocab_size, bias: false };
    match job.source.linear(name, linear.in_features, linear.out_features, BiasRule::Absent)? {
        LinearWeight::Dense { weight, .. } => {
            Ok(Weight::Dense(Arc::new(PackedDense::new(&weight, None).map_err(|e| matrix_error(name, &e))?)))
        }
        LinearWeight::Quantized(_) => {
            Err(QuantizeError::setting(name, "a dense head", "a quantized one", "plan with the folder that this one was made from"))
        }
    }
}
