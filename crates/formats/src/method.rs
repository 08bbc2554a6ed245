//! Which quantization method vLLM 0.14.1 would take for a checkpoint, and what it would make of each module.
//!
//! Billfish itself follows the tensors and does not depend on any of this. The module answers questions that people have
//! when they move a checkpoint between the two: which method and kernel family, which modules count as quantized, which
//! rule applies to a *fused* module, and which error would end the load, in the words that its users see and search for.
//!
//! [`select`] chooses the method from a quantization config, the user's choice and the platform. [`ModuleConfig`] is the
//! config as that method reads it; [`ModuleConfig::resolve`] is its verdict on one module. Both are pinned to version
//! 0.14.1: releases before and after it decide otherwise (asymmetric, 2- and 3-bit, act-order were dropped later).
//!
//! Covered are the methods for GPTQ and AWQ checkpoints. Other checkpoints keep the method that they name. Patterns are
//! read by this crate's regular expressions, which know what Python's `regex` knows up to its rarest features; a pattern
//! that does not compile is an error when the config is read, not when a module first meets it.

mod error;
mod module;
mod modules;
mod python;
mod rules;
mod select;
mod support;

pub use error::MethodError;
pub use module::{Layer, ModuleConfig, MoeShape, Resolution, ResolvedScheme, Unquantized};
pub use modules::{FusedModules, NameMap, infer_modules};
pub use rules::{FusedTrap, Verdict};
pub use select::{Activation, Note, Platform, Selection, check_engine, min_capability, select};
pub use support::{MARLIN_GROUP_SIZES, WeightType, check_marlin, check_marlin_moe, check_marlin_shape};
