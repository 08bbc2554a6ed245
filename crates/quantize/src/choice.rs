//! Questions with several answers: which of them a model thinks the likeliest.

use crate::QuantizeError;
use crate::rows::{LogSoftmax, Runner, window};
use billfish_models::Model;

/// A question as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The context alone.
    pub context: Vec<u32>,
    /// The context with each of the answers.
    pub choices: Vec<Vec<u32>>,
    /// Bytes of each answer.
    pub bytes: Vec<usize>,
    /// The right one.
    pub answer: usize,
}

/// What a model answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The log-likelihood of each answer after the context, in nats.
    pub scores: Vec<f64>,
    /// The answer of the highest.
    pub best: usize,
    /// The answer of the highest divided by the bytes of the answer.
    pub best_per_byte: usize,
}

/// The index of the largest, the first of equals.
fn largest(values: impl Iterator<Item = f64>) -> usize {
    values.enumerate().fold((0, f64::NEG_INFINITY), |best, (i, v)| if v > best.1 { (i, v) } else { best }).0
}

/// Scores the answers of a question: the sum of the log-likelihoods of the tokens in which an answer differs from the
/// context alone, as the usual harnesses do.
///
/// # Errors
/// [`QuantizeError::Setting`] for an answer that adds no token, or one without context; [`QuantizeError::Model`].
pub fn choose(model: &Model, question: &Question) -> Result<Answer, QuantizeError> {
    let mut scores = vec![];
    for choice in &question.choices {
        let first = question.context.len().min(choice.len()).max(1);
        if choice.len() <= first || question.context.is_empty() {
            let expected = "a context and answers of at least a token each";
            return Err(QuantizeError::setting("question", expected, "an empty one", "give every answer a text"));
        }
        let mut score = 0.0;
        let mut runners = [Runner::new(model, choice.len())];
        window(&mut runners, choice, first, &mut |_| (), &mut |logits, targets| {
            let rows = logits[0].chunks_exact(logits[0].len() / targets.len());
            score -= rows.zip(targets).map(|(row, &t)| LogSoftmax::new(row).surprise(t as usize)).sum::<f64>();
        })?;
        scores.push(score);
    }
    let best = largest(scores.iter().copied());
    let best_per_byte = largest(scores.iter().zip(&question.bytes).map(|(s, &b)| s / b.max(1) as f64));
    Ok(Answer { scores, best, best_per_byte })
}
