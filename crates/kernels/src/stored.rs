//! Where packed bytes are: in memory of our own, or in a mapped file.

use crate::aligned::AlignedBytes;
use memmap2::{Mmap, MmapAsRawDesc};
use std::ops::Range;
use std::sync::Arc;

/// What the bytes of weights are aligned to.
pub(crate) const ALIGNMENT: usize = 64;

/// A file mapped for reading.
///
/// The file must not be written to while it is mapped; who writes it should make a new one and put it in its place. No byte
/// of a packed weight decides where a kernel reads or writes, so that other bytes give other numbers and nothing worse;
/// a file that is cut while it is mapped ends the process with a signal.
#[derive(Clone)]
pub struct Mapping(Arc<Mmap>);

impl Mapping {
    /// Maps an open file.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(file: impl MmapAsRawDesc) -> std::io::Result<Self> {
        // SAFETY: the map is only read, as bytes, of which every value is legal; what a writer beside us could do is said
        // above, and the file is only ever replaced by ourselves.
        let map = unsafe { Mmap::map(file) }?;
        Ok(Self(Arc::new(map)))
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// A part that weights can be read from where it is; `None` if it is not inside the file or does not begin on a line of
    /// 64 bytes.
    pub fn part(&self, range: Range<usize>) -> Option<Stored> {
        let bytes = self.0.get(range.clone())?;
        let aligned = bytes.as_ptr().addr().is_multiple_of(ALIGNMENT);
        aligned.then(|| Stored(Place::Mapped(self.clone(), range)))
    }
}

/// Packed bytes, aligned to 64.
pub struct Stored(Place);

enum Place {
    Own(AlignedBytes),
    Mapped(Mapping, Range<usize>),
}

impl Stored {
    pub(crate) fn own(bytes: AlignedBytes) -> Self {
        Self(Place::Own(bytes))
    }

    /// All bytes.
    pub fn as_slice(&self) -> &[u8] {
        match &self.0 {
            Place::Own(bytes) => bytes.as_slice(),
            Place::Mapped(map, range) => &map.0[range.clone()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_inside_and_on_lines() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &(0..200u8).collect::<Vec<u8>>()).unwrap();
        let map = Mapping::new(&file).unwrap();
        assert_eq!(map.bytes().len(), 200);
        assert_eq!(map.part(64..67).unwrap().as_slice(), [64, 65, 66]);
        for wrong in [1..65, 32..64, 128..201, 256..300, 64..usize::MAX] {
            assert!(map.part(wrong.clone()).is_none(), "{wrong:?}");
        }
    }
}
