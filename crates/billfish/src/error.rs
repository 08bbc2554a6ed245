//! Errors of the façade: those of the crates below, and what only shows when their parts meet.

/// Why a model cannot be opened or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder is wrong.
    #[error(transparent)]
    Format(#[from] billfish_formats::FormatError),
    /// The machine cannot do what was asked.
    #[error(transparent)]
    Kernel(#[from] billfish_kernels::KernelError),
    /// The network cannot be loaded or run.
    #[error(transparent)]
    Model(#[from] billfish_models::ModelError),
    /// The tokenizer or the chat template is wrong.
    #[error(transparent)]
    Text(#[from] billfish_text::TextError),
    /// A completion cannot be made.
    #[error(transparent)]
    Engine(#[from] billfish_engine::EngineError),
    /// It cannot be measured.
    #[error(transparent)]
    Measure(#[from] billfish_quantize::QuantizeError),
    /// A file of the folder is missing or does not fit the others.
    #[error("{file}: expected {expected}, found {found}; {remedy}")]
    File {
        /// The file.
        file: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
        /// What to do.
        remedy: String,
    },
}
