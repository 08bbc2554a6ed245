//! Single products, and what it costs to start and end a region of the pool.

use super::check::{Mismatch, check};
use super::limits::{Limits, Prober, Work, uncached_bytes};
use super::statistics::{median, percentile};
use billfish_kernels::{Activations, Backend, Floats, Input, MatmulScratch, PackedMatrix, Product, Weight};
use billfish_tensor::{Codes, Groups, Packing, QuantMatrix, ScaleValues, TensorError, Zeros};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Samples that are taken however long they last.
const LEAST: usize = 5;

/// After so much time of samples there are no more.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a kernel cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The matrix cannot be.
    #[error(transparent)]
    Matrix(#[from] TensorError),
    /// The matrix cannot be packed.
    #[error(transparent)]
    Pack(#[from] billfish_kernels::KernelError),
    /// The kernel is wrong.
    #[error(transparent)]
    Wrong(#[from] Mismatch),
}

/// How a random matrix is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    /// Width of a code.
    pub bits: u32,
    /// Rows of a group; one group a column if none.
    pub group_size: Option<usize>,
    /// Zero points for each group and column.
    pub asym: bool,
    /// Rows of a group stand apart.
    pub act_order: bool,
}

/// A matrix of random codes and scales.
///
/// # Errors
/// [`TensorError`] for sizes that cannot be.
pub fn random_matrix(k: usize, n: usize, scheme: &Scheme, seed: u64) -> Result<QuantMatrix, TensorError> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 8
    };
    let Scheme { bits, group_size, asym, act_order } = *scheme;
    let size = group_size.unwrap_or(k).max(1);
    let count = k.div_ceil(size);
    let packing = if matches!(bits, 5..=7) { Packing::Planar } else { Packing::Continuous };
    let words = (0..packing.words(bits, k) * n).map(|_| next() as u32).collect();
    let scales = (0..count * n).map(|_| (next() % 1000 + 1) as f32 * 1e-5).collect::<Vec<f32>>();
    let zeros = if asym { Zeros::PerGroup((0..count * n).map(|_| (next() % (1 << bits)) as u16).collect()) } else { Zeros::Midpoint };
    let groups = if act_order {
        let mut g_idx: Vec<u32> = (0..k).map(|row| (row / size) as u32).collect();
        for i in (1..k).rev() {
            g_idx.swap(i, next() as usize % (i + 1));
        }
        Groups::Index { g_idx, count }
    } else {
        Groups::Contiguous { size }
    };
    // scales in 16 bits, as folders have them
    let scales = ScaleValues::F16(scales.into_iter().map(half::f16::from_f32).collect());
    QuantMatrix::new(k, n, bits, Codes::Words { words, packing }, scales, zeros, groups, None)
}

/// Copies of one weight, so many that no cache holds them all, and a stretch of memory as large to read beside them.
pub struct KernelBench {
    matrix: QuantMatrix,
    copies: Vec<Weight>,
    prober: Prober,
}

/// How long the products took.
#[derive(Clone, Debug)]
pub struct KernelTimes {
    /// Seconds of each sample.
    pub seconds: Vec<f64>,
    /// The limits beside each sample.
    pub limits: Vec<Limits>,
    /// What a product must do.
    pub work: Work,
    /// Operations, two for each weight and row.
    pub operations: f64,
}

impl KernelTimes {
    /// Seconds of the fastest sample: what neighbours on the machine took away is not in it.
    pub fn best(&self) -> f64 {
        self.seconds.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// Seconds of the sample in the middle.
    pub fn median(&self) -> f64 {
        median(&self.seconds)
    }

    /// The best of the limits.
    pub fn best_limits(&self) -> Limits {
        self.limits.iter().copied().fold(Limits::default(), Limits::max)
    }

    /// The limits in the middle.
    fn median_limits(&self) -> Limits {
        let of = |f: fn(&Limits) -> f64| median(&self.limits.iter().map(f).collect::<Vec<_>>());
        Limits { read: of(|l| l.read), dots: of(|l| l.dots), fmas: of(|l| l.fmas) }
    }

    /// The part of the limit that the fastest sample reached, against the best of the limits.
    pub fn limit_fraction(&self) -> f64 {
        self.work.seconds(&self.best_limits()) / self.best()
    }

    /// The same with the sample and the limits in the middle.
    pub fn limit_fraction_median(&self) -> f64 {
        self.work.seconds(&self.median_limits()) / self.median()
    }
}

impl KernelBench {
    /// Packs as many copies as it takes.
    ///
    /// # Errors
    /// [`KernelError::Pack`] if the matrix cannot be packed.
    pub fn new(matrix: QuantMatrix) -> Result<Self, KernelError> {
        let mut copies = vec![Weight::Quantized(PackedMatrix::new(&matrix)?)];
        let bytes = copies[0].bytes().max(1);
        for _ in 1..uncached_bytes().div_ceil(bytes).max(2) {
            copies.push(Weight::Quantized(PackedMatrix::new(&matrix)?));
        }
        let prober = Prober::new(copies.len() * bytes);
        Ok(Self { matrix, copies, prober })
    }

    /// The weight.
    pub fn weight(&self) -> &Weight {
        &self.copies[0]
    }

    /// How often it is in memory.
    pub fn copies(&self) -> usize {
        self.copies.len()
    }

    /// Checks the product with `rows` rows against the oracle, then measures it: one product after another, each with
    /// another copy, the limits before each. At most `repetitions` samples, fewer if they last for long.
    ///
    /// # Errors
    /// [`KernelError::Wrong`] if the kernel does not agree with the oracle.
    pub fn measure(
        &mut self,
        backend: &Backend,
        rows: usize,
        activations: Activations,
        repetitions: usize,
    ) -> Result<KernelTimes, KernelError> {
        let (k, n) = (self.matrix.in_features(), self.matrix.out_features());
        // as a model's rows lie
        let (mut x, mut y) = (Floats::default(), Floats::default());
        let (x, y) = (x.room(rows * k), y.room(rows * n));
        x.iter_mut().enumerate().for_each(|(i, x)| *x = ((i * 7919) % 1000) as f32 * 1e-3 - 0.5);
        let mut scratch = MatmulScratch::default();
        let begin = Instant::now();
        backend.matmul(&mut scratch, Input::Rows(x), rows, activations, &mut [Product::new(&self.copies[0], y)]);
        let mut time = begin.elapsed();
        check(&self.matrix, x, y, activations)??;

        let bytes = self.copies[0].bytes();
        let operations = 2.0 * rows as f64 * k as f64 * n as f64;
        let work = Work { bytes: bytes as f64, dots: operations * activations.planes() as f64, fmas: 0.0 };
        let (mut seconds, mut limits, mut spent) = (vec![], vec![], Duration::ZERO);
        // the copy that was just checked comes last
        for weight in self.copies.iter().cycle().skip(1) {
            if seconds.len() >= repetitions.max(1) || (seconds.len() >= LEAST && spent >= PATIENCE) {
                break;
            }
            limits.push(self.prober.sample(backend, bytes, time));
            let begin = Instant::now();
            backend.matmul(&mut scratch, Input::Rows(x), rows, activations, &mut [Product::new(weight, y)]);
            time = begin.elapsed();
            seconds.push(time.as_secs_f64());
            spent += time;
        }
        Ok(KernelTimes { seconds, limits, work, operations })
    }
}

/// How long regions of the pool took.
#[derive(Clone, Copy, Debug)]
pub struct RegionTimes {
    /// Regions that were run.
    pub regions: usize,
    /// Seconds of the fastest.
    pub best: f64,
    /// Seconds of the one in the middle.
    pub median: f64,
    /// Seconds that 99 in 100 stay below.
    pub p99: f64,
    /// Seconds of the slowest.
    pub slowest: f64,
}

impl RegionTimes {
    fn of(seconds: &[f64]) -> RegionTimes {
        RegionTimes {
            regions: seconds.len(),
            best: percentile(seconds, 0.0),
            median: median(seconds),
            p99: percentile(seconds, 99.0),
            slowest: percentile(seconds, 100.0),
        }
    }
}

/// Runs `regions` regions one right after another.
fn regions(regions: usize, mut region: impl FnMut()) -> RegionTimes {
    let mut seconds = Vec::with_capacity(regions.max(1));
    for _ in 0..regions.max(1) {
        let begin = Instant::now();
        region();
        seconds.push(begin.elapsed().as_secs_f64());
    }
    RegionTimes::of(&seconds)
}

/// Regions of one empty chunk for each thread: what it costs to start and end one.
pub fn fork_join(backend: &Backend, count: usize) -> RegionTimes {
    let (pool, threads) = (backend.pool(), backend.threads());
    regions(count, || {
        pool.run(threads, &|i| {
            std::hint::black_box(i);
        });
    })
}

/// K and N of the product whose regions are timed: some hundred microseconds of one thread.
pub const REGION_SHAPE: (usize, usize) = (2048, 4096);

/// Products of one row with a 4-bit weight of [`REGION_SHAPE`] that lies in a cache: the regions that decoding is made of.
///
/// # Errors
/// [`KernelError`] if the weight cannot be made.
pub fn product_regions(backend: &Backend, count: usize) -> Result<RegionTimes, KernelError> {
    let (k, n) = REGION_SHAPE;
    let matrix = random_matrix(k, n, &Scheme { bits: 4, group_size: Some(128), asym: false, act_order: false }, 1)?;
    let weight = Weight::Quantized(PackedMatrix::new(&matrix)?);
    let x: Vec<f32> = (0..k).map(|i| ((i * 7919) % 1000) as f32 * 1e-3 - 0.5).collect();
    let mut y = vec![0.0; n];
    let mut scratch = MatmulScratch::default();
    let mut product = || backend.matmul(&mut scratch, Input::Rows(&x), 1, Activations::Exact, &mut [Product::new(&weight, &mut y)]);
    product();
    let times = regions(count, product);
    check(&matrix, &x, &y, Activations::Exact)??;
    Ok(times)
}

/// Threads that want all the time of a core and do nothing with it, until this is dropped.
pub struct Neighbours {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Neighbours {
    /// Starts them.
    pub fn start(count: usize) -> Neighbours {
        let stop = Arc::new(AtomicBool::new(false));
        let spin = |_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let threads = (0..count).map(spin).collect();
        Neighbours { stop, threads }
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|t| {
            // a thread that only spins does not panic
            let _ = t.join();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn figures_by_hand() {
        let limit = |read| Limits { read, dots: 1e12, fmas: 1e12 };
        let times = KernelTimes {
            seconds: vec![4.0, 2.0, 5.0],
            limits: vec![limit(10.0), limit(5.0), limit(20.0)],
            work: Work { bytes: 20.0, dots: 1.0, fmas: 0.0 },
            operations: 8.0,
        };
        assert_eq!((times.best(), times.median()), (2.0, 4.0));
        // 20 bytes at 20 a second against 2 s; at 10 a second against 4 s
        assert_eq!((times.limit_fraction(), times.limit_fraction_median()), (0.5, 0.5));
    }

    #[test]
    fn copies_exceed_the_caches_and_are_used_in_turn() {
        let m = random_matrix(512, 512, &Scheme { bits: 8, group_size: None, asym: true, act_order: true }, 1).unwrap();
        let mut bench = KernelBench::new(m).unwrap();
        assert!(bench.copies() * bench.weight().bytes() >= uncached_bytes());
        let backend = Backend::new(Isa::choose(None).unwrap(), 2).unwrap();
        let times = bench.measure(&backend, 2, Activations::Exact, 7).unwrap();
        assert_eq!((times.seconds.len(), times.limits.len()), (7, 7));
        assert_eq!(times.operations, 2.0 * 2.0 * 512.0 * 512.0);
        assert_eq!(times.work.dots, 2.0 * times.operations);
        assert_eq!(times.work.bytes, bench.weight().bytes() as f64);
    }

    #[test]
    fn regions_are_counted_and_ordered() {
        let backend = Backend::new(Isa::choose(None).unwrap(), 2).unwrap();
        let _busy = Neighbours::start(1);
        for f in [fork_join(&backend, 100), product_regions(&backend, 100).unwrap()] {
            assert_eq!(f.regions, 100);
            assert!(f.best > 0.0 && f.best <= f.median && f.median <= f.p99 && f.p99 <= f.slowest);
        }
    }
}
