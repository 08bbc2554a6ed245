//! Several requests side by side: one pass over the weights for a token of each.

use crate::turn::Turn;
use crate::{Completion, EngineError, PREFILL_CHUNK, Request};
use billfish_models::{BLOCK, KvPool, Logits, Model, Part, RESERVED_AHEAD, Scratch, Sequence};
use billfish_text::Tokenizer;
use std::time::{Duration, Instant};

/// What happens to a request of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchEvent<'a> {
    /// A piece of its text is final.
    Text(&'a str),
    /// It ended, well or not.
    End,
}

/// A request that runs.
struct Running<'r> {
    index: usize,
    turn: Turn<'r>,
    request: &'r Request<'r>,
    sequence: Sequence,
    /// What is in the sequence.
    tokens: Vec<u32>,
    /// The token that was chosen last; the prompt comes first.
    next: u32,
    /// Tokens of the pass that is made up.
    count: usize,
    /// Since the arrival of all, when its first token could be chosen.
    prompted: Duration,
}

/// One pool for all, that grows as it must.
struct Blocks {
    pool: KvPool,
    free: Vec<u32>,
    free_slots: Vec<u32>,
}

impl Blocks {
    /// Gives a sequence room for `tokens` tokens in all.
    fn give(&mut self, sequence: &mut Sequence, tokens: usize) {
        let table = sequence.table_mut();
        table.reserve(tokens);
        while table.capacity() < tokens {
            let block = self.free.pop().unwrap_or_else(|| {
                let (first, missing) = (self.pool.blocks(), (tokens - table.capacity()).div_ceil(BLOCK));
                self.pool.grow(first + missing);
                self.free.extend((first as u32 + 1..(first + missing) as u32).rev());
                first as u32
            });
            table.push(block);
        }
    }

    /// Takes back all that a sequence had.
    fn take(&mut self, sequence: &Sequence) {
        self.free.extend(sequence.table().blocks().iter().rev());
        self.free_slots.push(sequence.table().slot());
    }
}

impl<'r> Running<'r> {
    fn new(
        model: &Model,
        tokenizer: &'r Tokenizer,
        blocks: &mut Blocks,
        index: usize,
        request: &'r Request<'r>,
    ) -> Result<Self, EngineError> {
        let mut turn = Turn::new(tokenizer, request)?;
        model.check(request.prompt, 0)?;
        turn.out.timings.prompt_tokens = request.prompt.len();
        let (prompt, ahead) = (request.prompt.len(), request.max_tokens.min(RESERVED_AHEAD));
        let slot = blocks.free_slots.pop().unwrap_or_default();
        let mut sequence = model.new_sequence(slot, prompt.saturating_add(request.max_tokens));
        blocks.give(&mut sequence, prompt + ahead);
        let tokens = Vec::with_capacity(prompt + ahead);
        Ok(Running { index, turn, request, sequence, tokens, next: 0, count: 0, prompted: Duration::ZERO })
    }

    fn prompt_left(&self) -> usize {
        self.request.prompt.len().saturating_sub(self.tokens.len())
    }

    /// Takes tokens for the next pass: the chosen one, or as much of the prompt as there is room for.
    fn plan(&mut self, room: &mut usize) {
        self.count = match self.prompt_left() {
            0 => 1,
            left => left.min(*room),
        };
        if self.prompt_left() > 0 {
            *room -= self.count;
        }
    }

    /// Its part of the next pass.
    fn part(&mut self, blocks: &mut Blocks) -> Part<'_> {
        let at = self.tokens.len();
        let (tokens, want) = match self.prompt_left() {
            0 => (std::slice::from_ref(&self.next), Logits::Last),
            left if left == self.count && self.request.max_tokens > 0 => (&self.request.prompt[at..], Logits::Last),
            _ => (&self.request.prompt[at..at + self.count], Logits::None),
        };
        if let Some(room) = self.turn.room(self.sequence.len(), self.sequence.table().capacity()) {
            blocks.give(&mut self.sequence, room);
        }
        Part { sequence: &mut self.sequence, tokens, want }
    }

    /// Takes over what the pass gave. Returns whether the request goes on.
    fn take(&mut self, logits: &mut [f32], begin: Instant, emit: &mut dyn FnMut(&str)) -> Result<bool, EngineError> {
        let at = self.tokens.len();
        match self.prompt_left() {
            0 => {
                self.tokens.push(self.next);
                self.turn.out.timings.steps += 1;
            }
            _ => self.tokens.extend_from_slice(&self.request.prompt[at..at + self.count]),
        }
        if self.prompt_left() > 0 {
            return Ok(!self.turn.cancelled());
        }
        if self.turn.out.tokens.is_empty() {
            self.prompted = begin.elapsed();
            self.turn.out.timings.prompt = self.prompted;
        }
        if self.request.max_tokens == 0 {
            return Ok(false);
        }
        let next = self.turn.step(logits, &self.tokens, emit)?;
        self.next = next.unwrap_or_default();
        Ok(next.is_some())
    }
}

/// Answers requests that arrive at once, at most `most` at a time (at least one); the next begins when one ends. Each pass
/// runs the chosen token of every request whose prompt is done, and up to [`PREFILL_CHUNK`] tokens of the prompts of the
/// others, first come first served. A request gets the tokens that it gets in a new [`Session`](crate::Session), to the last
/// bit.
///
/// `events` hears of each request by its index. The completions come in the order of the requests; their times count from
/// the arrival of all, waiting included.
///
/// # Errors
/// What is wrong with one request is the error of that one. [`EngineError::Model`] if the network refuses a pass, which it
/// does not with requests that it accepted one by one.
pub fn generate_batch(
    model: &Model,
    tokenizer: &Tokenizer,
    requests: &[Request],
    most: usize,
    events: &mut dyn FnMut(usize, BatchEvent),
) -> Result<Vec<Result<Completion, EngineError>>, EngineError> {
    let begin = Instant::now();
    let mut done: Vec<Option<Result<Completion, EngineError>>> = requests.iter().map(|_| None).collect();
    let mut waiting = requests.iter().enumerate();
    let mut running: Vec<Running> = vec![];
    let (mut scratch, mut logits) = (Scratch::default(), vec![]);
    let slots = most.clamp(1, requests.len().max(1)) as u32;
    let mut blocks = Blocks { pool: KvPool::new(model.kv_shape(), slots as usize), free: vec![], free_slots: (0..slots).rev().collect() };
    loop {
        while running.len() < most.max(1) {
            let Some((index, request)) = waiting.next() else { break };
            match Running::new(model, tokenizer, &mut blocks, index, request) {
                Ok(r) => running.push(r),
                Err(e) => {
                    done[index] = Some(Err(e));
                    events(index, BatchEvent::End);
                }
            }
        }
        if running.is_empty() {
            break;
        }
        let mut room = PREFILL_CHUNK;
        running.iter_mut().for_each(|r| r.plan(&mut room));
        let mut parts: Vec<Part> = running.iter_mut().filter(|r| r.count > 0).map(|r| r.part(&mut blocks)).collect();
        let pass = model.forward_batch(&mut blocks.pool, &mut parts, &mut scratch)?;
        drop(parts);
        let (mut part, mut i) = (0, 0);
        while let Some(r) = running.get_mut(i) {
            if r.count == 0 {
                i += 1;
                continue;
            }
            let index = r.index;
            let mut emit = |text: &str| events(index, BatchEvent::Text(text));
            let goes_on = pass.of(part).map_err(EngineError::from).and_then(|given| {
                logits.clear();
                logits.extend_from_slice(given);
                r.take(&mut logits, begin, &mut emit)
            });
            part += 1;
            if let Ok(true) = goes_on {
                i += 1;
                continue;
            }
            let mut ended = running.remove(i);
            blocks.take(&ended.sequence);
            ended.turn.out.timings.generation = begin.elapsed().saturating_sub(ended.prompted);
            done[index] = Some(goes_on.and_then(|_| ended.turn.finish(&mut emit)));
            events(index, BatchEvent::End);
        }
    }
    Ok(done.into_iter().flatten().collect())
}
