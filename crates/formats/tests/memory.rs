//! Memory: comparing two folders holds their packed modules and a few outputs, never a matrix of floats.

mod common;

use billfish_formats::{Checkpoint, Verdict, diff, serially, verify};
use billfish_tensor::DType;
use common::{Folder, Tensor};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, watched.
struct Watched;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator as it is; the counters allocate nothing.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
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

/// Growth of all allocations together while `body` runs.
fn peak(body: impl FnOnce()) -> usize {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    body();
    PEAK.load(Ordering::Relaxed) - before
}

/// One test: the counters are the whole program's.
#[test]
fn memory_is_bounded() {
    let (k, n) = (2048, 6144);
    let config = r#"{"bits": 4, "group_size": -1, "sym": true}"#;
    let mut packed = Folder::module(k, n, config, 1, &vec![0x7777_7777; n / 8]);
    packed.edit("m.qweight", |t| t.bytes.iter_mut().enumerate().for_each(|(i, b)| *b = (i * 37 / 8) as u8));
    packed.put("embedding.weight", Tensor { dtype: DType::BF16, shape: vec![n, k], bytes: vec![0x3f; 2 * n * k] });
    let mut other = packed.clone();
    other.put("embedding.weight", Tensor::f32(&[n, k], &vec![f32::from_bits(0x3f3f_0000); n * k]));
    let (a, b) = (packed.write(), other.write());
    drop((packed, other));
    let [x, y] = [&a, &b].map(|t| Checkpoint::open(&t.0).unwrap());
    let (module, floats) = (k * n / 2, 8 * k * n);
    // the packed modules of both folders, and chunks of 2^18 weights as bytes, floats and bits
    let bound = 2 * module + (14 << 20);
    assert!(bound < floats / 2);
    let found = peak(|| assert!(verify(&x, &y, &serially, &mut |_, _| ()).unwrap().equal()));
    println!("verify: {found} bytes for {floats} of floats");
    assert!(found < bound, "{found}");
    let found = peak(|| assert_eq!(diff(&x, &y, &serially, &mut |_, _| ()).unwrap().verdict, Verdict::SameWeights));
    assert!(found < bound, "{found}");
}
