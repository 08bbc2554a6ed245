//! Memory: no allocation of a synthesis grows with the model, perplexity keeps some rows of logits only, and quantizing keeps
//! to what it is allowed.

mod common;

use billfish_formats::Checkpoint;
use billfish_kernels::{Activations, Backend, Isa};
use billfish_quantize::{Job, Protocol, Recipe, Statistics, SynthSpec, least_memory, perplexity, quantize, synth};
use common::{fresh, load};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The system's allocator, watched.
struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);
static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator as it is; the counters allocate nothing.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// Largest single allocation, and growth of all of them together, while `body` runs.
fn watch(body: impl FnOnce()) -> (usize, usize) {
    LARGEST.store(0, Ordering::Relaxed);
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    body();
    (LARGEST.load(Ordering::Relaxed), PEAK.load(Ordering::Relaxed) - before)
}

/// One test: the counters are the whole program's.
#[test]
fn memory_is_bounded() {
    let out = fresh("memory");
    for (text, shards) in [("tiny:v1000:w4g16:asym:act", 1), ("tiny:v400000:w4g16:asym:act", 2), ("qwen2-0.5b:w4g128:v64", 1)] {
        out.clear();
        let spec: SynthSpec = text.parse().unwrap();
        let mut bytes = 0;
        let (largest, peak) = watch(|| bytes = synth(&spec, &out, shards, false, 1, &[], &mut |_, _| ()).unwrap().bytes);
        println!("{text}: {bytes} bytes written, largest allocation {largest}, peak {peak}");
        assert!(largest <= 1 << 20, "{text}: {largest}");
        assert!(peak <= 3 << 20, "{text}: {peak}");
    }
    out.clear();

    // a vocabulary so large that the logits of a window would be 400 MB, those of 128 rows 50 MB
    synth(&"tiny:v100000".parse().unwrap(), &out, 1, false, 1, &[], &mut |_, _| ()).unwrap();
    let model = load(&out, Activations::Int8);
    let ids: Vec<u32> = (0..1030).collect();
    let (largest, peak) = watch(|| {
        let found = perplexity(&model, &ids, None, Protocol::Window(1024), &mut |_, _| ()).unwrap();
        assert_eq!(found.tokens, 1023);
    });
    println!("perplexity: largest allocation {largest}, peak {peak}");
    assert!(largest <= 128 * 100_000 * 4, "{largest}");
    assert!(peak < 80 << 20, "{peak}");
    drop(model);
    out.clear();

    // 100,000 tokens, whose rows are 26 MB
    synth(&"tiny".parse().unwrap(), &out, 1, true, 1, &[], &mut |_, _| ()).unwrap();
    let samples: Vec<Vec<u32>> = (0..1000u32).map(|s| (0..100).map(|i| (i * i * 31 + s * 77 + i * 5) % 256).collect()).collect();
    let recipe = Recipe { group_size: Some(32), ..Recipe::default() };
    let source = Checkpoint::open(&out).unwrap();
    let (target, stop) = (fresh("memory-quantized"), AtomicBool::new(false));
    let backend = Arc::new(Backend::new(Isa::choose(None).unwrap(), 2).unwrap());
    let quantized = |memory| {
        target.clear();
        let (source, recipe, samples, backend) = (&source, &recipe, &samples[..], Arc::clone(&backend));
        let job =
            Job { source, out: &target, recipe, samples, backend, memory, resume: false, statistics: Statistics::Forget, stop: &stop };
        let least = least_memory(&job).unwrap();
        let peak = watch(|| drop(quantize(&job, &mut |_| ()).unwrap())).1 as u64;
        println!("quantized: at least {least}, peak {peak}");
        (least, peak)
    };
    let (least, unbounded) = quantized(None);
    let (_, peak) = quantized(Some(least));
    assert!(peak <= least, "{peak} of {least}");
    assert!(unbounded > peak + 20_000_000, "{unbounded} against {peak}: nothing was kept on disk");
}
