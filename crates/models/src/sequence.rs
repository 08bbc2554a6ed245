//! What one sequence has seen: blocks of a pool that it shares with others, or that it has to itself.

use billfish_kernels::{BLOCK, KvPool, KvTable};

/// Tokens that a plan reserves room for at most: plans may be far longer than what comes of them.
pub const RESERVED_AHEAD: usize = 4096;

/// One sequence over a pool: which blocks hold it, and how its keys are rotated.
pub struct Sequence {
    table: KvTable,
    pub(crate) frequencies: Vec<f32>,
}

impl Sequence {
    pub(crate) fn new(slot: u32, frequencies: Vec<f32>) -> Self {
        Self { table: KvTable::new(slot), frequencies }
    }

    /// Tokens in the sequence.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether no token is in the sequence.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Its blocks.
    pub fn table(&self) -> &KvTable {
        &self.table
    }

    /// Its blocks, to add some, to begin with those of another sequence, or to forget tokens.
    pub fn table_mut(&mut self) -> &mut KvTable {
        &mut self.table
    }

    /// The rotary frequencies. Blocks are good for a sequence with the same tokens and the same frequencies, so what names
    /// their contents must tell these apart; they differ with the planned length under the dynamic rule only.
    pub fn frequencies(&self) -> &[f32] {
        &self.frequencies
    }

    /// A sequence that goes on like this one; see [`KvTable::fork`].
    pub fn fork(&mut self, slot: u32) -> Self {
        Self { table: self.table.fork(slot), frequencies: self.frequencies.clone() }
    }
}

/// One sequence with a pool to itself, which grows as it does.
pub struct Cache {
    pub(crate) pool: KvPool,
    pub(crate) sequence: Sequence,
}

impl Cache {
    pub(crate) fn new(pool: KvPool, sequence: Sequence) -> Self {
        Self { pool, sequence }
    }

    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.sequence.len()
    }

    /// Whether no token is in the cache.
    pub fn is_empty(&self) -> bool {
        self.sequence.is_empty()
    }

    /// Bytes of keys and values that were written to: what is only reserved takes no memory yet.
    pub fn bytes(&self) -> usize {
        self.pool.bytes()
    }

    /// Tokens that there is room for: no pass allocates any up to there.
    pub fn capacity(&self) -> usize {
        self.sequence.table.capacity()
    }

    /// Makes room for `tokens` tokens in all. The system gives the memory as tokens come; of what is reserved and never
    /// used only addresses are taken.
    pub fn reserve(&mut self, tokens: usize) {
        let (blocks, table) = (tokens.div_ceil(BLOCK), &mut self.sequence.table);
        self.pool.grow(blocks);
        table.reserve(tokens);
        (table.blocks().len()..blocks).for_each(|block| table.push(block as u32));
    }

    /// Forgets tokens from position `len` on, and returns how many are kept: all before, or some less where the sequence
    /// could not go on with the same bits. Their room stays.
    pub fn truncate(&mut self, len: usize) -> usize {
        self.sequence.table.truncate(len)
    }

    /// Gives back what lies behind both the tokens in the cache and the first `tokens`.
    pub(crate) fn shrink(&mut self, tokens: usize) {
        self.pool.shrink(tokens.max(self.len()).div_ceil(BLOCK));
        while self.sequence.table.blocks().len() > self.pool.blocks() {
            self.sequence.table.pop_unused();
        }
    }

    /// Room for more tokens: at least twice as much as there is, for those who did not reserve.
    pub(crate) fn make_room(&mut self, tokens: usize) {
        let needed = self.len() + tokens;
        if needed > self.capacity() {
            self.reserve(needed.max(self.capacity() + self.capacity().min(RESERVED_AHEAD)));
        }
    }
}
