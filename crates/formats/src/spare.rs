//! Room for codes that is used again: fresh memory costs more to get than codes cost to read.

use crate::checkpoint::Tensor;
use crate::{Checkpoint, FormatError};
use billfish_tensor::QuantMatrix;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Words of matrices that nobody needs any more.
#[derive(Debug, Default)]
pub(crate) struct Spare(Mutex<Vec<Vec<u32>>>);

impl Spare {
    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u32>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `len` words that hold anything.
    fn take(&self, len: usize) -> Vec<u32> {
        // what is too small would be copied to grow
        let spare = self.lock().pop().filter(|s| s.capacity() >= len);
        let mut words = spare.unwrap_or_default();
        words.resize(len, 0);
        words
    }
}

impl Tensor<'_> {
    /// The words of a tensor of codes.
    pub(crate) fn read_codes(&self, spare: &Spare) -> Result<Vec<u32>, FormatError> {
        let mut words = spare.take(self.info.bytes / size_of::<u32>());
        self.read_bytes(bytemuck::cast_slice_mut(&mut words))?;
        if cfg!(target_endian = "big") {
            words.iter_mut().for_each(|w| *w = u32::from_le(*w));
        }
        Ok(words)
    }
}

impl Checkpoint {
    /// Gives back a matrix that was read, so that the next takes its room. Matrices that are read after one another, or some
    /// at once, so share the room of a few.
    pub fn recycle(&self, matrix: QuantMatrix) {
        self.spare.lock().extend(matrix.into_words());
    }

    /// Frees the room of all matrices that were given back.
    pub fn free_recycled(&self) {
        self.spare.lock().clear();
    }
}
