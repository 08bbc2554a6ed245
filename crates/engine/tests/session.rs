//! Whole completions on the built-in model.

mod common;

use billfish_engine::{Completion, EngineError, FinishReason, Request, SamplingParams, Session};
use common::open;
use std::path::Path;
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
