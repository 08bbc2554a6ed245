//! A packed cache: the packed weights of a model in a file, which the next start maps instead of packing them again.
//!
//! A file is named by what its model's files hash to. Hashing them takes as long as reading them, so a record beside it
//! remembers what the files of a folder hashed to, and their sizes and times of change: as long as these are the same, the
//! hash is known. A file or a record that is wrong in any way is named and made again.

mod file;
mod parts;

pub(crate) use parts::{Parts, Recorder};

use crate::ModelError;
use crate::head::HeadRounding;
use billfish_formats::{Checkpoint, Source};
use billfish_kernels::Pool;
use file::{Draft, sha256};
use parts::Identity;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Which packed cache a model came from.
#[derive(Clone, Debug)]
pub struct CacheUse {
    /// The file.
    pub path: PathBuf,
    /// Whether it was made by this load.
    pub made: bool,
    /// The hash of the folder's files, as [`Checkpoint::files_sha256`] gives it.
    pub files_sha256: String,
    /// What a reader should know: why it was made again.
    pub notes: Vec<String>,
}

/// What a folder's files hashed to, and which caches of it are known to be whole.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    stamps: Vec<String>,
    files_sha256: String,
    /// Size and times of caches, by their names, when they were written or last hashed.
    packed: BTreeMap<String, String>,
}

/// Where the packed cache of a folder is.
pub(crate) struct Place {
    pub usage: CacheUse,
    identity: Identity,
    /// What the record is to say.
    record: Record,
    record_path: PathBuf,
}

/// An error about a packed cache, or the folder of them.
fn wrong(path: &Path, reason: impl ToString) -> ModelError {
    ModelError::Cache { path: path.display().to_string(), reason: reason.to_string() }
}

/// The error of a cache that has not got a module, or has one of another size.
pub(crate) fn lacks(module: &str) -> ModelError {
    wrong(Path::new(module), "it is not in the packed cache, or has another size there")
}

impl Place {
    /// Finds out which file in `dir` the packed weights of a folder are in, or will be.
    pub fn find(checkpoint: &Checkpoint, quantize_head: bool, dir: &Path, pool: &Pool) -> Result<Self, ModelError> {
        let (Some(folder), Some(stamps)) = (checkpoint.path(), checkpoint.stamps()?) else {
            return Err(wrong(dir, format!("{} is no folder on disk, and has no packed cache; leave the option out", checkpoint.name())));
        };
        std::fs::create_dir_all(dir).map_err(|e| wrong(dir, e))?;
        let outline_sha256 = checkpoint.outline_sha256();
        let folder = std::fs::canonicalize(folder).map_err(|e| wrong(folder, e))?;
        let seen = sha256(format!("{}\n{outline_sha256}", folder.display()).as_bytes());
        let record_path = dir.join(format!("{}-{}.json", checkpoint.name(), &seen[..16]));
        // whatever is wrong with a record, the files say what it should say
        let known = std::fs::read(&record_path).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
        let mut notes = vec![];
        let files_sha256 = match &known {
            Some(known) if known.stamps == stamps => known.files_sha256.clone(),
            _ => checkpoint.files_sha256(&|count, body| pool.run(count, body))?,
        };
        let packed = known.as_ref().map(|known| known.packed.clone()).unwrap_or_default();
        if let Some(known) = known.filter(|known| known.files_sha256 != files_sha256) {
            let before = known.files_sha256.get(..16).unwrap_or_default().to_string();
            notes.push(format!("the weights of {} are others than when they were packed (their hash was {before}…)", folder.display()));
        }
        let version = env!("CARGO_PKG_VERSION").to_string();
        let identity = Identity { version, outline_sha256, files_sha256: files_sha256.clone(), quantize_head };
        let key = sha256(format!("{identity:?} {}", billfish_kernels::LAYOUT).as_bytes());
        let path = dir.join(format!("{}-{}.packed", checkpoint.name(), &key[..16]));
        let record = Record { stamps, files_sha256: files_sha256.clone(), packed };
        Ok(Self { usage: CacheUse { path, made: false, files_sha256, notes }, identity, record, record_path })
    }

    /// Name of the cache, and its size and times.
    fn stamp(&self) -> Option<(String, String)> {
        let name = self.usage.path.file_name()?.to_string_lossy().into_owned();
        Some((name, Source::open(&self.usage.path).ok()?.stamp().ok()??))
    }

    /// The parts of the model, if the file is there and whole: one that was touched since it was written is hashed. One that
    /// is wrong gets a note.
    pub fn read(&mut self, pool: &Pool) -> Option<Parts> {
        let trusted = self.stamp().is_some_and(|(name, stamp)| self.record.packed.get(&name) == Some(&stamp));
        match Parts::read(&self.usage.path, &self.identity, (!trusted).then_some(pool)) {
            Ok(parts) => parts,
            Err(reason) => {
                self.refuse(&reason);
                None
            }
        }
    }

    /// Notes why the file is made again.
    pub fn refuse(&mut self, reason: &str) {
        self.usage.notes.push(format!("the packed cache {} was made again: {reason}", self.usage.path.display()));
    }

    /// A file in the making.
    pub fn recorder(&self) -> Result<Recorder, ModelError> {
        Recorder::new(&self.usage.path, self.identity.clone()).map_err(|e| self.cannot_write(e))
    }

    /// The error of a file that cannot be written.
    pub fn cannot_write(&self, error: io::Error) -> ModelError {
        wrong(&self.usage.path, format!("it cannot be written: {error}; make room, name another folder, or leave the option out"))
    }

    /// Puts a file in its place that the model was written to while it was loaded.
    pub fn keep(&mut self, recorder: Recorder, head: Option<HeadRounding>, checkpoint: &Checkpoint, pool: &Pool) -> Result<(), ModelError> {
        if checkpoint.stamps()?.as_ref() != Some(&self.record.stamps) {
            return Err(wrong(&self.usage.path, format!("{} was written to while it was read; load it again", checkpoint.name())));
        }
        recorder.finish(head, checkpoint, pool).map_err(|e| self.cannot_write(e))?;
        self.usage.made = true;
        Ok(())
    }

    /// Remembers what the files hash to and that the cache is whole, unless that is known. Where it cannot, the next start
    /// hashes them again.
    pub fn remember(&mut self) {
        self.record.packed.extend(self.stamp());
        let write = || -> io::Result<()> {
            let bytes = serde_json::to_vec_pretty(&self.record)?;
            if std::fs::read(&self.record_path).is_ok_and(|old| old == bytes) {
                return Ok(());
            }
            let mut draft = Draft::new(&self.record_path)?;
            draft.write(&bytes)?;
            draft.keep()
        };
        if let Err(e) = write() {
            self.usage
                .notes
                .push(format!("{} cannot be written, so that the next start hashes all files again: {e}", self.record_path.display()));
        }
    }
}
