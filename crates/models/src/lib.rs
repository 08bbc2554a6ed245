//! What a network is: one decoder, with every architecture as data over it.
//!
//! [`Model::load`] reads a [`billfish_formats::Checkpoint`], checks that every expected tensor is there with the
//! expected shape and that every tensor that is there was read, and packs each weight into its kernel layout.
//! [`Model::forward`] runs tokens through it against a [`Cache`].
//!
//! The crate holds no `match` on a quantization format: a linear layer is a [`billfish_kernels::Weight`], whatever file
//! it came from.
#![forbid(unsafe_code)]

mod architecture;
mod config;
mod decoder;
mod error;
mod keys;
mod load;
mod rope;

pub use architecture::supported;
pub use config::DecoderConfig;
pub use decoder::{Cache, Logits, Model, Scratch};
pub use error::ModelError;
pub use load::{LoadOptions, ModuleUse, Progress};
pub use rope::Rope;
