//! The memory of keys and values: numbered blocks, each for all layers.

use super::{BLOCK, KvTable, KvType};
use crate::KernelError;
use crate::activations::Out;
use crate::aligned::AlignedBytes;

/// What a block holds.
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
    /// `head_dim` rounded up to sixteen: what a value takes.
    pub(crate) fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(16)
    }

    /// Bytes of the keys of one head in a block, which stand first.
    pub(crate) fn key_bytes(&self) -> usize {
        BLOCK * self.head_dim * self.kind.bytes()
    }

    /// Bytes of one head in a block, whole lines.
    pub(crate) fn head_bytes(&self) -> usize {
        (self.key_bytes() + BLOCK * self.padded() * self.kind.bytes()).next_multiple_of(64)
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
}

/// Most blocks of a slab of a pool that grows: what nobody needs any more can be given back slab by slab.
const SLAB: usize = 256;

/// Blocks of [`BLOCK`] tokens: for each layer and KV head the keys, `[head_dim][16]`, then the values, `[16][head_dim rounded
/// up to 16]`. Each begins at a line of cache. Memory is address space until it is written to.
pub struct KvPool {
    shape: KvShape,
    slabs: Vec<AlignedBytes>,
    /// Where the blocks begin. They point into the slabs.
    blocks: Vec<Out<u8>>,
    /// The call that wrote last to each block; 0 for none.
    writers: Vec<u64>,
    calls: u64,
    /// Blocks that were written to.
    touched: usize,
}

impl KvPool {
    /// A pool without blocks, that [grows](KvPool::grow).
    pub fn new(shape: KvShape) -> Self {
        Self { shape, slabs: vec![], blocks: vec![], writers: vec![], calls: 0, touched: 0 }
    }

    /// A pool of a fixed number of blocks.
    ///
    /// # Errors
    /// [`KernelError::Memory`] if there is not as much address space to be had.
    pub fn with_blocks(shape: KvShape, blocks: usize) -> Result<Self, KernelError> {
        let error = || KernelError::Memory { blocks, block_bytes: shape.block_bytes() };
        let bytes = blocks.checked_mul(shape.block_bytes()).filter(|_| u32::try_from(blocks).is_ok()).ok_or_else(error)?;
        let mut pool = Self::new(shape);
        pool.add_slab(AlignedBytes::try_zeroed(bytes).ok_or_else(error)?, blocks);
        Ok(pool)
    }

    /// What a block holds.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// How many blocks there are; they are numbered from 0.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Bytes of the blocks that were written to: what is only reserved takes no memory yet.
    pub fn bytes(&self) -> usize {
        self.touched * self.shape.block_bytes()
    }

    /// Adds blocks until there are as many.
    pub fn grow(&mut self, blocks: usize) {
        while self.blocks.len() < blocks {
            let count = (blocks - self.blocks.len()).min(SLAB);
            self.add_slab(AlignedBytes::zeroed(count * self.shape.block_bytes()), count);
        }
    }

    fn add_slab(&mut self, slab: AlignedBytes, blocks: usize) {
        let bytes = self.shape.block_bytes();
        self.blocks.extend((0..blocks).map(|i| Out(slab.start().wrapping_add(i * bytes))));
        self.writers.resize(self.blocks.len(), 0);
        self.slabs.push(slab);
    }

    /// Gives back slabs that lie wholly behind the first `blocks` blocks. No table may have blocks behind these.
    pub fn shrink(&mut self, blocks: usize) {
        let bytes = self.shape.block_bytes().max(1);
        while let Some(last) = self.slabs.last() {
            let first = self.blocks.len() - last.as_slice().len() / bytes;
            if first < blocks {
                break;
            }
            self.touched -= self.writers[first..].iter().filter(|w| **w > 0).count();
            self.blocks.truncate(first);
            self.writers.truncate(first);
            self.slabs.pop();
        }
    }

    /// Copies what the partly filled last block of a sequence holds to that of one that was forked from it.
    ///
    /// # Panics
    /// If the sequences do not have as many tokens, or the block is the same.
    pub fn copy_tail(&mut self, from: &KvTable, to: &KvTable) {
        assert_eq!(from.len(), to.len(), "a fork of the sequence");
        if from.len().is_multiple_of(BLOCK) {
            return;
        }
        let at = from.len() / BLOCK;
        let (from, to) = (from.blocks()[at], to.blocks()[at]);
        assert_ne!(from, to, "a block of its own");
        self.begin_call();
        let target = self.claim(to);
        // SAFETY: both lie in the pool, which is borrowed exclusively, and are different blocks.
        unsafe { std::ptr::copy_nonoverlapping(self.blocks[from as usize].at(0), target.at(0), self.shape.block_bytes()) };
    }

    /// The part of a layer in a block. It may be written to by who has the pool to himself.
    pub(crate) fn part(&self, block: u32, layer: usize) -> Out<u8> {
        assert!(layer < self.shape.layers, "a layer of the pool");
        Out(self.blocks[block as usize].at(layer * self.shape.layer_bytes()))
    }

    /// Begins a call in which each block is written to for one sequence only.
    pub(crate) fn begin_call(&mut self) {
        self.calls += 1;
    }

    /// A block that is to be written to.
    ///
    /// # Panics
    /// If it was claimed in this call before: two sequences would write to it at once.
    pub(crate) fn claim(&mut self, block: u32) -> Out<u8> {
        let writer = &mut self.writers[block as usize];
        assert!(*writer != self.calls, "block {block} belongs to two sequences of a pass");
        self.touched += usize::from(*writer == 0);
        *writer = self.calls;
        self.blocks[block as usize]
    }
}
