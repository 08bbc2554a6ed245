//! The memory of keys and values: numbered blocks, each for all layers.

use super::{BLOCK, KvScales, KvShape, KvTable};
use crate::KernelError;
use crate::activations::Out;
use crate::aligned::AlignedBytes;
use std::sync::Arc;

/// Most blocks of a slab of a pool that grows: what nobody needs any more can be given back slab by slab.
const SLAB: usize = 256;
/// Bytes that the system is asked for at a time, before they are needed: two large pages, some milliseconds.
const SLICE: usize = 4 << 20;

/// Blocks of [`BLOCK`] tokens, each as its [`KvShape`] says. Memory is address space until it is written to or [made ready](KvPool::make_ready) to be.
///
/// Of a quantized cache, the blocks hold full ones. The last two of each sequence lie in its slot in half precision, which
/// is what their own tokens read; so a sequence can go back by [`BLOCK`] tokens at least.
pub struct KvPool {
    shape: KvShape,
    slabs: Vec<AlignedBytes>,
    /// Where the blocks begin. They point into the slabs.
    blocks: Vec<Out<u8>>,
    /// Two blocks in half precision for each slot.
    tails: AlignedBytes,
    /// The call that wrote last to each block and to each slot; 0 for none.
    writers: Vec<u64>,
    slot_writers: Vec<u64>,
    calls: u64,
    /// Blocks that were written to.
    touched: usize,
    /// Blocks, the first ones, that have memory whether they were written to or not.
    ready: usize,
    /// The scales of each layer, where the model brings some.
    scales: Vec<Option<Arc<KvScales>>>,
}

impl KvPool {
    /// A pool without blocks, that [grows](KvPool::grow), for `slots` sequences at a time.
    pub fn new(shape: KvShape, slots: usize) -> Self {
        Self::over(shape, slots, AlignedBytes::zeroed(slots * shape.slot_bytes()))
    }

    fn over(shape: KvShape, slots: usize, tails: AlignedBytes) -> Self {
        let (slot_writers, scales) = (vec![0; slots], vec![None; shape.layers]);
        Self { shape, slabs: vec![], blocks: vec![], tails, writers: vec![], slot_writers, calls: 0, touched: 0, ready: 0, scales }
    }

    /// A pool of a fixed number of blocks, for `slots` sequences at a time.
    ///
    /// # Errors
    /// [`KernelError::Memory`] if there is not as much address space to be had.
    pub fn with_blocks(shape: KvShape, blocks: usize, slots: usize) -> Result<Self, KernelError> {
        let error = || KernelError::Memory { blocks, block_bytes: shape.block_bytes() };
        let room = |count: usize, bytes: usize| {
            let bytes = count.checked_mul(bytes).filter(|b| u32::try_from(count).is_ok() && isize::try_from(*b).is_ok());
            bytes.and_then(AlignedBytes::try_zeroed).ok_or_else(error)
        };
        let mut pool = Self::over(shape, slots, room(slots, shape.slot_bytes())?);
        pool.add_slab(room(blocks, shape.block_bytes())?, blocks);
        Ok(pool)
    }

    /// What a block holds.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Says which scales the keys and values of a layer have from now on, to those who write and those who read. They are the
    /// model's, so that they are the same whenever it runs; formats that do not [take](super::KvType::takes_scales) scales go
    /// on with their own.
    ///
    /// # Panics
    /// If there is not a scale for each KV head, or no such layer.
    pub fn set_scales(&mut self, layer: usize, scales: Option<&Arc<KvScales>>) {
        let heads = self.shape.kv_heads;
        assert!(scales.is_none_or(|s| s.keys.len() == heads && s.values.len() == heads), "a scale for each KV head");
        self.scales[layer] = scales.filter(|_| self.shape.kind.takes_scales()).cloned();
    }

    /// The scales of a layer, if it was given some.
    pub(crate) fn scales(&self, layer: usize) -> Option<&Arc<KvScales>> {
        self.scales[layer].as_ref()
    }

    /// How many blocks there are; they are numbered from 0.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Bytes of the blocks that were written to, whatever else has memory.
    pub fn bytes(&self) -> usize {
        self.touched * self.shape.block_bytes()
    }

    /// Has the system give memory for some blocks that were never written to, so that who writes to them need not wait for it
    /// to be cleared (0.3 to 3 GB/s). They are taken from the first on; returns false once there is memory for `ahead` bytes
    /// more than were written to.
    pub fn make_ready(&mut self, ahead: usize) -> bool {
        let bytes = self.shape.block_bytes().max(1);
        let end = (self.touched + ahead / bytes).min(self.blocks.len());
        let begin = self.ready.max(self.touched);
        let stop = end.min(begin + (SLICE / bytes).max(1));
        for block in (begin..stop).filter(|b| self.writers[*b] == 0) {
            // SAFETY: the block lies in the pool, which is borrowed exclusively; nobody wrote to it, so that it stays as it is.
            unsafe { std::ptr::write_bytes(self.blocks[block].at(0), 0, bytes) };
        }
        self.ready = stop.max(self.ready);
        begin < stop
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
            self.ready = self.ready.min(first);
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
        self.begin_call();
        if self.shape.kind.is_quantized() {
            assert_ne!(from.slot(), to.slot(), "a slot of its own");
            self.claim_slot(to.slot());
            let (from, to) = (self.tail(from.slot(), at, 0), self.tail(to.slot(), at, 0));
            // SAFETY: both lie in the slots, which the pool has, which is borrowed exclusively; they are different ones.
            unsafe { std::ptr::copy_nonoverlapping(from.at(0), to.at(0), self.shape.halves().block_bytes()) };
            return;
        }
        let (from, to) = (from.blocks()[at], to.blocks()[at]);
        assert_ne!(from, to, "a block of its own");
        let target = self.claim(to);
        // SAFETY: both lie in the pool, which is borrowed exclusively, and are different blocks.
        unsafe { std::ptr::copy_nonoverlapping(self.blocks[from as usize].at(0), target.at(0), self.shape.block_bytes()) };
    }

    /// The part of a layer in a block. It may be written to by who has the pool to himself.
    pub(crate) fn part(&self, block: u32, layer: usize) -> Out<u8> {
        assert!(layer < self.shape.layers, "a layer of the pool");
        Out(self.blocks[block as usize].at(layer * self.shape.layer_bytes()))
    }

    /// The part of a layer in one of the last two blocks of the sequence in `slot`, in half precision.
    pub(crate) fn tail(&self, slot: u32, block: usize, layer: usize) -> Out<u8> {
        assert!(layer < self.shape.layers && (slot as usize) < self.slot_writers.len(), "a layer and a slot of the pool");
        let halves = self.shape.halves();
        Out(self.tails.start().wrapping_add((2 * slot as usize + block % 2) * halves.block_bytes() + layer * halves.layer_bytes()))
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

    /// A slot that is to be written to.
    ///
    /// # Panics
    /// If it was claimed in this call before, or there is no such slot.
    pub(crate) fn claim_slot(&mut self, slot: u32) {
        let writer = &mut self.slot_writers[slot as usize];
        assert!(*writer != self.calls, "slot {slot} belongs to two sequences of a pass");
        *writer = self.calls;
    }
}
