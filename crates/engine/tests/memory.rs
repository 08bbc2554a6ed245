//! Memory of a long generation: what is reserved at its beginning is all it takes.

mod common;

use billfish_engine::{Request, SamplingParams, Session};
use common::open;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, watched.
struct Watched;

static NOW: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator as it is; the counter allocates nothing.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        NOW.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        NOW.fetch_add(layout.size(), Ordering::Relaxed);
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

/// One test: the counter is the whole program's.
#[test]
fn two_thousand_tokens_take_what_was_reserved() {
    let (model, tokenizer) = open();
    let prompt = tokenizer.encode_prompt("Once upon a time").unwrap();
    let sampling = SamplingParams { temperature: 0.8, seed: 5, ..SamplingParams::default() };
    let mut session = Session::new(&model, &tokenizer);
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
