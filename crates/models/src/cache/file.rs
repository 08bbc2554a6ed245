//! The bytes of a packed cache: sections, each at the beginning of a page, and a table of them.
//!
//! ```text
//! 0    magic, 16 bytes
//! 16   version of this layout, u32 | number of the layout of packed weights, u32
//! 24   offset of the table, u64 | its length, u64
//! 40   SHA-256 of the table
//! 4096 sections, each padded with zeros to a multiple of 4096
//! …    the table: JSON, to the end of the file
//! ```
//!
//! A file is written under another name, read back, and then put in its place, so that nobody sees half of one.

use billfish_kernels::{LAYOUT, Mapping, Pool, Stored};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const MAGIC: &[u8; 16] = b"billfish packed\n";
/// Changes when the bytes above, or the meaning of the table, change.
const VERSION: u32 = 1;
const PAGE: u64 = 4096;
/// Bytes of the first page that say something.
const HEAD: usize = 72;

/// Where bytes of a file are, and what they hash to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    offset: u64,
    length: u64,
    sha256: String,
}

/// SHA-256 in hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(hash: &[u8]) -> String {
    hash.iter().map(|b| format!("{b:02x}")).collect()
}

/// What a section of a file hashes to. It is read in pieces: through a map, all of it would count as memory of ours.
fn hash(path: &Path, section: &Section) -> io::Result<String> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(section.offset))?;
    let (mut hash, mut left, mut piece) = (Sha256::new(), section.length, vec![0; 1 << 20]);
    while left > 0 {
        let piece = &mut piece[..left.min(1 << 20) as usize];
        file.read_exact(piece)?;
        hash.update(&*piece);
        left -= piece.len() as u64;
    }
    Ok(hex(&hash.finalize()))
}

/// Whether every section of a file hashes to what it should.
pub(super) fn are_whole(path: &Path, sections: &[Section], pool: &Pool) -> bool {
    let whole = AtomicBool::new(true);
    pool.run(sections.len(), &|i| {
        if hash(path, &sections[i]).ok().as_ref() != Some(&sections[i].sha256) {
            whole.store(false, Ordering::Relaxed);
        }
    });
    whole.into_inner()
}

/// A file that is put in its place when it is whole, and removed otherwise.
pub(super) struct Draft {
    file: File,
    draft: PathBuf,
    path: PathBuf,
    at: u64,
}

/// Tells the drafts of one process apart.
static DRAFTS: AtomicU64 = AtomicU64::new(0);

impl Draft {
    /// Begins a file that is to be at `path`. Only the user may read it, as its weights may be nobody else's business.
    pub fn new(path: &Path) -> io::Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = DRAFTS.fetch_add(1, Ordering::Relaxed);
        let draft = path.with_file_name(format!(".{name}.{}.{number}.draft", std::process::id()));
        let mut options = File::options();
        options.read(true).write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        // left behind by a process of the same number that was killed
        let _ = std::fs::remove_file(&draft);
        Ok(Self { file: options.open(&draft)?, draft, path: path.into(), at: 0 })
    }

    /// Writes what follows.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Puts the file in its place, on disk.
    pub fn keep(self) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.draft, &self.path)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // nothing is there any more once it was kept
        let _ = std::fs::remove_file(&self.draft);
    }
}

/// A packed cache in the making.
pub(super) struct Writer(Draft);

impl Writer {
    pub fn new(path: &Path) -> io::Result<Self> {
        let mut draft = Draft::new(path)?;
        draft.write(&[0; PAGE as usize])?;
        Ok(Self(draft))
    }

    /// Writes a section.
    pub fn section(&mut self, bytes: &[u8]) -> io::Result<Section> {
        let section = Section { offset: self.0.at, length: bytes.len() as u64, sha256: sha256(bytes) };
        self.0.write(bytes)?;
        let padding = self.0.at.next_multiple_of(PAGE) - self.0.at;
        self.0.write(&[0; PAGE as usize][..padding as usize])?;
        Ok(section)
    }

    /// Writes the table, reads every section of the file again, and puts it in its place.
    pub fn finish(mut self, table: &[u8], sections: &[Section], pool: &Pool) -> io::Result<()> {
        let mut head = MAGIC.to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend(LAYOUT.to_le_bytes());
        head.extend(self.0.at.to_le_bytes());
        head.extend((table.len() as u64).to_le_bytes());
        head.extend(Sha256::digest(table));
        self.0.write(table)?;
        self.0.file.seek(SeekFrom::Start(0))?;
        self.0.file.write_all(&head)?;
        Reader::of(&self.0.file).map_err(io::Error::other)?;
        if !are_whole(&self.0.draft, sections, pool) {
            return Err(io::Error::other("what was written is not what is read back; the disk may be full or damaged"));
        }
        self.0.keep()
    }
}

/// A packed cache that is there.
pub(super) struct Reader {
    map: Mapping,
    table: std::ops::Range<usize>,
}

impl Reader {
    /// Opens a file and checks its table; `None` if there is none.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn open(path: &Path) -> Result<Option<Self>, String> {
        match std::fs::metadata(path) {
            Ok(meta) if meta.is_file() => {}
            Ok(_) => return Err("it is no file".into()),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.to_string()),
        }
        File::open(path).map_err(|e| e.to_string()).and_then(|file| Self::of(&file)).map(Some)
    }

    fn of(file: &File) -> Result<Self, String> {
        let map = Mapping::new(file).map_err(|e| e.to_string())?;
        let bytes = map.bytes();
        let Some(head) = bytes.get(..HEAD).filter(|head| head.starts_with(MAGIC)) else {
            return Err("it is no packed cache".into());
        };
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let place = |at: usize| usize::try_from(u64::from(number(at + 4)) << 32 | u64::from(number(at))).ok();
        let (version, layout) = (number(16), number(20));
        if (version, layout) != (VERSION, LAYOUT) {
            return Err(format!("its layout is {version}.{layout}, this program's is {VERSION}.{LAYOUT}"));
        }
        let range = place(24).zip(place(32)).and_then(|(start, length)| Some(start..start.checked_add(length)?));
        let Some(table) = range.filter(|r| r.end == bytes.len() && r.start >= PAGE as usize) else {
            return Err("it does not end with its table: it was cut or written to".into());
        };
        if Sha256::digest(&bytes[table.clone()])[..] != head[40..HEAD] {
            return Err("its table has another hash than it should: it was written to".into());
        }
        Ok(Self { map, table })
    }

    /// The table.
    pub fn table(&self) -> &[u8] {
        &self.map.bytes()[self.table.clone()]
    }

    fn range(&self, section: &Section) -> Option<std::ops::Range<usize>> {
        let (start, length) = (usize::try_from(section.offset).ok()?, usize::try_from(section.length).ok()?);
        let range = start..start.checked_add(length)?;
        (range.start >= PAGE as usize && range.end <= self.table.start).then_some(range)
    }

    /// The bytes of a section, if it lies where sections do.
    pub fn bytes(&self, section: &Section) -> Option<&[u8]> {
        self.map.bytes().get(self.range(section)?)
    }

    /// The same as weights are read from.
    pub fn stored(&self, section: &Section) -> Option<Stored> {
        self.map.part(self.range(section)?)
    }
}
