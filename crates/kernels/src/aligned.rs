//! Bytes that begin on a 64-byte boundary, so that a line of weights is a line of cache.

use memmap2::MmapMut;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// From this size on bytes are pages of their own. The system zeroes such pages as they are first touched, on the thread
/// that touches them, and makes large ones of them where it can: a fault for each 4 KiB would cost more than packing.
const PAGES: usize = 1 << 20;

/// A fixed number of bytes, zeroed, aligned to 64.
pub(crate) enum AlignedBytes {
    /// From the allocator, which zeroes them at once.
    Heap(Heap),
    /// Pages of their own.
    Pages(MmapMut),
}

/// Bytes from the allocator.
pub(crate) struct Heap {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the bytes belong to this value alone, like those of a `Vec<u8>`.
unsafe impl Send for Heap {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Heap {}

impl Heap {
    /// What `len` bytes are allocated as; never empty.
    ///
    /// # Panics
    /// If `len` is more than an address space holds.
    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len.max(1), 64).expect("sizes are checked where they are computed")
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and dropped once.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.len)) }
    }
}

impl AlignedBytes {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        if len >= PAGES
            && let Ok(pages) = MmapMut::map_anon(len)
        {
            // only advice: a system without large pages gives small ones
            #[cfg(target_os = "linux")]
            let _ = pages.advise(memmap2::Advice::HugePage);
            return AlignedBytes::Pages(pages);
        }
        let layout = Heap::layout(len);
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        AlignedBytes::Heap(Heap { start: NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout)), len })
    }

    /// All bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            // SAFETY: `len` bytes were allocated and zeroed, and live as long as this value.
            AlignedBytes::Heap(heap) => unsafe { std::slice::from_raw_parts(heap.start.as_ptr(), heap.len) },
            AlignedBytes::Pages(pages) => pages,
        }
    }

    /// All bytes.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        match self {
            // SAFETY: as above, and the borrow is exclusive.
            AlignedBytes::Heap(heap) => unsafe { std::slice::from_raw_parts_mut(heap.start.as_ptr(), heap.len) },
            AlignedBytes::Pages(pages) => pages,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroed_and_aligned_whatever_they_come_from() {
        for len in [0, 1, 65, PAGES - 1, PAGES, 3 * PAGES + 7] {
            let mut bytes = AlignedBytes::zeroed(len);
            assert!(matches!(bytes, AlignedBytes::Pages(_)) == (len >= PAGES));
            assert!(bytes.as_slice().len() == len && bytes.as_slice().iter().all(|&b| b == 0));
            assert!(bytes.as_slice().as_ptr().addr().is_multiple_of(64));
            bytes.as_mut_slice().fill(7);
            assert!(bytes.as_slice().iter().all(|&b| b == 7));
        }
    }
}
