//! Billfish: every GPTQ-family checkpoint, loaded correctly and run fast.
//!
//! This crate is the façade over the others and the `billfish` binary.
//!
//! ```
//! use billfish::{GenerateOptions, LoadedModel, OpenOptions};
//!
//! let model = LoadedModel::builtin(&OpenOptions::default())?; // or LoadedModel::open("path/to/folder".as_ref(), …)
//! let options = GenerateOptions { max_tokens: 16, ..model.generate_options() };
//! let story = model.generate("Once upon a time", &options, |piece| print!("{piece}"))?;
//! assert_eq!(story.tokens.len(), 16);
//! # Ok::<(), billfish::Error>(())
//! ```
#![forbid(unsafe_code)]

pub mod bench;
mod builtin;
mod doctor;
mod engines;
mod error;
mod experts;
mod generation;
mod loaded;
pub mod machine;
mod summary;
mod vllm;

pub use billfish_engine::{
    Completion, Engine, EngineOptions, FinishReason, Happened, PREFILL_CHUNK, Request, SamplingParams, Session, Submission,
};
pub use billfish_formats::Checkpoint;
pub use billfish_kernels::{Activations, Isa, KvType};
pub use billfish_models::Progress;
pub use billfish_text::Message;
pub use builtin::{BUILTIN_NAME, builtin_files};
pub use doctor::{Examination, Finding, Fixed, Severity, examine, examine_unopened, fix};
pub use engines::{EngineVerdict, Outcome, engines};
pub use error::Error;
pub use experts::{ExpertLayer, expert_layers};
pub use loaded::{GenerateOptions, LoadedModel, OpenOptions, read_tokenizer, unused_warning};
pub use machine::Machine;
pub use summary::Summary;
pub use vllm::{VllmModule, VllmReport, vllm};

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
