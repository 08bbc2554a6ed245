//! Tiles of weights by a permutation table: the same words as the closed forms, derived another way.
//!
//! The table lists, for each lane in turn, the places that the lane reads in tiles of rows by 16 columns, and then
//! interleaves each word's codes.

use super::tile::checked;
use super::{Activations, MarlinError, Tiling};

/// Columns of a tile in the table's view.
const TILE_COLUMNS: usize = 16;

/// The order of the codes inside a word: position `p` holds the code that comes `interleave[p]`th.
pub(super) fn interleave(tiling: Tiling) -> &'static [usize] {
    match (tiling.bits(), tiling.activations()) {
        (4, Activations::Bits16) => &[0, 2, 4, 6, 1, 3, 5, 7],
        (4, Activations::Bits8) => &[0, 4, 1, 5, 2, 6, 3, 7],
        (_, Activations::Bits16) => &[0, 2, 1, 3],
        (_, Activations::Bits8) => &[0, 1, 2, 3],
    }
}

/// The permutation of 1024 codes: place `i` of the result is place `weight_perm[i]` of the tiles.
pub fn weight_perm(tiling: Tiling) -> Vec<usize> {
    let (step, offsets, tiles, stride): (_, &[usize], _, _) = match tiling.activations() {
        Activations::Bits16 => (2, &[0, 1, 8, 9], 4, 256),
        Activations::Bits8 => (4, &[0, 1, 2, 3, 16, 17, 18, 19], 2, 512),
    };
    let mut perm = Vec::with_capacity(1024);
    for lane in 0..32 {
        let column = lane / 4;
        for tile in 0..tiles {
            for block in 0..2 {
                for offset in offsets {
                    let row = step * (lane % 4) + offset;
                    perm.push(TILE_COLUMNS * row + column + 8 * block + stride * tile);
                }
            }
        }
    }
    let order = interleave(tiling);
    perm.chunks_exact(order.len()).flat_map(|chunk| order.iter().map(|&i| chunk[i])).collect()
}

/// Packs row-major codes `[k, n]` through [`weight_perm`].
///
/// # Errors
/// As [`super::pack`].
pub fn pack_by_table(tiling: Tiling, codes: &[u8], k: usize, n: usize) -> Result<Vec<u32>, MarlinError> {
    checked(tiling, codes, k, n)?;
    let rows = tiling.tile_rows();
    let mut tiles = Vec::with_capacity(codes.len());
    for row in 0..k / rows {
        for column in 0..n / TILE_COLUMNS {
            for i in 0..rows {
                tiles.extend_from_slice(&codes[(row * rows + i) * n + column * TILE_COLUMNS..][..TILE_COLUMNS]);
            }
        }
    }
    let perm = weight_perm(tiling);
    let gathered: Vec<u8> = tiles.chunks_exact(perm.len()).flat_map(|block| perm.iter().map(|&i| block[i])).collect();
    Ok(gathered.chunks_exact(tiling.pack_factor()).map(|codes| word(codes, tiling.bits())).collect())
}

/// Codes of one word, the first in the lowest bits.
pub(super) fn word(codes: &[u8], bits: u32) -> u32 {
    codes.iter().rev().fold(0, |word, &code| word << bits | u32::from(code))
}
