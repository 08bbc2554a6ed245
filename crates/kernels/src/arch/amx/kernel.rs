//! The matmul kernel of a tile unit: up to four tiles of activation rows times one panel of 64 packed columns.
//!
//! The numbers are those of [`panel`](crate::arch::generic::panel): per block exact integer sums with the zero point taken off,
//! then one fused multiply-add. Here the zero point comes off while codes are unpacked, because `q - z` is a signed byte;
//! only codes of 8 bits with zero points of their own have 128 taken off instead and the rest in the sums.
//!
//! A step of the unit is 16 rows of activations times 64 k times 16 columns. A *turn* is a block of the panel (one or two
//! steps) for 32 columns and one tile of rows: two (three planes: three) tiles of activations times two of weights. A
//! turn's activations are two planes of 16 rows, three planes of 16 rows, or one plane of 32.
//!
//! ```text
//! for half a panel:  for each block:  for each tile of rows:  a turn
//! ```
//!
//! The unit is kept busy: while it multiplies, sums of the turn before are converted and added to the result, and codes
//! of the next block are unpacked. A sum is stored just before its tile is used anew, when it has long been ready.

use super::unit::{TILE_BYTES, TileUnit};
use crate::arch::generic::TileArgs;
use crate::arch::generic::panel::{lines, load, quads, scales, unpack, zero_term};
use crate::arch::vector::Vector;
use crate::arch::{BAND_TILES, band_rows};
use crate::pack::{BLOCK, BlockAt, PANEL, STEP, ZeroKind};
use std::hint::black_box;

/// Tiles of sums of a turn, at most.
const SUMS: usize = 6;
/// Columns of a turn.
const WIDTH: usize = PANEL / 2;

/// Codes of two blocks, unpacked for 32 columns, and sums of two turns: `[step][vector][16 rows]` and
/// `[tile of activations][vector][16 rows]` lines.
#[repr(align(64))]
struct Room {
    codes: [[u8; BLOCK / STEP * 2 * TILE_BYTES]; 2],
    sums: [[u8; SUMS * TILE_BYTES]; 2],
}

/// A block's codes on their way to tiles.
struct Unpacking<V: Vector> {
    /// First line.
    data: *const u8,
    codes: *mut u8,
    /// What is taken off each byte.
    offsets: [V::I; 2],
    /// The next chunk of a vector of columns.
    next: usize,
    count: usize,
}

/// Whether a part of the zero points stays for the sums.
fn rest<const BITS: u32>(a: &TileArgs) -> bool {
    BITS == 8 && !matches!(a.zero, ZeroKind::Midpoint(_))
}

impl<V: Vector> Unpacking<V> {
    /// Columns `16 * v0..16 * v0 + 32` of `block`.
    #[inline(always)]
    unsafe fn new<const BITS: u32>(a: &TileArgs, block: &BlockAt, v0: usize, codes: *mut u8) -> Self {
        // SAFETY: by the contract of `band`.
        unsafe {
            let zeros = a.panel.add(block.head + PANEL * a.scale.bytes());
            let mut offsets = [V::splat_i(128); 2];
            for (i, offset) in offsets.iter_mut().enumerate() {
                match a.zero {
                    ZeroKind::Midpoint(z) => *offset = V::splat_i(i32::from(z)),
                    ZeroKind::U8 if BITS != 8 => *offset = V::load_u8(zeros.add(16 * (v0 + i))),
                    _ => {}
                }
                *offset = V::mul_i(*offset, V::splat_i(0x0101_0101));
            }
            let data = a.panel.add(block.data + v0 * lines(BITS) * 64);
            Unpacking { data, codes, offsets, next: 0, count: 2 * block.chunks }
        }
    }

    /// Unpacks the next `chunks`, as far as there are any.
    #[inline(always)]
    unsafe fn run<const BITS: u32>(&mut self, chunks: usize) {
        let end = if self.count - self.next < chunks { self.count } else { self.next + chunks };
        while self.next < end {
            let (c, v) = (self.next / 2, self.next % 2);
            let quad = c * quads(BITS);
            // SAFETY: a chunk of the block, whose quads are rows of one tile of the room for codes.
            unsafe {
                let w = load::<V, BITS>(self.data.add((4 * c + v) * lines(BITS) * 64));
                let offset = *self.offsets.as_ptr().add(v);
                let to = self.codes.add((quad / 16 * 2 + v) * TILE_BYTES + quad % 16 * 64);
                for i in 0..quads(BITS) {
                    V::store_f(to.add(64 * i).cast(), V::bits_f(V::sub_bytes(unpack::<V, BITS>(&w, i), offset)));
                }
            }
            self.next += 1;
        }
    }
}

/// The sums of a turn and what becomes of them.
struct Turn<V: Vector> {
    sums: *mut u8,
    /// The result of its rows, `[rows][32]`.
    out: *mut f32,
    x_scales: *const f32,
    x_sums: *const i32,
    head: *const u8,
    v0: usize,
    scales: [V::F; 2],
    /// Rows of the tile; none of a turn that there is not.
    rows: usize,
}

/// Adds rows `from..to` of a turn to the result.
#[inline(always)]
unsafe fn finish<V: Vector, const BITS: u32, const P: usize>(a: &TileArgs, turn: &Turn<V>, from: usize, to: usize) {
    for r in from..to {
        // SAFETY: the row lies in the tile; the rest by the contract of `band`.
        unsafe {
            let x_scale = V::splat_f(*turn.x_scales.add(r));
            for v in 0..2 {
                let at = turn.sums.add(v * TILE_BYTES + r % 16 * 64);
                let mut low = V::load_i(at.add(r / 16 * 2 * TILE_BYTES));
                if P > 1 {
                    low = V::add_i(low, V::shl_i::<8>(V::load_i(at.add(2 * TILE_BYTES))));
                }
                let mut top = V::splat_i(0);
                if P == 3 {
                    top = V::load_i(at.add(4 * TILE_BYTES));
                }
                if rest::<BITS>(a) {
                    // (128 - z) times the sum of the activations
                    let sum = *turn.x_sums.add(r);
                    let term = V::add_i(V::splat_i(sum.wrapping_mul(128)), zero_term::<V>(a, turn.head, turn.v0 + v, sum));
                    low = V::add_i(low, term);
                    if P == 3 {
                        let sum = *turn.x_sums.add(band_rows(P) + r);
                        let term = V::add_i(V::splat_i(sum.wrapping_mul(128)), zero_term::<V>(a, turn.head, turn.v0 + v, sum));
                        top = V::add_i(top, term);
                    }
                }
                let mut d = V::to_f(low);
                if P == 3 {
                    d = V::fma(V::splat_f(65536.0), V::to_f(top), d);
                }
                let out = turn.out.add(r * WIDTH + 16 * v);
                V::store_f(out, V::fma(d, V::mul_f(turn.scales[v], x_scale), V::load_f(out)));
            }
        }
    }
}

/// A step of a turn: every product of its tiles of activations at `x` and of codes at `w`. Beside them rows `from..to` of
/// the turn `done` are added to the result and codes are unpacked, `chunks` a product. In the first step of a turn each
/// sum of the turn before is stored to `sums` first.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // an inlined part of a loop
unsafe fn step<V: Vector, U: TileUnit, const BITS: u32, const P: usize, const FIRST: bool>(
    a: &TileArgs,
    unit: &mut U,
    x: *const u8,
    w: *const u8,
    sums: *mut u8,
    done: &Turn<V>,
    (from, to): (usize, usize),
    unpacking: &mut Unpacking<V>,
    chunks: usize,
) {
    macro_rules! product {
        ($i:literal of $n:literal, [$($tile:literal: $at:expr),*], $c:literal += $x:literal * $w:literal) => {
            $(unit.load::<$tile>($at);)*
            if FIRST {
                unit.store::<$c>(sums.add($c * TILE_BYTES));
                unit.zero::<$c>();
            }
            unit.dot::<$c, $x, $w>();
            finish::<V, BITS, P>(a, done, from + (to - from) * $i / $n, from + (to - from) * ($i + 1) / $n);
            unpacking.run::<BITS>(chunks);
        };
    }
    // SAFETY: by the contract of `band`.
    unsafe {
        if P < 3 {
            product!(0 of 4, [4: x, 6: w], 0 += 4 * 6);
            product!(1 of 4, [7: w.add(TILE_BYTES)], 1 += 4 * 7);
            product!(2 of 4, [5: x.add(TILE_BYTES)], 2 += 5 * 6);
            product!(3 of 4, [], 3 += 5 * 7);
        } else {
            product!(0 of 6, [7: w, 6: x], 0 += 6 * 7);
            product!(1 of 6, [6: x.add(TILE_BYTES)], 2 += 6 * 7);
            product!(2 of 6, [6: x.add(2 * TILE_BYTES)], 4 += 6 * 7);
            product!(3 of 6, [7: w.add(TILE_BYTES)], 5 += 6 * 7);
            product!(4 of 6, [6: x.add(TILE_BYTES)], 3 += 6 * 7);
            product!(5 of 6, [6: x], 1 += 6 * 7);
        }
    }
}

/// `tiles` tiles of rows of `P` planes times one panel.
///
/// # Safety
/// The instruction set of `V` and the tile unit `U`; the panel holds every block and head of `a.blocks`, of which there
/// is at least one; there are 1 to [`BAND_TILES`] tiles; `x`, `x_scales`, `x_sums` and `out` hold what the docs of
/// [`BandFn`](crate::arch::BandFn) say for each of them.
#[inline(always)]
pub(crate) unsafe fn band<V: Vector, U: TileUnit, const BITS: u32, const P: usize>(a: &TileArgs, tiles: usize) {
    let mut room = Room { codes: [[0; _]; 2], sums: [[0; _]; 2] };
    let (codes, sums) = (room.codes.as_mut_ptr(), room.sums.as_mut_ptr());
    let (blocks, count, tiles) = (a.blocks.as_ptr(), a.blocks.len(), tiles.clamp(1, BAND_TILES));
    let (rows, sum_kinds) = (band_rows(P), if P == 3 { 2 } else { 1 });
    // dwords of a step of one tile of rows
    let step_x = rows * P * STEP / 4;
    // SAFETY: by the contract above; every offset is one that the packer or the quantizer wrote.
    unsafe {
        let last = &*blocks.add(count - 1);
        let tile_x = (last.x_steps + last.steps()) * step_x;
        for i in 0..tiles * rows * PANEL / 16 {
            V::store_f(a.out.add(16 * i), V::splat_f(0.0));
        }
        // of each product, so that the largest block is unpacked in the turns of another
        let products = if P < 3 { 8 } else { 12 };
        let chunks = (2 * BLOCK / (4 * quads(BITS))).div_ceil(tiles * products);

        let mut turn = Turn {
            sums: sums.add(1).cast(),
            out: a.out,
            x_scales: a.x_scales,
            x_sums: a.x_sums,
            head: a.panel,
            v0: 0,
            scales: [V::splat_f(0.0); 2],
            rows: 0,
        };
        let mut done = Turn { ..turn };
        // rows of `done` that are in the result
        let mut from = 0;
        let (mut this, mut next): (*mut u8, *mut u8) = (codes.cast(), codes.add(1).cast());
        let mut other: *mut u8 = sums.cast();
        Unpacking::<V>::new::<BITS>(a, &*blocks, 0, this).run::<BITS>(usize::MAX);

        let mut unit = U::begin();
        for half in 0..2 {
            for b in 0..count {
                let block = &*blocks.add(b);
                let ahead = if b + 1 < count { b + 1 } else { 0 };
                let mut unpacking = Unpacking::<V>::new::<BITS>(a, &*blocks.add(ahead), if ahead == 0 { 2 } else { 2 * half }, next);
                if half == 1 && ahead == 0 {
                    unpacking.count = 0;
                }
                let head = a.panel.add(block.head);
                let scales = [scales::<V>(a, head, 2 * half), scales::<V>(a, head, 2 * half + 1)];
                for t in 0..tiles {
                    let x: *const u8 = a.x.add(t * tile_x + block.x_steps * step_x).cast();
                    step::<V, U, BITS, P, true>(a, &mut unit, x, this, turn.sums, &done, (from, done.rows), &mut unpacking, chunks);
                    // whose sums were just stored
                    (done, from) = (turn, 0);
                    if block.len > STEP {
                        let (x, w) = (x.add(4 * step_x), this.add(2 * TILE_BYTES));
                        from = done.rows / 2;
                        step::<V, U, BITS, P, false>(a, &mut unit, x, w, other, &done, (0, from), &mut unpacking, chunks);
                    }
                    turn = Turn {
                        sums: other,
                        out: a.out.add((half * tiles + t) * rows * WIDTH),
                        x_scales: a.x_scales.add((t * count + b) * rows),
                        x_sums: a.x_sums.add((t * count + b) * sum_kinds * rows),
                        head,
                        v0: 2 * half,
                        scales,
                        rows,
                    };
                    other = done.sums;
                }
                unpacking.run::<BITS>(usize::MAX);
                (this, next) = (next, this);
            }
        }
        finish::<V, BITS, P>(a, &done, from, done.rows);
        unit.store::<0>(turn.sums);
        unit.store::<1>(turn.sums.add(TILE_BYTES));
        unit.store::<2>(turn.sums.add(2 * TILE_BYTES));
        unit.store::<3>(turn.sums.add(3 * TILE_BYTES));
        if P == 3 {
            unit.store::<4>(turn.sums.add(4 * TILE_BYTES));
            unit.store::<5>(turn.sums.add(5 * TILE_BYTES));
        }
        unit.end();
        finish::<V, BITS, P>(a, &turn, 0, turn.rows);
    }
}

/// Multiply-adds of a round of [`probe`].
pub(crate) const PROBE_WORK: usize = 4 * 16 * 16 * 64;

/// `rounds` times four products of tiles of bytes that are not 0: zeros are multiplied faster.
///
/// # Safety
/// The tile unit `U`.
#[inline(always)]
pub(crate) unsafe fn probe<U: TileUnit>(rounds: usize) -> i32 {
    let bytes: [u8; 4 * TILE_BYTES] = black_box(std::array::from_fn(|i| (i * 167 % 255) as u8 + 1));
    let mut sums = [[0u8; TILE_BYTES]; 4];
    let (p, out) = (bytes.as_ptr(), sums.as_mut_ptr());
    // SAFETY: each pointer is valid for a tile.
    unsafe {
        let mut unit = U::begin();
        unit.load::<4>(p);
        unit.load::<5>(p.add(TILE_BYTES));
        unit.load::<6>(p.add(2 * TILE_BYTES));
        unit.load::<7>(p.add(3 * TILE_BYTES));
        for _ in 0..rounds {
            unit.dot::<0, 4, 6>();
            unit.dot::<1, 4, 7>();
            unit.dot::<2, 5, 6>();
            unit.dot::<3, 5, 7>();
        }
        unit.store::<0>(out.cast());
        unit.store::<1>(out.add(1).cast());
        unit.store::<2>(out.add(2).cast());
        unit.store::<3>(out.add(3).cast());
        unit.end();
    }
    sums.as_flattened().as_chunks::<4>().0.iter().fold(0, |sum, &dword| sum ^ i32::from_le_bytes(dword))
}
