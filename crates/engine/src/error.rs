//! Errors of generating.

use crate::SamplingError;
use billfish_models::ModelError;
use billfish_text::TextError;

/// Why a completion cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The network refused.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The text side refused.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A sampling parameter or a logit is out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// There is nothing to continue.
    #[error("the prompt has no tokens; give at least one character, or a model whose tokenizer adds a token of its own")]
    EmptyPrompt,
    /// The prompt leaves no room for a token.
    #[error("the prompt has {tokens} tokens: expected at most {}, one less than the longest sequence; shorten it, or raise --max-model-len", max_model_len - 1)]
    TooLong {
        /// Its tokens.
        tokens: usize,
        /// Tokens of the longest sequence.
        max_model_len: usize,
    },
    /// The memory of the cache cannot be had.
    #[error("--kv-cache-memory: {0}")]
    Memory(String),
    /// A parameter of a request is out of range.
    #[error("{name}: expected {expected}, found {found}; correct the parameter")]
    Parameter {
        /// The parameter.
        name: &'static str,
        /// The legal values.
        expected: String,
        /// The value found.
        found: String,
    },
    /// An option of the engine cannot be followed.
    #[error("{name}: expected {expected}, found {found}; change the option")]
    Option {
        /// The option as the command line names it.
        name: &'static str,
        /// The legal values.
        expected: String,
        /// The value found.
        found: String,
    },
    /// Too many requests wait already.
    #[error("{waiting} requests wait already: expected fewer than {most}; try again later")]
    QueueFull {
        /// Choices that wait.
        waiting: usize,
        /// How many may.
        most: usize,
    },
    /// A constraint could not go on.
    #[error("the constraint of the answer failed: {0}; change the grammar or the schema")]
    Constraint(String),
}
