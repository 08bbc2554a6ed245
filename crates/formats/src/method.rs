//! Which quantization method vLLM 0.14.1 would take for a checkpoint, and what it would make of each module.
//!
//! Billfish itself follows the tensors and does not depend on any of this. The module answers questions that people have
//! when they move a checkpoint between the two: which method and kernel family, which modules count as quantized, which
//! rule applies to a *fused* module, and which error would end the load, in the words that its users see and search for.
//!
//! [`select`] chooses the method from a quantization config, the user's choice and the platform. [`ModuleConfig`] is the
//! config as the methods for GPTQ read it, [`AwqConfig`] and [`AutoRoundConfig`] as those of these names do;
//! [`ModuleConfig::resolve`] is the verdict on one module. [`choose_kernel`] is the kernel that runs it.
//!
//! All of it is pinned to version 0.14.1, the last line with every width. Between 0.20 and 0.27 `gptq` and `gptq_marlin`
//! became one method (`auto_gptq`), which has 4 and 8 bit symmetric only: 2 and 3 bit, asymmetric and `gptq_v2` are refused,
//! and shapes that Marlin's tiles do not fit are padded. Since 0.33 act-order is refused: "GPTQ group activation ordering
//! (desc_act=True) is no longer supported." [`later_refusals`] says which of these a config meets.
//!
//! Covered are the methods for GPTQ, AWQ and AutoRound checkpoints. Other checkpoints keep the method that they name. Patterns are
//! read by this crate's regular expressions, which know what Python's `regex` knows up to its rarest features; a pattern
//! that does not compile is an error when the config is read, not when a module first meets it.

mod auto_round;
mod awq;
mod error;
mod kernels;
mod later;
mod module;
mod modules;
mod python;
mod rules;
mod select;
mod support;

pub use auto_round::AutoRoundConfig;
pub use awq::AwqConfig;
pub use error::MethodError;
pub use kernels::{KernelLayer, choose_kernel};
pub use later::{LaterRefusal, later_refusals};
pub use module::{Layer, ModuleConfig, MoeShape, Resolution, ResolvedScheme, Unquantized};
pub use modules::{FusedModules, NameMap, infer_modules};
pub use rules::{FusedTrap, Verdict};
pub use select::{Activation, Note, Platform, Selection, check_engine, min_capability, select};
pub use support::{MARLIN_GROUP_SIZES, WeightType, check_marlin, check_marlin_moe, check_marlin_shape};
