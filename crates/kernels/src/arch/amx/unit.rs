//! The few operations of a tile unit.

/// Bytes of a tile: 16 rows of 64.
pub(crate) const TILE_BYTES: usize = 1024;

/// How the tiles are set up, as `ldtilecfg` reads it: palette 1; all eight have 16 rows (bytes 48 to 55) of 64 bytes
/// (words 16 to 31).
pub(crate) static CONFIG: Config = Config(config());

/// A line of memory.
#[repr(align(64))]
pub(crate) struct Config(pub [u8; 64]);

const fn config() -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = 16;
        tile += 1;
    }
    bytes
}

/// Eight tiles of 16 rows of 64 bytes, zero when they begin.
///
/// # Safety
/// Every method needs the unit that the implementing type names, and tile numbers below 8; pointers are valid for
/// [`TILE_BYTES`]. Between `begin` and `end` the caller calls no function and runs no code that may panic: other code may
/// use the tiles too, and tiles that are left in use make every switch of the thread slower.
pub(crate) trait TileUnit {
    /// Sets the tiles up.
    unsafe fn begin() -> Self;
    /// Reads tile `T`.
    unsafe fn load<const T: u8>(&mut self, p: *const u8);
    /// Writes tile `T`.
    unsafe fn store<const T: u8>(&mut self, p: *mut u8);
    /// Clears tile `T`.
    unsafe fn zero<const T: u8>(&mut self);
    /// `C[m][n] += sum of A[m][k] * B[k][n]`: `C` has 16 wrapping `i32` a row, `A` 64 signed bytes a row, `B` in row i,
    /// 16 times over, the four signed bytes of `k = 4 i ..` of a column.
    unsafe fn dot<const C: u8, const A: u8, const B: u8>(&mut self);
    /// Gives the tiles back.
    unsafe fn end(self);
}
