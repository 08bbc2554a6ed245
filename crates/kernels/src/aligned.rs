//! Memory aligned to a line of cache.

use memmap2::MmapMut;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a line of cache.
const LINE: usize = 64;
/// The alignment that allocators give without being asked, at least on 64-bit systems.
const GIVEN: usize = 16;
/// From this size on bytes are pages of their own.
const PAGES: usize = 1 << 20;

/// Something that begins at a line of cache, so that no vector in it spans two: each load and store of one that does is two.
/// Where the stack puts an array otherwise is chance, and was up to a fifth of the speed of a kernel.
#[repr(align(64))]
pub(crate) struct Lines<T>(pub T);

/// A fixed number of bytes, zeroed, aligned to 64. The system hands out zeroed pages as they are first touched, by the
/// thread that touches them.
pub(crate) enum AlignedBytes {
    /// From the allocator.
    Heap(Heap),
    /// Pages of their own.
    Pages(MmapMut),
    /// A part of pages that others have parts of too.
    Part(Part),
}

/// Bytes `start..start + len` of a block, which nobody else has.
pub(crate) struct Part {
    block: Arc<MmapMut>,
    start: usize,
    len: usize,
}

/// Bytes of a block that parts are taken from: weights share large pages, because each alone would leave its last megabyte or two
/// in small ones (decoding 16 rows, Zen 5: 1.02 times as fast), and a small one all of it.
const BLOCK: usize = 128 << 20;

/// The block that parts are taken from now, and how much of it is taken. It goes back to the system when its last part
/// does.
static BLOCK_IN_USE: Mutex<Option<(Arc<MmapMut>, usize)>> = Mutex::new(None);

impl Part {
    /// The next `len` bytes of the block in use, or of a new one; none if there are no pages to be had.
    fn take(len: usize) -> Option<Self> {
        let mut in_use = BLOCK_IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        let room = len.next_multiple_of(LINE);
        let (block, start) = match in_use.take() {
            Some((block, taken)) if taken + room <= BLOCK => (block, taken),
            _ => {
                let pages = MmapMut::map_anon(BLOCK).ok()?;
                advise_large(&pages);
                (Arc::new(pages), 0)
            }
        };
        // the last part of a block takes it along
        *in_use = (start + room < BLOCK).then(|| (Arc::clone(&block), start + room));
        Some(Self { block, start, len })
    }
}

/// Asks for large pages; only advice: a system without them gives small ones.
fn advise_large(pages: &MmapMut) {
    #[cfg(target_os = "linux")]
    let _ = pages.advise(memmap2::Advice::HugePage);
    #[cfg(not(target_os = "linux"))]
    let _ = pages;
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

    /// As [`zeroed`](Self::zeroed), in large pages where the system has them: what is written to is taken a few megabytes at a
    /// time. None if the system has not as much address space.
    pub fn try_zeroed(len: usize) -> Option<Self> {
        let bytes = if len >= PAGES { AlignedBytes::Pages(MmapMut::map_anon(len).ok()?) } else { Self::zeroed(len) };
        Some(bytes.in_large_pages())
    }

    /// `len` zero bytes, all of which will be written to: in large pages where the system has them, because a fault for
    /// each 4 KiB would cost more than packing, and a miss of the address cache for each of them slows every read.
    pub fn to_fill(len: usize) -> Self {
        /// What is smaller is not worth a part.
        const SMALLEST: usize = 16 << 10;
        if (SMALLEST..=BLOCK / 4).contains(&len)
            && let Some(part) = Part::take(len)
        {
            return AlignedBytes::Part(part);
        }
        Self::zeroed(len).in_large_pages()
    }

    /// Asks for large pages, if these are pages of their own.
    fn in_large_pages(self) -> Self {
        if let AlignedBytes::Pages(pages) = &self {
            advise_large(pages);
        }
        self
    }

    /// Where they begin; to be written through only by who has this value to itself.
    pub fn start(&self) -> *mut u8 {
        match self {
            AlignedBytes::Heap(heap) => heap.start(),
            AlignedBytes::Pages(pages) => pages.as_ptr().cast_mut(),
            AlignedBytes::Part(part) => part.block.as_ptr().cast_mut().wrapping_add(part.start),
        }
    }

    /// All bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            // SAFETY: `len` bytes were allocated and zeroed, and live as long as this value.
            AlignedBytes::Heap(heap) => unsafe { std::slice::from_raw_parts(heap.start(), heap.len) },
            AlignedBytes::Pages(pages) => pages,
            // SAFETY: these bytes lie inside the block, which lives as long as this value; nobody else has them.
            AlignedBytes::Part(part) => unsafe { std::slice::from_raw_parts(self.start(), part.len) },
        }
    }

    /// All bytes.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        match self {
            // SAFETY: as above, and the borrow is exclusive.
            AlignedBytes::Heap(heap) => unsafe { std::slice::from_raw_parts_mut(heap.start(), heap.len) },
            AlignedBytes::Pages(pages) => pages,
            AlignedBytes::Part(Part { block, start, len }) => {
                let first = block.as_ptr().cast_mut().wrapping_add(*start);
                // SAFETY: as above, and the borrow is exclusive; the block is only ever touched through its parts.
                unsafe { std::slice::from_raw_parts_mut(first, *len) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroed_and_aligned_whatever_they_come_from() {
        for len in [0, 1, 63, 64, 65, 4096, PAGES - 1, PAGES, 3 * PAGES + 7, BLOCK] {
            for mut bytes in [AlignedBytes::zeroed(len), AlignedBytes::to_fill(len)] {
                assert!(bytes.as_slice().len() == len && bytes.as_slice().iter().all(|&b| b == 0));
                assert!(bytes.as_slice().as_ptr().addr().is_multiple_of(LINE));
                bytes.as_mut_slice().fill(7);
                assert!(bytes.as_slice().iter().all(|&b| b == 7));
            }
            assert!(matches!(AlignedBytes::zeroed(len), AlignedBytes::Pages(_)) == (len >= PAGES));
        }
    }

    #[test]
    fn parts_of_a_block_stay_apart() {
        // more than a block, from several threads, some given back in between
        let make = |t: usize| {
            let sizes = (0..60).map(|i| (16 << 10) + (i * 7919 + t * 31) % (1 << 20));
            let mut parts: Vec<AlignedBytes> = sizes.map(AlignedBytes::to_fill).collect();
            parts.retain(|p| matches!(p, AlignedBytes::Part(_)));
            assert_eq!(parts.len(), 60);
            for (i, p) in parts.iter_mut().enumerate() {
                assert!(p.as_slice().iter().all(|&b| b == 0));
                p.as_mut_slice().fill((t * 60 + i) as u8);
            }
            parts.truncate(40);
            parts
        };
        let all: Vec<Vec<AlignedBytes>> = std::thread::scope(|s| {
            let threads: Vec<_> = (0..3).map(|t| s.spawn(move || make(t))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        for (t, parts) in all.iter().enumerate() {
            for (i, p) in parts.iter().enumerate() {
                assert!(p.as_slice().iter().all(|&b| b == (t * 60 + i) as u8), "{t} {i}");
            }
        }
    }
}
