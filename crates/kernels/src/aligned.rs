//! Memory aligned to a line of cache.

use memmap2::MmapMut;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Bytes of a line of cache.
const LINE: usize = 64;
/// The alignment that allocators give without being asked, at least on 64-bit systems.
const GIVEN: usize = 16;
/// From this size on bytes are pages of their own.
const PAGES: usize = 1 << 20;

/// A fixed number of bytes, zeroed, aligned to 64. The system hands out zeroed pages as they are first touched, by the
/// thread that touches them.
pub(crate) enum AlignedBytes {
    /// From the allocator.
    Heap(Heap),
    /// Pages of their own.
    Pages(MmapMut),
}

/// Bytes from the allocator.
pub(crate) struct Heap {
    /// What the allocator gave.
    block: NonNull<u8>,
    /// Where the first line of 64 bytes begins in it.
    offset: usize,
    len: usize,
}

// SAFETY: the bytes belong to this value alone, like those of a `Vec<u8>`.
unsafe impl Send for Heap {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Heap {}

impl Heap {
    /// What `len` bytes are allocated as; never empty. It asks for no more alignment than allocators give anyway and has
    /// room to begin later: a larger one would make the standard library write all zeros itself, and so touch every page.
    ///
    /// # Panics
    /// If `len` is more than an address space holds.
    fn layout(len: usize) -> Layout {
        let room = len.checked_add(LINE - GIVEN).expect("sizes are checked where they are computed");
        Layout::from_size_align(room, GIVEN).expect("sizes are checked where they are computed")
    }

    fn zeroed(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout is not empty.
        let block = unsafe { alloc_zeroed(layout) };
        let block = NonNull::new(block).unwrap_or_else(|| handle_alloc_error(layout));
        let offset = (LINE - block.addr().get() % LINE) % LINE;
        Self { block, offset, len }
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: the block has `LINE - GIVEN` bytes more than `len`, and `offset` is no larger because the block is
        // aligned to `GIVEN`.
        unsafe { self.block.as_ptr().add(self.offset) }
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and dropped once.
        unsafe { dealloc(self.block.as_ptr(), Self::layout(self.len)) }
    }
}

impl AlignedBytes {
    /// `len` zero bytes, of which little may ever be written to.
    pub fn zeroed(len: usize) -> Self {
        if len >= PAGES
            && let Ok(pages) = MmapMut::map_anon(len)
        {
            return AlignedBytes::Pages(pages);
        }
        AlignedBytes::Heap(Heap::zeroed(len))
    }

    /// `len` zero bytes, all of which will be written to: in large pages where the system has them, because a fault for
    /// each 4 KiB would cost more than packing.
    pub fn to_fill(len: usize) -> Self {
        let bytes = Self::zeroed(len);
        #[cfg(target_os = "linux")]
        if let AlignedBytes::Pages(pages) = &bytes {
            // only advice: a system without large pages gives small ones
            let _ = pages.advise(memmap2::Advice::HugePage);
        }
        bytes
    }

    /// Where they begin; to be written through only by who has this value to itself.
    pub fn start(&self) -> *mut u8 {
        match self {
            AlignedBytes::Heap(heap) => heap.start(),
            AlignedBytes::Pages(pages) => pages.as_ptr().cast_mut(),
        }
    }

    /// All bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            // SAFETY: `len` bytes were allocated and zeroed, and live as long as this value.
            AlignedBytes::Heap(heap) => unsafe { std::slice::from_raw_parts(heap.start(), heap.len) },
            AlignedBytes::Pages(pages) => pages,
        }
    }

    /// All bytes.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        match self {
            // SAFETY: as above, and the borrow is exclusive.
            AlignedBytes::Heap(heap) => unsafe { std::slice::from_raw_parts_mut(heap.start(), heap.len) },
            AlignedBytes::Pages(pages) => pages,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroed_and_aligned_whatever_they_come_from() {
        for len in [0, 1, 63, 64, 65, 4096, PAGES - 1, PAGES, 3 * PAGES + 7] {
            for mut bytes in [AlignedBytes::zeroed(len), AlignedBytes::to_fill(len)] {
                assert!(matches!(bytes, AlignedBytes::Pages(_)) == (len >= PAGES));
                assert!(bytes.as_slice().len() == len && bytes.as_slice().iter().all(|&b| b == 0));
                assert!(bytes.as_slice().as_ptr().addr().is_multiple_of(LINE));
                bytes.as_mut_slice().fill(7);
                assert!(bytes.as_slice().iter().all(|&b| b == 7));
            }
        }
    }
}
