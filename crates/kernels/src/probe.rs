//! The limits of the machine, measured with the instructions that the kernels use, on the backend's threads. Single
//! samples of about a millisecond: callers take the best of many, between the samples of what they compare.

use crate::aligned::AlignedBytes;
use crate::backend::Backend;
use std::hint::black_box;
use std::time::Instant;

/// Rounds of a sample of arithmetic.
const ROUNDS: usize = 1 << 16;

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

    /// Operations per second (a multiply-add is two) of dot products of bytes, from registers or tiles.
    pub fn probe_dots(&self) -> f64 {
        let seconds = self.on_all_threads(&|_| {
            // SAFETY: the table's instruction set is available.
            black_box(unsafe { (self.kernels.probe_dots)(black_box(ROUNDS)) });
        });
        (2 * self.kernels.probe_dots_work * ROUNDS * self.threads()) as f64 / seconds
    }

    /// Operations per second (a multiply-add is two) of `f32` fused multiply-adds, from registers.
    pub fn probe_fmas(&self) -> f64 {
        let seconds = self.on_all_threads(&|_| {
            // SAFETY: the table's instruction set is available.
            black_box(unsafe { (self.kernels.probe_fmas)(black_box(ROUNDS)) });
        });
        (2 * self.kernels.probe_fmas_work * ROUNDS * self.threads()) as f64 / seconds
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
    use crate::isa::Isa;

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
