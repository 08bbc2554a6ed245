//! Whole completions on the built-in model.

mod common;
mod heard;

use billfish_engine::{
    Completion, Engine, EngineError, EngineOptions, FinishReason, Request, RequestId, SamplingParams, Session, StopCause, Submission,
};
use common::open;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn request<'a>(prompt: &'a [u32], max_tokens: usize) -> Request<'a> {
    let sampling = SamplingParams { temperature: 0.8, top_p: 0.95, seed: 3, ..SamplingParams::default() };
    Request { prompt, sampling, max_tokens, stop: &[], ignore_eos: false, cancel: None }
}

fn run(session: &mut Session, request: &Request) -> Completion {
    let mut streamed = String::new();
    let done = session.generate(request, &mut |t| streamed.push_str(t)).unwrap();
    assert_eq!(streamed, done.text, "what is streamed is what is returned");
    done
}

#[test]
fn the_same_seed_tells_the_same_story_with_and_without_a_cache() {
    let (model, tokenizer) = open();
    let prompt = tokenizer.encode_prompt("Once upon a time").unwrap();
    let mut session = Session::new(&model, &tokenizer);
    let first = run(&mut session, &request(&prompt, 40));
    assert_eq!((first.tokens.len(), first.finish, first.cached_tokens), (40, FinishReason::Length, 0));
    assert_eq!(
        tokenizer.decode(&[prompt.clone(), first.tokens.clone()].concat(), true).unwrap(),
        format!("Once upon a time{}", first.text)
    );
    // a second turn that begins like the first reuses its cache and says the same
    let longer = [&prompt[..], &first.tokens[..10]].concat();
    let again = run(&mut session, &request(&longer, 20));
    assert_eq!(again.cached_tokens, longer.len() - 1);
    let fresh = run(&mut Session::new(&model, &tokenizer), &request(&longer, 20));
    assert_eq!((again.tokens, fresh.cached_tokens), (fresh.tokens, 0));
    let other = Request { sampling: SamplingParams { seed: 4, ..request(&prompt, 40).sampling }, ..request(&prompt, 40) };
    assert_ne!(run(&mut session, &other).tokens, first.tokens);
}

#[test]
fn a_prompt_longer_than_a_chunk_runs_like_a_short_one() {
    let (model, tokenizer) = open();
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/text/valid-20k.txt")).unwrap();
    let ids = tokenizer.encode_prompt(&text[..4000]).unwrap();
    let ids = &ids[..600];
    let whole = run(&mut Session::new(&model, &tokenizer), &request(ids, 8));
    let mut session = Session::new(&model, &tokenizer);
    run(&mut session, &request(&ids[..300], 0));
    let pieces = run(&mut session, &request(ids, 8));
    assert_eq!(pieces.cached_tokens, 300);
    assert_eq!(whole.tokens, pieces.tokens);
}

#[test]
fn stop_texts_end_it_and_are_not_shown() {
    let (model, tokenizer) = open();
    let prompt = tokenizer.encode_prompt("Once upon a time").unwrap();
    let free = run(&mut Session::new(&model, &tokenizer), &request(&prompt, 40));
    let middle = free.text.char_indices().nth(free.text.chars().count() / 2).unwrap().0;
    let stop = [free.text[middle..].chars().take(4).collect::<String>()];
    let stopped = run(&mut Session::new(&model, &tokenizer), &Request { stop: &stop, ..request(&prompt, 40) });
    assert_eq!(stopped.finish, FinishReason::Stop);
    assert_eq!(stopped.text, free.text[..free.text.find(&stop[0]).unwrap()]);
}

#[test]
fn cancelling_and_empty_requests() {
    let (model, tokenizer) = open();
    let prompt = tokenizer.encode_prompt("Once").unwrap();
    let mut session = Session::new(&model, &tokenizer);
    let cancel = AtomicBool::new(false);
    let mut count = 0;
    let asked = Request { cancel: Some(&cancel), ..request(&prompt, 1000) };
    let done = session
        .generate(&asked, &mut |_| {
            count += 1;
            cancel.store(count == 5, Ordering::Relaxed);
        })
        .unwrap();
    assert_eq!(done.finish, FinishReason::Cancelled);
    assert!(done.tokens.len() < 20);
    assert!(matches!(session.generate(&request(&[], 5), &mut |_| ()), Err(EngineError::EmptyPrompt)));
    assert_eq!(run(&mut session, &request(&prompt, 0)).tokens, Vec::<u32>::new());
    let error = session.generate(&request(&[5000], 5), &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("5000"), "{error}");
    assert_eq!(run(&mut session, &request(&prompt, 3)).tokens.len(), 3, "the session lives on");
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
        let mut all = heard::All::new();
        heard::run(&mut engine, &mut all);
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
