//! What loading and running allocate: never a buffer the size of a dequantized weight, and nothing at all in a decode
//! step once its buffers have grown.

use billfish_formats::Checkpoint;
use billfish_kernels::{Activations, AttentionScratch, BLOCK, Backend, Isa, KvPool, KvShape, KvTable, KvType};
use billfish_models::{LoadOptions, Logits, Model, Part, Scratch, Sequence};
use billfish_quantize::synth;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The system's allocator, watched.
struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);
static COUNT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether this thread runs models: those that packed weights go to sleep when they like, and allocate while they do.
    static RUNS: Cell<bool> = const { Cell::new(false) };
}

fn note(size: usize) {
    LARGEST.fetch_max(size, Ordering::Relaxed);
    COUNT.fetch_add(usize::from(RUNS.get()), Ordering::Relaxed);
}

/// Allocations of the threads that a model runs on while `body` runs.
fn allocations(model: &Model, body: impl FnOnce()) -> usize {
    let pool = model.backend().pool();
    // chunks long enough for every thread to get one, sooner or later
    let marked = Mutex::new(HashSet::new());
    while marked.lock().unwrap().len() < pool.threads() {
        pool.run(4 * pool.threads(), &|_| {
            RUNS.set(true);
            marked.lock().unwrap().insert(std::thread::current().id());
            std::thread::sleep(Duration::from_millis(1));
        });
    }
    COUNT.store(0, Ordering::Relaxed);
    body();
    COUNT.load(Ordering::Relaxed)
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
    load_with(checkpoint, activations, None)
}

fn load_with(checkpoint: &Checkpoint, activations: Activations, kv_type: Option<KvType>) -> Model {
    let backend = Arc::new(Backend::new(Isa::choose(None).unwrap(), 2).unwrap());
    Model::load(checkpoint, backend, LoadOptions { activations, kv_type, ..LoadOptions::default() }, &mut |_| ()).unwrap()
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
        // packed weights may be pages of their own, which no allocator sees
        let packed = model.modules().iter().filter(|m| m.bits.is_some()).map(|m| m.bytes).max().unwrap();
        assert!(packed < 2 * largest, "{spec}: a packed weight of {packed} bytes");
        assert!(found < 2 * largest, "{spec}: a buffer of {found} bytes, a 16-bit copy of the largest weight has {}", 2 * largest);
    }
}

/// Over borders of pages and of the stretches that threads share.
fn a_decode_step_allocates_nothing() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let open = |name: &str| Checkpoint::open(&fixtures.join(name)).unwrap();
    let (_dir, checkpoint) = folder("tiny:w4g32");
    // experts too: one that was not chosen before grows no buffer
    for checkpoint in [checkpoint, open("glm4moe-w4-sym-g32"), open("qwen2moe-stacked-dense")] {
        no_allocation_in_decode(&checkpoint);
    }
}

fn no_allocation_in_decode(checkpoint: &Checkpoint) {
    let formats = [None, Some(KvType::Int8), Some(KvType::Fp4E2M1)];
    for (activations, kv_type) in Activations::ALL.into_iter().zip(formats) {
        let model = load_with(checkpoint, activations, kv_type);
        let mut cache = model.new_cache(1100);
        let mut scratch = Scratch::default();
        model.forward(&mut cache, &[5; 3], Logits::Last, &mut scratch).unwrap();
        model.forward(&mut cache, &[6; 510], Logits::Last, &mut scratch).unwrap();
        model.forward(&mut cache, &[7], Logits::Last, &mut scratch).unwrap();
        let count = allocations(&model, || {
            for token in 0..580 {
                model.forward(&mut cache, &[token % 100], Logits::Last, &mut scratch).unwrap();
            }
        });
        assert_eq!((count, cache.len()), (0, 1094), "{activations:?}");
    }
}

/// Sequences of different lengths side by side.
fn a_decode_step_of_a_batch_allocates_nothing() {
    for kv_type in [None, Some(KvType::Fp8E4M3)] {
        of_a_batch(kv_type);
    }
}

fn of_a_batch(kv_type: Option<KvType>) {
    let (_dir, checkpoint) = folder("tiny:w4g32");
    let model = load_with(&checkpoint, Activations::Exact, kv_type);
    let mut pool = KvPool::with_blocks(model.kv_shape(), 5 * 44, 5).unwrap();
    let mut scratch = Scratch::default();
    let mut sequences: [Sequence; 5] = std::array::from_fn(|i| {
        let mut sequence = model.new_sequence(i as u32, 700);
        // every fifth block
        (0..44).for_each(|block| sequence.table_mut().push(5 * block + i as u32));
        sequence
    });
    for (i, sequence) in sequences.iter_mut().enumerate() {
        let part = Part { sequence, tokens: &vec![4; 1 + 100 * i], want: Logits::None };
        model.forward_batch(&mut pool, &mut [part], &mut scratch).unwrap();
    }
    let mut step = |token: u32| {
        let tokens = [token];
        let mut parts = sequences.each_mut().map(|sequence| Part { sequence, tokens: &tokens, want: Logits::Last });
        let logits = model.forward_batch(&mut pool, &mut parts, &mut scratch).unwrap();
        (0..5).for_each(|i| assert!(!logits.of(i).unwrap().is_empty()));
    };
    step(1);
    let count = allocations(&model, || (0..200).for_each(|i| step(i % 90)));
    assert_eq!((count, sequences[4].len()), (0, 602));
}

/// Reserved pages take memory when they are written to and not before.
#[cfg(target_os = "linux")]
fn room_for_a_long_plan_is_no_memory() {
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap() * 1024
    };
    let backend = Backend::new(Isa::choose(None).unwrap(), 1).unwrap();
    let (kv_heads, head_dim) = (8, 128);
    let token = 2 * kv_heads * head_dim * 4;
    let before = resident();
    let shape = KvShape { layers: 1, kv_heads, head_dim, kind: KvType::F32 };
    let mut pool = KvPool::new(shape, 1);
    let blocks = (1 << 30) / shape.block_bytes();
    pool.grow(blocks);
    assert!(shape.token_bytes() == token && pool.blocks() == blocks && pool.bytes() == 0);
    let mut table = KvTable::new(0);
    (0..blocks as u32).for_each(|block| table.push(block));
    let rows = vec![1.0; 100 * kv_heads * head_dim];
    let sequences = std::iter::once((&table, 100));
    backend.append(&mut AttentionScratch::default(), &mut pool, 0, sequences, &rows, &rows);
    assert_eq!(pool.bytes(), 100usize.next_multiple_of(BLOCK) * token);
    // a slab has 32 MiB, and where pages are huge its first 2 MiB come with the allocator's own note at its beginning
    let grown = resident().saturating_sub(before);
    assert!(grown < 160 << 20, "{grown} bytes became resident for {} reserved ones", table.capacity() * token);
}

/// One test: while a second one runs or ends, the harness allocates too.
#[test]
fn memory() {
    no_buffer_is_as_large_as_a_dequantized_weight();
    a_decode_step_allocates_nothing();
    a_decode_step_of_a_batch_allocates_nothing();
    #[cfg(target_os = "linux")]
    room_for_a_long_plan_is_no_memory();
}
