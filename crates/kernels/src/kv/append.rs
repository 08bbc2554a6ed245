//! Adding tokens to sequences.

use super::{BLOCK, KvPool, KvShape, KvTable, KvType};
use crate::activations::Out;
use crate::attention::AttentionScratch;
use crate::backend::Backend;
use half::{bf16, f16};

/// Elements that are rounded at a time.
const RUN: usize = 64;

/// One layer's part of a block that new tokens are written to.
pub(crate) struct Target {
    base: Out<u8>,
    /// First and one past the last position that is written.
    positions: (usize, usize),
    /// Row of the first among keys and values.
    row: usize,
    /// Where the whole block goes to in the pool's own format, if it gets full and that is another.
    full: Option<Out<u8>>,
}

/// Blocks in half precision that a pass writes and reads besides those of the slots: those before the last two of each
/// sequence. They are kept from call to call.
#[derive(Default)]
pub(crate) struct Halves(Vec<u16>);

impl Halves {
    /// Makes room for `count` parts of a layer.
    fn grow(&mut self, shape: &KvShape, count: usize) {
        let len = count * shape.halves().layer_bytes() / 2;
        if self.0.len() < len {
            self.0.resize(len, 0);
        }
    }

    /// The parts of a layer that there are.
    pub fn parts(&mut self) -> HalfParts {
        HalfParts { base: Out(self.0.as_mut_ptr().cast()), bytes: 2 * self.0.len(), used: 0 }
    }
}

/// Parts of a layer in half precision, handed out one after another.
pub(crate) struct HalfParts {
    base: Out<u8>,
    bytes: usize,
    used: usize,
}

impl HalfParts {
    fn next(&mut self, shape: &KvShape) -> Out<u8> {
        let (at, bytes) = (self.used, shape.halves().layer_bytes());
        self.used += bytes;
        assert!(self.used <= self.bytes, "what is read was appended before");
        Out(self.base.at(at))
    }
}

/// The blocks that tokens `len..len + tokens` of a sequence lie in.
pub(crate) fn touched(table: &KvTable, tokens: usize) -> std::ops::Range<usize> {
    table.len() / BLOCK..(table.len() + tokens).div_ceil(BLOCK).max(table.len() / BLOCK)
}

impl KvPool {
    /// Counts the tokens that a pass over all layers has added to a sequence.
    pub fn count(&self, table: &mut KvTable, tokens: usize) {
        let last = (table.len() + tokens).saturating_sub(1) / BLOCK;
        table.count(tokens, if self.shape().kind.is_quantized() { last.saturating_sub(1) } else { 0 });
    }

    /// Where a block that a pass adds tokens to is in half precision: in the slot if it is one of the last two, else the
    /// next of `halves`.
    pub(crate) fn half_block(&self, halves: &mut HalfParts, layer: usize, table: &KvTable, tokens: usize, block: usize) -> Out<u8> {
        let last_two = block + 2 >= touched(table, tokens).end;
        if last_two { self.tail(table.slot(), block, layer) } else { halves.next(&self.shape()) }
    }

    /// Lists the parts of a layer that tokens `len..len + tokens` of a sequence are written to.
    fn targets(&mut self, halves: &mut HalfParts, layer: usize, table: &KvTable, (tokens, row): (usize, usize), out: &mut Vec<Target>) {
        let (first, end) = (table.len(), table.len() + tokens);
        assert!(end <= table.capacity(), "blocks for all tokens of a pass");
        if tokens == 0 {
            return;
        }
        let quantized = self.shape().kind.is_quantized();
        if quantized {
            self.claim_slot(table.slot());
        }
        for block in touched(table, tokens) {
            let positions = (first.max(block * BLOCK), end.min((block + 1) * BLOCK));
            let row = row + positions.0 - first;
            let number = table.blocks()[block];
            if !quantized {
                self.claim(number);
                out.push(Target { base: self.part(number, layer), positions, row, full: None });
                continue;
            }
            let base = self.half_block(halves, layer, table, tokens, block);
            let tail = self.tail(table.slot(), block, layer);
            if positions.0 > block * BLOCK && tail.at(0) != base.at(0) {
                // the tokens before these make room in the slot for those of a later block
                // SAFETY: both are a layer's part in half precision; the pool and the scratch are borrowed exclusively.
                unsafe { std::ptr::copy_nonoverlapping(tail.at(0), base.at(0), self.shape().halves().layer_bytes()) };
            }
            let full = (positions.1 == (block + 1) * BLOCK).then(|| {
                self.claim(number);
                self.part(number, layer)
            });
            out.push(Target { base, positions, row, full });
        }
    }
}

impl Backend {
    /// Writes the keys and values of new tokens of several sequences, each given with how many it gets, to one layer:
    /// `keys` and `values` are `[tokens, kv_heads * head_dim]`, sequence after sequence. They are counted when all layers
    /// have them, with [`KvPool::count`].
    ///
    /// # Panics
    /// If the lengths are not the sequences' tokens, a sequence has not the blocks for them, or two would write to the same
    /// block or slot.
    pub fn append<'k>(
        &self,
        scratch: &mut AttentionScratch,
        pool: &mut KvPool,
        layer: usize,
        sequences: impl Iterator<Item = (&'k KvTable, usize)> + Clone,
        keys: &[f32],
        values: &[f32],
    ) {
        let AttentionScratch { targets, halves, .. } = scratch;
        let shape = pool.shape();
        targets.clear();
        pool.begin_call();
        if shape.kind.is_quantized() {
            halves.grow(&shape, sequences.clone().map(|(table, tokens)| touched(table, tokens).len().saturating_sub(2)).sum());
        }
        let (mut rows, halves) = (0, &mut halves.parts());
        for (table, tokens) in sequences {
            pool.targets(halves, layer, table, (tokens, rows), targets);
            rows += tokens;
        }
        let (kv_heads, head_dim) = (shape.kv_heads, shape.head_dim);
        let width = kv_heads * head_dim;
        assert!(keys.len() == rows * width && values.len() == rows * width, "whole tokens");
        let written = if shape.kind.is_quantized() { shape.halves() } else { shape };
        let scales = pool.scales(layer);
        let targets = &*targets;
        // one head of one block at a time: its keys and values are contiguous there
        let piece = |i: usize| {
            let (target, head) = (&targets[i / kv_heads], i % kv_heads);
            let bytes = written.head_bytes();
            // SAFETY: this head's part lies inside the block, which the pool or its scratch has, which are borrowed
            // exclusively; no other target is in this block, and this piece alone writes this head.
            let part = unsafe { std::slice::from_raw_parts_mut(target.base.at(head * bytes), bytes) };
            let at = |row: usize| row * width + head * head_dim..row * width + (head + 1) * head_dim;
            for (row, position) in (target.row..).zip(target.positions.0..target.positions.1) {
                self.write(&written, part, position % BLOCK, &keys[at(row)], &values[at(row)]);
            }
            if let Some(full) = &target.full {
                // SAFETY: as the first; `full` is the part of a block of the pool that was claimed for this target.
                let codes = unsafe { std::slice::from_raw_parts_mut(full.at(head * shape.head_bytes()), shape.head_bytes()) };
                quantize(&shape, scales.map(|s| s.of(head)), part, codes);
            }
        };
        let pieces = targets.len() * kv_heads;
        // a few microseconds of work are worth a region
        if rows * width < 1 << 12 {
            (0..pieces).for_each(piece);
        } else {
            self.pool.run(pieces, &piece);
        }
    }

    /// Writes the key and the value of a token to place `slot` of a head's part.
    fn write(&self, shape: &KvShape, part: &mut [u8], slot: usize, key: &[f32], value: &[f32]) {
        let (size, padded) = (shape.kind.bits() / 8, shape.padded());
        let (keys, values) = part.split_at_mut(shape.key_bytes());
        self.round(shape.kind, key, |d, bytes| match size {
            2 => scatter::<2>(&mut keys[d * BLOCK * 2..], slot, bytes),
            _ => scatter::<4>(&mut keys[d * BLOCK * 4..], slot, bytes),
        });
        self.round(shape.kind, value, |d, bytes| {
            values[(slot * padded + d) * size..][..bytes.len()].copy_from_slice(bytes);
        });
    }

    /// Rounds `x` to a float type; `take` gets runs of bytes with the index of their first element.
    fn round(&self, kind: KvType, x: &[f32], mut take: impl FnMut(usize, &[u8])) {
        for (i, x) in x.chunks(RUN).enumerate() {
            let mut halves = [0u16; RUN];
            let halves = &mut halves[..x.len()];
            match kind {
                KvType::F32 => {
                    let mut bytes = [0u8; 4 * RUN];
                    bytes.as_chunks_mut::<4>().0.iter_mut().zip(x).for_each(|(b, v)| *b = v.to_le_bytes());
                    take(i * RUN, &bytes[..4 * x.len()]);
                    continue;
                }
                KvType::BF16 => halves.iter_mut().zip(x).for_each(|(h, v)| *h = bf16::from_f32(*v).to_bits()),
                // SAFETY: the table's instruction set is available; the kernel checks lengths.
                _ => unsafe { (self.kernels.to_f16)(x, halves) },
            }
            let mut bytes = [0u8; 2 * RUN];
            bytes.as_chunks_mut::<2>().0.iter_mut().zip(&*halves).for_each(|(b, h)| *b = h.to_le_bytes());
            take(i * RUN, &bytes[..2 * x.len()]);
        }
    }
}

/// Writes the elements of one token, of `SIZE` bytes each, to place `slot` of the dimensions that they belong to.
fn scatter<const SIZE: usize>(keys: &mut [u8], slot: usize, elements: &[u8]) {
    let places = keys.as_chunks_mut::<SIZE>().0[slot..].iter_mut().step_by(BLOCK);
    places.zip(elements.as_chunks::<SIZE>().0).for_each(|(place, element)| *place = *element);
}

/// Writes a full block of halves of one head in the format of `shape`, by `given` scales of keys and values if there are some.
fn quantize(shape: &KvShape, given: Option<[f32; 2]>, part: &[u8], out: &mut [u8]) {
    let (kind, head_dim, padded) = (shape.kind, shape.head_dim, shape.padded());
    let half = |index: usize| f16::from_le_bytes([part[2 * index], part[2 * index + 1]]).to_f32();
    let values_at = shape.halves().key_bytes() / 2;
    let (codes, scales) = out.split_at_mut(shape.scales_at());
    let (keys, values) = codes.split_at_mut(shape.key_bytes());
    for token in 0..BLOCK {
        // codes of 4 bits share a byte with the next dimension of a key, and with the next token of a value
        let (key_step, value_row, high) = if kind.bits() == 4 { (2, token / 2, token % 2 == 1) } else { (1, token, false) };
        let scale = kind.encode(
            head_dim,
            given.map(|[key, _]| key),
            |d| half(d * BLOCK + token),
            |d, code| {
                put(&mut keys[d / key_step * BLOCK + token], code, kind.bits(), d % key_step == 1);
            },
        );
        scales[2 * token..][..2].copy_from_slice(&scale.to_le_bytes());
        let scale = kind.encode(
            head_dim,
            given.map(|[_, value]| value),
            |d| half(values_at + token * padded + d),
            |d, code| {
                put(&mut values[value_row * padded + d], code, kind.bits(), high);
            },
        );
        scales[2 * (BLOCK + token)..][..2].copy_from_slice(&scale.to_le_bytes());
    }
}

/// Writes a code, of 4 bits to one half of the byte.
fn put(byte: &mut u8, code: u8, bits: usize, high: bool) {
    *byte = match (bits, high) {
        (4, false) => *byte & 0xf0 | code,
        (4, true) => *byte & 0x0f | code << 4,
        _ => code,
    };
}
