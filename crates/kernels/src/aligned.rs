//! Bytes that begin on a 64-byte boundary, so that a line of weights is a line of cache.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Bytes of a line of cache.
const LINE: usize = 64;
/// The alignment that allocators give without being asked, at least on 64-bit systems.
const GIVEN: usize = 16;

/// A fixed number of bytes, zeroed, aligned to 64. The system hands out zeroed pages as they are first touched, by the
/// thread that touches them.
pub(crate) struct AlignedBytes {
    /// What the allocator gave.
    block: NonNull<u8>,
    /// Where the first line of 64 bytes begins in it.
    offset: usize,
    len: usize,
}

// SAFETY: the bytes belong to this value alone, like those of a `Vec<u8>`.
unsafe impl Send for AlignedBytes {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    /// What `len` bytes are allocated as; never empty. It asks for no more alignment than allocators give anyway and has
    /// room to begin later: a larger one would make the standard library write all zeros itself, and so touch every page.
    ///
    /// # Panics
    /// If `len` is more than an address space holds.
    fn layout(len: usize) -> Layout {
        let room = len.checked_add(LINE - GIVEN).expect("sizes are checked where they are computed");
        Layout::from_size_align(room, GIVEN).expect("sizes are checked where they are computed")
    }

    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout is not empty.
        let block = unsafe { alloc_zeroed(layout) };
        let block = NonNull::new(block).unwrap_or_else(|| handle_alloc_error(layout));
        let offset = (LINE - block.addr().get() % LINE) % LINE;
        Self { block, offset, len }
    }

    /// Where they begin; to be written through only by who has this value to itself.
    pub fn start(&self) -> *mut u8 {
        // SAFETY: the block has `LINE - GIVEN` bytes more than `len`, and `offset` is no larger because the block is
        // aligned to `GIVEN`.
        unsafe { self.block.as_ptr().add(self.offset) }
    }

    /// All bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` bytes were allocated and zeroed, and live as long as this value.
        unsafe { std::slice::from_raw_parts(self.start(), self.len) }
    }

    /// All bytes.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len) }
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and dropped once.
        unsafe { dealloc(self.block.as_ptr(), Self::layout(self.len)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_begin_at_lines_and_hold_zeros() {
        for len in [0, 1, 63, 64, 65, 4096, 1 << 20] {
            let mut bytes = AlignedBytes::zeroed(len);
            assert_eq!((bytes.as_slice().len(), bytes.as_slice().as_ptr().addr() % LINE), (len, 0));
            assert!(bytes.as_slice().iter().all(|b| *b == 0));
            bytes.as_mut_slice().fill(1);
        }
    }
}
