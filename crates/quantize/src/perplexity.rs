//! Perplexity: the exponential of the mean surprise.

use crate::rows::{LogSoftmax, Runner, Take, window};
use crate::{Protocol, QuantizeError};
use billfish_models::Model;
use rayon::prelude::*;

/// A measured perplexity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// How it was measured.
    pub protocol: Protocol,
    /// Predictions.
    pub tokens: usize,
    /// `exp` of the mean negative log-likelihood, in nats, over all predictions.
    pub ppl: f64,
    /// Its standard error, `ppl · sd / √tokens`, with the sample standard deviation `sd` (divisor `tokens - 1`) of the
    /// negative log-likelihoods: not a number when there is one prediction only.
    ///
    /// It treats predictions as independent, as is usual; it says how far another text of this kind may differ, not how
    /// exact the arithmetic is.
    pub ppl_se: f64,
}

/// Measures the perplexity of a tokenized text.
///
/// The caller tokenizes, with special tokens if [`Protocol::adds_special`] says so; to limit the tokens, pass the first of
/// them. `bos` is the begin token if the tokenizer puts one before a prompt, else `None`; only [`Protocol::LlamaCpp512`]
/// looks at it. A window longer than the context that the model was made for is run all the same.
///
/// Logits are the model's f32; log-likelihoods and all sums are f64. `progress` hears the tokens done and the tokens in all.
///
/// # Errors
/// [`QuantizeError::TooShort`] when no window is full, [`QuantizeError::Setting`] for a window below 2,
/// [`QuantizeError::Model`] for an id outside the vocabulary or logits that are not numbers.
pub fn perplexity(
    model: &Model,
    ids: &[u32],
    bos: Option<u32>,
    protocol: Protocol,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Perplexity, QuantizeError> {
    let mut nll = Vec::with_capacity(protocol.predictions(ids.len()));
    let mut runners = [Runner::new(model, protocol.window())];
    windows(&mut runners, ids, bos, protocol, progress, &mut |logits, targets| surprises_of(logits[0], targets, &mut nll))?;
    let (mean, sd) = moments(&nll);
    let ppl = mean.exp();
    Ok(Perplexity { protocol, tokens: nll.len(), ppl, ppl_se: ppl * sd / (nll.len() as f64).sqrt() })
}

/// The negative log-likelihood of each token after the first, in nats.
///
/// # Errors
/// [`QuantizeError::Model`] for an id outside the vocabulary or logits that are not numbers.
pub fn surprises(model: &Model, ids: &[u32]) -> Result<Vec<f64>, QuantizeError> {
    let mut nll = Vec::with_capacity(ids.len());
    if ids.len() > 1 {
        let mut runners = [Runner::new(model, ids.len())];
        window(&mut runners, ids, 1, &mut |_| (), &mut |logits, targets| surprises_of(logits[0], targets, &mut nll))?;
    }
    Ok(nll)
}

/// Runs the windows of a protocol through all models; see [`window`].
pub(crate) fn windows(
    runners: &mut [Runner<'_>],
    ids: &[u32],
    bos: Option<u32>,
    protocol: Protocol,
    progress: &mut dyn FnMut(u64, u64),
    take: Take<'_>,
) -> Result<(), QuantizeError> {
    protocol.check()?;
    let size = protocol.window();
    if ids.len() < size {
        return Err(QuantizeError::TooShort { protocol: protocol.to_string(), needed: size, found: ids.len() });
    }
    let total = (ids.len() / size * size) as u64;
    let mut input = Vec::with_capacity(size);
    for (w, tokens) in ids.chunks_exact(size).enumerate() {
        input.clear();
        input.extend_from_slice(tokens);
        if let Some(bos) = bos.filter(|_| protocol.begins_windows()) {
            input[0] = bos;
        }
        let mut done = |n: usize| progress((w * size + n) as u64, total);
        window(runners, &input, protocol.first_predicted(), &mut done, take)?;
    }
    Ok(())
}

/// Appends the negative log-likelihoods of `targets`. A row's result depends on the row alone.
fn surprises_of(logits: &[f32], targets: &[u32], nll: &mut Vec<f64>) {
    let rows = logits.par_chunks_exact(logits.len() / targets.len().max(1)).zip(targets);
    nll.extend(rows.map(|(row, &target)| LogSoftmax::new(row).surprise(target as usize)).collect::<Vec<_>>());
}

/// Mean and sample standard deviation.
pub(crate) fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    (mean, (squares / (n - 1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_by_hand() {
        // mean 2.5, squares 2.25 + 0.25 + 0.25 + 2.25 = 5, divided by 3
        let (mean, sd) = moments(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(mean, 2.5);
        assert!((sd - (5f64 / 3.0).sqrt()).abs() < 1e-15);
        assert_eq!(moments(&[2.0, 2.0]), (2.0, 0.0));
        let (one, unknown) = moments(&[7.0]);
        assert!(one == 7.0 && unknown.is_nan());
    }
}
