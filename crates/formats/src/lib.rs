//! Bytes on disk to the vocabulary of Billfish: model folders, safetensors files, quantization configs and their rules,
//! the GPTQ layout in all its dialects, AWQ, Marlin, compressed-tensors and AutoRound.
//!
//! [`Checkpoint`] is the way in: it opens a folder (or files in memory), checks every config and header before any tensor
//! is believed, and then hands out [`billfish_tensor::DenseTensor`]s and linear modules, quantized or dense as their
//! tensors are. Whatever is dropped, overruled or not understood becomes an error or a listed [`Warning`].
//!
//! [`verify()`] compares every weight of two folders, [`diff()`] says in what they differ, and [`explain()`] shows where one
//! weight comes from.
//!
//! The crate computes nothing beyond decoding and comparing, starts no thread and prints nothing.
#![forbid(unsafe_code)]

mod agreement;
mod awq;
mod cache_scales;
mod checkpoint;
mod compressed;
mod compressed_config;
mod config_files;
mod contradiction;
mod convert;
mod dense;
mod dialect;
mod diff;
mod dynamic;
mod error;
mod explain;
mod fingerprint;
#[doc(hidden)]
pub mod fuzz;
mod gptq;
mod json;
mod keys;
pub mod marlin;
pub mod method;
mod module;
mod origin;
mod quant_config;
mod report;
mod rows;
mod safetensors;
mod salvage;
mod selection;
pub mod shard;
mod shards;
mod source;
mod spare;
mod stacks;
mod statistic;
mod store;
mod strips;
mod survey;
mod targets;
mod values;
mod verify;
mod warning;
mod writer;

pub use cache_scales::CacheScheme;
pub use checkpoint::{BiasRule, Checkpoint, LinearWeight};
pub use config_files::{QUANTIZATION_FILES, RawQuantization};
pub use contradiction::Contradiction;
pub use convert::{
    Converted, Loss, ModuleShape, Sizes, Target, check_free, convert, folder_sizes, gptq_tensors, module_tensors, rule_patterns,
};
pub use dialect::{Evidence, ZeroDialect, ZeroLabel};
pub use diff::{Diff, KeyDiff, ModuleDiff, PartDiff, TensorDiff, Verdict, diff};
pub use dynamic::{Dynamic, Match, Overrides, Rule};
pub use error::FormatError;
pub use explain::{Element, Explanation, StoredBits, Weight, explain};
pub use origin::Writer;
pub use quant_config::{CheckpointFormat, GroupSize, QuantConfig, Scheme};
pub use report::{ListEntry, ModuleReport, RuleReport};
pub use rows::{LinearRows, Rows};
pub use safetensors::{Header, TensorInfo};
pub use salvage::Salvaged;
pub use source::{Maker, Source};
pub use stacks::Matrix;
pub use survey::survey;
pub use values::Place;
pub use verify::{Certificate, Encodings, Largest, TensorDifference, Workers, serially, verify};
pub use warning::{Warning, WarningKind};
pub use writer::{SafetensorsWriter, TensorSpec, safetensors_header};
