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
        (2 * 16 * crate::arch::generic::probe::CHAINS * ROUNDS * self.threads()) as f64 / seconds
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
