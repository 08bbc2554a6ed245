//! Memory of a long generation: what is reserved at its beginning is all it takes; and of an engine's steps.

mod common;

use billfish_engine::{Engine, EngineOptions, Happened, Ngram, Request, RequestId, SamplingParams, Session, Submission};
use billfish_models::Model;
use billfish_text::Tokenizer;
use common::open;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, watched.
struct Watched;

/// Bytes.
static NOW: AtomicUsize = AtomicUsize::new(0);
/// Allocations so far.
static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator as it is; the counter allocates nothing.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        NOW.fetch_add(layout.size(), Ordering::Relaxed);
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        NOW.fetch_add(layout.size(), Ordering::Relaxed);
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on; zeros are left to the system, which gives pages when they are used.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// Resident bytes, where the system tells.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap() * 1024
}

/// One test: the counters are the whole program's.
#[test]
fn memory_is_bounded() {
    let (model, tokenizer) = open();
    two_thousand_tokens_take_what_was_reserved(&model, &tokenizer);
    steps_allocate_what_they_tell(&model, &tokenizer);
    memory_is_there_before_it_is_needed(&model, &tokenizer);
}

const PROMPTS: [&str; 4] = ["Once upon a time", "The dog", "A girl named", "One day"];

/// An engine allocates nothing for itself while sequences decode: only the texts that it hands out, and the names of tokens
/// that they are made of.
fn steps_allocate_what_they_tell(model: &Model, tokenizer: &Tokenizer) {
    for speculation in [None, Some(Ngram::default())] {
        let options = EngineOptions { kv_cache_memory: 64 << 20, max_model_len: Some(1000), speculation, ..EngineOptions::default() };
        let mut engine = Engine::new(model, Arc::new(tokenizer.clone()), options).unwrap();
        for text in PROMPTS {
            let prompt = tokenizer.encode_prompt(text).unwrap();
            engine.submit(Submission { ignore_eos: true, ..Submission::new(prompt, SamplingParams::greedy(), 900) }).unwrap();
        }
        // tokens of each, at first those of its prompt
        let mut told: Vec<Vec<u32>> = PROMPTS.iter().map(|p| tokenizer.encode_prompt(p).unwrap()).collect();
        told.iter_mut().for_each(|t| t.reserve(1000));
        let mut step = |told: &mut Vec<Vec<u32>>| {
            let tell = &mut |id: RequestId, happened| {
                if let Happened::Token { token, .. } = happened {
                    told[id.0 as usize].push(token);
                }
            };
            engine.step(tell).unwrap();
        };
        (0..100).for_each(|_| step(&mut told));
        let before: Vec<usize> = told.iter().map(Vec::len).collect();
        let (bytes, count) = (NOW.load(Ordering::Relaxed), COUNT.load(Ordering::Relaxed));
        (0..100).for_each(|_| step(&mut told));
        let (bytes, count) = (NOW.load(Ordering::Relaxed) as isize - bytes as isize, COUNT.load(Ordering::Relaxed) - count);
        // the same texts without an engine
        let mut texts = 0;
        for (tokens, from) in told.iter().zip(before) {
            let mut detokenizer = tokenizer.detokenizer_after(&tokens[..from], true).unwrap();
            let start = COUNT.load(Ordering::Relaxed);
            tokens[from..].iter().for_each(|t| drop(detokenizer.push(*t).unwrap().to_owned()));
            texts += COUNT.load(Ordering::Relaxed) - start;
        }
        // lists of names and of blocks that double their room now and then
        assert!(count <= texts + 16, "{count} allocations, {texts} of them for texts");
        assert!(bytes < 16 << 10, "{bytes} bytes more");
    }
}

/// An engine that had time to prepare takes its memory then, and none while it works; what it says does not depend on it.
fn memory_is_there_before_it_is_needed(model: &Model, tokenizer: &Tokenizer) {
    let run = |prepare: bool| {
        let options = EngineOptions { kv_cache_memory: 48 << 20, max_model_len: Some(1000), ..EngineOptions::default() };
        let mut engine = Engine::new(model, Arc::new(tokenizer.clone()), options).unwrap();
        let prepared = |engine: &mut Engine<&Model>| {
            if prepare {
                while engine.prepare() {}
            }
        };
        let begin = resident();
        prepared(&mut engine);
        let ready = resident();
        for text in PROMPTS {
            let prompt = tokenizer.encode_prompt(&text.repeat(20)).unwrap();
            engine.submit(Submission { ignore_eos: true, ..Submission::new(prompt, SamplingParams::greedy(), 400) }).unwrap();
        }
        let mut told = vec![vec![]; PROMPTS.len()];
        let tell = &mut |id: RequestId, happened| {
            if let Happened::Token { token, .. } = happened {
                told[id.0 as usize].push(token);
            }
        };
        // between steps, too, it takes nothing that holds something
        while engine.step(tell).unwrap() {
            prepared(&mut engine);
        }
        (told, ready.saturating_sub(begin), resident().saturating_sub(ready))
    };
    // of a system that does not tell what is resident only the rest can be seen
    let tells = resident() > 0;
    let (told, _, later) = run(false);
    assert!(!tells || later > 4 << 20, "{later} bytes while it works");
    let (same, before, later) = run(true);
    assert_eq!(told, same);
    // what is not a block: texts, and what products need
    assert!(!tells || before > 46 << 20 && later < 2 << 20, "{before} bytes before, {later} bytes later");

    // of a large cache it takes a part
    let options = EngineOptions { kv_cache_memory: 2 << 30, ..EngineOptions::default() };
    let mut engine = Engine::new(model, Arc::new(tokenizer.clone()), options).unwrap();
    let begin = resident();
    while engine.prepare() {}
    let taken = resident() - begin;
    assert!(!tells || (250 << 20..300 << 20).contains(&taken), "{taken} bytes");
}

fn two_thousand_tokens_take_what_was_reserved(model: &Model, tokenizer: &Tokenizer) {
    let prompt = tokenizer.encode_prompt("Once upon a time").unwrap();
    let sampling = SamplingParams { temperature: 0.8, seed: 5, ..SamplingParams::default() };
    let mut session = Session::new(model, tokenizer);
    let mut run = || {
        // what is allocated and what is resident after some pieces of text
        let mut marks = vec![(0, 0); 4096];
        let mut pieces = 0;
        let request = Request { prompt: &prompt, sampling: sampling.clone(), max_tokens: 2000, stop: &[], ignore_eos: true, cancel: None };
        let done = session.generate(&request, &mut |_| {
            marks[pieces] = (NOW.load(Ordering::Relaxed), resident());
            pieces += 1;
        });
        let done = done.unwrap();
        assert_eq!(done.tokens.len(), 2000);
        assert!(pieces > 1000, "{pieces} pieces of text");
        marks.truncate(pieces);
        (marks, done.text)
    };
    let (marks, text) = run();
    let (early, late) = (marks[200], marks[marks.len() - 1]);
    // the text itself: a string doubles its room, and while it does it exists twice
    let allowed = 4 * text.len() + 4096;
    assert!(late.0 <= early.0 + allowed, "{} bytes more are allocated at the end than after 200 pieces", late.0 - early.0);
    // what was reserved becomes resident as tokens come, and nothing else
    let keys_and_values = 2064 * model.kv_bytes_per_token();
    assert!(late.1 <= early.1 + keys_and_values + (1 << 20), "{} bytes became resident", late.1 - early.1);
    // the second time everything is there already
    let (again, same) = run();
    assert_eq!(same, text);
    let (early, late) = (again[200], again[again.len() - 1]);
    assert!(late.0 <= early.0 + allowed && late.1 <= early.1 + (1 << 20), "{early:?} {late:?}");
}
