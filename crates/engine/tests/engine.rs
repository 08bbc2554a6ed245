//! Requests side by side on the built-in model: each gets what it gets alone.

mod common;

use billfish_engine::{
    Completion, Engine, EngineError, EngineOptions, FinishReason, Happened, Request, RequestId, SamplingParams, Session, StopCause,
    Submission, TokenLogprob,
};
use billfish_models::Model;
use common::open;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What an engine told of one choice.
#[derive(Debug, Default, PartialEq)]
struct Told {
    tokens: Vec<u32>,
    text: String,
    logprobs: Vec<TokenLogprob>,
    end: Option<(FinishReason, Option<StopCause>)>,
}

/// What an engine told of one request.
#[derive(Debug, Default)]
struct Heard {
    prompt: Option<(usize, Option<Vec<Option<TokenLogprob>>>)>,
    choices: BTreeMap<usize, Told>,
    failed: Option<EngineError>,
    /// Events after which there should have been none.
    late: usize,
}

impl Heard {
    fn of(&mut self, choice: usize) -> &mut Told {
        let told = self.choices.entry(choice).or_default();
        self.late += usize::from(told.end.is_some());
        told
    }

    fn hear(&mut self, happened: Happened) {
        self.late += usize::from(self.failed.is_some());
        match happened {
            Happened::Prompt { cached_tokens, logprobs } => {
                self.late += usize::from(self.prompt.is_some());
                self.prompt = Some((cached_tokens, logprobs));
            }
            Happened::Token { choice, token, text, logprob } => {
                let told = self.of(choice);
                told.tokens.push(token);
                told.text.push_str(&text);
                told.logprobs.extend(logprob);
            }
            Happened::End { choice, text, reason, stop } => {
                let told = self.of(choice);
                told.text.push_str(&text);
                told.end = Some((reason, stop));
            }
            Happened::Failed(error) => self.failed = Some(error),
        }
    }
}

type All = BTreeMap<RequestId, Heard>;

fn step(engine: &mut Engine<&Model>, all: &mut All) -> bool {
    engine.step(&mut |id, happened| all.entry(id).or_default().hear(happened)).unwrap()
}

fn run(engine: &mut Engine<&Model>, all: &mut All) {
    while step(engine, all) {}
    assert!(all.values().all(|h| h.late == 0), "nothing comes after an end");
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.blocks_used), (0, 0, 0));
}

/// A prompt of `length` tokens and a way to choose.
fn prompt(length: usize, seed: u32) -> Vec<u32> {
    (0..length as u32).map(|i| (i * 97 + seed * 31) % 4000 + 5).collect()
}

/// Greedy, random, and random with a look at the history.
fn sampling(seed: u64) -> SamplingParams {
    let temperature = [0.0, 0.9, 0.7][seed as usize % 3];
    let repetition_penalty = if seed % 3 == 2 { 1.3 } else { 1.0 };
    SamplingParams { temperature, repetition_penalty, top_k: 50, seed, ..SamplingParams::default() }
}

fn options(max_num_seqs: usize, max_num_batched_tokens: usize) -> EngineOptions {
    EngineOptions { max_num_seqs, max_num_batched_tokens, max_model_len: Some(1024), ..EngineOptions::default() }
}

#[test]
fn every_request_is_as_in_a_session() {
    let (model, tokenizer) = open();
    let prompts: Vec<Vec<u32>> = [3, 300, 1, 70, 5, 600].iter().zip(0..).map(|(&n, i)| prompt(n, i)).collect();
    let mut stop: Vec<Vec<String>> = vec![vec![]; 6];
    let max_tokens: Vec<usize> = (0..6).map(|i| if i == 4 { 0 } else { 6 + 9 * i }).collect();
    let alone = |i: usize, stop: &[String]| -> Completion {
        let sampling = sampling(i as u64);
        let request = Request { prompt: &prompts[i], sampling, max_tokens: max_tokens[i], stop, ignore_eos: false, cancel: None };
        Session::new(&model, &tokenizer).generate(&request, &mut |_| ()).unwrap()
    };
    let free = alone(3, &[]);
    stop[3] = vec![free.text.chars().skip(free.text.chars().count() / 2).take(4).collect::<String>()];
    let expected: Vec<Completion> = (0..6).map(|i| alone(i, &stop[i])).collect();
    assert_eq!(expected[3].finish, FinishReason::Stop);
    for (at_once, budget) in [(1, 512), (2, 16), (6, 64), (100, 512)] {
        let mut engine = Engine::new(&model, Arc::new(tokenizer.clone()), options(at_once, budget)).unwrap();
        let submit =
            |i: usize| Submission { stop: stop[i].clone(), ..Submission::new(prompts[i].clone(), sampling(i as u64), max_tokens[i]) };
        let ids: Vec<RequestId> = (0..6).map(|i| engine.submit(submit(i)).unwrap()).collect();
        let mut all = All::new();
        run(&mut engine, &mut all);
        for (id, expected) in ids.iter().zip(&expected) {
            let heard = &all[id];
            let told = &heard.choices[&0];
            assert_eq!((&told.text, &told.tokens), (&expected.text, &expected.tokens), "{id:?}, {at_once} at once, {budget} a step");
            assert_eq!((told.end.as_ref().unwrap().0, heard.prompt.is_some()), (expected.finish, true));
        }
        let cause = &all[&ids[3]].choices[&0].end.as_ref().unwrap().1;
        assert_eq!(*cause, Some(StopCause::Text(stop[3][0].clone())));
    }
}
