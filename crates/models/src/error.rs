//! Errors of loading and running a model.

use billfish_formats::FormatError;
use billfish_kernels::KernelError;

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The folder is wrong.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A weight cannot be packed.
    #[error("module `{module}`: {source}")]
    Pack {
        /// The module.
        module: String,
        /// Why.
        source: KernelError,
    },
    /// A packed cache cannot be read or written.
    #[error("packed cache: {path}: {reason}")]
    Cache {
        /// The file or folder.
        path: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The output head cannot be rounded to 8 bits.
    #[error("module `{module}`: the head cannot be quantized: {reason}")]
    Head {
        /// The module.
        module: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The architecture is not one of ours.
    #[error("{file}: key `model_type`: `{found}` is not supported; supported are {supported}")]
    Architecture {
        /// The file.
        file: String,
        /// What it says.
        found: String,
        /// What is supported.
        supported: String,
    },
    /// A key of `config.json` has a value that the decoder cannot follow.
    #[error("{file}: key `{key}`: expected {expected}, found {found}; {remedy}")]
    Config {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// The legal values.
        expected: String,
        /// The value found.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// A token that the embedding does not have.
    #[error("token id {token} at position {position}: expected an id below {vocabulary}; use the tokenizer of this model")]
    Token {
        /// The id.
        token: u32,
        /// Its position.
        position: usize,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// The network produced something that is not a number.
    #[error(
        "the logits at position {position} are not numbers; a scale or an activation overflowed: try --activations strict, and check the folder with `billfish inspect`"
    )]
    NotANumber {
        /// The position.
        position: usize,
    },
}
