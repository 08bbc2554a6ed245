//! Many requests at once: one pass after another over all that run.

use crate::answer::{Answer, Rooms, Rules};
use crate::choice::{Choice, PromptLogprobs};
use crate::prefix::Chain;
use crate::scheduler::{Limits, Rank, Scheduler, Sequence};
use crate::{EngineError, EngineOptions, FinishReason, RequestId, Stats, Submission};
use billfish_models::{BLOCK, KvPool, Model, Part, Scratch};
use billfish_text::Tokenizer;
use std::ops::Deref;
use std::sync::Arc;

/// Runs many requests at once, each with the tokens and the logits that it gets alone. The model may be shared or borrowed.
///
/// A request is [submitted](Engine::submit), and [steps](Engine::step) run until there is nothing to do. What happens to it
/// depends on itself alone: not on what runs beside it, on the budget of a step, on what the cache holds, on drafts, or on
/// whether it had to give up its place for a while.
pub struct Engine<M = Arc<Model>> {
    pub(crate) model: M,
    tokenizer: Arc<Tokenizer>,
    pub(crate) options: EngineOptions,
    max_model_len: usize,
    requests: u64,
    pub(crate) scheduler: Scheduler<Choice>,
    pub(crate) pool: KvPool,
    /// Choices that ended between the steps.
    pub(crate) ended: Vec<Sequence<Choice>>,
    pub(crate) scratch: Scratch,
    /// Room for the parts of a pass; empty between the steps.
    pub(crate) parts: Vec<Part<'static>>,
    /// Room for choosing tokens.
    pub(crate) rooms: Rooms,
    /// Tokens that a sequence got in a pass, or a draft.
    pub(crate) chosen: Vec<u32>,
    pub(crate) stats: Stats,
}

/// Rows of logits that a pass gives at most for one prompt: a row is as long as the vocabulary.
const PROMPT_LOGITS: usize = 32;

/// Bytes of the cache that have memory before they are needed, beyond what was used: a quarter of a gigabyte, so that a
/// server takes no more than it is likely to need.
const AHEAD: usize = 256 << 20;

impl<M: Deref<Target = Model>> Engine<M> {
    /// An engine without requests. The memory of its cache is set aside here and never grows.
    ///
    /// # Errors
    /// An option that is out of range, or memory that cannot be had.
    pub fn new(model: M, tokenizer: Arc<Tokenizer>, options: EngineOptions) -> Result<Self, EngineError> {
        options.validate()?;
        let wrong = |name, expected: String, found: String| Err(EngineError::Option { name, expected, found });
        let shape = model.kv_shape();
        // what each sequence has besides its blocks comes off first
        let slots = options.max_num_seqs as u64 * shape.slot_bytes() as u64;
        let block = shape.block_bytes().max(1) as u64;
        let blocks = u32::try_from(options.kv_cache_memory.saturating_sub(slots) / block).unwrap_or(u32::MAX - 1);
        if blocks == 0 {
            let expected = format!("at least {} bytes, one block for {} sequences", slots + block, options.max_num_seqs);
            return wrong("kv-cache-memory", expected, options.kv_cache_memory.to_string());
        }
        let room = blocks as usize * BLOCK;
        let made_for = model.config().max_position_embeddings.unwrap_or(usize::MAX);
        let max_model_len = options.max_model_len.unwrap_or(made_for.min(room));
        if !(2..=room).contains(&max_model_len) {
            return wrong("max-model-len", format!("2 to {room}, which is what the cache holds"), max_model_len.to_string());
        }
        let pool = KvPool::with_blocks(shape, blocks as usize, options.max_num_seqs).map_err(|e| EngineError::Memory(e.to_string()))?;
        let limits = Limits { sequences: options.max_num_seqs, budget: options.max_num_batched_tokens, prefix: options.prefix_caching };
        Ok(Engine {
            model,
            tokenizer,
            options,
            max_model_len,
            requests: 0,
            scheduler: Scheduler::new(blocks, limits),
            pool,
            ended: vec![],
            scratch: Scratch::default(),
            parts: vec![],
            rooms: Rooms::default(),
            chosen: vec![],
            stats: Stats::default(),
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Tokens of the longest sequence.
    pub fn max_model_len(&self) -> usize {
        self.max_model_len
    }

    /// Takes a request. Its `max_tokens` are cut to what the longest sequence leaves.
    ///
    /// # Errors
    /// What can never run is refused at once, and whatever comes while too many wait.
    pub fn submit(&mut self, s: Submission) -> Result<RequestId, EngineError> {
        let prompt = s.prompt.len();
        if prompt + 1 > self.max_model_len {
            return Err(EngineError::TooLong { tokens: prompt, max_model_len: self.max_model_len });
        }
        if s.n == 0 {
            return Err(EngineError::Parameter { name: "n", expected: "at least 1".into(), found: "0".into() });
        }
        let vocab = self.model.config().vocab_size;
        s.sampling.check_tokens(vocab)?;
        self.model.check(&s.prompt, 0)?;
        let waiting = self.waiting();
        let free = self.options.max_num_seqs - self.scheduler.running().len();
        if waiting + s.n > self.options.max_waiting + free {
            return Err(EngineError::QueueFull { waiting, most: self.options.max_waiting });
        }
        let rules = Rules {
            max_tokens: s.max_tokens.min(self.max_model_len - prompt),
            min_tokens: s.min_tokens,
            stop: &s.stop,
            include_stop: s.include_stop,
            stop_token_ids: &s.stop_token_ids,
            ignore_eos: s.ignore_eos,
            skip_special_tokens: s.skip_special_tokens,
            logprobs: s.logprobs,
        };
        let mut answer = Answer::new(&self.tokenizer, &s.prompt, &s.sampling, &rules)?;
        answer.constrain(s.constraint);
        let unborn = (1..s.n).map(|i| answer.fork(i)).collect::<Result<Vec<_>, _>>()?;
        let length = prompt + rules.max_tokens;
        let chain = Chain::new(s.cache_salt.as_deref(), self.model.new_sequence(0, length).frequencies());
        let mut choice = Choice { deadline: s.deadline, ..Choice::new(answer, unborn, length) };
        choice.prompt_logprobs = s.prompt_logprobs.map(|top| PromptLogprobs { top, told: vec![None] });
        let alone = choice.prompt_logprobs.is_some();
        let rank = Rank { priority: s.priority, request: self.requests, choice: 0 };
        let sequence = Sequence::new(rank, s.prompt, chain, choice);
        self.scheduler.submit(if alone { sequence.alone(PROMPT_LOGITS) } else { sequence });
        self.requests += 1;
        Ok(RequestId(rank.request))
    }

    /// Does some of what the next requests would wait for, for a few milliseconds: asks the system for memory. To be called
    /// while there is nothing to do; returns false once there is nothing left to prepare either.
    pub fn prepare(&mut self) -> bool {
        self.model.make_room(self.options.max_num_batched_tokens, &mut self.scratch);
        self.pool.make_ready(AHEAD)
    }

    /// Ends a request. Its blocks are free at once; its choices end with the next step. One that is not there any more is
    /// nobody's business.
    pub fn abort(&mut self, id: RequestId) {
        self.end_where(FinishReason::Cancelled, |s| s.rank.request == id.0);
    }

    /// Ends all choices that `which` chooses.
    pub(crate) fn end_where(&mut self, reason: FinishReason, which: impl Fn(&Sequence<Choice>) -> bool) {
        let from = self.ended.len();
        self.ended.extend(self.scheduler.remove(which));
        self.ended[from..].iter_mut().for_each(|s| s.state.ending = Some(reason.into()));
    }

    /// Choices that wait, those included whose prompt is only running.
    fn waiting(&self) -> usize {
        let unborn = |s: &Sequence<Choice>| s.state.unborn.len();
        self.scheduler.waiting().map(|s| 1 + unborn(s)).sum::<usize>() + self.scheduler.running().iter().map(unborn).sum::<usize>()
    }

    /// What there is now, and what there was since the start.
    pub fn stats(&self) -> Stats {
        let (pool, counts) = (self.scheduler.pool(), self.scheduler.counts());
        Stats {
            running: self.scheduler.running().len(),
            waiting: self.waiting(),
            blocks: pool.len(),
            blocks_used: pool.len() - pool.free(),
            blocks_cached: pool.named(),
            prefix_queries: counts.prefix_queries,
            prefix_hits: counts.prefix_hits,
            preemptions: counts.preemptions,
            ..self.stats.clone()
        }
    }
}
