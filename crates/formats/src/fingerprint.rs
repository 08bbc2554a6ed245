//! One hash for the files that hold a folder's weights.

use crate::{Checkpoint, FormatError, Workers};
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
        Ok(all.finalize().iter().map(|b| format!("{b:02x}")).collect())
    }
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
