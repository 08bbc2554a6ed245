//! Adding tokens to sequences.

use super::{BLOCK, KvPool, KvTable, KvType};
use crate::activations::Out;
use crate::attention::AttentionScratch;
use crate::backend::Backend;
use half::bf16;

/// Elements that are rounded at a time.
const RUN: usize = 64;

/// One layer's part of a block that new tokens are written to.
pub(crate) struct Target {
    base: Out<u8>,
    /// First and one past the last position that is written.
    positions: (usize, usize),
    /// Row of the first among keys and values.
    row: usize,
}

impl KvPool {
    /// Counts the tokens that a pass over all layers has added to a sequence.
    pub fn count(&self, table: &mut KvTable, tokens: usize) {
        table.count(tokens, 0);
    }

    /// Lists the parts of a layer that tokens `len..len + tokens` of a sequence are written to.
    fn targets(&mut self, layer: usize, table: &KvTable, tokens: usize, row: usize, out: &mut Vec<Target>) {
        let (first, end) = (table.len(), table.len() + tokens);
        assert!(end <= table.capacity(), "blocks for all tokens of a pass");
        for block in first / BLOCK..end.div_ceil(BLOCK) {
            let positions = (first.max(block * BLOCK), end.min((block + 1) * BLOCK));
            self.claim(table.blocks()[block]);
            out.push(Target { base: self.part(table.blocks()[block], layer), positions, row: row + positions.0 - first });
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
    /// one.
    pub fn append<'k>(
        &self,
        scratch: &mut AttentionScratch,
        pool: &mut KvPool,
        layer: usize,
        sequences: impl Iterator<Item = (&'k KvTable, usize)>,
        keys: &[f32],
        values: &[f32],
    ) {
        let targets = &mut scratch.targets;
        targets.clear();
        pool.begin_call();
        let mut rows = 0;
        for (table, tokens) in sequences {
            pool.targets(layer, table, tokens, rows, targets);
            rows += tokens;
        }
        let shape = pool.shape();
        let (kv_heads, head_dim, padded, kind) = (shape.kv_heads, shape.head_dim, shape.padded(), shape.kind);
        let (width, size) = (kv_heads * head_dim, kind.bytes());
        assert!(keys.len() == rows * width && values.len() == rows * width, "whole tokens");
        let targets = &*targets;
        // one head of one block at a time: its keys and values are contiguous there
        let piece = |i: usize| {
            let (target, head) = (&targets[i / kv_heads], i % kv_heads);
            let base = target.base.at(head * shape.head_bytes());
            // SAFETY: this head's part lies inside the block, which the pool has, which is borrowed exclusively; no other
            // target is in this block, and this piece alone writes this head.
            let part = unsafe { std::slice::from_raw_parts_mut(base, shape.head_bytes()) };
            let (head_keys, head_values) = part.split_at_mut(shape.key_bytes());
            for (row, position) in (target.row..).zip(target.positions.0..target.positions.1) {
                let at = row * width + head * head_dim;
                let slot = position % BLOCK;
                self.round(kind, &keys[at..at + head_dim], |d, bytes| {
                    let places = head_keys[(d * BLOCK + slot) * size..].chunks_mut(BLOCK * size);
                    places.zip(bytes.chunks_exact(size)).for_each(|(place, b)| place[..size].copy_from_slice(b));
                });
                self.round(kind, &values[at..at + head_dim], |d, bytes| {
                    head_values[(slot * padded + d) * size..][..bytes.len()].copy_from_slice(bytes);
                });
            }
        };
        let pieces = targets.len() * kv_heads;
        if rows * width < 1 << 14 {
            (0..pieces).for_each(piece);
        } else {
            self.pool.run(pieces, &piece);
        }
    }

    /// Rounds `x` to the stored type; `take` gets runs of bytes with the index of their first element.
    fn round(&self, kind: KvType, x: &[f32], mut take: impl FnMut(usize, &[u8])) {
        for (i, x) in x.chunks(RUN).enumerate() {
            let mut halves = [0u16; RUN];
            let halves = &mut halves[..x.len()];
            match kind {
                // SAFETY: the table's instruction set is available; the kernel checks lengths.
                KvType::F16 => unsafe { (self.kernels.to_f16)(x, halves) },
                KvType::BF16 => halves.iter_mut().zip(x).for_each(|(h, v)| *h = bf16::from_f32(*v).to_bits()),
                KvType::F32 => {
                    let mut bytes = [0u8; 4 * RUN];
                    bytes.as_chunks_mut::<4>().0.iter_mut().zip(x).for_each(|(b, v)| *b = v.to_le_bytes());
                    take(i * RUN, &bytes[..4 * x.len()]);
                    continue;
                }
            }
            let mut bytes = [0u8; 2 * RUN];
            bytes.as_chunks_mut::<2>().0.iter_mut().zip(&*halves).for_each(|(b, h)| *b = h.to_le_bytes());
            take(i * RUN, &bytes[..2 * x.len()]);
        }
    }
}
