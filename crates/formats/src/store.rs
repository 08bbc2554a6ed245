//! Where the files of a checkpoint are: a folder on disk, or files in memory (the model inside the binary).

use crate::source::Maker;
use crate::{FormatError, Source};
use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

/// A flat set of named files.
#[derive(Clone, Debug)]
pub(crate) enum Store {
    Folder(PathBuf),
    Memory { name: String, files: Vec<(Cow<'static, str>, Content)> },
}

/// What a file in memory holds.
#[derive(Clone)]
pub(crate) enum Content {
    Bytes(Cow<'static, [u8]>),
    Made(u64, Maker),
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Content::Made(len, _) => write!(f, "{len} bytes that are made when they are read"),
        }
    }
}

impl Store {
    /// A folder that exists.
    pub(crate) fn folder(path: &Path) -> Result<Store, FormatError> {
        let wrong = |found: &str| FormatError::NotFound {
            path: path.display().to_string(),
            expected: "a model folder".into(),
            found: found.into(),
            remedy: "pass a folder that holds config.json and *.safetensors; names of models on a hub are not downloaded".into(),
        };
        match std::fs::metadata(path) {
            Ok(m) if m.is_dir() => Ok(Store::Folder(path.into())),
            Ok(_) => Err(wrong("a file")),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(wrong("nothing")),
            Err(e) => Err(FormatError::io(&path.display().to_string(), e)),
        }
    }

    /// How messages call file `name`.
    pub(crate) fn label(&self, name: &str) -> String {
        match self {
            Store::Folder(path) => path.join(name).display().to_string(),
            Store::Memory { name: folder, .. } => format!("{folder}/{name}"),
        }
    }

    /// How messages call the folder itself.
    pub(crate) fn display(&self) -> String {
        match self {
            Store::Folder(path) => path.display().to_string(),
            Store::Memory { name, .. } => name.clone(),
        }
    }

    /// Opens file `name`, which must be a plain name; `None` when there is no such file.
    pub(crate) fn open(&self, name: &str) -> Result<Option<Source>, FormatError> {
        if !is_plain(name) {
            return Err(FormatError::NotFound {
                path: self.label(name),
                expected: "a plain file name inside the folder".into(),
                found: format!("`{}`", crate::error::clip(name)),
                remedy: "files outside the model folder are not read".into(),
            });
        }
        match self {
            Store::Folder(path) => match Source::open(&path.join(name)) {
                Err(FormatError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
                other => other.map(Some),
            },
            Store::Memory { files, .. } => {
                let content = files.iter().find(|(n, _)| n == name).map(|(_, content)| content.clone());
                Ok(content.map(|content| match content {
                    Content::Bytes(bytes) => Source::from_bytes(self.label(name), bytes),
                    Content::Made(len, maker) => Source::made(self.label(name), len, maker),
                }))
            }
        }
    }

    /// Names of all files, sorted.
    pub(crate) fn names(&self) -> Result<Vec<String>, FormatError> {
        let mut names = match self {
            Store::Folder(path) => {
                let io = |e| FormatError::io(&path.display().to_string(), e);
                let mut names = vec![];
                for entry in std::fs::read_dir(path).map_err(io)? {
                    names.push(entry.map_err(io)?.file_name().to_string_lossy().into_owned());
                }
                names
            }
            Store::Memory { files, .. } => files.iter().map(|(n, _)| n.to_string()).collect(),
        };
        names.sort();
        Ok(names)
    }
}

/// Whether `name` names a file directly inside a folder on every system.
pub(crate) fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', ':', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names() {
        assert!(is_plain("model-00001-of-00002.safetensors"));
        for name in ["", ".", "..", "../x", "a/b", "a\\b", "C:x", "a\0"] {
            assert!(!is_plain(name), "{name:?}");
        }
    }
}
