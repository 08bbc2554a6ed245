//! Persistent workers that claim chunks of a region.
//!
//! A region is a number of chunks and a function of the chunk's index. Each thread has a range of them, so that it goes on
//! where it stopped reading; who is done with its own helps with the others'. A range is one word (generation, end, next
//! chunk): whoever wins the exchange owns the chunk. The caller works too and waits only for chunks that somebody has
//! claimed, never for a worker to show up, so a worker that lost its core delays nothing but its own chunk.
//!
//! Workers spin for a short while between regions, then park: as long as spinning pays, and hardly at all where it burns
//! the time slices of others (cpu_kernels §8). The caller, too, soon offers its core to those that it waits for. No lock
//! is taken that somebody without a core could hold.

use crate::KernelError;
use crate::activations::Out;
use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker spins at first before it parks: enough to bridge the short serial steps between two regions.
const SPIN: Duration = Duration::from_micros(10);
/// What spinning shrinks to where it does not pay, and grows to where it would have.
const SPINS: (Duration, Duration) = (Duration::from_micros(1), Duration::from_micros(50));
/// Looks at the state between two looks at the clock.
const LOOKS: u32 = 16;
/// A few looks take far less; who finds so much time gone had no core.
const LOST: Duration = Duration::from_micros(100);
/// How long the caller spins for claimed chunks before it offers its core to whoever has them.
const PATIENCE: Duration = Duration::from_micros(20);

/// Bits of a range's word that count chunks; the generation has the rest.
const BITS: u32 = 22;
const MASK: u64 = (1 << BITS) - 1;

/// Something on cache lines of its own, of which processors fetch two at a time.
#[repr(align(128))]
#[derive(Default)]
struct Alone<T>(T);

/// The chunks of a region that one thread begins with, and what to do with them.
#[derive(Default)]
struct Claims {
    chunks: AtomicU64,
    job: AtomicPtr<()>,
}

impl Claims {
    /// Which region they are of.
    fn generation(&self) -> u64 {
        self.chunks.load(Ordering::SeqCst) >> (2 * BITS)
    }

    /// Makes them those of a new region. Nobody claims meanwhile: all of the last one's are claimed.
    fn publish(&self, generation: u64, job: &Job<'_>, chunks: Range<usize>) {
        self.job.store((&raw const *job).cast_mut().cast(), Ordering::Relaxed);
        self.chunks.store(generation << (2 * BITS) | (chunks.end as u64) << BITS | chunks.start as u64, Ordering::Release);
    }

    /// The next chunk, which then belongs to the caller, and the job that it is of.
    fn claim(&self) -> Option<(usize, *const Job<'_>)> {
        let next = |word: u64| ((word & MASK) < (word >> BITS & MASK)).then_some(word + 1);
        let chunk = self.chunks.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).ok()? & MASK;
        Some((chunk as usize, self.job.load(Ordering::Relaxed).cast_const().cast()))
    }
}

/// Fills a piece of bytes, given which it is; it can fail.
pub type Fill<'a, E> = dyn Fn(usize, &mut [u8]) -> Result<(), E> + Sync + 'a;

struct Job<'a> {
    body: &'a (dyn Fn(usize) + Sync),
}

struct Shared {
    /// The caller's, then those of each worker.
    claims: Vec<Alone<Claims>>,
    finished: Alone<AtomicUsize>,
    /// Which workers are parked, or about to.
    parked: Vec<AtomicBool>,
    stop: AtomicBool,
    /// Whether there are more threads than processors: somebody else could use the time that one spins away.
    crowded: bool,
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

/// How long to spin next time, after sleeping for `asleep`: twice as long if a little more patience would have met the
/// region, half as long if none does.
fn spin_after(spin: Duration, asleep: Duration) -> Duration {
    if asleep < SPINS.1 { (2 * spin).min(SPINS.1) } else { (spin / 2).max(SPINS.0) }
}

impl Shared {
    fn new(workers: usize) -> Self {
        Shared {
            claims: (0..=workers).map(|_| Alone::default()).collect(),
            finished: Alone::default(),
            parked: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            crowded: workers >= std::thread::available_parallelism().map_or(1, |n| n.get()),
            panic: Mutex::new(None),
        }
    }

    /// Claims and runs chunks, those of thread `own` first, until none is left.
    fn work(&self, own: usize) {
        let mut done = 0;
        for Alone(claims) in self.claims[own..].iter().chain(&self.claims[..own]) {
            while let Some((chunk, job)) = claims.claim() {
                // SAFETY: this chunk belongs to the current region, whose caller does not return (and whose job does not die)
                // before `finished` has counted this chunk.
                let body = unsafe { (*job).body };
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(chunk))) {
                    lock(&self.panic).get_or_insert(panic);
                }
                done += 1;
            }
        }
        // at once: until then the region lasts, so all of them are of the same one
        self.finished.0.fetch_add(done, Ordering::AcqRel);
    }

    fn worker(&self, index: usize) {
        let mut seen = 0;
        let mut spin = SPIN;
        while let Some(generation) = self.wait(index, seen, &mut spin) {
            seen = generation;
            self.work(index + 1);
        }
    }

    /// Waits for another generation than `seen`; none at the end of the pool.
    fn wait(&self, index: usize, seen: u64, spin: &mut Duration) -> Option<u64> {
        let news = || {
            let generation = self.claims[index + 1].0.generation();
            let stop = self.stop.load(Ordering::SeqCst);
            (stop || generation != seen).then_some((!stop).then_some(generation))
        };
        if !self.crowded {
            let begin = Instant::now();
            let mut before = begin;
            loop {
                for _ in 0..LOOKS {
                    if let Some(news) = news() {
                        return news;
                    }
                    std::hint::spin_loop();
                }
                let now = Instant::now();
                if now - before > LOST {
                    *spin = SPINS.0;
                }
                before = now;
                if now - begin >= *spin {
                    break;
                }
            }
        }
        let begin = Instant::now();
        self.parked[index].store(true, Ordering::SeqCst);
        let news = loop {
            // from here on nobody can publish unseen: publishers look at `parked` after the claims
            match news() {
                Some(news) => break news,
                None => std::thread::park(),
            }
        };
        self.parked[index].store(false, Ordering::SeqCst);
        *spin = spin_after(*spin, begin.elapsed());
        news
    }
}

impl Pool {
    /// A pool that works with `threads` threads, the caller's included.
    ///
    /// # Errors
    /// [`KernelError::Threads`] if the system refuses them.
    pub fn new(threads: usize) -> Result<Self, KernelError> {
        let workers = threads.max(1) - 1;
        let shared = Arc::new(Shared::new(workers));
        let mut pool = Self { shared, workers: vec![], region: Mutex::new(()) };
        for i in 0..workers {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new().name(format!("billfish-{}", i + 1)).spawn(move || shared.worker(i));
            pool.workers.push(worker.map_err(|e| KernelError::Threads { threads, reason: e.to_string() })?);
        }
        Ok(pool)
    }

    /// Threads that work, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body(i, piece i)` for the pieces of `size` items (the last may be shorter) of `items`, as [`Pool::run`] does.
    ///
    /// # Panics
    /// If `size` is 0 while there are items, and with the panic of a chunk.
    pub fn chunks_mut<T: Send>(&self, items: &mut [T], size: usize, body: &(dyn Fn(usize, &mut [T]) + Sync)) {
        if items.is_empty() {
            return;
        }
        let (len, items) = (items.len(), Out(items.as_mut_ptr()));
        self.run(len.div_ceil(size), &|i| {
            // SAFETY: piece i lies inside `items`, which are borrowed exclusively; each piece is one chunk's, which runs once.
            body(i, unsafe { std::slice::from_raw_parts_mut(items.at(i * size), size.min(len - i * size)) });
        });
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

    /// Runs `body(0)`, …, `body(chunks - 1)`, each once, on any thread in any order, and returns when all are done. A chunk
    /// must not wait for another one: the caller may have to do all of them.
    ///
    /// # Panics
    /// With the panic of a chunk, when none is running any more.
    pub fn run(&self, chunks: usize, body: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() || chunks <= 1 {
            return (0..chunks).for_each(body);
        }
        assert!(chunks as u64 <= MASK, "a region has at most 2^22 - 1 chunks");
        let _one_at_a_time = lock(&self.region);
        let shared = &*self.shared;
        let job = Job { body };
        // no chunk is claimable now: the last region's are all claimed and finished
        let generation = (shared.claims[0].0.generation() + 1) & (u64::MAX >> (2 * BITS));
        shared.finished.0.store(0, Ordering::Relaxed);
        let threads = self.threads();
        for (i, Alone(claims)) in shared.claims.iter().enumerate().rev() {
            claims.publish(generation, &job, chunks * i / threads..chunks * (i + 1) / threads);
        }
        // a worker that parks looks at its claims once more after it has said so
        fence(Ordering::SeqCst);
        self.wake(chunks - 1);
        shared.work(0);
        let done = || shared.finished.0.load(Ordering::Acquire) >= chunks;
        let mut begin = None;
        while !done() {
            if !shared.crowded && begin.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
                (0..LOOKS).take_while(|_| !done()).for_each(|_| std::hint::spin_loop());
            } else {
                std::thread::yield_now();
            }
        }
        let panic = lock(&shared.panic).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Wakes parked workers, as many as there are chunks for. It takes no lock: whoever holds one may have lost its core.
    fn wake(&self, chunks: usize) {
        let parked = self.workers.iter().zip(&self.shared.parked).filter(|(_, parked)| parked.load(Ordering::SeqCst));
        parked.take(chunks).for_each(|(worker, _)| worker.thread().unpark());
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.wake(usize::MAX);
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
    fn every_item_is_in_one_piece() {
        let pool = Pool::new(3).unwrap();
        for len in [0, 1, 2, 7, 64, 65] {
            for size in [1, 2, 7, 64, 100] {
                let mut items = vec![vec![]; len];
                pool.chunks_mut(&mut items, size, &|i, piece| piece.iter_mut().enumerate().for_each(|(at, item)| item.push(i * size + at)));
                assert!(items.iter().enumerate().all(|(i, item)| *item == [i]), "{len} by {size}: {items:?}");
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

    /// Waits for something that another thread is to do, and gives up after a minute.
    fn eventually(what: impl Fn() -> bool) -> bool {
        let begin = Instant::now();
        while !what() {
            if begin.elapsed() > Duration::from_secs(60) {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }

    #[test]
    fn a_held_worker_holds_its_own_chunk_and_no_other() {
        const CHUNKS: usize = 100;
        let pool = Pool::new(2).unwrap();
        let caller = std::thread::current().id();
        for _ in 0..5 {
            let (held, done, freed) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicBool::new(false));
            pool.run(CHUNKS, &|_| {
                if std::thread::current().id() == caller {
                    // only when the worker is stuck in a chunk
                    assert!(eventually(|| held.load(Ordering::SeqCst)));
                    done.fetch_add(1, Ordering::SeqCst);
                } else {
                    held.store(true, Ordering::SeqCst);
                    freed.store(eventually(|| done.load(Ordering::SeqCst) == CHUNKS - 1), Ordering::SeqCst);
                }
            });
            assert!(freed.load(Ordering::SeqCst), "the caller did all other chunks while the worker was held");
        }
    }

    #[test]
    fn each_thread_begins_with_a_range_of_its_own() {
        const CHUNKS: usize = 101;
        let pool = Pool::new(2).unwrap();
        let caller = std::thread::current().id();
        let order = Mutex::new([vec![], vec![]]);
        pool.run(CHUNKS, &|i| {
            lock(&order)[usize::from(std::thread::current().id() != caller)].push(i);
            // none does more than its first chunk before the other has one
            assert!(eventually(|| lock(&order).iter().all(|chunks| !chunks.is_empty())));
        });
        let [own, others] = order.into_inner().unwrap();
        assert_eq!((own[0], others[0]), (0, CHUNKS / 2));
        assert!(own.is_sorted(), "what it takes of the other's comes after its own: {own:?}");
    }

    #[test]
    fn spinning_shrinks_where_it_does_not_pay_and_comes_back() {
        let long = Duration::from_millis(3);
        let shrunk = (0..10).fold(SPIN, |spin, _| spin_after(spin, long));
        assert_eq!(shrunk, SPINS.0);
        let short = Duration::from_micros(20);
        assert_eq!(spin_after(shrunk, short), 2 * SPINS.0);
        assert_eq!((0..10).fold(shrunk, |spin, _| spin_after(spin, short)), SPINS.1);
    }

    #[test]
    fn workers_that_never_come_are_not_waited_for() {
        let shared = Arc::new(Shared::new(2));
        // one looks as if it slept, one as if it were on its way
        shared.parked[0].store(true, Ordering::SeqCst);
        let absent = |_| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || assert!(eventually(|| shared.stop.load(Ordering::SeqCst))))
        };
        let workers = (0..2).map(absent).collect();
        let pool = Pool { shared: Arc::clone(&shared), workers, region: Mutex::new(()) };
        for chunks in [2, 3, 1000] {
            let sum = AtomicUsize::new(0);
            pool.run(chunks, &|i| {
                sum.fetch_add(i + 1, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), chunks * (chunks + 1) / 2);
        }
    }
}
