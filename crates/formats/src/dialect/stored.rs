//! Zero points as a file stores them: fields of words, and every way in which v1 may mean them.

use billfish_tensor::Packing;

/// Zero points as stored.
pub(crate) struct Stored<'a> {
    /// `[groups, packing.words(bits, n)]`.
    pub(crate) words: &'a [u32],
    pub(crate) n: usize,
    pub(crate) bits: u32,
    pub(crate) packing: Packing,
    /// Bits of the words that the file has (`words` are always filled from them in order).
    pub(crate) width: u32,
}

/// Ones in every field of a word (2, 4 and 8 bit).
const ONES: [(u32, u32); 3] = [(2, 0x5555_5555), (4, 0x1111_1111), (8, 0x0101_0101)];
/// What GPTQModel up to 6 subtracted from each word of a 3-bit run.
pub(super) const LEGACY: [u32; 3] = [0x2492_4924, 0x9249_2492, 0x4924_9249];

impl Stored<'_> {
    pub(super) fn midpoint(&self) -> u8 {
        1 << (self.bits - 1)
    }

    pub(super) fn largest(&self) -> u8 {
        ((1u32 << self.bits) - 1) as u8
    }

    fn row_words(&self) -> usize {
        self.packing.words(self.bits, self.n)
    }

    /// The fields as they stand.
    pub(super) fn raw(&self) -> Vec<u8> {
        self.fields(|_| 0)
    }

    /// The fields after ones were added to whole words.
    pub(super) fn borrowed(&self) -> Vec<u8> {
        let ones = ONES.iter().find(|(bits, _)| *bits == self.bits).map_or(0, |(_, ones)| *ones);
        self.fields(|_| ones)
    }

    /// The fields after the legacy 3-bit constants were added to whole words.
    pub(super) fn legacy(&self) -> Vec<u8> {
        self.fields(|j| LEGACY[j % 3])
    }

    /// The fields of all words after adding `constant(j)` to word `j` of each row.
    fn fields(&self, constant: impl Fn(usize) -> u32) -> Vec<u8> {
        let per_row = self.row_words();
        let mut out = vec![0; self.words.len() / per_row * self.n];
        // by far the most folders: no field crosses a word, and no word another one
        if self.width == 32 && matches!(self.bits, 2 | 4 | 8) {
            let (per_word, mask) = (32 / self.bits as usize, u32::from(self.largest()));
            for (row, words) in out.chunks_exact_mut(self.n).zip(self.words.chunks_exact(per_row)) {
                for ((j, &word), fields) in words.iter().enumerate().zip(row.chunks_mut(per_word)) {
                    let mut word = word.wrapping_add(constant(j));
                    for field in fields {
                        *field = (word & mask) as u8;
                        word >>= self.bits;
                    }
                }
            }
            return out;
        }
        for (row, words) in out.chunks_exact_mut(self.n).zip(self.words.chunks_exact(per_row)) {
            for (i, run) in row.chunks_mut(32).enumerate() {
                let base = i * self.bits as usize;
                self.packing.unpack_run(self.bits, run, |j| self.plus(words, base + j, &constant));
            }
        }
        out
    }

    /// Word `j` plus its constant, added in words of the width that the file has.
    fn plus(&self, words: &[u32], j: usize, constant: &impl Fn(usize) -> u32) -> u32 {
        let (word, ones) = (words[j], constant(j));
        match self.width {
            8 => (0..4).fold(0, |w, i| w | (((word >> (8 * i)) as u8).wrapping_add((ones >> (8 * i)) as u8) as u32) << (8 * i)),
            16 => (word.wrapping_add(ones) & 0xffff) | (word >> 16).wrapping_add(ones >> 16) << 16,
            64 if j % 2 == 1 => {
                let (_, carry) = words[j - 1].overflowing_add(constant(j - 1));
                word.wrapping_add(ones).wrapping_add(u32::from(carry))
            }
            _ => word.wrapping_add(ones),
        }
    }

    /// The fields that a zero of 0 flooded, if the words are as AutoGPTQ packed them: it put `z - 1` of 32 bits into the word
    /// without a mask, so that a zero of 0 sets every bit from its own place to the end of the word. The lowest such field is
    /// a true 0; what those above it held is lost. Empty when nothing was lost, or when a field of all ones has other bits
    /// above it, which no such word has.
    pub(super) fn flooded(&self, raw: &[u8]) -> Vec<usize> {
        let (bits, largest, mut lost) = (self.bits as usize, self.largest(), vec![]);
        if self.width != 32 || self.packing != Packing::Continuous {
            return lost;
        }
        for (row, words) in self.words.chunks_exact(self.row_words()).enumerate() {
            for (j, &word) in words.iter().enumerate() {
                let end = (32 * (j + 1)).min(self.n * bits);
                // fields that begin in this word
                let mut fields = (32 * j).div_ceil(bits)..end.div_ceil(bits);
                if let Some(zero) = fields.find(|f| raw[row * self.n + f] == largest) {
                    let above = word >> (zero * bits - 32 * j);
                    if above.trailing_ones() as usize + zero * bits < end {
                        return vec![];
                    }
                    lost.extend(fields.map(|f| row * self.n + f));
                }
            }
        }
        lost
    }
}
