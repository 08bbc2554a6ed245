//! One sequence: its tokens, its cache, and the loop that makes it longer.

use crate::answer::{Answer, Ending, Room, Rules};
use crate::{EngineError, FinishReason, SamplingParams};
use billfish_models::{Cache, Logits, Model, RESERVED_AHEAD, Scratch};
use billfish_text::Tokenizer;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Tokens of a prompt that run at once: enough to reach the arithmetic peak, few enough to keep the buffers small.
pub const PREFILL_CHUNK: usize = 256;

/// What to generate.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The tokens to continue.
    pub prompt: &'a [u32],
    /// How to choose tokens.
    pub sampling: SamplingParams,
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// Texts that end the completion; they are not part of it.
    pub stop: &'a [String],
    /// Go on after an end-of-sequence token.
    pub ignore_eos: bool,
    /// Set by another thread to end early.
    pub cancel: Option<&'a AtomicBool>,
}

impl<'a> Request<'a> {
    /// What ends it, and what of it is text.
    pub(crate) fn rules(&self) -> Rules<'a> {
        Rules {
            max_tokens: self.max_tokens,
            min_tokens: 0,
            stop: self.stop,
            include_stop: false,
            stop_token_ids: &[],
            ignore_eos: self.ignore_eos,
            skip_special_tokens: true,
            logprobs: None,
        }
    }
}

/// How long the two phases took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// From the first prompt token to the first generated one.
    pub prompt: Duration,
    /// From the first generated token to the last.
    pub generation: Duration,
    /// Prompt tokens that ran (the others were in the cache).
    pub prompt_tokens: usize,
    /// Decode steps that ran.
    pub steps: usize,
}

impl Timings {
    /// Prompt tokens per second.
    pub fn prompt_rate(&self) -> f64 {
        rate(self.prompt_tokens, self.prompt)
    }

    /// Generated tokens per second, the first one (which the prompt pays for) not counted.
    pub fn generation_rate(&self) -> f64 {
        rate(self.steps, self.generation)
    }
}

fn rate(count: usize, time: Duration) -> f64 {
    if count == 0 { 0.0 } else { count as f64 / time.as_secs_f64().max(1e-9) }
}

/// What was generated.
#[derive(Clone, Debug)]
pub struct Completion {
    /// The text, without any stop text.
    pub text: String,
    /// The tokens, an end-of-sequence token that ended it included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Prompt tokens found in the cache.
    pub cached_tokens: usize,
    /// How long it took.
    pub timings: Timings,
}

/// One sequence over a model. A later prompt that begins like the sequence so far reuses its cache; the result is the
/// same to the last bit as without.
pub struct Session<'m> {
    model: &'m Model,
    tokenizer: &'m Tokenizer,
    cache: Cache,
    scratch: Scratch,
    tokens: Vec<u32>,
    logits: Vec<f32>,
    room: Room,
}

impl<'m> Session<'m> {
    /// An empty sequence.
    pub fn new(model: &'m Model, tokenizer: &'m Tokenizer) -> Self {
        Session {
            model,
            tokenizer,
            cache: model.new_cache(0),
            scratch: Scratch::default(),
            tokens: vec![],
            logits: vec![],
            room: Room::default(),
        }
    }

    /// How many tokens each expert has had so far, `[layers, experts]`; empty without experts.
    pub fn expert_usage(&self) -> &[u64] {
        self.scratch.expert_usage()
    }

    /// Continues `request.prompt` and hands each piece of text to `emit` as soon as it is final: whole characters, never
    /// the beginning of a stop text.
    ///
    /// # Errors
    /// [`EngineError`]; the session stays usable.
    pub fn generate(&mut self, request: &Request, emit: &mut dyn FnMut(&str)) -> Result<Completion, EngineError> {
        let Request { prompt, max_tokens, .. } = *request;
        let mut answer = Answer::new(self.tokenizer, prompt, &request.sampling, &request.rules())?;
        let cancelled = || request.cancel.is_some_and(|c| c.load(Ordering::Relaxed));
        let ahead = max_tokens.min(RESERVED_AHEAD);

        let begin = Instant::now();
        // the last prompt token always runs: its logits are what the first choice needs
        let common = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count().min(prompt.len() - 1);
        let cached = self.model.reuse(&mut self.cache, common, prompt.len().saturating_add(max_tokens));
        self.tokens.truncate(cached);
        self.cache.reserve(prompt.len() + ahead);
        self.tokens.reserve(prompt.len() - cached + ahead);
        let mut timings = Timings { prompt_tokens: prompt.len() - cached, ..Timings::default() };
        let mut text = String::new();
        let mut tokens = Vec::with_capacity(ahead);
        let mut end = Ending::from(FinishReason::Length);
        for chunk in prompt[cached..].chunks(PREFILL_CHUNK) {
            if cancelled() {
                end = FinishReason::Cancelled.into();
                break;
            }
            let last = self.tokens.len() + chunk.len() == prompt.len();
            self.run(chunk, if last { Logits::Last } else { Logits::None })?;
        }
        timings.prompt = begin.elapsed();

        let begin = Instant::now();
        while end.reason != FinishReason::Cancelled && answer.left() > 0 {
            if let Some(&token) = tokens.last() {
                self.make_room(answer.left());
                self.run(&[token], Logits::Last)?;
                timings.steps += 1;
            }
            let chosen = answer.choose(&mut self.room, &self.logits, prompt, &tokens)?;
            tokens.push(chosen.token);
            if !chosen.text.is_empty() {
                text.push_str(&chosen.text);
                emit(&chosen.text);
            }
            match chosen.end {
                Some(ended) => {
                    end = ended;
                    break;
                }
                None if cancelled() => end = FinishReason::Cancelled.into(),
                None => {}
            }
        }
        if !tokens.is_empty() {
            timings.generation = begin.elapsed();
        }
        let rest = answer.finish(&mut end)?;
        if !rest.is_empty() {
            text.push_str(&rest);
            emit(&rest);
        }
        Ok(Completion { text, tokens, finish: end.reason, cached_tokens: cached, timings })
    }

    /// Room for what the next tokens add, outside of the pass that adds them: for the rest of the answer, but no more than
    /// a plan may reserve.
    fn make_room(&mut self, left: usize) {
        if self.cache.len() == self.cache.capacity() {
            self.cache.reserve(self.cache.len() + left.clamp(1, RESERVED_AHEAD));
        }
    }

    fn run(&mut self, tokens: &[u32], want: Logits) -> Result<(), EngineError> {
        let logits = self.model.forward(&mut self.cache, tokens, want, &mut self.scratch);
        // a pass that failed may have added its tokens to the cache: forget them
        let logits = match logits {
            Ok(logits) => logits,
            Err(e) => {
                let kept = self.cache.truncate(self.tokens.len());
                self.tokens.truncate(kept);
                return Err(e.into());
            }
        };
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }
}
