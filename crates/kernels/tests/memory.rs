//! What loading and running allocate: never a buffer the size of a dequantized weight, and nothing at all in a decode
//! step once its buffers have grown.

use billfish_formats::Checkpoint;
use billfish_kernels::{Activations, Backend, Isa};
use billfish_models::{LoadOptions, Logits, Model, Scratch};
use billfish_quantize::synth;
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

/// The system's allocator, watched.
struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn note(size: usize) {
    LARGEST.fetch_max(size, Ordering::Relaxed);
    COUNT.fetch_add(1, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(p, layout) }
    }
    unsafe fn realloc(&self, p: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller's contract.
        unsafe { System.realloc(p, layout, size) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's contract.
        unsafe { System.alloc_zeroed(layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

fn folder(spec: &str) -> (tempfile::TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    synth(&spec.parse().unwrap(), dir.path(), 1, false, 1, &[], &mut |_, _| ()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

fn load(checkpoint: &Checkpoint, activations: Activations) -> Model {
    let backend = Arc::new(Backend::new(Isa::choose(None).unwrap(), 2).unwrap());
    Model::load(checkpoint, backend, LoadOptions { activations, ..LoadOptions::default() }, &mut |_| ()).unwrap()
}

fn no_buffer_is_as_large_as_a_dequantized_weight() {
    // a small vocabulary, so that the quantized matrices are the largest things in the folder
    for spec in ["qwen3-0.6b:w4g128:v64", "qwen3-0.6b:w2g64:act:v64", "qwen3-0.6b:w8g32:asym:v64", "qwen3-0.6b:w3g128:v64"] {
        let (_dir, checkpoint) = folder(spec);
        let modules = checkpoint.quantized_modules();
        let weights = |m: &String| checkpoint.describe(m).map(|r| r.in_features * r.out_features).unwrap();
        let largest = modules.iter().map(weights).max().unwrap();
        LARGEST.store(0, Ordering::Relaxed);
        let model = load(&checkpoint, Activations::Exact);
        let mut cache = model.new_cache(64);
        model.forward(&mut cache, &[1; 40], Logits::Last, &mut Scratch::default()).unwrap();
        let found = LARGEST.load(Ordering::Relaxed);
        assert!(found < 2 * largest, "{spec}: a buffer of {found} bytes, a 16-bit copy of the largest weight has {}", 2 * largest);
    }
}

fn a_decode_step_allocates_nothing_but_kv_pages() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let open = |name: &str| Checkpoint::open(&fixtures.join(name)).unwrap();
    let (_dir, checkpoint) = folder("tiny:w4g32");
    // experts too: one that was not chosen before grows no buffer
    for checkpoint in [checkpoint, open("glm4moe-w4-sym-g32"), open("qwen2moe-stacked-dense")] {
        no_allocation_in_decode(&checkpoint);
    }
}

fn no_allocation_in_decode(checkpoint: &Checkpoint) {
    for activations in Activations::ALL {
        let model = load(checkpoint, activations);
        // a thread allocates when it starts, which may be late: both have started once they have met
        let both = Barrier::new(2);
        model.backend().pool().run(2, &|_| {
            both.wait();
        });
        let mut cache = model.new_cache(200);
        let mut scratch = Scratch::default();
        // past the first page, so that the buffers have the size of two
        model.forward(&mut cache, &[5; 66], Logits::Last, &mut scratch).unwrap();
        model.forward(&mut cache, &[6], Logits::Last, &mut scratch).unwrap();
        COUNT.store(0, Ordering::Relaxed);
        for token in 10..60 {
            model.forward(&mut cache, &[token], Logits::Last, &mut scratch).unwrap();
        }
        assert_eq!(cache.len(), 117);
        assert_eq!(COUNT.load(Ordering::Relaxed), 0, "{activations:?}");
    }
}

/// One test: while a second one runs or ends, the harness allocates too.
#[test]
fn memory() {
    no_buffer_is_as_large_as_a_dequantized_weight();
    a_decode_step_allocates_nothing_but_kv_pages();
}
