//! A named range of bytes that is read piece by piece: a file, or bytes in memory.
//!
//! Files are read at positions and never mapped: a file that shrinks under us is an error of one read, and only the
//! bytes in use are resident.

use crate::FormatError;
use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// Fills a buffer with the bytes of a file that exists nowhere, from an offset on; the same bytes whenever it is asked.
pub type Maker = Arc<dyn Fn(u64, &mut [u8]) + Send + Sync>;

/// A readable range of bytes with the name that messages use.
#[derive(Clone, Debug)]
pub struct Source {
    name: String,
    len: u64,
    bytes: Bytes,
}

#[derive(Clone)]
enum Bytes {
    File(Arc<PositionalFile>),
    Memory(Cow<'static, [u8]>),
    Made(Maker),
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Bytes::File(_) => "a file",
            Bytes::Memory(_) => "bytes in memory",
            Bytes::Made(_) => "bytes that are made when they are read",
        })
    }
}

impl Source {
    /// Opens a file.
    ///
    /// # Errors
    /// [`FormatError::Io`] when the system refuses, [`FormatError::NotFound`] when the path is no file.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| FormatError::io(&name, e))?;
        let meta = file.metadata().map_err(|e| FormatError::io(&name, e))?;
        if !meta.is_file() {
            return Err(FormatError::NotFound {
                path: name,
                expected: "a regular file".into(),
                found: "a folder or device of that name".into(),
                remedy: "put the file itself there".into(),
            });
        }
        Ok(Self { name, len: meta.len(), bytes: Bytes::File(Arc::new(PositionalFile::new(file))) })
    }

    /// Wraps bytes in memory.
    pub fn from_bytes(name: impl Into<String>, bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        let bytes = bytes.into();
        Self { name: name.into(), len: bytes.len() as u64, bytes: Bytes::Memory(bytes) }
    }

    /// A file of `len` bytes that are made when they are read.
    pub fn made(name: impl Into<String>, len: u64, maker: Maker) -> Self {
        Self { name: name.into(), len, bytes: Bytes::Made(maker) }
    }

    /// The name for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The size and the times of change of a file, in words; `None` if it is not a file of the system. A file that was
    /// written to, or put in the place of another, has other words.
    ///
    /// # Errors
    /// [`FormatError::Io`].
    pub fn stamp(&self) -> Result<Option<String>, FormatError> {
        let Bytes::File(file) = &self.bytes else { return Ok(None) };
        let meta = file.metadata().map_err(|e| FormatError::io(&self.name, e))?;
        Ok(Some(format!("{} bytes, {}", meta.len(), times(&meta))))
    }

    /// Fills `out` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`FormatError::Io`] when the bytes do not exist (any more) or the system refuses.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), FormatError> {
        let eof = || FormatError::io(&self.name, std::io::ErrorKind::UnexpectedEof.into());
        match &self.bytes {
            Bytes::File(file) => file.read_at(offset, out).map_err(|e| FormatError::io(&self.name, e)),
            Bytes::Memory(bytes) => {
                let start = usize::try_from(offset).map_err(|_| eof())?;
                let end = start.checked_add(out.len()).ok_or_else(eof)?;
                out.copy_from_slice(bytes.get(start..end).ok_or_else(eof)?);
                Ok(())
            }
            Bytes::Made(maker) => {
                if offset.checked_add(out.len() as u64).is_none_or(|end| end > self.len) {
                    return Err(eof());
                }
                maker(offset, out);
                Ok(())
            }
        }
    }

    /// All bytes of a small file, refused when there are more than `cap`.
    pub(crate) fn read_all(&self, cap: u64) -> Result<Vec<u8>, FormatError> {
        if self.len > cap {
            return Err(FormatError::NotFound {
                path: self.name.clone(),
                expected: format!("a file of at most {cap} bytes"),
                found: format!("{} bytes", self.len),
                remedy: "this is not the file its name says, replace it".into(),
            });
        }
        let mut out = vec![0; self.len as usize];
        self.read_at(0, &mut out)?;
        Ok(out)
    }
}

/// When a file was written to, and when anything about it changed: no program sets the second.
#[cfg(unix)]
fn times(meta: &std::fs::Metadata) -> String {
    use std::os::unix::fs::MetadataExt;
    let (written, changed) = ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
    format!("written {}.{:09}, changed {}.{:09}, inode {}", written.0, written.1, changed.0, changed.1, meta.ino())
}

#[cfg(not(unix))]
fn times(meta: &std::fs::Metadata) -> String {
    format!("written {:?}", meta.modified().ok())
}

#[cfg(unix)]
struct PositionalFile(File);

#[cfg(unix)]
impl PositionalFile {
    fn new(file: File) -> Self {
        Self(file)
    }

    fn metadata(&self) -> std::io::Result<std::fs::Metadata> {
        self.0.metadata()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0, out, offset)
    }
}

/// Without positional reads the file's one cursor must be owned while it moves and reads.
#[cfg(not(unix))]
struct PositionalFile(std::sync::Mutex<File>);

#[cfg(not(unix))]
impl PositionalFile {
    fn new(file: File) -> Self {
        Self(std::sync::Mutex::new(file))
    }

    fn metadata(&self) -> std::io::Result<std::fs::Metadata> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).metadata()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_reads_stay_inside() {
        let s = Source::from_bytes("m", vec![1, 2, 3]);
        let mut two = [0; 2];
        s.read_at(1, &mut two).unwrap();
        assert_eq!(two, [2, 3]);
        for offset in [2, 3, u64::MAX] {
            assert!(matches!(s.read_at(offset, &mut two), Err(FormatError::Io { .. })));
        }
    }

    #[test]
    fn made_bytes_stay_inside() {
        let s = Source::made("m", 5, Arc::new(|at, out: &mut [u8]| out.iter_mut().zip(at..).for_each(|(o, i)| *o = i as u8)));
        let mut two = [0; 2];
        s.read_at(3, &mut two).unwrap();
        assert_eq!(two, [3, 4]);
        assert!(s.read_at(4, &mut two).is_err() && s.read_at(u64::MAX, &mut two).is_err());
    }

    #[test]
    fn a_folder_is_no_file() {
        assert!(Source::open(&std::env::temp_dir()).is_err());
    }
}
