//! Tiles of weights by closed forms: where the code of row `k`, column `n` goes.

use super::MarlinError;
use super::error::{check_codes, check_len, check_multiple, product};
use super::order::check_permutation;

/// Codes of a tile.
const TILE: usize = 1024;

/// Width of the activations that a kernel multiplies with; the tiles depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activations {
    /// `f16` or `bf16`: tiles of 16 rows by 64 columns.
    Bits16,
    /// `int8` or FP8 E4M3 ("a8"): tiles of 32 rows by 32 columns.
    Bits8,
}

/// A layout: the width of the codes and of the activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tiling {
    bits: u32,
    activations: Activations,
}

/// Where a code stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Index of the 32-bit word in the whole buffer.
    pub word: usize,
    /// Lowest bit of the code in that word.
    pub shift: u32,
}

impl Tiling {
    /// The layout of checkpoints: 4-bit codes for 16-bit activations.
    pub const CHECKPOINT: Tiling = Tiling { bits: 4, activations: Activations::Bits16 };

    /// The layout for codes of `bits` bits.
    ///
    /// # Errors
    /// [`MarlinError::Unsupported`] unless `bits` is 4 or 8.
    pub fn new(bits: u32, activations: Activations) -> Result<Self, MarlinError> {
        if !matches!(bits, 4 | 8) {
            return Err(MarlinError::unsupported("bits", "4 or 8", bits, "use a layout that has this width"));
        }
        Ok(Self { bits, activations })
    }

    /// Width of a code.
    pub fn bits(self) -> u32 {
        self.bits
    }

    /// Width of the activations.
    pub fn activations(self) -> Activations {
        self.activations
    }

    /// Codes in a word.
    pub fn pack_factor(self) -> usize {
        32 / self.bits as usize
    }

    /// Rows of a tile.
    pub fn tile_rows(self) -> usize {
        match self.activations {
            Activations::Bits16 => 16,
            Activations::Bits8 => 32,
        }
    }

    /// Checks that a `[k, n]` matrix has this layout, and tells how many words it takes. The buffer is seen as
    /// `[k / 16, 16 n / pack_factor]` whatever the rows of a tile.
    ///
    /// # Errors
    /// [`MarlinError::Unsupported`] unless `k` is a multiple of the rows of a tile and `n` of 64.
    pub fn words(self, k: usize, n: usize) -> Result<usize, MarlinError> {
        check_multiple("K (rows)", k, self.tile_rows())?;
        check_multiple("N (columns)", n, 64)?;
        Ok(product("K × N", k, n)? / self.pack_factor())
    }

    /// Where the code of row `k`, column `n` of a matrix of `columns` columns stands.
    ///
    /// A tile has 1024 codes, 32 for each lane of a warp. A lane holds one column out of eight (`col`) and, out of the
    /// rows, pairs (16-bit activations) or runs of four (8-bit): what one instruction takes.
    pub fn place(self, columns: usize, k: usize, n: usize) -> Place {
        let pf = self.pack_factor();
        let rows = self.tile_rows();
        let (row, in_row) = (k / rows, k % rows);
        let (tile, lane, word, position) = match self.activations {
            Activations::Bits16 => {
                let (high, pair, low) = (in_row / 8, in_row % 8 / 2, in_row % 2);
                let (w, half, col) = (n % 64 / 16, n % 16 / 8, n % 8);
                let (word, position) = match self.bits {
                    4 => {
                        let v = 2 * high + low + 4 * half;
                        (w, if v.is_multiple_of(2) { v / 2 } else { 4 + (v - 1) / 2 })
                    }
                    _ => (2 * w + half, 2 * low + high),
                };
                (n / 64, 4 * col + pair, word, position)
            }
            Activations::Bits8 => {
                let (high, run, i) = (in_row / 16, in_row % 16 / 4, in_row % 4);
                let (w, col) = (n % 32 / 8, n % 8);
                let (word, position) = match self.bits {
                    4 => (w, 2 * i + high),
                    _ => (2 * w + high, i),
                };
                (n / 32, 4 * col + run, word, position)
            }
        };
        let word = row * (rows * columns / pf) + tile * (TILE / pf) + lane * (32 / pf) + word;
        Place { word, shift: self.bits * position as u32 }
    }

    /// Hands out row, column and [`Tiling::place`] of every code of a `[k, n]` matrix. All tiles are alike, so the closed
    /// form is worked out for one.
    fn places(self, k: usize, n: usize, mut each: impl FnMut(usize, usize, Place)) {
        let (rows, words) = (self.tile_rows(), TILE / self.pack_factor());
        let columns = TILE / rows;
        let tile: Vec<Place> = (0..TILE).map(|i| self.place(columns, i / columns, i % columns)).collect();
        for row in 0..k {
            let places = &tile[row % rows * columns..][..columns];
            for col in (0..n).step_by(columns) {
                let base = (row / rows * (n / columns) + col / columns) * words;
                places.iter().enumerate().for_each(|(i, p)| each(row, col + i, Place { word: base + p.word, shift: p.shift }));
            }
        }
    }
}

/// Packs row-major codes `[k, n]` by closed forms.
///
/// # Errors
/// [`MarlinError`] when the layout does not have the sizes, or a code or their number is wrong.
pub fn pack(tiling: Tiling, codes: &[u8], k: usize, n: usize) -> Result<Vec<u32>, MarlinError> {
    checked(tiling, codes, k, n)?;
    Ok(tiled(tiling, codes, k, n))
}

/// [`pack`] for sizes and codes that have been checked.
pub(crate) fn tiled(tiling: Tiling, codes: &[u8], k: usize, n: usize) -> Vec<u32> {
    let mut words = vec![0; codes.len() / tiling.pack_factor()];
    tiling.places(k, n, |row, col, Place { word, shift }| words[word] |= u32::from(codes[row * n + col]) << shift);
    words
}

/// The codes of a packed matrix, row-major `[k, n]`: the inverse of [`pack`].
///
/// # Errors
/// [`MarlinError`] when the layout does not have the sizes, or the number of words is wrong.
pub fn unpack(tiling: Tiling, words: &[u32], k: usize, n: usize) -> Result<Vec<u8>, MarlinError> {
    check_len("words", tiling.words(k, n)?, words.len())?;
    let mask = (1 << tiling.bits) - 1;
    let mut codes = vec![0; k * n];
    tiling.places(k, n, |row, col, Place { word, shift }| codes[row * n + col] = (words[word] >> shift & mask) as u8);
    Ok(codes)
}

/// Repacks the words of a GPTQ `qweight`, `[k · bits / 32, n]`. With act-order, `perm` is the order that puts groups
/// together ([`super::sort_g_idx`]): row `i` of the result is row `perm[i]` of the weight.
///
/// # Errors
/// [`MarlinError`] when sizes do not fit, `perm` is no permutation, or there is one with 8-bit activations.
pub fn repack(tiling: Tiling, qweight: &[u32], k: usize, n: usize, perm: Option<&[u32]>) -> Result<Vec<u32>, MarlinError> {
    let count = tiling.words(k, n)?;
    check_len("qweight", count, qweight.len())?;
    check_order(tiling, perm, k)?;
    let (pf, mask) = (tiling.pack_factor(), (1 << tiling.bits) - 1);
    let mut words = vec![0; count];
    tiling.places(k, n, |row, col, Place { word, shift }| {
        let source = perm.map_or(row, |p| p[row] as usize);
        words[word] |= (qweight[source / pf * n + col] >> (tiling.bits * (source % pf) as u32) & mask) << shift;
    });
    Ok(words)
}

/// The words of the GPTQ `qweight` that [`repack`] was given: its inverse.
///
/// # Errors
/// As [`repack`].
pub fn unpack_to_gptq(tiling: Tiling, words: &[u32], k: usize, n: usize, perm: Option<&[u32]>) -> Result<Vec<u32>, MarlinError> {
    check_order(tiling, perm, k)?;
    check_len("words", tiling.words(k, n)?, words.len())?;
    let mut qweight = vec![0; words.len()];
    untiled(tiling, words, k, n, perm, &mut qweight);
    Ok(qweight)
}

/// [`unpack_to_gptq`] for sizes that have been checked, into words that are 0.
pub(crate) fn untiled(tiling: Tiling, words: &[u32], k: usize, n: usize, perm: Option<&[u32]>, qweight: &mut [u32]) {
    let (pf, mask) = (tiling.pack_factor(), (1 << tiling.bits) - 1);
    tiling.places(k, n, |row, col, Place { word, shift }| {
        let target = perm.map_or(row, |p| p[row] as usize);
        qweight[target / pf * n + col] |= (words[word] >> shift & mask) << (tiling.bits * (target % pf) as u32);
    });
}

/// Checks codes and sizes; the number of words.
pub(super) fn checked(tiling: Tiling, codes: &[u8], k: usize, n: usize) -> Result<usize, MarlinError> {
    let count = tiling.words(k, n)?;
    check_len("codes", k * n, codes.len())?;
    check_codes("codes", codes, tiling.bits)?;
    Ok(count)
}

fn check_order(tiling: Tiling, perm: Option<&[u32]>, k: usize) -> Result<(), MarlinError> {
    match perm {
        None => Ok(()),
        Some(_) if tiling.activations == Activations::Bits8 => Err(MarlinError::unsupported(
            "perm",
            "no act-order with 8-bit activations",
            "a permutation of rows",
            "use 16-bit activations, or a checkpoint without act-order",
        )),
        Some(perm) => check_permutation(perm, k),
    }
}
