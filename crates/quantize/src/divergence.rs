//! How far the predictions of a model are from those of another: what quantization does to a model, measured where
//! perplexity is too coarse.

use crate::perplexity::{moments, windows};
use crate::rows::{LogSoftmax, Runner};
use crate::{Protocol, QuantizeError};
use billfish_models::Model;
use rayon::prelude::*;

/// A model against a base over the same predictions. The names are those of `llama-perplexity --kl-divergence`.
#[derive(Clone, Debug, PartialEq)]
pub struct Divergence {
    /// How it was measured.
    pub protocol: Protocol,
    /// Predictions.
    pub tokens: usize,
    /// Perplexity of the model.
    pub ppl: f64,
    /// Its standard error.
    pub ppl_se: f64,
    /// Perplexity of the base.
    pub ppl_base: f64,
    /// Its standard error.
    pub ppl_base_se: f64,
    /// Mean of `KL(base || model)`, in nats.
    pub kld_mean: f64,
    /// Its standard error.
    pub kld_se: f64,
    /// The divergences, ascending.
    pub klds: Vec<f64>,
    /// The part of predictions whose likeliest token is the same.
    pub top1: f64,
    /// Mean of the change of the probability of the right token.
    pub delta_p_mean: f64,
    /// Root mean square of the same.
    pub delta_p_rms: f64,
}

impl Divergence {
    /// The divergence that `percent` of all lie below, between neighbours in proportion.
    pub fn percentile(&self, percent: f64) -> f64 {
        let at = (self.klds.len() - 1) as f64 * (percent / 100.0).clamp(0.0, 1.0);
        let (low, high) = (self.klds[at.floor() as usize], self.klds[at.ceil() as usize]);
        low + (high - low) * at.fract()
    }
}

/// What one prediction shows.
struct Row {
    base: f64,
    model: f64,
    kld: f64,
    same: bool,
}

/// Compares `model` with `base` over a tokenized text; see [`perplexity`](crate::perplexity()) for `ids`, `bos` and
/// `progress`.
///
/// # Errors
/// [`QuantizeError::Setting`] if their vocabularies differ, and as for perplexity.
pub fn divergence(
    model: &Model,
    base: &Model,
    ids: &[u32],
    bos: Option<u32>,
    protocol: Protocol,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Divergence, QuantizeError> {
    let sizes = [base, model].map(|m| m.config().vocab_size);
    if sizes[0] != sizes[1] {
        let expected = format!("a model of {} tokens, as the base has", sizes[0]);
        return Err(QuantizeError::setting("vocabulary", expected, sizes[1].to_string(), "compare models of one vocabulary"));
    }
    let mut rows = Vec::with_capacity(protocol.predictions(ids.len()));
    let mut runners = [Runner::new(base, protocol.window()), Runner::new(model, protocol.window())];
    windows(&mut runners, ids, bos, protocol, progress, &mut |logits, targets| {
        let pairs = logits[0].par_chunks_exact(sizes[0]).zip(logits[1].par_chunks_exact(sizes[0])).zip(targets);
        rows.par_extend(pairs.map(|((base, model), &target)| {
            let (base, model) = (LogSoftmax::new(base), LogSoftmax::new(model));
            let target = target as usize;
            // never below zero but for rounding
            let kld = base.divergence(&model).max(0.0);
            Row { base: base.surprise(target), model: model.surprise(target), kld, same: base.best() == model.best() }
        }));
    })?;
    let n = rows.len() as f64;
    let of = |f: fn(&Row) -> f64| {
        let (mean, sd) = moments(&rows.iter().map(f).collect::<Vec<_>>());
        (mean, sd / n.sqrt())
    };
    let ((model, model_se), (base, base_se), (kld_mean, kld_se)) = (of(|r| r.model), of(|r| r.base), of(|r| r.kld));
    let changes: Vec<f64> = rows.iter().map(|r| (-r.model).exp() - (-r.base).exp()).collect();
    let mut klds: Vec<f64> = rows.iter().map(|r| r.kld).collect();
    klds.sort_by(f64::total_cmp);
    Ok(Divergence {
        protocol,
        tokens: rows.len(),
        ppl: model.exp(),
        ppl_se: model.exp() * model_se,
        ppl_base: base.exp(),
        ppl_base_se: base.exp() * base_se,
        kld_mean,
        kld_se,
        klds,
        top1: rows.iter().filter(|r| r.same).count() as f64 / n,
        delta_p_mean: changes.iter().sum::<f64>() / n,
        delta_p_rms: (changes.iter().map(|c| c * c).sum::<f64>() / n).sqrt(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_neighbours() {
        let d = Divergence {
            protocol: Protocol::Window(2),
            tokens: 5,
            ppl: 1.0,
            ppl_se: 0.0,
            ppl_base: 1.0,
            ppl_base_se: 0.0,
            kld_mean: 0.0,
            kld_se: 0.0,
            klds: vec![0.0, 1.0, 2.0, 4.0, 8.0],
            top1: 1.0,
            delta_p_mean: 0.0,
            delta_p_rms: 0.0,
        };
        for (percent, expected) in [(0.0, 0.0), (50.0, 2.0), (100.0, 8.0), (75.0, 4.0), (62.5, 3.0)] {
            assert_eq!(d.percentile(percent), expected);
        }
    }
}
