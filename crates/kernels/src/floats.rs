//! Buffers that kernels read and write whole lines of.

use crate::aligned::Lines;
use std::ops::{Deref, DerefMut};

/// Floats of a line of cache.
const LINE: usize = 16;

/// Floats that are kept from call to call and begin at a line of cache. Rows of whole lines are then read and written line by
/// line; those of a vector begin where the allocator puts it, often 16 bytes behind the beginning of a page, and each of their
/// vectors lies in two lines (products of 96 rows by int8 take 1 % longer to write them, Zen 5).
#[derive(Default)]
pub struct Floats(Vec<Lines<[f32; LINE]>>);

impl Floats {
    /// The first `len` floats. What the buffer once had it keeps; what is new is 0.
    pub fn room(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(LINE);
        if self.0.len() < lines {
            self.0.resize_with(lines, || Lines([0.0; LINE]));
        }
        &mut self[..len]
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: a line is sixteen floats without anything between it and the next.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * LINE) }
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * LINE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_stays_and_begins_at_a_line() {
        let mut floats = Floats::default();
        assert!(floats.room(0).is_empty());
        for (len, before) in [(1, 0), (17, 1), (5, 17), (100_003, 17)] {
            let room = floats.room(len);
            assert!(room.len() == len && room.as_ptr().addr().is_multiple_of(64));
            for (i, v) in room.iter_mut().enumerate() {
                assert_eq!(*v, if i < before { i as f32 + 1.0 } else { 0.0 }, "{len} {i}");
                *v = i as f32 + 1.0;
            }
        }
        assert!(floats.len() >= 100_003);
    }
}
