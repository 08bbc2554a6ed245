//! How codes are chosen, how good a model is, and checkpoints to measure with.
//!
//! * [`quantize()`] makes a quantized folder of a dense one; [`gptq`] is the solver for one module, [`awq`]
//!   finds and folds the factors of its inputs.
//! * [`perplexity()`] scores a tokenized text under one of the usual [`Protocol`]s.
//! * [`divergence()`] compares a model's predictions with another's, [`choose`] scores answers to questions.
//! * [`plan`] finds widths and group sizes for a size.
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
mod estimate;
mod finite;
pub mod gptq;
mod hidden;
mod job;
mod logits;
mod module;
mod perplexity;
mod pipeline;
pub mod plan;
mod protocol;
mod recheck;
mod recipe;
mod report;
mod room;
mod rows;
mod sample;
mod size;
mod statistics;
mod synth;
mod workspace;

pub use choice::{Answer, Question, choose};
pub use divergence::{Divergence, divergence};
pub use error::QuantizeError;
pub use estimate::{Estimate, estimate};
pub use job::Job;
pub use logits::{LogitsFile, eval_logits};
pub use perplexity::{Perplexity, perplexity, surprises};
pub use pipeline::{Event, Outcome, quantize};
pub use protocol::Protocol;
pub use recheck::{Deviation, Recheck, recheck};
pub use recipe::{Method, Recipe, Sequential};
pub use report::{ModuleQuality, Scaling, Times};
pub use room::least_memory;
pub use sample::sample_indices;
pub use size::{PredictedBytes, module_bytes, predicted_bytes};
pub use statistics::Statistics;
pub use synth::{SynthReport, SynthSpec, synth, synthetic};
