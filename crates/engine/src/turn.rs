//! What becomes of one request: from logits to tokens, from tokens to text, until it ends.

use crate::{Completion, EngineError, FinishReason, Request, Sampler, Timings};
use billfish_models::RESERVED_AHEAD;
use billfish_text::{Detokenizer, StopMatcher, Tokenizer};
use std::sync::atomic::Ordering;

/// A request that is being answered.
pub(crate) struct Turn<'r> {
    request: &'r Request<'r>,
    eos: &'r [u32],
    sampler: Sampler,
    stop: StopMatcher,
    detokenizer: Detokenizer,
    pub out: Completion,
}

impl<'r> Turn<'r> {
    /// The beginning of an answer.
    pub fn new(tokenizer: &'r Tokenizer, request: &'r Request<'r>) -> Result<Self, EngineError> {
        let sampler = Sampler::new(request.sampling.clone())?;
        let stop = StopMatcher::new(request.stop.iter().cloned())?;
        let detokenizer = tokenizer.detokenizer_after(request.prompt)?;
        if request.prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        let tokens = Vec::with_capacity(request.max_tokens.min(RESERVED_AHEAD));
        let (finish, timings) = (FinishReason::Length, Timings::default());
        let out = Completion { text: String::new(), tokens, finish, cached_tokens: 0, timings };
        Ok(Turn { request, eos: tokenizer.eos_ids(), sampler, stop, detokenizer, out })
    }

    /// Whether the caller cancelled; the answer then ends here.
    pub fn cancelled(&mut self) -> bool {
        let cancelled = self.request.cancel.is_some_and(|c| c.load(Ordering::Relaxed));
        if cancelled {
            self.out.finish = FinishReason::Cancelled;
        }
        cancelled
    }

    /// Chooses a token from logits that follow `history`. Returns it if it is to be run, none if the answer ends with it.
    pub fn step(&mut self, logits: &mut [f32], history: &[u32], emit: &mut dyn FnMut(&str)) -> Result<Option<u32>, EngineError> {
        let token = self.sampler.sample(logits, history)?;
        self.out.tokens.push(token);
        if !self.request.ignore_eos && self.eos.contains(&token) {
            self.out.finish = FinishReason::Stop;
            return Ok(None);
        }
        let step = self.stop.push(self.detokenizer.push(token)?);
        if !step.text.is_empty() {
            self.out.text.push_str(step.text);
            emit(step.text);
        }
        if step.hit.is_some() {
            self.out.finish = FinishReason::Stop;
            return Ok(None);
        }
        if self.out.tokens.len() >= self.request.max_tokens || self.cancelled() {
            return Ok(None);
        }
        Ok(Some(token))
    }

    /// Tokens that a sequence without room for one more is to get room for, outside of the pass that adds it: for the rest of
    /// the answer, but no more than a plan may reserve.
    pub fn room(&self, len: usize, capacity: usize) -> Option<usize> {
        let rest = self.request.max_tokens.saturating_sub(self.out.tokens.len());
        (len == capacity).then(|| len + rest.clamp(1, RESERVED_AHEAD))
    }

    /// Gives out the text that was held back.
    pub fn finish(mut self, emit: &mut dyn FnMut(&str)) -> Result<Completion, EngineError> {
        if self.stop.hit().is_none() && !self.out.tokens.is_empty() {
            let step = self.stop.push(self.detokenizer.finish()?);
            let mut rest = step.text.to_string();
            if step.hit.is_none() {
                rest.push_str(self.stop.finish());
            }
            if !rest.is_empty() {
                self.out.text.push_str(&rest);
                emit(&rest);
            }
        }
        Ok(self.out)
    }
}
