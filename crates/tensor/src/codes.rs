//! Integer codes of a quantized matrix, as packed words or as bytes.
//!
//! Packed words run *down the rows* (along K): column `n` of `words[W, N]` is a stream of 32-bit words that holds the
//! codes of column `n` for k = 0, 1, 2 … Each run of 32 codes is exactly `bits` words, in one of two packings:
//!
//! * [`Packing::Continuous`]: one bit stream, least significant bit first; code `i` of a run takes bits
//!   `i*bits .. (i+1)*bits` of the 32·bits-bit run. (For 2, 4 and 8 bits no code crosses a word.)
//! * [`Packing::Planar`] (`gptq_p`): the code is cut into planes of 8, 4, 2 or 1 bits, low plane first
//!   (5 = 4+1, 6 = 4+2, 7 = 4+2+1); a plane of `w` bits takes `w` words of `32/w` fields each.

use crate::TensorError;
use std::ops::Range;

/// How a run of 32 codes is laid out in its `bits` words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// One contiguous bit stream.
    Continuous,
    /// Planes of 8, 4, 2 and 1 bits.
    Planar,
}

/// Widths of the planes of a code of `bits` bits, low plane first.
pub(crate) const PLANES: [&[u32]; 9] = [&[], &[], &[2], &[2, 1], &[4], &[4, 1], &[4, 2], &[4, 2, 1], &[8]];

impl Packing {
    /// Words of `u32` that hold `count` codes of `bits` bits.
    ///
    /// A run that is not full takes only the words that its codes reach in the continuous packing, and a whole run of
    /// `bits` words in the planar one (whose planes need all 32 fields).
    pub fn words(self, bits: u32, count: usize) -> usize {
        match self {
            Packing::Continuous => (count as u128 * u128::from(bits)).div_ceil(32) as usize,
            Packing::Planar => count.div_ceil(32).saturating_mul(bits as usize),
        }
    }

    /// Unpacks one run of up to 32 codes from its words. `word(j)` gives word `j` of the run.
    pub fn unpack_run(self, bits: u32, out: &mut [u8], word: impl Fn(usize) -> u32) {
        debug_assert!(out.len() <= 32);
        let mask = (1u32 << bits) - 1;
        match self {
            Packing::Continuous => {
                for (i, o) in out.iter_mut().enumerate() {
                    let bit = i * bits as usize;
                    let (w, shift) = (bit / 32, (bit % 32) as u32);
                    let mut v = word(w) >> shift;
                    if shift + bits > 32 {
                        v |= word(w + 1) << (32 - shift);
                    }
                    *o = (v & mask) as u8;
                }
            }
            Packing::Planar => {
                for (i, o) in out.iter_mut().enumerate() {
                    let (mut v, mut shift, mut base) = (0, 0, 0);
                    for &width in PLANES[bits as usize] {
                        let per = 32 / width as usize;
                        let field = word(base + i / per) >> (width * (i % per) as u32);
                        v |= (field & ((1 << width) - 1)) << shift;
                        shift += width;
                        base += width as usize;
                    }
                    *o = v as u8;
                }
            }
        }
    }

    /// Packs one run of up to 32 codes; missing codes count as 0. `put(j, word)` receives words `0..words(bits, len)`.
    pub fn pack_run(self, bits: u32, codes: &[u8], mut put: impl FnMut(usize, u32)) {
        debug_assert!(codes.len() <= 32);
        let mut words = [0u32; 9];
        let mask = (1u32 << bits) - 1;
        for (i, &c) in codes.iter().enumerate() {
            let c = u32::from(c) & mask;
            match self {
                Packing::Continuous => {
                    let bit = i * bits as usize;
                    let (w, shift) = (bit / 32, (bit % 32) as u32);
                    words[w] |= c << shift;
                    if shift + bits > 32 {
                        words[w + 1] |= c >> (32 - shift);
                    }
                }
                Packing::Planar => {
                    let (mut shift, mut base) = (0, 0);
                    for &width in PLANES[bits as usize] {
                        let per = 32 / width as usize;
                        words[base + i / per] |= (c >> shift & ((1 << width) - 1)) << (width * (i % per) as u32);
                        shift += width;
                        base += width as usize;
                    }
                }
            }
        }
        for (j, w) in words.iter().enumerate().take(self.words(bits, codes.len())) {
            put(j, *w);
        }
    }
}

/// The codes of a `[K, N]` matrix.
#[derive(Clone, Debug)]
pub enum Codes {
    /// One byte a code, row-major `[K, N]`.
    Bytes(Vec<u8>),
    /// Packed down the rows: row-major `[words(bits, K), N]`.
    Words {
        /// The words.
        words: Vec<u32>,
        /// How each run of 32 codes is laid out.
        packing: Packing,
    },
}

impl Codes {
    /// Packs row-major `[K, N]` bytes into words.
    pub fn pack(bytes: &[u8], n: usize, bits: u32, packing: Packing) -> Codes {
        let k = bytes.len() / n.max(1);
        let mut words = vec![0u32; packing.words(bits, k) * n];
        let mut run = [0u8; 32];
        for k0 in (0..k).step_by(32) {
            let len = (k - k0).min(32);
            for col in 0..n {
                for i in 0..len {
                    run[i] = bytes[(k0 + i) * n + col];
                }
                packing.pack_run(bits, &run[..len], |j, w| words[(k0 / 32 * bits as usize + j) * n + col] = w);
            }
        }
        Codes::Words { words, packing }
    }

    /// Checks that the store holds exactly the codes of a `[k, n]` matrix.
    ///
    /// # Errors
    /// [`TensorError::Length`].
    pub fn check(&self, bits: u32, k: usize, n: usize) -> Result<(), TensorError> {
        let (found, rows) = match self {
            Codes::Bytes(b) => (b.len(), k),
            Codes::Words { words, packing } => (words.len(), packing.words(bits, k)),
        };
        let expected = rows.saturating_mul(n);
        if found != expected {
            return Err(TensorError::Length { part: "codes", expected, found });
        }
        if let Codes::Bytes(b) = self
            && let Some(index) = b.iter().position(|&c| u32::from(c) >> bits != 0)
        {
            let (expected, found) = (format!("a code below {}", 1u32 << bits), b[index].to_string());
            return Err(TensorError::Value { part: "codes", index, expected, found });
        }
        Ok(())
    }

    /// Writes rows `k0 ..` of columns `cols` as bytes, row-major `[rows, cols.len()]`; `k0` is a multiple of 32 and
    /// `out` holds at most 32 rows. `n` is the number of columns of the whole matrix.
    ///
    /// # Panics
    /// If `k0` is not a multiple of 32, more than 32 rows are asked for, or the rows or columns do not exist.
    pub fn unpack_rows(&self, bits: u32, n: usize, k0: usize, cols: Range<usize>, out: &mut [u8]) {
        let width = cols.len();
        let rows = out.len() / width;
        assert!(k0.is_multiple_of(32) && rows <= 32 && cols.end <= n, "rows are unpacked in aligned runs of 32");
        match self {
            Codes::Bytes(b) => {
                for (i, row) in out.chunks_exact_mut(width).enumerate() {
                    row.copy_from_slice(&b[(k0 + i) * n..][cols.clone()]);
                }
            }
            Codes::Words { words, packing } => {
                let run = &words[k0 / 32 * bits as usize * n..];
                match bits {
                    2 | 4 | 8 => unpack_aligned(run, bits, n, cols, out),
                    _ => {
                        let mut codes = [0u8; 32];
                        for (i, col) in cols.enumerate() {
                            packing.unpack_run(bits, &mut codes[..rows], |j| run[j * n + col]);
                            for (r, &code) in codes[..rows].iter().enumerate() {
                                out[r * width + i] = code;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The common widths, where both packings agree and no code crosses a word: whole rows at a time.
fn unpack_aligned(run: &[u32], bits: u32, n: usize, cols: Range<usize>, out: &mut [u8]) {
    let per = 32 / bits as usize;
    let mask = (1u32 << bits) - 1;
    for (i, row) in out.chunks_exact_mut(cols.len()).enumerate() {
        let words = &run[i / per * n..][cols.clone()];
        let shift = bits * (i % per) as u32;
        for (o, w) in row.iter_mut().zip(words) {
            *o = (w >> shift & mask) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words_of(packing: Packing, bits: u32) -> Vec<u32> {
        let codes: Vec<u8> = (0..32u32).map(|i| (i % (1 << bits)) as u8).collect();
        let mut out = vec![];
        packing.pack_run(bits, &codes, |_, w| out.push(w));
        out
    }

    /// Words computed by hand or by other programs (formats reference, sections 2.4 and 3.1).
    #[test]
    fn packs_the_published_words() {
        assert_eq!(words_of(Packing::Continuous, 4)[..2], [0x7654_3210, 0xfedc_ba98]);
        assert_eq!(words_of(Packing::Continuous, 2), [0xe4e4_e4e4; 2]);
        assert_eq!(words_of(Packing::Continuous, 8)[..2], [0x0302_0100, 0x0706_0504]);
        assert_eq!(words_of(Packing::Continuous, 3), [0x88fa_c688, 0xc688_fac6, 0xfac6_88fa]);
        assert_eq!(words_of(Packing::Planar, 3), [0xe4e4_e4e4, 0xe4e4_e4e4, 0xf0f0_f0f0]);
        let low = [0x7654_3210, 0xfedc_ba98, 0x7654_3210, 0xfedc_ba98];
        assert_eq!(words_of(Packing::Planar, 5), [&low[..], &[0xffff_0000]].concat());
        assert_eq!(words_of(Packing::Planar, 6), [&low[..], &[0, 0x5555_5555]].concat());
        assert_eq!(words_of(Packing::Planar, 7), [&low[..], &[0, 0x5555_5555, 0]].concat());
        for bits in [2, 4, 8] {
            assert_eq!(words_of(Packing::Planar, bits), words_of(Packing::Continuous, bits));
        }
    }

    proptest! {
        #[test]
        fn unpack_undoes_pack(bits in 2u32..=8, planar: bool, k in 1usize..100, n in 1usize..9, seed: u64) {
            let packing = if planar { Packing::Planar } else { Packing::Continuous };
            let mut s = seed | 1;
            let bytes: Vec<u8> = (0..k * n).map(|_| { s ^= s << 13; s ^= s >> 7; s ^= s << 17; (s >> 32) as u8 & ((1u32 << bits) - 1) as u8 }).collect();
            let codes = Codes::pack(&bytes, n, bits, packing);
            codes.check(bits, k, n).unwrap();
            let mut back = vec![0; k * n];
            for (i, rows) in back.chunks_mut(32 * n).enumerate() {
                let half = n / 2;
                let count = rows.len() / n;
                let (mut left, mut right) = (vec![0; count * half], vec![0; count * (n - half)]);
                if half > 0 {
                    codes.unpack_rows(bits, n, i * 32, 0..half, &mut left);
                }
                codes.unpack_rows(bits, n, i * 32, half..n, &mut right);
                for (r, row) in rows.chunks_exact_mut(n).enumerate() {
                    row[..half].copy_from_slice(&left[r * half..][..half]);
                    row[half..].copy_from_slice(&right[r * (n - half)..][..n - half]);
                }
            }
            prop_assert_eq!(back, bytes);
        }
    }

    #[test]
    fn check_refuses_wrong_lengths_and_values() {
        assert!(Codes::Bytes(vec![0; 5]).check(4, 2, 3).is_err());
        assert!(Codes::Bytes(vec![16]).check(4, 1, 1).is_err());
        assert!(Codes::Words { words: vec![0; 3], packing: Packing::Continuous }.check(3, 32, 1).is_ok());
        assert!(Codes::Words { words: vec![0; 4], packing: Packing::Continuous }.check(3, 32, 1).is_err());
    }
}
