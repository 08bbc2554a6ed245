//! What a network is: one decoder, with every architecture as data over it.
//!
//! [`Model::load`] reads a [`billfish_formats::Checkpoint`], checks that every expected tensor is there with the
//! expected shape, and packs each weight into its kernel layout; tensors that no module asked for are then in
//! [`billfish_formats::Checkpoint::unread`]. [`Model::forward`] runs tokens through the model against a [`Cache`], [`Model::forward_batch`] those of several [`Sequence`]s over one pool of blocks.
//! [`DecoderConfig::compare`] tells what is missing and what is unused without reading a weight.
//!
//! The crate holds no `match` on a quantization format: a linear layer is a [`billfish_kernels::Weight`], whatever file
//! it came from.
#![forbid(unsafe_code)]

mod architecture;
mod batch;
mod cache;
mod cache_scales;
mod config;
mod decoder;
mod error;
mod feed_forward;
mod folds;
#[doc(hidden)]
pub mod fuzz;
mod head;
mod keys;
mod load;
mod lone;
mod packing;
mod pass;
mod plan;
mod rope;
mod routed;
mod sequence;

pub use architecture::supported;
pub use batch::{BatchLogits, Logits, Part};
pub use billfish_kernels::{BLOCK, KvPool, KvTable, shareable};
pub use cache::CacheUse;
pub use config::DecoderConfig;
pub use decoder::{Model, Scratch};
pub use error::ModelError;
pub use folds::{FoldSite, Maker};
pub use head::HeadRounding;
pub use load::{LoadOptions, ModuleUse, Progress};
pub use lone::{LoneLayer, Look, Wanted, embed, final_norm, replaceable};
pub use plan::{Comparison, EMBEDDING, Linear, is_computed};
pub use rope::Rope;
pub use routed::MoeConfig;
pub use sequence::{Cache, RESERVED_AHEAD, Sequence};
