//! What an engine knows of one choice of a request.

use crate::answer::{Answer, Chosen, Ending, Room};
use crate::ngram::Acceptance;
use crate::scheduler::Sequence;
use crate::{EngineError, TokenLogprob};
use billfish_models as models;
use std::time::Instant;

/// One choice.
pub(crate) struct Choice {
    pub answer: Answer,
    /// The other choices, until the prompt has run.
    pub unborn: Vec<Answer>,
    /// Where its keys and values are, while it runs.
    pub memory: Option<models::Sequence>,
    /// Tokens that prompt and answer may have, on which rotary frequencies may depend.
    pub length: usize,
    pub deadline: Option<Instant>,
    pub prompt_logprobs: Option<PromptLogprobs>,
    pub drafts: Acceptance,
    /// Set when nothing follows.
    pub ending: Option<Ending>,
    /// Which part of the pass that runs is its own.
    pub part: usize,
}

/// How probable the tokens of a prompt were.
pub(crate) struct PromptLogprobs {
    /// How many of the most probable ones are told.
    pub top: usize,
    pub told: Vec<Option<TokenLogprob>>,
}

impl PromptLogprobs {
    /// Takes the logits of the tokens from position `start` on. Those that ran before are not told again.
    pub fn add(&mut self, room: &mut Room, rows: &[f32], vocab: usize, start: usize, prompt: &[u32]) {
        for (row, next) in rows.chunks_exact(vocab).zip(start + 1..prompt.len()) {
            if next == self.told.len() {
                self.told.push(Some(room.logprob(row, prompt[next], self.top)));
            }
        }
    }
}

impl Choice {
    /// The first choice of a request; the others are born when the prompt has run.
    pub fn new(answer: Answer, unborn: Vec<Answer>, length: usize) -> Self {
        Choice {
            answer,
            unborn,
            memory: None,
            length,
            deadline: None,
            prompt_logprobs: None,
            drafts: Acceptance::default(),
            ending: None,
            part: 0,
        }
    }

    /// Another choice of the same request.
    pub fn of_same(&self, answer: Answer) -> Self {
        Choice { deadline: self.deadline, ..Choice::new(answer, vec![], self.length) }
    }
}

/// A sequence of an engine.
pub(crate) type Running = Sequence<Choice>;

/// How many tokens of a sequence are known, and the rows of logits at the end of `logits` of what follows them: one for the
/// last known token and one for each of the draft.
fn decided<'l>(s: &Running, logits: &'l [f32], vocab: usize) -> (usize, &'l [f32]) {
    let draft = s.draft();
    (s.tokens.len() - draft, &logits[logits.len() - (draft + 1) * vocab..])
}

/// Picks what [`verify`] will choose first.
pub(crate) fn pick_ahead(s: &mut Running, logits: &[f32], vocab: usize, room: &mut Room) {
    let (known, rows) = decided(s, logits, vocab);
    let (before, generated) = s.tokens[..known].split_at(s.prompt);
    s.state.answer.pick_ahead(room, &rows[..vocab], before, generated);
}

/// Chooses tokens by the rows of logits at the end of `logits`, one for the last known token and one for each of the draft,
/// for as long as what is chosen is what was drafted. So the draft changes nothing but the number of passes: every token is
/// drawn from its own logits, with the next random number of its own. Returns how many tokens of the draft were right.
pub(crate) fn verify(
    s: &mut Running,
    logits: &[f32],
    vocab: usize,
    room: &mut Room,
    chosen: &mut Vec<u32>,
    tell: &mut dyn FnMut(Chosen),
) -> Result<usize, EngineError> {
    chosen.clear();
    let (known, rows) = decided(s, logits, vocab);
    let mut accepted = 0;
    for (i, row) in rows.chunks_exact(vocab).enumerate() {
        let Sequence { tokens, state, prompt, .. } = s;
        let (before, generated) = tokens[..known + i].split_at(*prompt);
        let mut next = state.answer.choose(room, row, before, generated)?;
        let right = tokens.get(known + i) == Some(&next.token);
        chosen.push(next.token);
        state.ending = next.end.take();
        accepted += usize::from(right);
        tell(next);
        if !right || state.ending.is_some() {
            break;
        }
    }
    Ok(accepted)
}
