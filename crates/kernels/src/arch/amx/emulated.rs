//! A tile unit of plain arrays, as the processor's manual describes it: it reads the same configuration, and every
//! operation takes the rows and bytes of its tiles from there.

use super::unit::{CONFIG, TileUnit};

#[derive(Clone, Copy)]
struct Tile {
    rows: usize,
    row_bytes: usize,
    bytes: [[u8; 64]; 16],
}

/// Eight tiles in memory.
pub(crate) struct Emulated([Tile; 8]);

// SAFETY of every block below: the pointer is valid for a tile, by the contract of `TileUnit`.
impl TileUnit for Emulated {
    unsafe fn begin() -> Self {
        let config = &CONFIG.0;
        assert_eq!(config[0], 1, "palette");
        let reserved = config[1..16].iter().chain(&config[32..48]).chain(&config[56..]);
        assert!(reserved.copied().all(|b| b == 0), "reserved bytes");
        Self(std::array::from_fn(|t| {
            let row_bytes = usize::from(u16::from_le_bytes([config[16 + 2 * t], config[17 + 2 * t]]));
            let rows = usize::from(config[48 + t]);
            assert!(rows <= 16 && row_bytes <= 64, "tile {t}");
            Tile { rows, row_bytes, bytes: [[0; 64]; 16] }
        }))
    }
    unsafe fn load<const T: u8>(&mut self, p: *const u8) {
        let tile = &mut self.0[usize::from(T)];
        for (r, row) in tile.bytes.iter_mut().enumerate() {
            *row = [0; 64];
            for (i, byte) in row.iter_mut().enumerate().take(if r < tile.rows { tile.row_bytes } else { 0 }) {
                // SAFETY: inside the tile at `p`.
                *byte = unsafe { *p.add(64 * r + i) };
            }
        }
    }
    unsafe fn store<const T: u8>(&mut self, p: *mut u8) {
        let tile = &self.0[usize::from(T)];
        for (r, row) in tile.bytes.iter().enumerate().take(tile.rows) {
            for (i, byte) in row.iter().enumerate().take(tile.row_bytes) {
                // SAFETY: inside the tile at `p`.
                unsafe { *p.add(64 * r + i) = *byte };
            }
        }
    }
    unsafe fn zero<const T: u8>(&mut self) {
        self.0[usize::from(T)].bytes = [[0; 64]; 16];
    }
    unsafe fn dot<const C: u8, const A: u8, const B: u8>(&mut self) {
        let [mut c, a, b] = [C, A, B].map(|t| self.0[usize::from(t)]);
        assert!(C != A && C != B && A != B, "three tiles");
        assert!(c.rows == a.rows && c.row_bytes == b.row_bytes && a.row_bytes == 4 * b.rows, "tiles that fit each other");
        for m in 0..c.rows {
            for n in 0..c.row_bytes / 4 {
                let place = 4 * n..4 * n + 4;
                let mut sum = i32::from_le_bytes(c.bytes[m][place.clone()].try_into().unwrap());
                for k in 0..b.rows {
                    for (x, w) in a.bytes[m][4 * k..4 * k + 4].iter().zip(&b.bytes[k][place.clone()]) {
                        sum = sum.wrapping_add(i32::from(*x as i8) * i32::from(*w as i8));
                    }
                }
                c.bytes[m][place].copy_from_slice(&sum.to_le_bytes());
            }
        }
        self.0[usize::from(C)] = c;
    }
    unsafe fn end(self) {}
}
