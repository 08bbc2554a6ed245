//! What becomes of one answer: from logits to tokens, from tokens to text, until it ends.

use crate::sampler::Buffers;
use crate::{Constraint, EngineError, FinishReason, Sampler, SamplingParams, StopCause, TokenLogprob};
use billfish_text::{Detokenizer, StopMatcher, Tokenizer};
use std::sync::{Arc, Mutex, PoisonError};

/// What ends an answer, and what of it is text.
pub(crate) struct Rules<'a> {
    pub max_tokens: usize,
    pub min_tokens: usize,
    pub stop: &'a [String],
    pub include_stop: bool,
    pub stop_token_ids: &'a [u32],
    pub ignore_eos: bool,
    pub skip_special_tokens: bool,
    pub logprobs: Option<usize>,
}

/// An answer in the making.
pub(crate) struct Answer {
    sampler: Sampler,
    constraint: Option<Box<dyn Constraint>>,
    stop: StopMatcher,
    detokenizer: Detokenizer,
    /// Tokens that end it.
    ends: Arc<[u32]>,
    max_tokens: usize,
    min_tokens: usize,
    include_stop: bool,
    logprobs: Option<usize>,
    /// Tokens so far.
    count: usize,
    /// The next token, if it was picked ahead of time.
    picked: Option<Result<Picked, EngineError>>,
}

/// A token before it is read.
struct Picked {
    token: u32,
    logprob: Option<TokenLogprob>,
}

/// Room for choosing a token, for all answers: each part of it is as long as the vocabulary.
#[derive(Default)]
pub(crate) struct Room {
    /// The logits of the step, to be changed.
    logits: Vec<f32>,
    buffers: Buffers,
}

impl Room {
    /// What is told of `token` and the `top` most probable ones.
    pub fn logprob(&mut self, logits: &[f32], token: u32, top: usize) -> TokenLogprob {
        self.buffers.logprob(logits, token, top)
    }
}

/// As many rooms as there are threads that choose at once.
#[derive(Default)]
pub(crate) struct Rooms(Mutex<Vec<Room>>);

impl Rooms {
    /// Calls `body` with a room that nobody else has.
    pub fn with<R>(&self, body: impl FnOnce(&mut Room) -> R) -> R {
        let rooms = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut room = rooms().pop().unwrap_or_default();
        let result = body(&mut room);
        rooms().push(room);
        result
    }
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ending {
    pub reason: FinishReason,
    pub stop: Option<StopCause>,
}

impl From<FinishReason> for Ending {
    fn from(reason: FinishReason) -> Self {
        Ending { reason, stop: None }
    }
}

/// One more token.
pub(crate) struct Chosen {
    pub token: u32,
    /// What became final with it.
    pub text: String,
    pub logprob: Option<TokenLogprob>,
    /// Set if nothing follows.
    pub end: Option<Ending>,
}

impl Answer {
    /// The beginning of an answer to a prompt.
    pub fn new(tokenizer: &Tokenizer, prompt: &[u32], sampling: &SamplingParams, rules: &Rules) -> Result<Self, EngineError> {
        if prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        let eos = if rules.ignore_eos { &[] } else { tokenizer.eos_ids() };
        Ok(Answer {
            sampler: Sampler::new(sampling.clone())?,
            constraint: None,
            stop: StopMatcher::new(rules.stop.iter().cloned())?,
            detokenizer: tokenizer.detokenizer_after(prompt, rules.skip_special_tokens)?,
            ends: eos.iter().chain(rules.stop_token_ids).copied().collect(),
            max_tokens: rules.max_tokens,
            min_tokens: rules.min_tokens,
            include_stop: rules.include_stop,
            logprobs: rules.logprobs,
            count: 0,
            picked: None,
        })
    }

    /// Restricts its tokens.
    pub fn constrain(&mut self, constraint: Option<Box<dyn Constraint>>) {
        self.constraint = constraint;
    }

    /// Another choice for the same prompt; nothing must have been chosen yet.
    pub fn fork(&self, choice: usize) -> Result<Self, EngineError> {
        Ok(Answer {
            sampler: Sampler::of_choice(self.sampler.params().clone(), choice as u64)?,
            constraint: self.constraint.as_ref().map(|c| c.fork()),
            stop: self.stop.clone(),
            detokenizer: self.detokenizer.clone(),
            ends: Arc::clone(&self.ends),
            picked: None,
            ..*self
        })
    }

    /// Tokens that it may still have.
    pub fn left(&self) -> usize {
        self.max_tokens.saturating_sub(self.count)
    }

    /// Picks the token that [`choose`](Self::choose) will choose, by the same logits and histories: the part of the work that
    /// looks at the whole vocabulary, which several answers can do at once. What is wrong is told when it is chosen.
    pub fn pick_ahead(&mut self, room: &mut Room, raw: &[f32], prompt: &[u32], generated: &[u32]) {
        self.picked = Some(self.pick(room, raw, prompt, generated));
    }

    fn pick(&mut self, room: &mut Room, raw: &[f32], prompt: &[u32], generated: &[u32]) -> Result<Picked, EngineError> {
        let Room { logits, buffers } = &mut *room;
        let too_soon = self.count < self.min_tokens;
        let as_they_are = !too_soon && self.constraint.is_none() && self.sampler.params().leaves_logits();
        if !as_they_are {
            logits.clear();
            logits.extend_from_slice(raw);
        }
        if too_soon {
            // a token that the model does not have ends nothing
            self.ends.iter().for_each(|&end| {
                if let Some(logit) = logits.get_mut(end as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            });
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.mask(logits).map_err(EngineError::Constraint)?;
        }
        self.sampler.swap_buffers(buffers);
        let token = if as_they_are { self.sampler.draw(raw) } else { self.sampler.sample(logits, prompt, generated) };
        self.sampler.swap_buffers(buffers);
        let token = token?;
        Ok(Picked { token, logprob: self.logprobs.map(|top| room.logprob(raw, token, top)) })
    }

    /// Chooses the token that follows `prompt` and the tokens `generated` since by the raw logits of the last of them.
    pub fn choose(&mut self, room: &mut Room, raw: &[f32], prompt: &[u32], generated: &[u32]) -> Result<Chosen, EngineError> {
        let picked = self.picked.take().unwrap_or_else(|| self.pick(room, raw, prompt, generated));
        let Picked { token, logprob } = picked?;
        self.count += 1;
        let complete = self.constraint.as_mut().map_or(Ok(false), |c| c.accept(token)).map_err(EngineError::Constraint)?;
        let (text, end) = self.read(token, complete)?;
        Ok(Chosen { token, text, logprob, end })
    }

    /// Turns a token into text, and sees whether it is the last one.
    fn read(&mut self, token: u32, complete: bool) -> Result<(String, Option<Ending>), EngineError> {
        let ends = self.ends.contains(&token);
        if ends && !self.include_stop {
            return Ok((String::new(), Some(Ending { reason: FinishReason::Stop, stop: Some(StopCause::Token(token)) })));
        }
        let piece = self.detokenizer.push(token)?;
        // a stop text is looked for in what follows the least number of tokens
        let mut text = if self.count <= self.min_tokens { piece.to_owned() } else { self.stop.push(piece).text.to_owned() };
        if let Some(stop) = self.stop.hit() {
            if self.include_stop {
                text.push_str(stop);
            }
            return Ok((text, Some(Ending { reason: FinishReason::Stop, stop: Some(StopCause::Text(stop.to_owned())) })));
        }
        let end = if ends {
            Some(Ending { reason: FinishReason::Stop, stop: Some(StopCause::Token(token)) })
        } else if complete {
            Some(FinishReason::Stop.into())
        } else if self.left() == 0 {
            Some(FinishReason::Length.into())
        } else {
            None
        };
        Ok((text, end))
    }

    /// The text that was held back. A stop text that comes only now changes how the answer ended.
    pub fn finish(&mut self, end: &mut Ending) -> Result<String, EngineError> {
        if self.stop.hit().is_some() || self.count == 0 {
            return Ok(String::new());
        }
        let step = self.stop.push(self.detokenizer.finish()?);
        let mut rest = step.text.to_owned();
        if step.hit.is_none() {
            rest.push_str(self.stop.finish());
        } else if let Some(stop) = self.stop.hit() {
            if self.include_stop {
                rest.push_str(stop);
            }
            if end.reason == FinishReason::Length {
                *end = Ending { reason: FinishReason::Stop, stop: Some(StopCause::Text(stop.to_owned())) };
            }
        }
        Ok(rest)
    }
}
