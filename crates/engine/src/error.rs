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
}
