//! The limits of the machine, measured with the instructions that the kernels use, on the backend's threads. Arithmetic is
//! measured for as long as the caller says, as what it is compared with takes: for a tenth of a millisecond a core is faster
//! than for ten (Zen 5: 1,020 and 990 Gop/s of byte products, on two threads of a shared machine 2,030 and 1,890).

use crate::aligned::AlignedBytes;
use crate::backend::Backend;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Rounds of the shortest sample of arithmetic: some microseconds.
const ROUNDS: usize = 1 << 12;

/// Memory to read, allocated as packed weights are: what limits them must not be measured in smaller pages than theirs.
pub struct ProbeMemory(AlignedBytes);

impl ProbeMemory {
    /// `bytes` bytes that are not zero, from the beginning of a line on: untouched zero pages would all be one page.
    pub fn new(bytes: usize) -> Self {
        let mut memory = AlignedBytes::to_fill(bytes);
        memory.as_mut_slice().fill(1);
        Self(memory)
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl Backend {
    /// Calls `body` once for each thread and returns the seconds that all of it took.
    fn on_all_threads(&self, body: &(dyn Fn(usize) + Sync)) -> f64 {
        let begin = Instant::now();
        self.pool().run(self.threads(), body);
        begin.elapsed().as_secs_f64()
    }

    /// Rounds per second of `work`, which runs so many of them on each thread, all threads together, for about `lasting`.
    fn rounds_per_second(&self, lasting: Duration, work: &(dyn Fn(usize) + Sync)) -> f64 {
        let mut rounds = ROUNDS;
        loop {
            let seconds = self.on_all_threads(&|_| work(black_box(rounds)));
            let left = lasting.as_secs_f64() / seconds;
            // a first look that was disturbed is no measure, so that from few rounds to many there are steps
            if left <= 1.1 {
                return (rounds * self.threads()) as f64 / seconds;
            }
            rounds = (rounds as f64 * left.min(16.0)).ceil() as usize;
        }
    }

    /// Operations per second (a multiply-add is two) of dot products of bytes, from registers or tiles, for about `lasting`.
    pub fn probe_dots(&self, lasting: Duration) -> f64 {
        let rate = self.rounds_per_second(lasting, &|rounds| {
            // SAFETY: the table's instruction set is available.
            black_box(unsafe { (self.kernels.probe_dots)(rounds) });
        });
        2.0 * self.kernels.probe_dots_work as f64 * rate
    }

    /// Operations per second (a multiply-add is two) of `f32` fused multiply-adds, from registers, for about `lasting`.
    pub fn probe_fmas(&self, lasting: Duration) -> f64 {
        let rate = self.rounds_per_second(lasting, &|rounds| {
            // SAFETY: the table's instruction set is available.
            black_box(unsafe { (self.kernels.probe_fmas)(rounds) });
        });
        2.0 * self.kernels.probe_fmas_work as f64 * rate
    }

    /// Bytes per second of reading `data`, which should not be in any cache, in chunks that threads claim as they do
    /// those of a weight.
    pub fn probe_read(&self, data: &[u8]) -> f64 {
        let lines = data.len() / 64;
        let chunks = (data.len() / crate::backend::CHUNK_BYTES).clamp(1, 1 << 16);
        let begin = Instant::now();
        self.pool().run(chunks, &|i| {
            let (from, to) = (lines * i / chunks, lines * (i + 1) / chunks);
            // SAFETY: the table's instruction set is available; lines `from..to` lie inside `data`.
            black_box(unsafe { (self.kernels.probe_read)(data[64 * from..].as_ptr(), to - from) });
        });
        (64 * lines) as f64 / begin.elapsed().as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use crate::arch::kernels;
    use crate::backend::Backend;
    use crate::isa::Isa;
    use std::sync::Mutex;
    use std::time::Duration;

    /// What counts is the last piece of work, and it lasts as long as was asked for.
    #[test]
    fn a_probe_lasts() {
        let backend = Backend::new(Isa::Scalar, 1).unwrap();
        for lasting in [Duration::ZERO, Duration::from_millis(3)] {
            let pieces = Mutex::new(vec![]);
            let rate = backend.rounds_per_second(lasting, &|rounds| {
                let time = Duration::from_nanos(20 * rounds as u64);
                std::thread::sleep(time);
                pieces.lock().unwrap().push((rounds, time));
            });
            let (rounds, time) = pieces.into_inner().unwrap().pop().unwrap();
            // sleep may take longer than was asked for, never shorter
            assert!(rate > 0.0 && rate <= rounds as f64 / time.as_secs_f64(), "{rate}");
            assert!(rounds as f64 / rate >= lasting.as_secs_f64() / 1.1, "{rounds} at {rate}");
        }
    }

    /// A probe whose work the compiler may leave out in part measures a machine that does not exist: what comes back must be
    /// the sum of everything.
    #[test]
    fn nothing_of_a_probe_is_left_out() {
        for isa in Isa::available().filter(|isa| *isa != Isa::Amx) {
            let (k, rounds) = (kernels(isa), 3);
            let chains = k.probe_dots_work / 64;
            let products = |i: usize| (0..64).map(|at| at as i32 * i32::from((0x0102_0304 + i as i32).to_le_bytes()[at % 4])).sum::<i32>();
            let dots = rounds as i32 * (0..chains).map(products).sum::<i32>();
            let lane = |at: usize| 1.0 + rounds as f32 * 0.5 * (0.5 + at as f32 / 64.0);
            let fmas = (k.probe_fmas_work / 16) as f32 * (0..16).map(lane).sum::<f32>();
            let lines: Vec<u8> = (0..5 * 64).map(|at| ((at * 73) % 251) as u8).collect();
            let words =
                |line: usize| lines[64 * line..64 * (line + 1)].chunks_exact(4).map(|c| i32::from_le_bytes([c[0], c[1], c[2], c[3]]));
            let read = (0..16).map(|lane| (0..4).filter_map(|line| words(line).nth(lane)).fold(0, |a, b| a | b)).fold(0, i32::wrapping_add);
            // SAFETY: the instruction set is available; five lines are valid.
            let found = unsafe { ((k.probe_dots)(rounds), (k.probe_fmas)(rounds), (k.probe_read)(lines.as_ptr(), 4)) };
            assert_eq!(found, (dots, fmas, read), "{}", isa.name());
        }
    }
}
