//! What can be wrong with a folder, told once: what, where, what was expected, what was found and what to do.

use std::fmt::Display;

/// Why a checkpoint cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// A folder or file that must exist does not, or is of another kind.
    #[error("{path}: expected {expected}, found {found}; {remedy}")]
    NotFound {
        /// The path as given.
        path: String,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// A file is not the JSON it should be.
    #[error("{file}: expected {expected}, found {found}; {remedy}")]
    Json {
        /// The file.
        file: String,
        /// What the file should hold.
        expected: String,
        /// The parser's message, with line and column.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// A key of a configuration has an illegal value.
    #[error("{file}: key `{key}`: expected {expected}, found {found}; {remedy}")]
    Config {
        /// The file.
        file: String,
        /// The key, dotted from the top of the file.
        key: String,
        /// The legal values.
        expected: String,
        /// The value found.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// The shard index does not agree with the files.
    #[error("{file}: entry `{entry}`: expected {expected}, found {found}; {remedy}")]
    Index {
        /// The index file.
        file: String,
        /// The tensor or file that the entry is about.
        entry: String,
        /// What the entry should be.
        expected: String,
        /// What it is.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// The header of a safetensors file is wrong.
    #[error("{file}: safetensors header: expected {expected}, found {found}; {remedy}")]
    Header {
        /// The file.
        file: String,
        /// What the header should say.
        expected: String,
        /// What it says.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// A tensor is missing or has the wrong type, shape or values.
    #[error("{file}: tensor `{tensor}`: expected {expected}, found {found}; {remedy}")]
    Tensor {
        /// The file (or the folder, for a missing tensor).
        file: String,
        /// The tensor.
        tensor: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// A format cannot hold what a folder holds.
    #[error("{folder} cannot be written as {target} without loss: {found}; choose another format, or allow the loss")]
    Lossy {
        /// The folder.
        folder: String,
        /// The format asked for.
        target: String,
        /// What is lost, module by module.
        found: String,
    },
    /// A place such as `module[row, col]` cannot be understood or does not exist.
    #[error("place `{place}`: expected {expected}, found {found}; {remedy}")]
    Place {
        /// The place as given.
        place: String,
        /// What it should be.
        expected: String,
        /// What it is.
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

/// Remedy for a file that cannot be what its writer left.
pub(crate) const DAMAGED: &str = "the file is damaged or incomplete, download or write it again";

impl FormatError {
    pub(crate) fn config(file: &str, key: impl Display, expected: impl Display, found: impl Display, remedy: impl Display) -> Self {
        let [key, expected, found, remedy] = [clip(key), clip(expected), clip(found), clip(remedy)];
        FormatError::Config { file: file.into(), key, expected, found, remedy }
    }

    pub(crate) fn header(file: &str, expected: impl Display, found: impl Display) -> Self {
        FormatError::Header { file: file.into(), expected: clip(expected), found: clip(found), remedy: DAMAGED.into() }
    }

    pub(crate) fn index(file: &str, entry: impl Display, expected: impl Display, found: impl Display) -> Self {
        let [entry, expected, found] = [clip(entry), clip(expected), clip(found)];
        FormatError::Index { file: file.into(), entry, expected, found, remedy: "download or write the folder again".into() }
    }

    pub(crate) fn tensor(file: &str, tensor: impl Display, expected: impl Display, found: impl Display, remedy: impl Display) -> Self {
        let [tensor, expected, found, remedy] = [clip(tensor), clip(expected), clip(found), clip(remedy)];
        FormatError::Tensor { file: file.into(), tensor, expected, found, remedy }
    }

    pub(crate) fn place(place: impl Display, expected: impl Display, found: impl Display, remedy: &str) -> Self {
        FormatError::Place { place: clip(place), expected: clip(expected), found: clip(found), remedy: remedy.into() }
    }

    pub(crate) fn io(file: &str, source: std::io::Error) -> Self {
        FormatError::Io { file: file.into(), source }
    }
}

/// Text for a message: a hostile file may hold a name of many megabytes, a message must not.
pub(crate) fn clip(text: impl Display) -> String {
    const MOST: usize = 1000;
    let mut text = text.to_string();
    if text.len() > MOST {
        text.truncate(text.floor_char_boundary(MOST));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_clipped_at_a_character() {
        assert_eq!(clip("é".repeat(10)), "é".repeat(10));
        let long = clip(format!("a{}", "é".repeat(1000)));
        assert!(long.len() <= 1003 && long.ends_with("é…"));
    }
}
