//! Keys and values: how they are stored, and the pool of blocks that they lie in.
//!
//! A block holds [`BLOCK`] tokens of every layer and KV head. A sequence is a [`KvTable`]: the numbers of its blocks in a
//! [`KvPool`], and how many tokens they hold. Nothing depends on where in the pool the blocks of a sequence are.

mod append;
mod pool;
mod table;

pub(crate) use append::Target;
pub use pool::{KvPool, KvShape};
pub use table::KvTable;

use crate::arch::generic::dense::Element;

/// Tokens of a block.
pub const BLOCK: usize = 16;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvType {
    /// Half precision.
    F16,
    /// Brain floats.
    BF16,
    /// Single precision.
    F32,
}

impl KvType {
    /// All of them.
    pub const ALL: [KvType; 3] = [KvType::F16, KvType::BF16, KvType::F32];

    /// Bytes of one element.
    pub(crate) fn bytes(self) -> usize {
        if self == KvType::F32 { 4 } else { 2 }
    }

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::BF16 => "bf16",
            KvType::F32 => "f32",
        }
    }

    pub(crate) fn element(self) -> Element {
        match self {
            KvType::F16 => Element::F16,
            KvType::BF16 => Element::BF16,
            KvType::F32 => Element::F32,
        }
    }
}
