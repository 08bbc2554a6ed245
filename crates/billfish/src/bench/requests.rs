//! Requests as a client makes them: tokens in, tokens out, sampling and text included.

use crate::{Engine, EngineOptions, Error, Happened, LoadedModel, SamplingParams, Submission};
use billfish_models::BLOCK;
use std::sync::Arc;
use std::time::Instant;

/// Numbers in an order without a pattern, the same for the same seed.
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1) | 1)
    }

    /// The next one, spread evenly from 0 to below `end`.
    pub(super) fn below(&mut self, end: usize) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * end as u128) >> 64) as u32
    }
}

/// Tokens spread evenly over a vocabulary, in an order without a pattern; the same for the same seed.
pub fn random_tokens(count: usize, vocabulary: usize, seed: u64) -> Vec<u32> {
    let mut numbers = Numbers::new(seed);
    (0..count).map(|_| numbers.below(vocabulary)).collect()
}

/// The seed of one of many requests: those of neighbouring seeds have none in common, so that a server that has kept the
/// prompts of one run finds nothing of them in another.
pub fn seed_of(seed: u64, request: usize) -> u64 {
    seed.rotate_left(32).wrapping_add(request as u64)
}

/// One request.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its prompt.
    pub prompt: Vec<u32>,
    /// Tokens to generate, end of sequence or not.
    pub output: usize,
}

/// What serving some requests took.
#[derive(Clone, Debug, Default)]
pub struct Served {
    /// Seconds from the arrival of all to the end of the last.
    pub seconds: f64,
    /// For each, the seconds from the arrival of all to its first token.
    pub first_token: Vec<f64>,
    /// Prompt tokens of all.
    pub prompt_tokens: usize,
    /// Generated tokens of all.
    pub output_tokens: usize,
}

/// Tokens of a pass at most, those of prompts and those that were chosen.
pub const PASS_TOKENS: usize = 512;

/// Serves requests that arrive at once, at most `at_once` side by side; the others wait for a place. Each starts from an
/// empty cache and takes the most probable token. `progress` hears of every request that ends.
///
/// # Errors
/// [`Error`] if a request cannot be run.
pub fn serve(loaded: &LoadedModel, tasks: &[Task], at_once: usize, progress: &mut dyn FnMut()) -> Result<Served, Error> {
    // an engine wants room for one token more than any prompt has
    let most = tasks.iter().map(|t| t.prompt.len() + t.output).max().unwrap_or(0) + 1;
    let arrival = Instant::now();
    // room for all that run at once, and for what the engine keeps free while others run
    let at_once = at_once.clamp(1, tasks.len().max(1));
    let blocks = at_once * most.div_ceil(BLOCK);
    let blocks = blocks + blocks / 50 + 1;
    let room = |count: usize, bytes: usize| (count as u64).saturating_mul(bytes as u64);
    let shape = loaded.model.kv_shape();
    let options = EngineOptions {
        kv_cache_memory: room(blocks, shape.block_bytes()).saturating_add(room(at_once, shape.slot_bytes())),
        prefix_caching: false,
        max_num_seqs: at_once,
        max_num_batched_tokens: PASS_TOKENS,
        max_waiting: tasks.len(),
        max_model_len: Some(most),
        ..EngineOptions::default()
    };
    let mut engine = Engine::new(&loaded.model, Arc::new(loaded.tokenizer.clone()), options)?;
    let mut ids = vec![];
    for task in tasks {
        let submission = Submission { ignore_eos: true, ..Submission::new(task.prompt.clone(), SamplingParams::greedy(), task.output) };
        ids.push(engine.submit(submission)?);
    }
    let mut served = Served { first_token: vec![f64::NAN; tasks.len()], ..Served::default() };
    let mut failed = None;
    while engine.step(&mut |id, happened| match happened {
        Happened::Prompt { .. } => {
            let task = ids.iter().position(|i| *i == id).unwrap_or_default();
            served.first_token[task] = arrival.elapsed().as_secs_f64();
            served.prompt_tokens += tasks[task].prompt.len();
        }
        Happened::Token { .. } => served.output_tokens += 1,
        Happened::End { .. } => progress(),
        Happened::Failed(error) => failed = Some(error),
    })? {}
    served.seconds = arrival.elapsed().as_secs_f64();
    failed.map_or(Ok(served), |e| Err(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OpenOptions;

    #[test]
    fn tokens_are_spread_and_repeatable() {
        let tokens = random_tokens(1000, 10, 3);
        assert_eq!(tokens, random_tokens(1000, 10, 3));
        assert_ne!(tokens, random_tokens(1000, 10, 4));
        for t in 0..10 {
            let count = tokens.iter().filter(|&&x| x == t).count();
            assert!((50..200).contains(&count), "{t}: {count}");
        }
    }

    #[test]
    fn requests_of_another_seed_are_others() {
        let seeds = |seed| (0..1000).map(move |i| seed_of(seed, i));
        let all: std::collections::BTreeSet<u64> = (0..20).flat_map(seeds).collect();
        assert_eq!(all.len(), 20_000);
    }

    #[test]
    fn requests_wait_for_a_place() {
        let loaded = LoadedModel::builtin(&OpenOptions { threads: Some(1), ..OpenOptions::default() }).unwrap();
        let task = |seed| Task { prompt: random_tokens(6, loaded.tokenizer.vocab_size(), seed), output: 3 };
        let tasks = [task(1), task(2), task(3)];
        let mut done = 0;
        let served = serve(&loaded, &tasks, 1, &mut || done += 1).unwrap();
        assert_eq!((served.prompt_tokens, served.output_tokens, served.first_token.len(), done), (18, 9, 3, 3));
        assert!(served.first_token[0] < served.first_token[1] && served.first_token[1] < served.first_token[2]);
        assert!(served.first_token[2] <= served.seconds);
        // side by side, their prompts run together: nobody waits for a whole answer
        let together = serve(&loaded, &tasks, 3, &mut || ()).unwrap();
        assert_eq!((together.prompt_tokens, together.output_tokens), (18, 9));
        assert!(together.first_token.iter().all(|t| *t <= together.seconds));
    }
}
