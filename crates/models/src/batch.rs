//! What a pass over several sequences takes and gives.

use crate::{ModelError, Sequence};
use billfish_kernels::Asking;
use std::ops::Range;

/// Which rows of logits a forward pass is to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// None.
    None,
    /// Of the last token.
    Last,
    /// Of every token.
    All,
}

impl Logits {
    /// How many of the rows of `tokens` tokens, the last ones.
    pub(crate) fn rows(self, tokens: usize) -> usize {
        match self {
            Logits::None => 0,
            Logits::Last => tokens.min(1),
            Logits::All => tokens,
        }
    }
}

/// One sequence's part of a pass.
pub struct Part<'a> {
    /// What it has seen; `tokens` are added to it.
    pub sequence: &'a mut Sequence,
    /// The tokens to run: a piece of a prompt, or the one that was chosen last.
    pub tokens: &'a [u32],
    /// Which of their logits are wanted.
    pub want: Logits,
}

/// Which rows of logits belong to a part.
pub(crate) struct Given {
    /// Rows among all that were computed.
    rows: Range<usize>,
    /// Position of the first of them in its sequence.
    position: usize,
}

/// Lists the rows that the parts want; must be called before their tokens are counted.
pub(crate) fn list(parts: &[Part], given: &mut Vec<Given>) {
    given.clear();
    let mut at = 0;
    for p in parts {
        let rows = p.want.rows(p.tokens.len());
        given.push(Given { rows: at..at + rows, position: p.sequence.len() + p.tokens.len() - rows });
        at += rows;
    }
}

/// How many rows the parts want.
pub(crate) fn count(given: &[Given]) -> usize {
    given.last().map_or(0, |g| g.rows.end)
}

/// Moves those rows of `width` numbers whose tokens have queries, the last of each sequence, to the front.
pub(crate) fn to_front<'k>(sequences: impl Iterator<Item = Asking<'k>>, width: usize, rows: &mut [f32]) {
    let (mut end, mut at) = (0, 0);
    for s in sequences {
        end += s.tokens;
        rows.copy_within((end - s.queries) * width..end * width, at * width);
        at += s.queries;
    }
}

/// The logits of a pass over several sequences.
pub struct BatchLogits<'s> {
    pub(crate) given: &'s [Given],
    pub(crate) logits: &'s [f32],
    pub(crate) vocabulary: usize,
}

impl<'s> BatchLogits<'s> {
    /// The logits that part `i` asked for, `[rows, vocab]`.
    ///
    /// # Errors
    /// [`ModelError::NotANumber`] if they are not finite; the other parts' are not touched by that.
    ///
    /// # Panics
    /// If there was no such part.
    pub fn of(&self, i: usize) -> Result<&'s [f32], ModelError> {
        let (logits, position) = (self.unchecked(i), self.given[i].position);
        // a fold without an early end, which the compiler makes vectors of
        if !logits.iter().fold(true, |finite, v| finite & v.is_finite()) {
            let at = logits.iter().position(|v| !v.is_finite()).unwrap_or(0);
            return Err(ModelError::NotANumber { position: position + at / self.vocabulary });
        }
        Ok(logits)
    }

    /// As [`of`](Self::of), whether they are finite or not.
    ///
    /// # Panics
    /// If there was no such part.
    pub fn unchecked(&self, i: usize) -> &'s [f32] {
        let rows = &self.given[i].rows;
        &self.logits[rows.start * self.vocabulary..rows.end * self.vocabulary]
    }
}
