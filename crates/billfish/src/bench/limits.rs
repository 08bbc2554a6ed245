//! What the machine can do at most, measured beside what is compared with it, and what work takes at least.

use crate::Machine;
use billfish_kernels::{Backend, ProbeMemory};
use std::time::{Duration, Instant};

/// The machine's limits at one moment, on the threads of one backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Bytes read per second.
    pub read: f64,
    /// Operations per second of dot products of bytes; a multiply-add is two.
    pub dots: f64,
    /// Operations per second of `f32` multiply-adds; a multiply-add is two.
    pub fmas: f64,
}

impl Limits {
    /// The higher of both in everything: a limit is what was reached at any time.
    #[must_use]
    pub fn max(self, other: Limits) -> Limits {
        Limits { read: self.read.max(other.read), dots: self.dots.max(other.dots), fmas: self.fmas.max(other.fmas) }
    }
}

/// Bytes that no cache of the machine holds, nor a part that shows: eight times its largest cache, never below 256 MiB. A
/// cache that does not evict what is oldest keeps a part of what is read over and over (Zen 5, 32 MiB: reading twice as much
/// in turns is 1.3 times as fast as reading memory, four times as much still 1.2 times in single samples).
pub fn uncached_bytes() -> usize {
    Machine::detect().cache.map_or(0, |c| 8 * c as usize).max(256 << 20)
}

/// Measures limits.
pub struct Prober {
    memory: ProbeMemory,
    next: usize,
}

/// Bytes of a line.
const LINE: usize = 64;

/// How long a machine must keep up what is called its limit, for work that takes as long or longer.
const LASTING: Duration = Duration::from_millis(20);

/// Measurements of each figure, of which the best is the limit.
const TURNS: usize = 3;

impl Prober {
    /// A prober that reads `bytes` of memory, at least 64 KiB.
    ///
    /// To be compared with work that reads so many bytes over and over: a small model lies in a cache, and so does what
    /// is read beside it.
    pub fn new(bytes: usize) -> Self {
        Self { memory: ProbeMemory::new(bytes.max(64 << 10)), next: 0 }
    }

    /// A prober for work that reads `bytes` over and over; what no cache holds is read no faster if there is more of it.
    pub fn for_working_set(bytes: usize) -> Self {
        Self::new(bytes.min(uncached_bytes()))
    }

    /// Bytes read per second now; see [`measure`](Self::measure).
    pub fn read(&self, backend: &Backend) -> f64 {
        let read = |pass: fn(&Backend, &[u8]) -> f64| {
            let begin = Instant::now();
            let mut bytes = 0;
            while begin.elapsed() < LASTING {
                pass(backend, self.memory.bytes());
                bytes += self.memory.bytes().len();
            }
            bytes as f64 / begin.elapsed().as_secs_f64()
        };
        best(&|| read(Backend::probe_read)).max(best(&|| read(read_streams)))
    }

    /// The limits now, each what was kept up for 20 ms, the best of three turns. A pass of a model takes as long and longer,
    /// and what a core does for a tenth of a millisecond while nothing disturbs it is no limit for that.
    pub fn measure(&self, backend: &Backend) -> Limits {
        Limits { read: self.read(backend), dots: best(&|| backend.probe_dots(LASTING)), fmas: best(&|| backend.probe_fmas(LASTING)) }
    }

    /// The limits now, from one sample each, beside work that takes `lasting`: arithmetic is measured for as long, up to
    /// 20 ms. What is read are the next `bytes`, so that they are as cold as all of the memory is large.
    pub fn sample(&mut self, backend: &Backend, bytes: usize, lasting: Duration) -> Limits {
        let bytes = bytes.next_multiple_of(LINE).clamp(LINE, self.memory.bytes().len());
        let mut next = || {
            let from = if self.next + bytes > self.memory.bytes().len() { 0 } else { self.next };
            self.next = from + bytes;
            from..from + bytes
        };
        let [one, other] = [next(), next()];
        let lasting = lasting.min(LASTING);
        Limits {
            read: backend.probe_read(&self.memory.bytes()[one]).max(read_streams(backend, &self.memory.bytes()[other])),
            dots: backend.probe_dots(lasting),
            fmas: backend.probe_fmas(lasting),
        }
    }
}

/// The best of some turns.
fn best(turn: &dyn Fn() -> f64) -> f64 {
    (0..TURNS).map(|_| turn()).fold(0.0, f64::max)
}

/// Streams that a core reads at once.
const STREAMS: usize = 4;

/// Bytes per second of reading `data` in chunks that threads claim, each chunk as several streams. There are cores that
/// read one stream at two thirds of the rate that they reach with four, and a limit must be what the machine can do.
fn read_streams(backend: &Backend, data: &[u8]) -> f64 {
    let size = (data.len() / backend.threads()).clamp(STREAMS * LINE, 1 << 20).next_multiple_of(STREAMS * LINE);
    let begin = Instant::now();
    backend.pool().run(data.len().div_ceil(size), &|i| {
        let chunk = &data[i * size..data.len().min((i + 1) * size)];
        let part = chunk.len() / STREAMS;
        let mut streams: [_; STREAMS] = std::array::from_fn(|s| chunk[s * part..(s + 1) * part].as_chunks::<LINE>().0.iter());
        let mut seen = [[0u8; LINE]; STREAMS];
        for _ in 0..part / LINE {
            for (seen, stream) in seen.iter_mut().zip(&mut streams) {
                let line = stream.next().unwrap_or(&[0; LINE]);
                seen.iter_mut().zip(line).for_each(|(s, l)| *s |= l);
            }
        }
        std::hint::black_box(seen);
    });
    data.len() as f64 / begin.elapsed().as_secs_f64()
}

/// What one pass must do, however it is programmed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Bytes to read.
    pub bytes: f64,
    /// Operations on bytes: two for each weight, row and plane of the activations.
    pub dots: f64,
    /// Operations on `f32`.
    pub fmas: f64,
}

impl Work {
    /// Seconds for reading, and seconds for arithmetic.
    fn parts(&self, limits: &Limits) -> (f64, f64) {
        let over = |work: f64, limit: f64| if work > 0.0 { work / limit } else { 0.0 };
        (over(self.bytes, limits.read), over(self.dots, limits.dots) + over(self.fmas, limits.fmas))
    }

    /// The least time that the work takes: reading and arithmetic at once.
    pub fn seconds(&self, limits: &Limits) -> f64 {
        let (read, compute) = self.parts(limits);
        read.max(compute)
    }

    /// What it waits for.
    pub fn bound(&self, limits: &Limits) -> Bound {
        let (read, compute) = self.parts(limits);
        if read >= compute { Bound::Read } else { Bound::Arithmetic }
    }
}

/// What work waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Memory.
    Read,
    /// Arithmetic.
    Arithmetic,
}

impl Bound {
    /// Its name in reports, for activations of so many planes: `read`, or `int8/2` for half of the peak of dot products
    /// of bytes.
    pub fn name(self, planes: usize) -> String {
        match self {
            Bound::Read => "read".into(),
            Bound::Arithmetic if planes == 1 => "int8".into(),
            Bound::Arithmetic => format!("int8/{planes}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn work_takes_the_longer_of_reading_and_arithmetic() {
        let limits = Limits { read: 10.0, dots: 100.0, fmas: 50.0 };
        let work = Work { bytes: 20.0, dots: 100.0, fmas: 25.0 };
        assert_eq!((work.seconds(&limits), work.bound(&limits)), (2.0, Bound::Read));
        let work = Work { bytes: 5.0, ..work };
        assert_eq!((work.seconds(&limits), work.bound(&limits)), (1.5, Bound::Arithmetic));
        assert_eq!(
            (Bound::Read.name(2), Bound::Arithmetic.name(1), Bound::Arithmetic.name(3)),
            ("read".into(), "int8".into(), "int8/3".into())
        );
    }

    #[test]
    fn limits_are_measured() {
        let backend = Backend::new(Isa::choose(None).unwrap(), 1).unwrap();
        let mut prober = Prober::new(1 << 20);
        assert_eq!((prober.memory.bytes().as_ptr().align_offset(LINE), prober.memory.bytes().len()), (0, 1 << 20));
        assert!(read_streams(&backend, prober.memory.bytes()) > 0.0 && read_streams(&backend, &[1; 100]).is_finite());
        let lasting = Duration::from_millis(1);
        for l in [prober.measure(&backend), prober.sample(&backend, 1 << 19, lasting), prober.sample(&backend, usize::MAX, lasting)] {
            assert!(l.read > 0.0 && l.dots > 0.0 && l.fmas > 0.0 && l.read.is_finite(), "{l:?}");
            assert!(l.max(Limits { read: f64::MAX, ..l }).read == f64::MAX);
        }
    }
}
