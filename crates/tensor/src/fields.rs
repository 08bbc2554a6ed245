//! Where one code lies in the words of its run: for those who explain a file, not for those who read it.

use crate::Packing;
use crate::codes::PLANES;

/// Some bits of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BitField {
    /// The word, counted from the first of the code's run of 32.
    pub word: usize,
    /// Lowest bit in the word.
    pub offset: u32,
    /// Number of bits.
    pub width: u32,
    /// Lowest bit in the code.
    pub shift: u32,
}

impl BitField {
    /// What these bits add to the code, given the word they lie in.
    pub fn part(&self, word: u32) -> u32 {
        (word >> self.offset & ((1 << self.width) - 1)) << self.shift
    }
}

impl Packing {
    /// Where code `index` (below 32) of a run lies: one field, two if it crosses a word, or one for each plane.
    ///
    /// # Panics
    /// If `bits` is above 8.
    pub fn fields(self, bits: u32, index: usize) -> Vec<BitField> {
        match self {
            Packing::Continuous => {
                let bit = index as u32 * bits;
                let (word, offset) = ((bit / 32) as usize, bit % 32);
                let width = bits.min(32 - offset);
                let mut fields = vec![BitField { word, offset, width, shift: 0 }];
                if width < bits {
                    fields.push(BitField { word: word + 1, offset: 0, width: bits - width, shift: width });
                }
                fields
            }
            Packing::Planar => {
                let (mut shift, mut base) = (0, 0);
                let plane = |&width: &u32| {
                    let per = 32 / width as usize;
                    let field = BitField { word: base + index / per, offset: width * (index % per) as u32, width, shift };
                    shift += width;
                    base += width as usize;
                    field
                };
                PLANES[bits as usize].iter().map(plane).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_put_together_are_the_code() {
        let words: Vec<u32> = (1..=8u32).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
        for packing in [Packing::Continuous, Packing::Planar] {
            for bits in 2..=8 {
                let mut codes = [0; 32];
                packing.unpack_run(bits, &mut codes, |j| words[j]);
                for (i, &code) in codes.iter().enumerate() {
                    let parts = packing.fields(bits, i);
                    assert_eq!(parts.iter().map(|f| f.part(words[f.word])).sum::<u32>(), u32::from(code), "{packing:?} {bits} {i}");
                    assert_eq!(parts.iter().map(|f| f.width).sum::<u32>(), bits);
                }
            }
        }
        assert_eq!(Packing::Continuous.fields(3, 10).len(), 2, "3-bit code 10 crosses a word");
        assert_eq!(Packing::Planar.fields(7, 0).len(), 3);
    }
}
