//! Bytes on disk to the vocabulary of Billfish: model folders, safetensors files, quantization configs and their rules,
//! the GPTQ layout in all its dialects, AWQ, compressed-tensors and AutoRound.
//!
//! [`Checkpoint`] is the way in: it opens a folder (or files in memory), checks every config and header before any tensor
//! is believed, and then hands out [`billfish_tensor::DenseTensor`]s and linear modules, quantized or dense as their
//! tensors are. Whatever is dropped, overruled or not understood becomes an error or a listed [`Warning`].
//!
//! The crate computes nothing beyond decoding, starts no thread and prints nothing.
#![forbid(unsafe_code)]

mod agreement;
mod awq;
mod checkpoint;
mod compressed;
mod compressed_config;
mod config_files;
mod dialect;
mod dynamic;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod gptq;
mod json;
mod keys;
mod module;
mod origin;
mod quant_config;
mod report;
mod safetensors;
mod selection;
mod shards;
mod source;
mod store;
mod strips;
mod targets;
mod warning;
mod writer;

pub use checkpoint::{BiasRule, Checkpoint, LinearWeight};
pub use dialect::{Evidence, ZeroDialect};
pub use dynamic::{Dynamic, Match, Overrides, Rule};
pub use error::FormatError;
pub use origin::Writer;
pub use quant_config::{CheckpointFormat, GroupSize, QuantConfig, Scheme};
pub use report::{ModuleReport, RuleReport};
pub use safetensors::{Header, TensorInfo};
pub use source::Source;
pub use warning::{Warning, WarningKind};
pub use writer::{SafetensorsWriter, TensorSpec};
