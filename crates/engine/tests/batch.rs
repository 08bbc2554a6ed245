//! Requests side by side on the built-in model: each gets what it gets alone.

mod common;

use billfish_engine::{BatchEvent, Completion, EngineError, FinishReason, PREFILL_CHUNK, Request, SamplingParams, Session, generate_batch};
use common::open;
use std::sync::atomic::{AtomicBool, Ordering};

/// A prompt of `length` tokens and a way to choose.
fn prompt(length: usize, seed: u32) -> Vec<u32> {
    (0..length as u32).map(|i| (i * 97 + seed * 31) % 4000 + 5).collect()
}

fn request(prompt: &[u32], max_tokens: usize, seed: u64) -> Request<'_> {
    // greedy, random, and random with a look at the history
    let temperature = [0.0, 0.9, 0.7][seed as usize % 3];
    let repetition_penalty = if seed % 3 == 2 { 1.3 } else { 1.0 };
    let sampling = SamplingParams { temperature, repetition_penalty, top_k: 50, seed, ..SamplingParams::default() };
    Request { prompt, sampling, max_tokens, stop: &[], ignore_eos: false, cancel: None }
}

/// What says how a completion came about, without its times.
fn essence(c: &Completion) -> (&str, &[u32], FinishReason) {
    (&c.text, &c.tokens, c.finish)
}

#[test]
fn every_request_is_as_if_alone() {
    let (model, tokenizer) = open();
    // longer and shorter than a piece of a prompt
    let prompts: Vec<Vec<u32>> = [3, PREFILL_CHUNK + 44, 1, 70, 5, 2 * PREFILL_CHUNK].iter().zip(0..).map(|(&n, i)| prompt(n, i)).collect();
    let mut requests: Vec<Request> = prompts.iter().zip(0..).map(|(p, i)| request(p, 6 + 9 * i as usize, i)).collect();
    let free = Session::new(&model, &tokenizer).generate(&requests[3], &mut |_| ()).unwrap();
    let stop = [free.text.chars().skip(free.text.chars().count() / 2).take(4).collect::<String>()];
    requests[3].stop = &stop;
    requests[4].max_tokens = 0;
    let alone: Vec<Completion> = requests.iter().map(|r| Session::new(&model, &tokenizer).generate(r, &mut |_| ()).unwrap()).collect();
    assert_eq!(alone[3].finish, FinishReason::Stop);
    for most in [1, 2, 6, 100] {
        let (mut texts, mut ends) = (vec![String::new(); 6], vec![]);
        let together = generate_batch(&model, &tokenizer, &requests, most, &mut |i, event| match event {
            BatchEvent::Text(text) => texts[i].push_str(text),
            BatchEvent::End => ends.push(i),
        });
        let together: Vec<Completion> = together.unwrap().into_iter().map(Result::unwrap).collect();
        assert_eq!(together.len(), 6);
        for (i, (a, b)) in alone.iter().zip(&together).enumerate() {
            assert_eq!(essence(a), essence(b), "request {i}, {most} at a time");
            assert_eq!((texts[i].as_str(), b.timings.prompt_tokens), (b.text.as_str(), prompts[i].len()));
            assert_eq!(b.timings.steps, a.timings.steps);
        }
        if most == 1 {
            assert_eq!(ends, [0, 1, 2, 3, 4, 5], "one after another");
        } else {
            ends.sort_unstable();
            assert_eq!(ends, [0, 1, 2, 3, 4, 5]);
        }
        let first = |i: usize| together[i].timings.prompt;
        // alone at a time, the second waits for the whole first answer; side by side only for its prompt
        let waits = first(2) >= together[0].timings.prompt + together[0].timings.generation;
        assert!(waits || most > 1);
    }
}

#[test]
fn a_short_request_ends_while_a_long_one_goes_on() {
    let (model, tokenizer) = open();
    let prompts = [prompt(4, 1), prompt(4, 2), prompt(4, 3)];
    let requests = [40, 3, 5].iter().zip(&prompts).map(|(&n, p)| Request { ignore_eos: true, ..request(p, n, 0) }).collect::<Vec<_>>();
    let mut ends = vec![];
    let done = generate_batch(&model, &tokenizer, &requests, 2, &mut |i, event| {
        if event == BatchEvent::End {
            ends.push(i);
        }
    });
    assert!(done.unwrap().iter().zip([40, 3, 5]).all(|(c, n)| c.as_ref().unwrap().tokens.len() == n));
    assert_eq!(ends, [1, 2, 0], "the third takes the place of the second");
}

#[test]
fn what_is_wrong_with_one_request_stays_with_it() {
    let (model, tokenizer) = open();
    let good = prompt(5, 1);
    let cancel = AtomicBool::new(false);
    let requests = [
        request(&[], 5, 0),
        request(&good, 12, 0),
        request(&[5000], 5, 0),
        Request { sampling: SamplingParams { top_p: 2.0, ..SamplingParams::default() }, ..request(&good, 5, 0) },
        Request { cancel: Some(&cancel), ignore_eos: true, ..request(&good, 1000, 1) },
    ];
    let mut pieces = 0;
    let done = generate_batch(&model, &tokenizer, &requests, 3, &mut |i, event| {
        pieces += usize::from(i == 4 && event != BatchEvent::End);
        cancel.store(pieces >= 3, Ordering::Relaxed);
    })
    .unwrap();
    assert!(matches!(done[0], Err(EngineError::EmptyPrompt)));
    let alone = Session::new(&model, &tokenizer).generate(&requests[1], &mut |_| ()).unwrap();
    assert_eq!(essence(done[1].as_ref().unwrap()), essence(&alone));
    assert!(done[2].as_ref().unwrap_err().to_string().contains("5000"));
    assert!(matches!(done[3], Err(EngineError::Sampling(_))));
    let cancelled = done[4].as_ref().unwrap();
    assert!(cancelled.finish == FinishReason::Cancelled && cancelled.tokens.len() < 30);
    assert!(generate_batch(&model, &tokenizer, &[], 3, &mut |_, _| ()).unwrap().is_empty());
}
