//! Who runs when: from a prompt to a completion, and from logits to the next token.
//!
//! - [`Session`]: one sequence and its cache. [`Session::generate`] runs a prompt in chunks, then decodes token by token.
//! - [`generate_batch`]: several requests side by side, each with the tokens that it gets alone.
//! - [`Sampler`]: one sequence's choice of the next token, reproducible from its seed on every machine.
//!
//! ```
//! use billfish_engine::{Sampler, SamplingParams};
//!
//! let mut sampler = Sampler::new(SamplingParams::greedy())?;
//! assert_eq!(sampler.sample(&mut [0.5, 2.0, -1.0], &[])?, 1);
//! # Ok::<(), billfish_engine::SamplingError>(())
//! ```
//!
//! The crate deliberately knows no HTTP and no file format.
#![forbid(unsafe_code)]

mod batch;
mod error;
mod sampler;
mod session;
mod turn;

pub use batch::{BatchEvent, generate_batch};
pub use error::EngineError;
pub use sampler::{Probability, Sampler, SamplingError, SamplingParams};
pub use session::{Completion, FinishReason, PREFILL_CHUNK, Request, Session, Timings};
