//! How good a model is, and checkpoints to measure with.
//!
//! * [`perplexity()`] scores a tokenized text under one of the usual [`Protocol`]s.
//! * [`eval_logits`] writes the logits of given tokens to a file, for comparison with any other program.
//! * [`synth()`] writes a model folder of a well-known shape with random weights, in bounded memory: what speed and memory
//!   are measured with when the real weights are not at hand. [`synthetic`] opens the same without writing it.
//!
//! The crate prints nothing and knows no tokenizer: texts come as ids, tokenizer files as bytes.
#![forbid(unsafe_code)]

mod error;
mod logits;
mod perplexity;
mod protocol;
mod synth;

pub use error::QuantizeError;
pub use logits::{LogitsFile, eval_logits};
pub use perplexity::{Perplexity, perplexity, surprises};
pub use protocol::Protocol;
pub use synth::{SynthReport, SynthSpec, synth, synthetic};
