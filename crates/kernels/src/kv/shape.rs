//! What a block holds, and where.

use super::{BLOCK, KvType};

/// What a block holds.
///
/// A block has a part for each layer, and in it one for each KV head, which begins at a line of cache: the keys,
/// `[head_dim][16]`, then the values, `[16][head_dim rounded up to 16]`, then, of quantized formats, the scales of the keys
/// and those of the values. Codes of 4 bits lie in pairs, the first in the low half of a byte: those of two dimensions of a
/// key, those of two tokens' values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers.
    pub layers: usize,
    /// KV heads of a layer.
    pub kv_heads: usize,
    /// Floats of a head's key, and of its value.
    pub head_dim: usize,
    /// How they are stored.
    pub kind: KvType,
}

impl KvShape {
    /// The shape of the blocks that tokens lie in while they are read in 16 bit.
    pub(crate) fn halves(&self) -> KvShape {
        KvShape { kind: KvType::F16, ..*self }
    }

    /// `head_dim` rounded up to sixteen: what a value takes.
    pub(crate) fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(16)
    }

    /// Bytes of the keys of one head in a block, which stand first.
    pub(crate) fn key_bytes(&self) -> usize {
        let dims = if self.kind.bits() == 4 { self.head_dim.next_multiple_of(2) } else { self.head_dim };
        BLOCK * dims * self.kind.bits() / 8
    }

    /// Where the scales of a head begin, if its rows have any: two bytes for each key, then for each value.
    pub(crate) fn scales_at(&self) -> usize {
        self.key_bytes() + BLOCK * self.padded() * self.kind.bits() / 8
    }

    /// Bytes of one head in a block, whole lines.
    pub(crate) fn head_bytes(&self) -> usize {
        let scales = if self.kind.is_quantized() { 2 * BLOCK * 2 } else { 0 };
        (self.scales_at() + scales).next_multiple_of(64)
    }

    /// Bytes of one layer in a block.
    pub(crate) fn layer_bytes(&self) -> usize {
        self.kv_heads * self.head_bytes()
    }

    /// Bytes of one token of a full block.
    pub fn token_bytes(&self) -> usize {
        self.block_bytes() / BLOCK
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        self.layers * self.layer_bytes()
    }

    /// Bytes that a sequence takes besides its blocks: of a quantized cache, its last two blocks in half precision.
    pub fn slot_bytes(&self) -> usize {
        if self.kind.is_quantized() { 2 * self.halves().block_bytes() } else { 0 }
    }
}
