//! Persistent workers that claim chunks of a region.
//!
//! A region is a number of chunks and a function of the chunk's index. Its state is one word (generation, number of
//! chunks, next chunk): whoever wins the exchange owns the chunk. The caller works too and waits only for chunks that somebody has
//! claimed, never for a worker to show up, so a worker that lost its core delays nothing but its own chunk. Workers
//! spin for a short while between regions, then park.

use crate::KernelError;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Pauses before a worker parks: some ten microseconds, enough to bridge the short serial steps between two regions.
/// Longer spins burn the time slices of others on a busy machine (cpu_kernels §8).
const SPINS: u32 = 400;

/// Bits of the state word that count chunks; the generation has the rest.
const BITS: u32 = 22;
const MASK: u64 = (1 << BITS) - 1;

fn next_of(state: u64) -> usize {
    (state & MASK) as usize
}

fn chunks_of(state: u64) -> usize {
    (state >> BITS & MASK) as usize
}

fn generation_of(state: u64) -> u64 {
    state >> (2 * BITS)
}

/// Fills a piece of bytes, given which it is; it can fail.
pub type Fill<'a, E> = dyn Fn(usize, &mut [u8]) -> Result<(), E> + Sync + 'a;

struct Job<'a> {
    body: &'a (dyn Fn(usize) + Sync),
}

struct Shared {
    state: AtomicU64,
    finished: AtomicUsize,
    job: AtomicPtr<()>,
    sleepers: AtomicUsize,
    stop: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// The workers. Dropping it ends them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One region at a time: a second caller waits here.
    region: Mutex<()>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // a panic in a chunk is carried to the caller and leaves no broken state behind
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Claims and runs chunks until none is left.
    fn work(&self) {
        loop {
            let state = self.state.load(Ordering::Acquire);
            let next = next_of(state);
            if next >= chunks_of(state) {
                return;
            }
            if self.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            // SAFETY: the exchange succeeded, so this chunk belongs to the current region, whose caller does not return
            // (and whose job does not die) before `finished` has counted this chunk.
            let job = unsafe { &*self.job.load(Ordering::Acquire).cast::<Job<'_>>() };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (job.body)(next))) {
                lock(&self.panic).get_or_insert(panic);
            }
            self.finished.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn worker(&self) {
        let mut seen = 0;
        loop {
            let mut spins = 0;
            loop {
                if self.stop.load(Ordering::Acquire) {
                    return;
                }
                let generation = generation_of(self.state.load(Ordering::Acquire));
                if generation != seen {
                    seen = generation;
                    break;
                }
                if spins < SPINS {
                    spins += 1;
                    std::hint::spin_loop();
                    continue;
                }
                let guard = lock(&self.lock);
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                // between here and the wait nobody can publish unseen: publishers look at `sleepers` after the state
                if generation_of(self.state.load(Ordering::SeqCst)) == seen && !self.stop.load(Ordering::SeqCst) {
                    drop(self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner));
                }
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
            }
            self.work();
        }
    }
}

impl Pool {
    /// A pool that works with `threads` threads, the caller's included.
    ///
    /// # Errors
    /// [`KernelError::Threads`] if the system refuses them.
    pub fn new(threads: usize) -> Result<Self, KernelError> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            finished: AtomicUsize::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            sleepers: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            lock: Mutex::new(()),
            wake: Condvar::new(),
            panic: Mutex::new(None),
        });
        let mut pool = Self { shared, workers: vec![], region: Mutex::new(()) };
        for i in 1..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new().name(format!("billfish-{i}")).spawn(move || shared.worker());
            pool.workers.push(worker.map_err(|e| KernelError::Threads { threads, reason: e.to_string() })?);
        }
        Ok(pool)
    }

    /// Threads that work, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body(i, piece i)` for the pieces of `size` bytes (the last may be shorter) of `bytes`, as [`Pool::run`] does.
    ///
    /// # Panics
    /// If `size` is 0 while there are bytes, and with the panic of a chunk.
    pub fn chunks_mut(&self, bytes: &mut [u8], size: usize, body: &(dyn Fn(usize, &mut [u8]) + Sync)) {
        if bytes.is_empty() {
            return;
        }
        // each lock is taken once: it only hands its piece to the thread that claimed it
        let pieces: Vec<Mutex<&mut [u8]>> = bytes.chunks_mut(size).map(Mutex::new).collect();
        self.run(pieces.len(), &|i| body(i, &mut lock(&pieces[i])));
    }

    /// The same for bodies that can fail. All pieces are tried.
    ///
    /// # Errors
    /// That of the first piece that failed.
    ///
    /// # Panics
    /// As [`Pool::chunks_mut`].
    pub fn try_chunks_mut<E: Send>(&self, bytes: &mut [u8], size: usize, body: &Fill<'_, E>) -> Result<(), E> {
        let failed = Mutex::new(None);
        self.chunks_mut(bytes, size, &|i, piece| {
            if let Err(e) = body(i, piece) {
                let mut failed = lock(&failed);
                if failed.as_ref().is_none_or(|(other, _)| i < *other) {
                    *failed = Some((i, e));
                }
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), |(_, e)| Err(e))
    }

    /// Runs `body(0)`, …, `body(chunks - 1)`, each once, on any thread in any order, and returns when all are done.
    ///
    /// # Panics
    /// With the panic of a chunk, after all chunks are done.
    pub fn run(&self, chunks: usize, body: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() || chunks <= 1 {
            return (0..chunks).for_each(body);
        }
        assert!(chunks as u64 <= MASK, "a region has at most 2^22 - 1 chunks");
        let _one_at_a_time = lock(&self.region);
        let shared = &*self.shared;
        let job = Job { body };
        // no chunk is claimable now: the last region's are all claimed and finished
        let generation = generation_of(shared.state.load(Ordering::Relaxed)).wrapping_add(1) & (u64::MAX >> (2 * BITS));
        shared.finished.store(0, Ordering::SeqCst);
        shared.job.store((&raw const job).cast_mut().cast(), Ordering::SeqCst);
        shared.state.store(generation << (2 * BITS) | (chunks as u64) << BITS, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&shared.lock));
            shared.wake.notify_all();
        }
        shared.work();
        let mut spins = 0u32;
        while shared.finished.load(Ordering::Acquire) < chunks {
            spins += 1;
            if spins < 10_000 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let panic = lock(&shared.panic).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(lock(&self.shared.lock));
        self.shared.wake.notify_all();
        for w in self.workers.drain(..) {
            // a worker never panics: chunks are caught
            let _ = w.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_runs_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            for round in 0..2000 {
                let chunks = round % 37;
                let counts: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(chunks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn works_after_workers_have_parked() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(5));
            let sum = AtomicUsize::new(0);
            pool.run(100, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 4950);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2).unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|i| assert!(i != 5))));
        assert!(result.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(8, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 28);
    }
}
