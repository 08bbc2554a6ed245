//! Perplexity: the exponential of the mean surprise.

use crate::{Protocol, QuantizeError};
use billfish_models::{Cache, Logits, Model, Scratch};
use std::sync::atomic::{AtomicU64, Ordering};

/// Rows of logits that exist at a time. Memory is this many vocabularies, whatever the window; results do not depend on it.
const ROWS: usize = 128;

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
    protocol.check()?;
    let window = protocol.window();
    if ids.len() < window {
        return Err(QuantizeError::TooShort { protocol: protocol.to_string(), needed: window, found: ids.len() });
    }
    let total = (ids.len() / window * window) as u64;
    let mut nll = Vec::with_capacity(protocol.predictions(ids.len()));
    let mut scorer = Scorer { model, cache: model.new_cache(window), scratch: Scratch::default() };
    let mut input = Vec::with_capacity(window);
    for (w, tokens) in ids.chunks_exact(window).enumerate() {
        input.clear();
        input.extend_from_slice(tokens);
        if let Some(bos) = bos.filter(|_| protocol.begins_windows()) {
            input[0] = bos;
        }
        let mut done = |n: usize| progress((w * window + n) as u64, total);
        scorer.window(&input, protocol.first_predicted(), &mut nll, &mut done)?;
    }
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
        let mut scorer = Scorer { model, cache: model.new_cache(ids.len()), scratch: Scratch::default() };
        scorer.window(ids, 1, &mut nll, &mut |_| ())?;
    }
    Ok(nll)
}

struct Scorer<'a> {
    model: &'a Model,
    cache: Cache,
    scratch: Scratch,
}

impl Scorer<'_> {
    /// Appends the negative log-likelihoods of tokens `first..` of a window.
    fn window(&mut self, tokens: &[u32], first: usize, nll: &mut Vec<f64>, done: &mut dyn FnMut(usize)) -> Result<(), QuantizeError> {
        self.cache.truncate(0);
        // the last token is only predicted: nothing follows that it could predict
        let (unscored, scored) = tokens[..tokens.len() - 1].split_at(first - 1);
        let mut at = 0;
        for chunk in unscored.chunks(ROWS) {
            self.model.forward(&mut self.cache, chunk, Logits::None, &mut self.scratch)?;
            at += chunk.len();
            done(at);
        }
        for chunk in scored.chunks(ROWS) {
            let logits = self.model.forward(&mut self.cache, chunk, Logits::All, &mut self.scratch)?;
            let targets = &tokens[at + 1..at + 1 + chunk.len()];
            let vocab = self.model.config().vocab_size;
            // a row for each thread to claim; where its result goes depends on the row alone
            let rows: Vec<AtomicU64> = chunk.iter().map(|_| AtomicU64::new(0)).collect();
            self.model.backend().pool().run(rows.len(), &|i| {
                let surprise = negative_log_likelihood(&logits[i * vocab..(i + 1) * vocab], targets[i] as usize);
                rows[i].store(surprise.to_bits(), Ordering::Relaxed);
            });
            nll.extend(rows.into_iter().map(|bits| f64::from_bits(bits.into_inner())));
            at += chunk.len();
            done(at);
        }
        done(tokens.len());
        Ok(())
    }
}

/// `-ln softmax(logits)[target]`. The largest logit is taken out first, so that nothing overflows.
fn negative_log_likelihood(logits: &[f32], target: usize) -> f64 {
    let largest = f64::from(logits.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x)));
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - largest).exp()).sum();
    // the difference of two logits is exact however large they are
    sum.ln() + (largest - f64::from(logits[target]))
}

/// Mean and sample standard deviation.
fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    (mean, (squares / (n - 1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_likelihoods_by_hand() {
        // weights 1, 2, 1: probabilities 1/4, 1/2, 1/4
        let logits = [0.0, 2f32.ln(), 0.0];
        assert!((negative_log_likelihood(&logits, 0) - 4f64.ln()).abs() < 1e-7);
        assert!((negative_log_likelihood(&logits, 1) - 2f64.ln()).abs() < 1e-7);
        // a uniform row of n costs ln n, wherever it lies
        for offset in [-3e4f32, 0.0, 88.0, 1e30] {
            assert!((negative_log_likelihood(&[offset; 8], 3) - 8f64.ln()).abs() < 1e-12, "{offset}");
        }
        // far apart: the surprise is the distance, the certainty costs nothing
        assert_eq!(negative_log_likelihood(&[1000.0, 0.0], 1), 1000.0);
        assert_eq!(negative_log_likelihood(&[1000.0, 0.0], 0), 0.0);
    }

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
