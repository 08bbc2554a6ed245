//! The blocks of one sequence.

use super::BLOCK;

/// One sequence: the numbers of its blocks in a pool, and the tokens that they hold.
///
/// Full blocks may be shared with other sequences; a table never writes to those that it began with or that were forked.
#[derive(Debug, Default)]
pub struct KvTable {
    blocks: Vec<u32>,
    len: usize,
    slot: u32,
    /// Blocks at the beginning that others have too.
    shared: usize,
    /// The first block that the sequence can be cut inside of: what it holds in 16 bit is still there.
    open: usize,
}

impl KvTable {
    /// An empty sequence. Tables that are in use at the same time have different slots, below the number that their pool
    /// has.
    pub fn new(slot: u32) -> Self {
        Self { slot, ..Self::default() }
    }

    /// A sequence that begins with the tokens of these full blocks, of which it writes to none.
    pub fn with_prefix(slot: u32, blocks: &[u32]) -> Self {
        Self { blocks: blocks.to_vec(), len: blocks.len() * BLOCK, slot, shared: blocks.len(), open: blocks.len() }
    }

    /// A sequence that goes on like this one: it shares the full blocks. Where there is a partly filled one, the caller adds
    /// a block in its place and has [`KvPool::copy_tail`](super::KvPool::copy_tail) fill it.
    pub fn fork(&mut self, slot: u32) -> Self {
        let full = self.len / BLOCK;
        self.shared = self.shared.max(full);
        self.open = self.open.max(full);
        Self { blocks: self.blocks[..full].to_vec(), len: self.len, slot, shared: full, open: full }
    }

    /// Tokens in the sequence.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is in the sequence.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that its blocks have room for.
    pub fn capacity(&self) -> usize {
        self.blocks.len() * BLOCK
    }

    /// The numbers of its blocks, in the order of their tokens.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Its slot.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Adds a block at the end.
    pub fn push(&mut self, block: u32) {
        self.blocks.push(block);
    }

    /// Makes room in its list, so that adding blocks for up to `tokens` tokens allocates nothing, nor does a pass whose
    /// buffers are made for as many.
    pub fn reserve(&mut self, tokens: usize) {
        self.blocks.reserve(tokens.div_ceil(BLOCK).saturating_sub(self.blocks.len()));
    }

    /// Tokens that buffers of a pass are made for.
    pub(crate) fn planned(&self) -> usize {
        self.blocks.capacity() * BLOCK
    }

    /// Takes back the last block that holds no token, if there is one.
    pub fn pop_unused(&mut self) -> Option<u32> {
        if self.blocks.len() > self.len.div_ceil(BLOCK) { self.blocks.pop() } else { None }
    }

    /// Forgets tokens from position `len` on, or some more if the sequence could not go on from there with the same bits: to
    /// the beginning of the block. Returns how many it keeps. Its blocks stay.
    ///
    /// # Panics
    /// If shared blocks would be written to then.
    pub fn truncate(&mut self, len: usize) -> usize {
        let len = len.min(self.len);
        self.len = if len / BLOCK >= self.open { len } else { len / BLOCK * BLOCK };
        let next = self.len / BLOCK;
        assert!(next >= self.shared, "tokens of shared blocks stay");
        self.open = self.open.min(next);
        self.len
    }

    /// Counts tokens that a pass has added; the sequence cannot be cut inside of blocks before `open` any more.
    pub(crate) fn count(&mut self, tokens: usize, open: usize) {
        self.len += tokens;
        self.open = self.open.max(open);
    }
}
