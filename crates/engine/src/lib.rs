//! Who runs when: from a prompt to a completion, and from logits to the next token.
//!
//! - [`Session`]: one sequence and its cache. [`Session::generate`] runs a prompt in chunks, then decodes token by token.
//! - [`Engine`]: many requests at once, each with the tokens that it gets alone.
//! - [`Sampler`]: one sequence's choice of the next token, reproducible from its seed on every machine.
//!
//! ```
//! use billfish_engine::{Sampler, SamplingParams};
//!
//! let mut sampler = Sampler::new(SamplingParams::greedy())?;
//! assert_eq!(sampler.sample(&mut [0.5, 2.0, -1.0], &[], &[])?, 1);
//! # Ok::<(), billfish_engine::SamplingError>(())
//! ```
//!
//! The crate deliberately knows no HTTP and no file format.
#![forbid(unsafe_code)]

mod answer;
mod blocks;
mod choice;
mod engine;
mod error;
mod ngram;
mod options;
mod prefix;
mod sampler;
mod scheduler;
mod session;
mod stats;
mod step;
mod submission;

pub use engine::Engine;
pub use error::EngineError;
pub use ngram::Ngram;
pub use options::EngineOptions;
pub use sampler::{Probability, Sampler, SamplingError, SamplingParams};
pub use session::{Completion, PREFILL_CHUNK, Request, Session, Timings};
pub use stats::{Finished, Stats};
pub use submission::{Constraint, FinishReason, Happened, RequestId, StopCause, Submission, TokenLogprob};
