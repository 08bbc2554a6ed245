//! One hash for the files that hold a folder's weights.

use crate::{Checkpoint, FormatError, Source, Workers};
use sha2::{Digest, Sha256};
use std::sync::Mutex;

/// Bytes that are hashed as one piece: pieces are hashed at once, and each is in memory while it is.
const PIECE: u64 = 16 << 20;

impl Checkpoint {
    /// SHA-256, in hexadecimal, of the SHA-256 hashes of the safetensors files' pieces of 16 MiB (the last one of a file
    /// may be short), the files in the order of their names. Every byte counts, and the pieces can be hashed at once.
    ///
    /// # Errors
    /// [`FormatError::Io`] when a file cannot be read.
    pub fn files_sha256(&self, workers: Workers<'_>) -> Result<String, FormatError> {
        let pieces: Vec<_> = self
            .sources()
            .iter()
            .flat_map(|s| (0..s.len()).step_by(PIECE as usize).map(move |at| (s, at, PIECE.min(s.len() - at))))
            .collect();
        let hashes: Vec<Mutex<Result<[u8; 32], FormatError>>> = pieces.iter().map(|_| Mutex::new(Ok([0; 32]))).collect();
        workers(pieces.len(), &|i| {
            let (source, at, len) = pieces[i];
            let mut bytes = vec![0; len as usize];
            let hash = source.read_at(at, &mut bytes).map(|()| Sha256::digest(&bytes).into());
            *hashes[i].lock().unwrap_or_else(std::sync::PoisonError::into_inner) = hash;
        });
        let mut all = Sha256::new();
        for hash in hashes {
            all.update(hash.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)?);
        }
        Ok(hex(all))
    }

    /// SHA-256, in hexadecimal, of what is known without reading a tensor: config.json, every quantization config, name,
    /// type, shape and place of every tensor, and how the caller wants zero points read. Two folders that agree in it and
    /// in [`Checkpoint::files_sha256`] are read alike.
    pub fn outline_sha256(&self) -> String {
        let mut all = Sha256::new();
        // each part behind its length, so that no two outlines run together to the same bytes
        let mut part = |text: &str| {
            all.update((text.len() as u64).to_le_bytes());
            all.update(text);
        };
        part(&serde_json::Value::Object(self.config().clone()).to_string());
        part(&format!("{:?}", self.forced_zeros()));
        for raw in self.quantization_files() {
            part(&format!("{} {} {}", raw.file, raw.prefix, serde_json::Value::Object(raw.map.clone())));
        }
        for source in self.sources() {
            part(&format!("{} bytes", source.len()));
        }
        for (name, file, info) in self.places() {
            part(name);
            part(&format!("{file} {} {:?} {}", info.dtype, info.shape, info.offset));
        }
        hex(all)
    }

    /// Size and times of change of each safetensors file, in words: as long as they are the same, so are the contents. `None`
    /// if the files are not on disk.
    ///
    /// # Errors
    /// [`FormatError::Io`].
    pub fn stamps(&self) -> Result<Option<Vec<String>>, FormatError> {
        self.sources().iter().map(Source::stamp).collect()
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serially;
    use std::borrow::Cow;

    fn of(tensor: Vec<u8>) -> String {
        let header = format!(r#"{{"w":{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}}}}"#, tensor.len());
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &tensor].concat();
        let files = vec![("config.json".into(), Cow::Borrowed(&b"{}"[..])), ("model.safetensors".into(), Cow::Owned(file))];
        Checkpoint::from_files("m", files).unwrap().files_sha256(&serially).unwrap()
    }

    /// The hash of a file of one piece, from `sha256sum model.safetensors | xxd -r -p | sha256sum`.
    #[test]
    fn a_small_file_by_other_programs() {
        assert_eq!(of(vec![1, 2, 3, 4]), "52957d4a856cb32d8c76c36e0237587a33bd2f518e2321c6b37b72677547d8d3");
    }

    fn outline(config: &str, name: &str, shape: &str) -> String {
        let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":{shape},"data_offsets":[0,4]}}}}"#);
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 4]].concat();
        let files = vec![("config.json".into(), Cow::Owned(config.as_bytes().to_vec())), ("model.safetensors".into(), Cow::Owned(file))];
        Checkpoint::from_files("m", files).unwrap().outline_sha256()
    }

    #[test]
    fn an_outline_is_config_and_tensors() {
        let plain = outline("{}", "w", "[4]");
        assert_eq!(plain, outline("{ }", "w", "[4]"));
        let gptq = r#"{"quantization_config":{"quant_method":"gptq","bits":4,"group_size":32,"sym":true}}"#;
        for other in [outline(r#"{"a":1}"#, "w", "[4]"), outline("{}", "v", "[4]"), outline("{}", "w", "[2,2]"), outline(gptq, "w", "[4]")]
        {
            assert_ne!(plain, other);
        }
    }

    #[test]
    fn every_byte_of_every_piece_counts() {
        let zeros = vec![0u8; (PIECE + PIECE / 2) as usize];
        let plain = of(zeros.clone());
        assert_eq!(plain, of(zeros.clone()));
        for at in [0, PIECE as usize, zeros.len() - 1] {
            let mut other = zeros.clone();
            other[at] = 1;
            assert_ne!(of(other), plain, "byte {at}");
        }
    }
}
