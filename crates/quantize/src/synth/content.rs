//! What the tensors of a synthetic model hold, from any byte on.

use super::plan::{Content, Planned};
use super::random::SplitMix64;
use super::spec::Quantization;
use billfish_tensor::DType;
use half::{bf16, f16};

/// Bytes that are generated at once. Random words begin a step anew after so many, so they depend on it.
pub(crate) const CHUNK: usize = 1 << 20;

/// Bytes of 16-bit floats that come from one step of the generator.
const STEP: usize = 16;

impl Planned {
    /// Whether any part of it can be generated without what stands before.
    pub fn is_addressable(&self) -> bool {
        matches!(self.content, Content::Words | Content::Floats { .. })
    }
}

/// Generates contents. They depend on the tensor and the seed only.
#[derive(Clone, Copy)]
pub(crate) struct Contents {
    pub quantization: Option<Quantization>,
    pub seed: u64,
}

impl Contents {
    /// Fills `out` with the bytes of a tensor from `offset` on; they must exist.
    pub fn fill(&self, tensor: &Planned, offset: u64, out: &mut [u8]) {
        if !tensor.is_addressable() {
            return self.skim(tensor, offset, out);
        }
        let lead = (offset % STEP as u64) as usize;
        if lead > 0 || !out.len().is_multiple_of(2) {
            let mut all = vec![0; (lead + out.len()).next_multiple_of(STEP)];
            self.fill(tensor, offset - lead as u64, &mut all);
            return out.copy_from_slice(&all[lead..lead + out.len()]);
        }
        let random = SplitMix64::named(self.seed, &tensor.name);
        if let Content::Floats { low, high } = tensor.content {
            return random.after(offset / STEP as u64).fill_from(&table(tensor.dtype, low, high), out);
        }
        let (mut from, mut out) = (offset, out);
        while !out.is_empty() {
            let (chunk, at) = (from / CHUNK as u64, (from % CHUNK as u64) as usize);
            let (part, rest) = out.split_at_mut(out.len().min(CHUNK - at));
            // filling a chunk takes one step more than it has words
            random.after(chunk * (CHUNK as u64 / 8 + 1) + at as u64 / 8).fill(part);
            from += part.len() as u64;
            out = rest;
        }
    }

    /// The same for a tensor that is generated from its beginning.
    fn skim(&self, tensor: &Planned, offset: u64, out: &mut [u8]) {
        let mut at = 0u64;
        let mut copy = |piece: &[u8]| -> Result<(), Full> {
            let end = at + piece.len() as u64;
            let (from, to) = (offset.max(at), (offset + out.len() as u64).min(end));
            if from < to {
                out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(&piece[(from - at) as usize..(to - at) as usize]);
            }
            at = end;
            if end >= offset + out.len() as u64 { Err(Full) } else { Ok(()) }
        };
        // that the rest is not wanted is no failure
        let _ = self.sequence(tensor, &mut copy);
    }

    /// Hands the bytes of a tensor that is generated from its beginning to `put`, piece by piece.
    pub fn sequence<E>(&self, tensor: &Planned, put: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        match (&tensor.content, self.quantization) {
            (Content::Fields { n, low, high }, Some(q)) => self.fields(tensor, &q, *n, *low, *high, put),
            (Content::Groups { k, size, order }, _) => {
                let mut groups: Vec<u32> = (0..*k).map(|row| (row / size) as u32).collect();
                if let Some(input) = order {
                    shuffle(&mut groups, &mut SplitMix64::named(self.seed, input));
                }
                let bytes = |part: &[u32]| part.iter().flat_map(|g| g.to_le_bytes()).collect::<Vec<u8>>();
                groups.chunks(CHUNK / 4).try_for_each(|part| put(&bytes(part)))
            }
            _ => Ok(()),
        }
    }

    /// Rows of `n` packed fields, evenly spread over `low..=high`.
    fn fields<E>(
        &self,
        tensor: &Planned,
        q: &Quantization,
        n: usize,
        low: u8,
        high: u8,
        put: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut random = SplitMix64::named(self.seed, &tensor.name);
        let span = u16::from(high - low) + 1;
        let mut run = [low; 32];
        let mut words = [0u32; 8];
        let mut buffer = Vec::with_capacity(CHUNK);
        for _ in 0..tensor.shape[0] {
            for start in (0..n).step_by(32) {
                let run = &mut run[..(n - start).min(32)];
                if low < high {
                    random.fill(run);
                    run.iter_mut().for_each(|f| *f = low + ((u16::from(*f) * span) >> 8) as u8);
                }
                let mut count = 0;
                q.packing().pack_run(q.bits, run, |j, word| {
                    words[j] = word;
                    count = j + 1;
                });
                buffer.extend(words[..count].iter().flat_map(|w| w.to_le_bytes()));
                if buffer.len() + 32 > CHUNK {
                    put(&buffer)?;
                    buffer.clear();
                }
            }
        }
        put(&buffer)
    }
}

/// All that was asked for is there.
struct Full;

/// 256 floats spread evenly from `low` to `high`, in the type of a tensor.
fn table(dtype: DType, low: f32, high: f32) -> [[u8; 2]; 256] {
    std::array::from_fn(|i| {
        let value = low + (high - low) * (i as f32 + 0.5) / 256.0;
        match dtype {
            DType::F16 => f16::from_f32(value).to_le_bytes(),
            _ => bf16::from_f32(value).to_le_bytes(),
        }
    })
}

/// Fisher and Yates.
fn shuffle(values: &mut [u32], random: &mut SplitMix64) {
    for i in (1..values.len()).rev() {
        values.swap(i, random.below(i as u64 + 1) as usize);
    }
}
