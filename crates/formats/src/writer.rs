//! A streaming safetensors writer: the header first, from names and shapes alone, then each tensor's bytes in order.

use crate::FormatError;
use billfish_tensor::DType;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Name, element type and shape of a tensor to be written.
pub type TensorSpec = (String, DType, Vec<usize>);

/// Writes one safetensors file in bounded memory. Bytes go to a temporary file beside the target, which
/// [`SafetensorsWriter::finish`] renames: a half-written file never carries the final name.
#[derive(Debug)]
pub struct SafetensorsWriter {
    target: PathBuf,
    partial: PathBuf,
    out: Option<BufWriter<File>>,
    tensors: Vec<(String, u64)>,
    current: usize,
    written: u64,
}

impl SafetensorsWriter {
    /// Starts a file at `path` that will hold `tensors` in this order.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] for a duplicate name or a shape that overflows, [`FormatError::Io`].
    pub fn create(path: &Path, tensors: &[TensorSpec]) -> Result<Self, FormatError> {
        let (header, sizes) = header(&path.display().to_string(), tensors)?;
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let partial = path.with_file_name(format!(".{name}.{}.partial", std::process::id()));
        let file = OpenOptions::new().write(true).create_new(true).open(&partial);
        let file = file.map_err(|e| FormatError::io(&partial.display().to_string(), e))?;
        let mut writer = Self { target: path.into(), partial, out: Some(BufWriter::new(file)), tensors: sizes, current: 0, written: 0 };
        writer.put(&framed(&header))?;
        Ok(writer)
    }

    /// Appends bytes to tensor `name`. A tensor may come in any number of pieces; tensors come in the order of the header.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] when another tensor is due or the bytes are more than its shape holds, [`FormatError::Io`].
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), FormatError> {
        self.skip_full();
        let Some((due, size)) = self.tensors.get(self.current) else {
            return Err(self.wrong(name, "no more bytes", format!("{} bytes", bytes.len())));
        };
        if due != name {
            return Err(self.wrong(name, &format!("bytes of `{due}`, in the order of the header"), format!("bytes of `{name}`")));
        }
        if bytes.len() as u64 > size - self.written {
            let found = format!("{} bytes", self.written.saturating_add(bytes.len() as u64));
            return Err(self.wrong(name, &format!("{size} bytes"), found));
        }
        self.put(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Checks that every tensor is complete, flushes to the disk and gives the file its name.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] naming the first tensor that is not complete, [`FormatError::Io`].
    pub fn finish(mut self) -> Result<(), FormatError> {
        self.skip_full();
        if let Some((due, size)) = self.tensors.get(self.current) {
            return Err(self.wrong(due, &format!("{size} bytes"), format!("{} bytes", self.written)));
        }
        let io = |e| FormatError::io(&self.target.display().to_string(), e);
        if let Some(out) = self.out.take() {
            let done = out.into_inner().map_err(|e| e.into_error()).and_then(|f| f.sync_all());
            if let Err(e) = done.and_then(|()| std::fs::rename(&self.partial, &self.target)) {
                // Already failing: that the leftover cannot be removed either adds nothing to the message.
                drop(std::fs::remove_file(&self.partial));
                return Err(io(e));
            }
        }
        Ok(())
    }

    /// Moves past tensors that are complete (an empty tensor is complete at once).
    fn skip_full(&mut self) {
        while self.tensors.get(self.current).is_some_and(|(_, size)| *size == self.written) {
            self.current += 1;
            self.written = 0;
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let Some(out) = &mut self.out else { return Ok(()) };
        out.write_all(bytes).map_err(|e| FormatError::io(&self.partial.display().to_string(), e))
    }

    fn wrong(&self, name: &str, expected: &str, found: String) -> FormatError {
        let remedy = "write each tensor once, whole and in the order given to `create`";
        FormatError::tensor(&self.target.display().to_string(), name, expected, found, remedy)
    }
}

impl Drop for SafetensorsWriter {
    fn drop(&mut self) {
        if self.out.take().is_some() {
            // An abandoned file is of no use; if it cannot be removed there is nobody to tell.
            drop(std::fs::remove_file(&self.partial));
        }
    }
}

/// The bytes before the data of a safetensors file that holds `tensors` in this order; `file` is for messages.
///
/// # Errors
/// [`FormatError::Tensor`] for a duplicate name or a shape that overflows.
pub fn safetensors_header(file: &str, tensors: &[TensorSpec]) -> Result<Vec<u8>, FormatError> {
    Ok(framed(&header(file, tensors)?.0))
}

/// A header behind its length.
fn framed(header: &str) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()
}

/// The header text, padded so that the data begins at a multiple of 8, and the size of each tensor.
pub(crate) fn header(file: &str, tensors: &[TensorSpec]) -> Result<(String, Vec<(String, u64)>), FormatError> {
    let mut map = serde_json::Map::new();
    map.insert("__metadata__".into(), serde_json::json!({"format": "pt"}));
    let mut sizes = Vec::with_capacity(tensors.len());
    let mut begin = 0u64;
    for (name, dtype, shape) in tensors {
        let size = shape.iter().try_fold(dtype.size() as u64, |a, &b| a.checked_mul(b as u64));
        let Some((size, end)) = size.and_then(|s| Some((s, begin.checked_add(s)?))) else {
            return Err(FormatError::tensor(file, name, "a size that fits in 64 bits", format!("{shape:?}"), "use a smaller shape"));
        };
        let entry = serde_json::json!({"dtype": dtype.name(), "shape": shape, "data_offsets": [begin, end]});
        if map.insert(name.clone(), entry).is_some() {
            return Err(FormatError::tensor(file, name, "a name that no other tensor has", "the name twice", "rename one of them"));
        }
        sizes.push((name.clone(), size));
        begin = end;
    }
    let mut text = serde_json::Value::Object(map).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    Ok((text, sizes))
}
