//! How codes are chosen, how good a model is, and checkpoints to measure with.
//!
//! * [`quantize()`] makes a quantized folder of a dense one; [`gptq`] is the solver for one module, [`awq`]
//!   finds and folds the factors of its inputs.
//! * [`perplexity()`] scores a tokenized text under one of the usual [`Protocol`]s.
//! * [`divergence()`] compares a model's predictions with another's, [`choose`] scores answers to questions.
//! * [`eval_logits`] writes the logits of given tokens to a file, for comparison with any other program.
//! * [`synth()`] writes a model folder of a well-known shape with random weights, in bounded memory: what speed and memory
//!   are measured with when the real weights are not at hand. [`synthetic`] opens the same without writing it.
//!
//! The crate prints nothing and knows no tokenizer: texts come as ids, tokenizer files as bytes.
#![forbid(unsafe_code)]

pub mod awq;
mod choice;
mod divergence;
mod error;
pub mod gptq;
mod logits;
mod perplexity;
mod pipeline;
mod protocol;
mod recipe;
mod report;
mod rows;
mod synth;
mod workspace;

pub use choice::{Answer, Question, choose};
pub use divergence::{Divergence, divergence};
pub use error::QuantizeError;
pub use logits::{LogitsFile, eval_logits};
pub use perplexity::{Perplexity, perplexity, surprises};
pub use pipeline::{Event, Job, Outcome, quantize};
pub use protocol::Protocol;
pub use recipe::{Method, Recipe};
pub use report::{ModuleQuality, Scaling, Times};
pub use synth::{SynthReport, SynthSpec, synth, synthetic};
