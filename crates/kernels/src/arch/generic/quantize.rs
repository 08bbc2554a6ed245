//! Activations to integers: one scale a block, 1 to 3 balanced base-256 digits a value.

use crate::arch::vector::Vector;
use crate::pack::{BLOCK, BlockAt, STEP};
use billfish_tensor::ActivationScale;

/// Largest integer of each precision: the largest whose top digit still fits a signed byte.
pub(crate) const LIMIT: [f32; 3] = [127.0, 32512.0, 8_323_072.0];

/// In which order the digits of a tile of rows stand: in dwords of four, for four neighbouring k.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum DigitOrder {
    /// `[block][plane][quad][row]`: what a vector kernel broadcasts, one after another.
    #[default]
    Quads,
    /// `[block][step][plane][row][16 quads]`: tiles of a tile unit, one after another.
    Steps,
}

/// Where the digits of a block are, in dwords.
struct Places {
    /// The first of the tile.
    block: usize,
    /// From one plane to the next.
    plane: usize,
    /// From one row to the next.
    row: usize,
    /// From one quad to the next, inside a run of sixteen.
    quad: usize,
    /// From one run of sixteen quads to the next.
    run: usize,
    /// Quads, padding included.
    quads: usize,
}

impl DigitOrder {
    /// Quads of each row and plane in all of `blocks`, padding included.
    pub fn quads(self, blocks: &[BlockAt]) -> usize {
        match (self, blocks.last()) {
            (_, None) => 0,
            (DigitOrder::Quads, Some(b)) => b.x_quads + b.padded_quads(),
            (DigitOrder::Steps, Some(b)) => (b.x_steps + b.steps()) * STEP / 4,
        }
    }

    /// The places of a block in a tile of `rows` rows of `planes` planes.
    #[inline(always)]
    fn places(self, block: &BlockAt, planes: usize, rows: usize) -> Places {
        let quads = STEP / 4;
        match self {
            DigitOrder::Quads => {
                let plane = block.padded_quads() * rows;
                Places { block: block.x_quads * planes * rows, plane, row: 1, quad: rows, run: quads * rows, quads: block.padded_quads() }
            }
            DigitOrder::Steps => {
                let (plane, run) = (quads * rows, quads * rows * planes);
                Places { block: block.x_steps * run, plane, row: quads, quad: 1, run, quads: block.steps() * quads }
            }
        }
    }
}

/// A piece of a row of activations and where its digits go: row `row` of a tile of `rows`.
pub(crate) struct QuantizeArgs<'a> {
    /// The piece; a whole row, `[K]`, where blocks are permuted or share the scale of the row.
    pub x: &'a [f32],
    /// Order in which the values stand in the blocks.
    pub permutation: Option<&'a [u32]>,
    /// Blocks of the piece, in order.
    pub blocks: &'a [BlockAt],
    /// How many blocks of the row come before it.
    pub first: usize,
    /// Floats from each value to what is asked for when it is read: that of the piece that comes next.
    pub ahead: isize,
    /// Rows of the tile.
    pub rows: usize,
    /// This row.
    pub row: usize,
    /// What shares a scale, if there is one plane.
    pub scale: ActivationScale,
    /// In which order the digits go to `planes`.
    pub order: DigitOrder,
    /// Dwords of four digits.
    pub planes: *mut i32,
    /// `[block][rows]`.
    pub scales: *mut f32,
    /// `[block][1 or 2][rows]`.
    pub sums: *mut i32,
}

/// The bits of the largest magnitude of `values`, a multiple of sixteen of them. Those of numbers are in the order of the
/// numbers; an infinity and NaN are larger than all of them.
///
/// # Safety
/// The instruction set of `V`.
#[inline(always)]
unsafe fn largest<V: Vector>(values: &[f32], ahead: isize) -> i32 {
    // SAFETY: every load lies inside `values`.
    unsafe {
        let mut max = V::splat_i(0);
        for i in 0..values.len() / 16 {
            let at = values.as_ptr().add(16 * i);
            V::prefetch(at.wrapping_offset(ahead).cast());
            max = V::max_i(V::and_i(V::load_i(at.cast()), V::splat_i(i32::MAX)), max);
        }
        V::largest_lane(max)
    }
}

/// Blocks whose scales are found before any of their digits: one waits for the largest of its values and a division, several
/// do so together.
const AHEAD: usize = 16;

/// Quantizes a piece of a row: `scale = amax / LIMIT`, `v = round(x * (LIMIT / amax))`, ties to even, `amax` being that of the
/// block or, if the weight asks for it and there is one plane, of the row. A block that holds an infinity or a NaN gets a
/// NaN scale, so that the result is NaN too; one too small to invert (below 2^-100) counts as 0.
///
/// # Safety
/// The instruction set of `V`; blocks lie inside `x` (or the permutation, whose entries do); the three outputs hold
/// what their docs say.
#[inline(always)]
pub(crate) unsafe fn row<V: Vector, const P: usize>(a: &QuantizeArgs) {
    let of_row = (P == 1 && a.scale == ActivationScale::Token).then(|| {
        let (whole, rest) = a.x.split_at(a.x.len() / 16 * 16);
        let mut last = [0.0; 16];
        last[..rest.len()].copy_from_slice(rest);
        // SAFETY: the caller's instruction set.
        unsafe { largest::<V>(whole, a.ahead).max(largest::<V>(&last, a.ahead)) }
    });
    let start = a.blocks.first().map_or(0, |b| b.k);
    let mut room;
    let room: &mut [[f32; BLOCK]] = if a.permutation.is_none() && a.blocks.iter().all(|b| b.len.is_multiple_of(16)) {
        &mut []
    } else {
        room = [[0.0; BLOCK]; AHEAD];
        &mut room
    };
    for (first, blocks) in (a.first..).step_by(AHEAD).zip(a.blocks.chunks(AHEAD)) {
        let mut values: [&[f32]; AHEAD] = [&[]; AHEAD];
        let mut found = [0; AHEAD];
        let mut rooms = room.iter_mut();
        for ((values, found), block) in values.iter_mut().zip(&mut found).zip(blocks) {
            let at = block.k - start;
            *values = rooms.next().map_or_else(|| &a.x[at..at + block.len], |room| gathered(a, block, at, room));
            // SAFETY: the caller's instruction set.
            *found = unsafe { of_row.unwrap_or_else(|| largest::<V>(values, a.ahead)) };
        }
        let mut inverses = [0.0f32; AHEAD];
        for (i, bits) in found.into_iter().enumerate().take(blocks.len()) {
            let amax = f32::from_bits(bits.cast_unsigned());
            let finite = amax.is_finite();
            let usable = finite && amax >= 7.9e-31;
            inverses[i] = if usable { LIMIT[P - 1] / amax } else { 0.0 };
            let scale = match (finite, usable) {
                (false, _) => f32::NAN,
                (true, true) => amax / LIMIT[P - 1],
                (true, false) => 0.0,
            };
            // SAFETY: there is a scale for each block and row.
            unsafe { *a.scales.add((first + i) * a.rows + a.row) = scale };
        }
        for (i, block) in blocks.iter().enumerate() {
            // SAFETY: by the contract above.
            unsafe { digits::<V, P>(a, first + i, block, values[i], inverses[i]) };
        }
    }
}

/// The values of a block, the first of which is number `k` of the piece, in `room`, filled up with zeros to a multiple of
/// sixteen.
#[inline(always)]
fn gathered<'v>(a: &QuantizeArgs<'v>, block: &BlockAt, k: usize, room: &'v mut [f32; BLOCK]) -> &'v [f32] {
    let source = k..k + block.len;
    match a.permutation {
        None => room[..block.len].copy_from_slice(&a.x[source]),
        Some(p) => room.iter_mut().zip(&p[source]).for_each(|(v, &k)| *v = a.x[k as usize]),
    }
    let whole = block.len.next_multiple_of(16);
    room[block.len..whole].fill(0.0);
    &room[..whole]
}

/// Writes the digits of `values * inverse`, rounded, and their sums; zeros if `inverse` is 0, whatever the values are.
///
/// # Safety
/// As [`row`]; `values` are those of block `b`.
#[inline(always)]
unsafe fn digits<V: Vector, const P: usize>(a: &QuantizeArgs, b: usize, block: &BlockAt, values: &[f32], inverse: f32) {
    let sum_kinds = if P == 3 { 2 } else { 1 };
    let vectors = if inverse == 0.0 { 0 } else { values.len() / 16 };
    // SAFETY: `values` holds so many vectors; outputs by the contract above.
    unsafe {
        let places = a.order.places(block, P, a.rows);
        let base = a.planes.add(places.block + a.row * places.row);
        // of the digits below the top one of three, and of that one
        let (mut low_sums, mut top_sums) = (V::splat_i(0), V::splat_i(0));
        for i in 0..places.quads / 4 {
            let mut v = V::splat_i(0);
            if i < vectors {
                v = V::to_i(V::mul_f(V::load_f(values.as_ptr().add(16 * i)), V::splat_f(inverse)));
            }
            let half = V::splat_i(128);
            let mut digits = [V::low_bytes(v); 3];
            let mut low = v;
            if P > 1 {
                let v1 = V::sar_i::<8>(V::add_i(v, half));
                digits[1] = V::low_bytes(v1);
                if P > 2 {
                    let v2 = V::sar_i::<8>(V::add_i(v1, half));
                    digits[2] = V::low_bytes(v2);
                    top_sums = V::add_i(top_sums, v2);
                    low = V::add_i(v, V::mul_i(v2, V::splat_i(-65536)));
                }
            }
            low_sums = V::add_i(low_sums, low);
            for (p, digits) in digits.iter().enumerate().take(P) {
                let (dwords, _) = digits.as_chunks::<4>();
                let place = base.add(p * places.plane + i / 4 * places.run + i % 4 * 4 * places.quad);
                for (q, dword) in dwords.iter().enumerate() {
                    *place.add(q * places.quad) = i32::from_le_bytes(*dword);
                }
            }
        }
        *a.sums.add(b * sum_kinds * a.rows + a.row) = V::sum_lanes(low_sums);
        if P == 3 {
            *a.sums.add((b * sum_kinds + 1) * a.rows + a.row) = V::sum_lanes(top_sums);
        }
    }
}
