//! Rows of logits over windows of a text, of one model or of several side by side.

use crate::QuantizeError;
use billfish_models::{Cache, Logits, Model, Scratch};

/// Rows of logits that exist at a time. Memory is this many vocabularies a model, whatever the window; results do not
/// depend on it.
const ROWS: usize = 128;

/// A model with what its passes need.
pub(crate) struct Runner<'a> {
    pub model: &'a Model,
    cache: Cache,
    scratch: Scratch,
}

impl<'a> Runner<'a> {
    /// For windows of `window` tokens.
    pub fn new(model: &'a Model, window: usize) -> Self {
        Self { model, cache: model.new_cache(window), scratch: Scratch::default() }
    }
}

/// Takes rows of logits, one slice a model, and the tokens that these rows predict.
pub(crate) type Take<'a> = &'a mut dyn FnMut(&[&[f32]], &[u32]);

/// Runs a window through all models from empty contexts and hands out the logits that predict its tokens `first..`; `done`
/// hears the tokens done.
pub(crate) fn window(
    runners: &mut [Runner<'_>],
    tokens: &[u32],
    first: usize,
    done: &mut dyn FnMut(usize),
    take: Take<'_>,
) -> Result<(), QuantizeError> {
    for r in runners.iter_mut() {
        r.cache.truncate(0);
    }
    // the last token is only predicted: nothing follows that it could predict
    let (unscored, scored) = tokens[..tokens.len() - 1].split_at(first - 1);
    let mut at = 0;
    for chunk in unscored.chunks(ROWS) {
        for r in runners.iter_mut() {
            r.model.forward(&mut r.cache, chunk, Logits::None, &mut r.scratch)?;
        }
        at += chunk.len();
        done(at);
    }
    for chunk in scored.chunks(ROWS) {
        let mut logits = vec![];
        for r in runners.iter_mut() {
            logits.push(r.model.forward(&mut r.cache, chunk, Logits::All, &mut r.scratch)?);
        }
        take(&logits, &tokens[at + 1..at + 1 + chunk.len()]);
        at += chunk.len();
        done(at);
    }
    done(tokens.len());
    Ok(())
}

/// A row of logits as log-probabilities. The largest logit is taken out first, so that nothing overflows.
pub(crate) struct LogSoftmax<'a> {
    logits: &'a [f32],
    largest: f64,
    log_sum: f64,
}

impl<'a> LogSoftmax<'a> {
    pub fn new(logits: &'a [f32]) -> Self {
        let largest = f64::from(logits.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x)));
        let sum: f64 = logits.iter().map(|&x| (f64::from(x) - largest).exp()).sum();
        Self { logits, largest, log_sum: sum.ln() }
    }

    /// The negative log-probability of a token, in nats.
    pub fn surprise(&self, token: usize) -> f64 {
        // the difference of two logits is exact however large they are
        self.log_sum + (self.largest - f64::from(self.logits[token]))
    }

    /// The likeliest token, the first of equals.
    pub fn best(&self) -> usize {
        self.logits.iter().position(|&x| f64::from(x) == self.largest).unwrap_or(0)
    }

    /// Kullback-Leibler divergence of `other` from this, `Σ p · (ln p - ln q)`, in nats.
    pub fn divergence(&self, other: &LogSoftmax<'_>) -> f64 {
        let terms = (0..self.logits.len()).map(|t| {
            let log_p = -self.surprise(t);
            log_p.exp() * (log_p + other.surprise(t))
        });
        terms.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_by_hand() {
        // weights 1, 2, 1: probabilities 1/4, 1/2, 1/4
        let logits = [0.0, 2f32.ln(), 0.0];
        let row = LogSoftmax::new(&logits);
        assert!((row.surprise(0) - 4f64.ln()).abs() < 1e-7);
        assert!((row.surprise(1) - 2f64.ln()).abs() < 1e-7);
        assert_eq!(row.best(), 1);
        // a uniform row of n costs ln n, wherever it lies
        for offset in [-3e4f32, 0.0, 88.0, 1e30] {
            assert!((LogSoftmax::new(&[offset; 8]).surprise(3) - 8f64.ln()).abs() < 1e-12, "{offset}");
        }
        // far apart: the surprise is the distance, the certainty costs nothing
        let row = LogSoftmax::new(&[1000.0, 0.0]);
        assert_eq!((row.surprise(1), row.surprise(0)), (1000.0, 0.0));
    }

    #[test]
    fn divergences_by_hand() {
        let (p, q) = ([0.0, 2f32.ln(), 0.0], [0.0; 3]);
        let (p, q) = (LogSoftmax::new(&p), LogSoftmax::new(&q));
        // 2 · 1/4 · ln(3/4) + 1/2 · ln(3/2)
        assert!((p.divergence(&q) - (0.5 * 0.75f64.ln() + 0.5 * 1.5f64.ln())).abs() < 1e-7);
        assert!(p.divergence(&p).abs() < 1e-15);
        // what one is certain of and the other thinks impossible costs the distance
        let (sure, not) = ([1000.0, 0.0], [0.0, 1000.0]);
        assert_eq!(LogSoftmax::new(&sure).divergence(&LogSoftmax::new(&not)), 1000.0);
    }
}
