//! Errors of evaluation and of writing synthetic checkpoints.

use billfish_formats::FormatError;
use billfish_models::ModelError;
use std::path::Path;

/// Why a model cannot be evaluated or written.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// A file of tensors is wrong.
    #[error(transparent)]
    Format(Box<FormatError>),
    /// The model cannot be run.
    #[error(transparent)]
    Model(Box<ModelError>),
    /// A setting has a value that it cannot have.
    #[error("{setting}: expected {expected}, found {found}; {remedy}")]
    Setting {
        /// The setting.
        setting: String,
        /// The legal values.
        expected: String,
        /// The value found.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// A text has fewer tokens than one window.
    #[error(
        "{protocol} needs at least {needed} tokens for one window, the text has {found}; use a longer text, a higher token limit or `window:N` with a smaller N"
    )]
    TooShort {
        /// The protocol.
        protocol: String,
        /// Tokens of one window.
        needed: usize,
        /// Tokens of the text.
        found: usize,
    },
    /// A path that cannot be written to as asked.
    #[error("{path}: expected {expected}, found {found}; {remedy}")]
    Output {
        /// The path.
        path: String,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// The operating system refused.
    #[error("{file}: {source}; check the file, its permissions and the disk it is on")]
    Io {
        /// The file.
        file: String,
        /// The system's answer.
        source: std::io::Error,
    },
}

// boxed, so that a result is not as large as the largest error of another crate
impl From<FormatError> for QuantizeError {
    fn from(error: FormatError) -> Self {
        Self::Format(Box::new(error))
    }
}

impl From<ModelError> for QuantizeError {
    fn from(error: ModelError) -> Self {
        Self::Model(Box::new(error))
    }
}

impl QuantizeError {
    pub(crate) fn setting(setting: &str, expected: impl Into<String>, found: impl Into<String>, remedy: &str) -> Self {
        Self::Setting { setting: setting.into(), expected: expected.into(), found: clip(found.into()), remedy: remedy.into() }
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { file: path.display().to_string(), source }
    }
}

/// What a user typed, short enough for a message.
fn clip(mut text: String) -> String {
    const MOST: usize = 200;
    if text.len() > MOST {
        text.truncate(text.floor_char_boundary(MOST));
        text.push('…');
    }
    text
}
