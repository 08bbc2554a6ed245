//! Keys and values: how they are stored, and the pool of blocks that they lie in.
//!
//! A block holds [`BLOCK`] tokens of every layer and KV head. A sequence is a [`KvTable`]: the numbers of its blocks in a
//! [`KvPool`], and how many tokens they hold. Nothing depends on where in the pool the blocks of a sequence are.

mod append;
mod format;
mod pool;
mod scales;
mod shape;
mod table;

pub(crate) use append::{Halves, Target, touched};
pub use format::KvType;
pub(crate) use format::{E2M1, INT4};
pub use pool::KvPool;
pub use scales::KvScales;
pub use shape::KvShape;
pub use table::KvTable;

/// Tokens of a block.
pub const BLOCK: usize = 16;

/// Tokens that a sequence can begin with out of other sequences' blocks, if its prompt has `prompt` tokens. The last token
/// always runs, for its logits, and reads its own block in 16 bit; so what comes from elsewhere ends before that block.
pub fn shareable(prompt: usize) -> usize {
    prompt.saturating_sub(1) / BLOCK * BLOCK
}
