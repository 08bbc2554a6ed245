//! Many requests at once: one pass after another over all that run.

use crate::answer::{Answer, Ending, Rules};
use crate::logprobs::logprob;
use crate::{EngineError, FinishReason, Happened, RequestId, Stats, Submission, TokenLogprob};
use billfish_models::{Cache, Logits, Model, Part, Scratch};
use billfish_text::Tokenizer;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

/// Sizes and limits of an [`Engine`].
#[derive(Clone, Debug, PartialEq)]
pub struct EngineOptions {
    /// Bytes that keys and values may take; all of it is set aside at the start.
    pub kv_cache_memory: u64,
    /// Choices that run at once.
    pub max_num_seqs: usize,
    /// Tokens of a pass.
    pub max_num_batched_tokens: usize,
    /// Tokens of the longest sequence; by default what the model was made for, or what the cache holds if that is less.
    pub max_model_len: Option<usize>,
    /// Choices that may wait; more are refused.
    pub max_waiting: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions { kv_cache_memory: 1 << 30, max_num_seqs: 32, max_num_batched_tokens: 512, max_model_len: None, max_waiting: 1024 }
    }
}

/// A choice that runs or waits.
struct Sequence {
    request: RequestId,
    choice: usize,
    /// Lower ones go first.
    rank: (i64, u64),
    deadline: Option<Instant>,
    answer: Answer,
    /// The prompt, and what was generated.
    tokens: Vec<u32>,
    prompt: usize,
    cache: Option<Cache>,
    /// Tokens of the pass that is made up.
    count: usize,
    /// Logprobs of the prompt's tokens, if asked for, and how many of the most probable ones.
    prompt_logprobs: Option<(usize, Vec<Option<TokenLogprob>>)>,
    ending: Option<Ending>,
}

/// Runs many requests at once, each as if it were alone. The model may be shared or borrowed.
pub struct Engine<M = Arc<Model>> {
    model: M,
    tokenizer: Arc<Tokenizer>,
    options: EngineOptions,
    max_model_len: usize,
    requests: u64,
    waiting: Vec<Sequence>,
    running: Vec<Sequence>,
    /// Choices that ended between the steps.
    ended: Vec<Sequence>,
    scratch: Scratch,
    stats: Stats,
}

/// Rows of logits that a pass gives at most for one prompt: a row is as long as the vocabulary.
const PROMPT_LOGITS: usize = 32;

impl<M: Deref<Target = Model>> Engine<M> {
    /// An engine without requests.
    ///
    /// # Errors
    /// An option that is out of range.
    pub fn new(model: M, tokenizer: Arc<Tokenizer>, options: EngineOptions) -> Result<Self, EngineError> {
        let wrong = |name, expected: &str, found: String| Err(EngineError::Option { name, expected: expected.into(), found });
        if options.max_num_seqs == 0 {
            return wrong("max-num-seqs", "at least 1", "0".into());
        }
        if options.max_num_batched_tokens == 0 {
            return wrong("max-num-batched-tokens", "at least 1", "0".into());
        }
        let room = options.kv_cache_memory / model.kv_bytes_per_token().max(1) as u64;
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let made_for = model.config().max_position_embeddings.unwrap_or(usize::MAX);
        let max_model_len = options.max_model_len.unwrap_or(made_for.min(room));
        if room < 2 {
            let least = 2 * model.kv_bytes_per_token();
            return wrong("kv-cache-memory", &format!("at least {least} bytes"), options.kv_cache_memory.to_string());
        }
        if !(2..=room).contains(&max_model_len) {
            return wrong("max-model-len", &format!("2 to {room}, which is what the cache holds"), max_model_len.to_string());
        }
        let stats = Stats::default();
        Ok(Engine {
            model,
            tokenizer,
            options,
            max_model_len,
            requests: 0,
            waiting: vec![],
            running: vec![],
            ended: vec![],
            scratch: Scratch::default(),
            stats,
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

    /// Takes a request.
    ///
    /// # Errors
    /// What can never run is refused at once, and whatever comes while the queue is full.
    pub fn submit(&mut self, mut s: Submission) -> Result<RequestId, EngineError> {
        let prompt = s.prompt.len();
        let wrong =
            |name, expected: &str, found: usize| EngineError::Parameter { name, expected: expected.into(), found: found.to_string() };
        if prompt + 1 > self.max_model_len {
            return Err(EngineError::TooLong { tokens: prompt, max_model_len: self.max_model_len });
        }
        if s.n == 0 {
            return Err(wrong("n", "at least 1", 0));
        }
        s.max_tokens = s.max_tokens.min(self.max_model_len - prompt);
        let vocab = self.model.config().vocab_size;
        s.sampling.check_tokens(vocab)?;
        self.model.check(&s.prompt, 0)?;
        let free = self.options.max_num_seqs.saturating_sub(self.running.len());
        if self.waiting.len() + s.n > self.options.max_waiting + free {
            return Err(EngineError::QueueFull { waiting: self.waiting.len(), most: self.options.max_waiting });
        }
        let rules = Rules {
            max_tokens: s.max_tokens,
            min_tokens: s.min_tokens,
            stop: &s.stop,
            include_stop: s.include_stop,
            stop_token_ids: &s.stop_token_ids,
            ignore_eos: s.ignore_eos,
            skip_special_tokens: s.skip_special_tokens,
            logprobs: s.logprobs,
        };
        let mut first = Answer::new(&self.tokenizer, &s.prompt, &s.sampling, &rules)?;
        first.constrain(s.constraint);
        let mut answers = (1..s.n).map(|i| first.fork(i)).collect::<Result<Vec<_>, _>>()?;
        answers.insert(0, first);
        let request = RequestId(self.requests);
        self.requests += 1;
        for (choice, answer) in answers.into_iter().enumerate() {
            self.waiting.push(Sequence {
                request,
                choice,
                rank: (s.priority, request.0),
                deadline: s.deadline,
                answer,
                tokens: s.prompt.clone(),
                prompt,
                cache: None,
                count: 0,
                prompt_logprobs: s.prompt_logprobs.filter(|_| choice == 0).map(|top| (top, vec![None])),
                ending: None,
            });
        }
        self.waiting.sort_by_key(|s| (s.rank, s.choice));
        Ok(request)
    }

    /// Ends a request. Its choices end with the next step; one that is unknown is none of anybody's business.
    pub fn abort(&mut self, id: RequestId) {
        self.end_where(FinishReason::Cancelled, |s| s.request == id);
    }

    fn end_where(&mut self, reason: FinishReason, which: impl Fn(&Sequence) -> bool) {
        let from = self.ended.len();
        self.ended.extend(self.running.extract_if(.., |s| which(s)));
        self.ended.extend(self.waiting.extract_if(.., |s| which(s)));
        for s in &mut self.ended[from..] {
            s.ending = Some(reason.into());
            s.cache = None;
        }
    }

    /// One pass over all that run; `out` hears what becomes of it. Returns whether there was anything to do.
    ///
    /// # Errors
    /// The network refused the pass, which it does not with requests that were accepted.
    pub fn step(&mut self, out: &mut dyn FnMut(RequestId, Happened)) -> Result<bool, EngineError> {
        let now = Instant::now();
        self.end_where(FinishReason::Deadline, |s| s.deadline.is_some_and(|d| d <= now));
        let any = !self.ended.is_empty();
        for s in std::mem::take(&mut self.ended) {
            self.end(s, out);
        }
        self.plan();
        if self.running.is_empty() {
            return Ok(any);
        }
        let mut parts = vec![];
        for s in self.running.iter_mut().filter(|s| s.count > 0) {
            let cache = s.cache.get_or_insert_with(|| self.model.new_cache(s.prompt + s.answer.left()));
            let (at, all) = (cache.len(), s.tokens.len());
            let want = match at + s.count {
                _ if s.prompt_logprobs.is_some() && at < s.prompt => Logits::All,
                end if end == all => Logits::Last,
                _ => Logits::None,
            };
            parts.push(Part { cache, tokens: &s.tokens[at..at + s.count], want });
        }
        let pass = self.model.forward_batch(&mut parts, &mut self.scratch)?;
        drop(parts);
        self.stats.steps += 1;
        let vocab = self.model.config().vocab_size;
        let (mut part, mut failed) = (0, vec![]);
        for s in self.running.iter_mut().filter(|s| s.count > 0) {
            self.stats.tokens_run += s.count as u64;
            match pass.of(part).map_err(EngineError::from).and_then(|logits| take(s, logits, vocab, out)) {
                Ok(()) => {}
                Err(e) => failed.push((s.request, e)),
            }
            part += 1;
        }
        for (request, error) in failed {
            self.running.retain(|s| s.request != request);
            self.waiting.retain(|s| s.request != request);
            out(request, Happened::Failed(error));
        }
        for s in self.running.extract_if(.., |s| s.ending.is_some()).collect::<Vec<_>>() {
            self.end(s, out);
        }
        Ok(true)
    }

    /// Who runs, and with how many tokens.
    fn plan(&mut self) {
        let mut room = self.options.max_num_batched_tokens;
        self.running.sort_by_key(|s| (s.rank, s.choice));
        while self.running.len() < self.options.max_num_seqs && !self.waiting.is_empty() {
            self.running.push(self.waiting.remove(0));
        }
        self.running.iter_mut().for_each(|s| s.count = 0);
        for decode in [true, false] {
            for s in &mut self.running {
                let left = s.tokens.len() - s.cache.as_ref().map_or(0, Cache::len);
                if (left == 1) == decode {
                    let most = if s.prompt_logprobs.is_some() { PROMPT_LOGITS } else { usize::MAX };
                    s.count = left.min(room).min(most);
                    room -= s.count;
                }
            }
        }
    }

    fn end(&mut self, mut s: Sequence, out: &mut dyn FnMut(RequestId, Happened)) {
        let mut ending = s.ending.take().unwrap_or_else(|| FinishReason::Length.into());
        match s.answer.finish(&mut ending) {
            Ok(text) => {
                self.stats.finished.add(ending.reason);
                out(s.request, Happened::End { choice: s.choice, text, reason: ending.reason, stop: ending.stop });
            }
            Err(e) => out(s.request, Happened::Failed(e)),
        }
    }

    /// What there is now, and what there was since the start.
    pub fn stats(&self) -> Stats {
        Stats { running: self.running.len(), waiting: self.waiting.len(), ..self.stats.clone() }
    }
}

/// Takes over what a pass gave.
fn take(s: &mut Sequence, logits: &[f32], vocab: usize, out: &mut dyn FnMut(RequestId, Happened)) -> Result<(), EngineError> {
    let done = s.cache.as_ref().map_or(0, Cache::len);
    if done - s.count < s.prompt {
        if let Some((top, told)) = &mut s.prompt_logprobs {
            let rows = logits.chunks_exact(vocab).zip(done - s.count + 1..s.prompt);
            told.extend(rows.map(|(row, next)| Some(logprob(row, s.tokens[next], *top))));
        }
        if done < s.prompt {
            return Ok(());
        }
        if s.choice == 0 {
            let logprobs = s.prompt_logprobs.take().map(|p| p.1);
            out(s.request, Happened::Prompt { cached_tokens: 0, logprobs });
        }
    }
    if s.answer.left() == 0 {
        s.ending = Some(FinishReason::Length.into());
        return Ok(());
    }
    let row = &logits[logits.len() - vocab..];
    let (prompt, generated) = s.tokens.split_at(s.prompt);
    let chosen = s.answer.choose(row, prompt, generated)?;
    s.tokens.push(chosen.token);
    out(s.request, Happened::Token { choice: s.choice, token: chosen.token, text: chosen.text, logprob: chosen.logprob });
    s.ending = chosen.end;
    Ok(())
}
