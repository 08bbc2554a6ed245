//! The folder that is written: under another name until it is whole.

use super::Planned;
use crate::error::DAMAGED;
use crate::{Checkpoint, FormatError, SafetensorsWriter, TensorSpec};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Bytes after which a new shard begins, as other writers have it.
const SHARD: u64 = 4_000_000_000;

/// Files that are written anew or belong to the source's tensors.
const REPLACED: [&str; 4] = ["config.json", "quantize_config.json", "quant_config.json", "quant_log.csv"];

pub(super) fn bytes_of(spec: &TensorSpec) -> u64 {
    spec.2.iter().fold(spec.1.size() as u64, |bytes, &d| bytes.saturating_mul(d as u64))
}

/// What is written by shard, in order; `spec` tells the tensor of each.
pub(super) fn split<T>(planned: Vec<T>, spec: fn(&T) -> &TensorSpec) -> Vec<Vec<T>> {
    let mut shards: Vec<Vec<T>> = vec![vec![]];
    let mut size = 0;
    for p in planned {
        let bytes = bytes_of(spec(&p));
        if size > 0 && bytes > SHARD.saturating_sub(size) {
            shards.push(vec![]);
            size = 0;
        }
        size = size.saturating_add(bytes);
        if let Some(last) = shards.last_mut() {
            last.push(p);
        }
    }
    shards
}

fn shard_name(i: usize, count: usize) -> String {
    if count == 1 { "model.safetensors".into() } else { format!("model-{:05}-of-{count:05}.safetensors", i + 1) }
}

/// The text of the index of several shards.
pub(super) fn index(shards: &[Vec<&TensorSpec>]) -> Option<String> {
    if shards.len() == 1 {
        return None;
    }
    let mut map = Map::new();
    let mut total = 0;
    for (i, shard) in shards.iter().enumerate() {
        for spec in shard {
            total += bytes_of(spec);
            map.insert(spec.0.clone(), json!(shard_name(i, shards.len())));
        }
    }
    Some(format!("{:#}\n", json!({"metadata": {"total_size": total}, "weight_map": map})))
}

/// Whether a folder of this name can be written.
///
/// # Errors
/// [`FormatError::NotFound`] if `out` is there already and is not an empty folder.
pub fn check_free(out: &Path) -> Result<(), FormatError> {
    let taken = |found: &str| FormatError::NotFound {
        path: out.display().to_string(),
        expected: "a folder that does not exist or is empty".into(),
        found: found.into(),
        remedy: "name another folder".into(),
    };
    match std::fs::read_dir(out).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(taken("files in it")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => Err(taken("a file")),
        Err(e) => Err(FormatError::io(&out.display().to_string(), e)),
    }
}

/// The folder in the making; dropped unfinished, it takes its files away.
pub(super) struct Folder {
    target: PathBuf,
    partial: PathBuf,
    files: Vec<String>,
    done: bool,
}

impl Folder {
    pub fn create(out: &Path) -> Result<Self, FormatError> {
        let name = out.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_else(|| "out".into());
        let partial = out.with_file_name(format!(".{name}.{}.partial", std::process::id()));
        std::fs::create_dir_all(&partial).map_err(|e| FormatError::io(&partial.display().to_string(), e))?;
        Ok(Self { target: out.into(), partial, files: vec![], done: false })
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), FormatError> {
        let path = self.partial.join(name);
        std::fs::write(&path, bytes).map_err(|e| FormatError::io(&path.display().to_string(), e))
    }

    /// Keeps what is neither a tensor nor a config: tokenizer, templates, licences.
    pub fn copy_files(&self, source: &Checkpoint) -> Result<(), FormatError> {
        for name in source.file_names()? {
            let tensors = [".safetensors", ".safetensors.index.json", ".bin", ".pt"].iter().any(|e| name.ends_with(e));
            if tensors || REPLACED.contains(&name.as_str()) {
                continue;
            }
            if let Some(bytes) = source.file(&name)? {
                self.write(&name, &bytes)?;
            }
        }
        Ok(())
    }

    /// Writes `config.json`, and `quantize_config.json` beside it if there is a quantization config.
    pub fn write_config(&self, source: &Checkpoint, quantization: Option<Value>) -> Result<(), FormatError> {
        let mut config: Map<String, Value> = source.config().clone();
        config.remove("quantization_config");
        config.remove("compression_config");
        if let Some(q) = quantization {
            self.write("quantize_config.json", format!("{q:#}\n").as_bytes())?;
            config.insert("quantization_config".into(), q);
        }
        self.write("config.json", format!("{:#}\n", Value::Object(config)).as_bytes())
    }

    pub fn shard(&mut self, i: usize, count: usize, specs: &[TensorSpec]) -> Result<SafetensorsWriter, FormatError> {
        let name = shard_name(i, count);
        self.files.push(name.clone());
        SafetensorsWriter::create(&self.partial.join(name), specs)
    }

    pub fn write_index(&self, shards: &[Vec<Planned>]) -> Result<(), FormatError> {
        let specs: Vec<Vec<&TensorSpec>> = shards.iter().map(|s| s.iter().map(|p| &p.spec).collect()).collect();
        index(&specs).map_or(Ok(()), |text| self.write("model.safetensors.index.json", text.as_bytes()))
    }

    /// Gives the folder its name.
    pub fn finish(mut self) -> Result<(), FormatError> {
        let io = |e| FormatError::io(&self.target.display().to_string(), e);
        // an empty folder of that name gives way
        match std::fs::remove_dir(&self.target) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(e)),
            _ => {}
        }
        std::fs::rename(&self.partial, &self.target).map_err(io)?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.done {
            // already failing: that leftovers cannot be removed either adds nothing to the message
            drop(std::fs::remove_dir_all(&self.partial));
        }
    }
}

impl Checkpoint {
    /// Names of the folder's files.
    ///
    /// # Errors
    /// [`FormatError::Io`] when the folder cannot be listed.
    pub fn file_names(&self) -> Result<Vec<String>, FormatError> {
        self.store().names()
    }

    /// Hands out the bytes of a tensor, some at a time.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] when there is none of that name, [`FormatError::Io`], and what `put` gives.
    pub fn copy_bytes(&self, name: &str, put: &mut dyn FnMut(&[u8]) -> Result<(), FormatError>) -> Result<(), FormatError> {
        const PIECE: usize = 1 << 22;
        let Some((source, info)) = self.place(name) else {
            return Err(FormatError::tensor(self.name(), name, "a tensor", "none", DAMAGED));
        };
        let mut buffer = vec![0; PIECE.min(info.bytes)];
        for at in (0..info.bytes).step_by(PIECE) {
            let piece = &mut buffer[..PIECE.min(info.bytes - at)];
            source.read_at(info.offset + at as u64, piece)?;
            put(piece)?;
        }
        Ok(())
    }
}
