//! One pass of an engine, and what becomes of it.

use crate::answer::{Answer, Chosen, Rooms};
use crate::choice::{Choice, Running, pick_ahead, verify};
use crate::scheduler::Scheduler;
use crate::{Engine, EngineError, FinishReason, Happened, Ngram, RequestId, Stats};
use billfish_models::{BLOCK, KvPool, KvTable, Logits, Model, Part, RESERVED_AHEAD};
use std::ops::Deref;
use std::time::Instant;

/// Who hears of what happens.
type Out<'o> = &'o mut dyn FnMut(RequestId, Happened);

impl<M: Deref<Target = Model>> Engine<M> {
    /// One pass over all that run; `out` hears what becomes of it. Returns whether there was anything to do.
    ///
    /// # Errors
    /// The network refused the pass, which it does not with requests that were accepted.
    pub fn step(&mut self, out: &mut dyn FnMut(RequestId, Happened)) -> Result<bool, EngineError> {
        let now = Instant::now();
        self.end_where(FinishReason::Deadline, |s| s.state.deadline.is_some_and(|d| d <= now));
        let any = !self.ended.is_empty();
        for s in self.ended.drain(..) {
            let (request, choices) = (RequestId(s.rank.request), choices(&s));
            if let Err(error) = end(s, &mut self.stats, out) {
                self.stats.finished.failed += choices;
                out(request, Happened::Failed(error));
            }
        }
        if !self.scheduler.plan() {
            return Ok(any);
        }
        if let Some(ngram) = &self.options.speculation {
            draft(&mut self.scheduler, ngram, &mut self.chosen);
        }
        let Engine { model, scheduler, pool, scratch, parts: list, rooms, chosen, stats, .. } = self;
        let model: &Model = model;
        let running = scheduler.running_mut().iter_mut().filter(|s| s.planned() > 0);
        let mut parts = recycled(std::mem::take(list));
        parts.extend(running.enumerate().map(|(i, s)| {
            s.state.part = i;
            part(model, s)
        }));
        stats.steps += 1;
        stats.tokens_run += parts.iter().map(|p| p.tokens.len() as u64).sum::<u64>();
        let given = model.forward_batch(pool, &mut parts, scratch)?;
        *list = recycled(parts);

        let vocab = model.config().vocab_size;
        model.backend().pool().chunks_mut(scheduler.running_mut(), 1, &|_, running| {
            for s in running.iter_mut().filter(|s| decides(s)) {
                let logits = given.unchecked(s.state.part);
                rooms.with(|room| pick_ahead(s, logits, vocab, room));
            }
        });
        let mut after = After { scheduler, pool, rooms, chosen, stats, vocab, out };
        let mut failed: Vec<(RequestId, EngineError)> = vec![];
        let mut i = 0;
        // choices that are born here come behind, and have no part
        while let Some(s) = after.scheduler.running().get(i) {
            if s.planned() > 0 {
                let request = RequestId(s.rank.request);
                if !failed.iter().any(|f| f.0 == request) {
                    let done = given.of(s.state.part).map_err(EngineError::from).and_then(|logits| after.take(i, logits));
                    failed.extend(done.err().map(|e| (request, e)));
                }
            }
            i += 1;
        }
        for s in after.scheduler.remove(|s| s.state.ending.is_some()) {
            let (request, choices) = (RequestId(s.rank.request), choices(&s));
            if failed.iter().any(|f| f.0 == request) {
                after.stats.finished.failed += choices;
            } else if let Err(error) = end(s, after.stats, after.out) {
                after.stats.finished.failed += choices;
                failed.push((request, error));
            }
        }
        for (request, error) in failed {
            let lost: u64 = after.scheduler.remove(|s| s.rank.request == request.0).iter().map(choices).sum();
            after.stats.finished.failed += lost;
            (after.out)(request, Happened::Failed(error));
        }
        Ok(true)
    }
}

/// An empty list in the memory of another.
fn recycled<'b>(mut parts: Vec<Part<'_>>) -> Vec<Part<'b>> {
    parts.clear();
    // nothing is left to convert, and a list collected from one of the same layout keeps its memory
    parts.into_iter().map_while(|_| None).collect()
}

/// How many choices a sequence stands for.
fn choices(s: &Running) -> u64 {
    1 + s.state.unborn.len() as u64
}

/// Tells that the choices of a sequence ended.
fn end(mut s: Running, stats: &mut Stats, out: Out) -> Result<(), EngineError> {
    let ending = s.state.ending.take().unwrap_or_else(|| FinishReason::Length.into());
    let unborn = std::mem::take(&mut s.state.unborn);
    for (choice, mut answer) in (s.rank.choice..).zip(std::iter::once(s.state.answer).chain(unborn)) {
        let mut ending = ending.clone();
        let text = answer.finish(&mut ending)?;
        stats.finished.add(ending.reason);
        out(RequestId(s.rank.request), Happened::End { choice, text, reason: ending.reason, stop: ending.stop });
    }
    Ok(())
}

/// Adds drafts where a pass has room for them and they are worth their while.
fn draft(scheduler: &mut Scheduler<Choice>, ngram: &Ngram, draft: &mut Vec<u32>) {
    for i in 0..scheduler.running().len() {
        let s = &scheduler.running()[i];
        let decodes = s.planned() == 1 && s.reaches_end() && s.tokens.len() > s.prompt;
        // the last token of an answer is never run, so no draft for what follows it
        let most = s.state.answer.left().saturating_sub(1).min(scheduler.room_for_drafts());
        if decodes && most > 0 && s.state.drafts.is_enough() {
            draft.clear();
            draft.extend_from_slice(Ngram { most: most.min(ngram.most), ..*ngram }.propose(&s.tokens));
            scheduler.add_draft(i, draft);
        }
    }
}

/// Whether a pass tells the next token of a sequence.
fn decides(s: &Running) -> bool {
    s.planned() > 0 && s.reaches_end() && s.state.answer.left() > 0
}

/// The part of a sequence in the next pass.
fn part<'s>(model: &Model, s: &'s mut Running) -> Part<'s> {
    let (from, to) = (s.computed(), s.computed() + s.planned());
    let (slot, fresh, draft) = (s.slot(), s.take_fresh(), s.draft());
    let mut memory = s.state.memory.take().filter(|_| !fresh).unwrap_or_else(|| {
        let mut memory = model.new_sequence(slot, s.state.length);
        *memory.table_mut() = KvTable::with_prefix(slot, &s.table()[..from / BLOCK]);
        // room for what is likely to come, so that steps need not make it
        let ahead = s.state.length.min(s.tokens.len() + RESERVED_AHEAD);
        memory.table_mut().reserve(ahead);
        s.tokens.reserve(ahead - s.tokens.len());
        memory
    });
    let has = memory.table().blocks().len();
    s.table()[has..].iter().for_each(|block| memory.table_mut().push(*block));
    let want = if draft > 0 || s.state.prompt_logprobs.is_some() {
        Logits::All
    } else if decides(s) {
        Logits::Last
    } else {
        Logits::None
    };
    Part { sequence: s.state.memory.insert(memory), tokens: &s.tokens[from..to], want }
}

/// What deals with what a pass gave.
struct After<'e> {
    scheduler: &'e mut Scheduler<Choice>,
    pool: &'e mut KvPool,
    rooms: &'e Rooms,
    chosen: &'e mut Vec<u32>,
    stats: &'e mut Stats,
    vocab: usize,
    out: Out<'e>,
}

impl After<'_> {
    /// Takes over the logits of the sequence at `index`.
    fn take(&mut self, index: usize, logits: &[f32]) -> Result<(), EngineError> {
        let (vocab, out) = (self.vocab, &mut *self.out);
        let s = &mut self.scheduler.running_mut()[index];
        let (request, choice, draft) = (RequestId(s.rank.request), s.rank.choice, s.draft());
        let (start, end, at_end) = (s.computed(), s.computed() + s.planned(), s.reaches_end());
        if let Some(told) = &mut s.state.prompt_logprobs {
            self.rooms.with(|room| told.add(room, logits, vocab, start, &s.tokens[..s.prompt]));
        }
        if !at_end {
            self.scheduler.ran(index, end, &[]);
            return Ok(());
        }
        let prompted = s.tokens.len() == s.prompt;
        if prompted {
            let logprobs = s.state.prompt_logprobs.take().map(|p| p.told);
            self.stats.prompt_tokens += s.prompt as u64;
            out(request, Happened::Prompt { cached_tokens: s.cached(), logprobs });
        }
        self.chosen.clear();
        let mut accepted = 0;
        if s.state.answer.left() == 0 {
            s.state.ending = Some(FinishReason::Length.into());
        } else {
            let chosen = &mut *self.chosen;
            accepted = self.rooms.with(|room| verify(s, logits, vocab, room, chosen, &mut |c| out(request, token(choice, c))))?;
            self.stats.generated_tokens += self.chosen.len() as u64;
        }
        if draft > 0 {
            s.state.drafts.add(draft, accepted);
            self.stats.drafts += 1;
            self.stats.draft_tokens += draft as u64;
            self.stats.accepted_tokens += accepted as u64;
        }
        // what was chosen last did not run
        let mut computed = end - draft + accepted.min(self.chosen.len().saturating_sub(1));
        if computed < end
            && let Some(memory) = &mut s.state.memory
        {
            computed = memory.table_mut().truncate(computed);
        }
        // where nothing is to be generated, the other choices end with this one
        let unborn = if self.chosen.is_empty() { vec![] } else { std::mem::take(&mut s.state.unborn) };
        self.scheduler.ran(index, computed, self.chosen);
        for (answer, choice) in unborn.into_iter().zip(1..) {
            self.bear(index, choice, answer, &logits[logits.len() - vocab..])?;
        }
        Ok(())
    }

    /// Begins another choice for the prompt of the sequence at `index`, whose last logits these are.
    fn bear(&mut self, index: usize, choice: usize, mut answer: Answer, logits: &[f32]) -> Result<(), EngineError> {
        let s = &self.scheduler.running()[index];
        let request = RequestId(s.rank.request);
        let mut first = self.rooms.with(|room| answer.choose(room, logits, &s.tokens[..s.prompt], &[]))?;
        let state = Choice { ending: first.end.take(), ..s.state.of_same(answer) };
        let at = self.scheduler.fork(index, choice, first.token, state);
        self.stats.generated_tokens += 1;
        (self.out)(request, token(choice, first));
        if let Some(at) = at
            && let Ok([from, to]) = self.scheduler.running_mut().get_disjoint_mut([index, at])
            && let Some(memory) = &mut from.state.memory
        {
            let mut new = memory.fork(to.slot());
            new.table_mut().reserve(to.state.length.min(to.tokens.len() + RESERVED_AHEAD));
            let has = new.table().blocks().len();
            to.table()[has..].iter().for_each(|block| new.table_mut().push(*block));
            self.pool.copy_tail(memory.table(), new.table());
            to.state.memory = Some(new);
        }
        Ok(())
    }
}

/// The event of a token.
fn token(choice: usize, c: Chosen) -> Happened {
    Happened::Token { choice, token: c.token, text: c.text, logprob: c.logprob }
}
