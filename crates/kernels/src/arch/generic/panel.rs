//! The matmul kernel: a tile of activation rows times one panel of 64 packed columns.
//!
//! Weights are unsigned codes, activations are 1 to 3 planes of signed bytes (balanced base-256 digits of one integer
//! `v`), so every product and sum inside a block is an exact integer and the order of summation does not matter.
//! Per block (at most 128 rows of one group) the kernel computes, exactly,
//!
//! ```text
//! d[r][n] = sum_k (q[k][n] - z[n]) * v[r][k]
//! ```
//!
//! with the zero point taken off as `-z * sum_k v` in the same integers, and then adds it to the result with
//!
//! ```text
//! y[r][n] = fma(float(d), scale[n] * x_scale[r], y[r][n])        (blocks in ascending order)
//! ```
//!
//! This is the one epilogue of every width, ISA and tile size; the bits of a result therefore depend on nothing but its
//! row and its column. Three planes do not fit 32 bits together: `float(d)` is then
//! `fma(65536, float(d_top), float(d_mid * 256 + d_low))`, again everywhere.
//!
//! `SEQ` chooses how planes are walked. Small tiles (`SEQ = false`) keep one accumulator for each plane and read each
//! weight once; large tiles go through the block once a plane, `acc = acc * 256 + next plane`, and so have room for
//! more rows.

use super::opaque;
use crate::arch::vector::Vector;
use crate::pack::{BLOCK, BlockAt, PANEL, ScaleKind, ZeroKind};

/// What a tile kernel works on.
pub(crate) struct TileArgs<'a> {
    /// First byte of the panel, 64-byte aligned.
    pub panel: *const u8,
    /// Blocks of the panel, in order.
    pub blocks: &'a [BlockAt],
    /// How scales are stored in a group's head.
    pub scale: ScaleKind,
    /// How zero points are stored in a group's head.
    pub zero: ZeroKind,
    /// Planes of the tile, `[block][plane][quad][MR]` dwords of four signed bytes; plane 0 is the low one.
    pub x: *const i32,
    /// Scales of the tile, `[block][MR]`.
    pub x_scales: *const f32,
    /// Sums of the tile, `[block][1 or 2][MR]`: of `v`; with three planes of the two low digits and of the top one.
    pub x_sums: *const i32,
    /// Bytes from the panel to the other one of a pair, for a kernel of pairs.
    pub other: usize,
    /// Sums over blocks, `[MR][64]`, of a pair one after the other; the result, unless it goes to the target at once.
    pub out: *mut f32,
    /// Where the result will be: a tile kernel asks for it beforehand, so that writing it need not wait for memory.
    pub target: Target,
}

/// The rows of 64 columns where a result will be.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    /// The first one; any address, if the kernel is not to write it.
    pub first: *mut f32,
    /// How many there are.
    pub rows: usize,
    /// Floats from one to the next.
    pub stride: usize,
    /// Whether the kernel writes the result there, `MR` rows, instead of to `out`.
    pub direct: bool,
}

/// Lines of 64 bytes in a chunk.
pub(crate) const fn lines(bits: u32) -> usize {
    if bits == 3 { 3 } else { 1 }
}

/// Quads of k in a chunk.
pub(crate) const fn quads(bits: u32) -> usize {
    match bits {
        2 => 4,
        3 => 8,
        4 => 2,
        _ => 1,
    }
}

/// Unpacks quad `i` of the chunk at `p`: bytes `0..2^bits`.
#[inline(always)]
pub(crate) unsafe fn unpack<V: Vector, const BITS: u32>(line: &[V::I; 3], i: usize) -> V::I {
    // SAFETY: arithmetic on lanes; the caller has the instruction set.
    unsafe {
        let mask = |v, m: i32| V::and_i(v, V::splat_i(m * 0x0101_0101));
        match BITS {
            8 => line[0],
            4 => match i {
                0 => mask(line[0], 15),
                _ => mask(V::shr_i::<4>(line[0]), 15),
            },
            2 => match i {
                0 => mask(line[0], 3),
                1 => mask(V::shr_i::<2>(line[0]), 3),
                2 => mask(V::shr_i::<4>(line[0]), 3),
                _ => mask(V::shr_i::<6>(line[0]), 3),
            },
            _ => match i {
                0 | 2 | 4 => mask(line[i / 2], 7),
                1 | 3 | 5 => mask(V::shr_i::<3>(line[i / 2]), 7),
                6 => V::or_i(mask(V::shr_i::<6>(line[0]), 3), mask(V::shr_i::<4>(line[2]), 4)),
                _ => V::or_i(mask(V::shr_i::<6>(line[1]), 3), mask(V::shr_i::<5>(line[2]), 4)),
            },
        }
    }
}

/// Loads the lines of a chunk.
#[inline(always)]
pub(crate) unsafe fn load<V: Vector, const BITS: u32>(p: *const u8) -> [V::I; 3] {
    // SAFETY: the chunk is `lines(BITS)` lines long.
    unsafe {
        let first = V::load_i(p);
        if lines(BITS) == 1 { [first; 3] } else { [first, V::load_i(p.add(64)), V::load_i(p.add(128))] }
    }
}

/// Zero points of the sixteen columns of vector `v`.
#[inline(always)]
unsafe fn zeros<V: Vector>(a: &TileArgs, head: *const u8, v: usize) -> V::I {
    // SAFETY: a head holds 64 scales, then 64 zero points of the stated kind.
    unsafe {
        let zeros = head.add(PANEL * a.scale.bytes());
        match a.zero {
            ZeroKind::Midpoint(z) => V::splat_i(i32::from(z)),
            ZeroKind::U8 => V::load_u8(zeros.add(16 * v)),
            ZeroKind::U16 => V::load_u16(zeros.add(32 * v)),
        }
    }
}

/// `-z * sum` for the sixteen columns of vector `v`.
#[inline(always)]
pub(crate) unsafe fn zero_term<V: Vector>(a: &TileArgs, head: *const u8, v: usize, sum: i32) -> V::I {
    // SAFETY: as above.
    unsafe {
        match a.zero {
            ZeroKind::Midpoint(_) => V::splat_i(weighed(a, sum)),
            _ => V::mul_i(zeros::<V>(a, head, v), V::splat_i(sum.wrapping_neg())),
        }
    }
}

/// What [`take_off`] needs of a row: `-z * sum` where all columns have the same zero point, else the sum.
#[inline(always)]
fn weighed(a: &TileArgs, sum: i32) -> i32 {
    match a.zero {
        ZeroKind::Midpoint(z) => sum.wrapping_mul(i32::from(z)).wrapping_neg(),
        _ => sum,
    }
}

/// Takes the zero points off the sums of `NV` vectors from `v0` on, `weighed` being that of each row. One kind is added and
/// the others are subtracted: of two sums the compiler would make one, of a number that it chooses before and keeps in memory
/// (int8, 12 rows: 0.97 times as fast).
///
/// # Safety
/// As [`zero_term`]; `weighed` holds `MR` numbers.
#[inline(always)]
unsafe fn take_off<V: Vector, const MR: usize, const NV: usize>(
    a: &TileArgs,
    head: *const u8,
    v0: usize,
    weighed: *const i32,
    acc: &mut [[[V::I; NV]; 1]; MR],
) {
    // SAFETY: by the contract above.
    unsafe {
        // or the compiler would broadcast those of all rows before the columns, and keep them in memory
        let weighed = opaque(weighed);
        for r in 0..MR {
            let row = V::splat_i(*weighed.add(r));
            for v in 0..NV {
                let acc = &mut acc[r][0][v];
                *acc = match a.zero {
                    ZeroKind::Midpoint(_) => V::add_i(*acc, row),
                    _ => V::sub_i(*acc, V::mul_i(zeros::<V>(a, head, v0 + v), row)),
                };
            }
        }
    }
}

/// Scales of the sixteen columns of vector `v`.
#[inline(always)]
pub(crate) unsafe fn scales<V: Vector>(a: &TileArgs, head: *const u8, v: usize) -> V::F {
    // SAFETY: a head begins with 64 scales of the stated kind.
    unsafe {
        match a.scale {
            ScaleKind::F16 => V::load_f16(head.add(32 * v)),
            ScaleKind::BF16 => V::load_bf16(head.add(32 * v)),
            ScaleKind::F32 => V::load_f(head.add(64 * v).cast()),
        }
    }
}

/// Bytes from a place in a panel to the same one of a later block, a page or a block of 128 rows away, whichever is more.
/// Each pass over a block asks for its part of such a later one, so that each line has the same time to come (three quarters
/// of a block are slower by a fifth).
fn ahead(bits: u32, blocks: &[BlockAt]) -> usize {
    let least = (PANEL * BLOCK * bits as usize / 8).max(4096);
    match blocks {
        [first, second, ..] => (second.data - first.data) * least.div_ceil(second.data - first.data),
        _ => least,
    }
}

/// How a kernel asks for weights ahead of their use.
#[derive(Clone, Copy)]
enum Asks {
    /// Not at all: the processor follows what is read by itself.
    Never,
    /// For the first cache at once.
    Once,
    /// For the second cache, twice as far [`ahead`] as for the first: far fewer lines can be under way to the first one
    /// (Zen 4: 24, which is 10 to 13 GB/s a core).
    Twice,
}

/// How to ask, by what hides it: the products that a line of codes takes part in, of sixteen columns each. Measured on Zen 4
/// against asking once, or never for a pair: twice is 1.04 to 1.4 times as fast with 8 to 24 products of 4 bit, 1.01 to 1.09
/// of 2 and 3 bit, 0.75 to 0.9 with fewer, 0.98 with more; of 8 bit, 1.2 to 1.8 times from 6 products on. With fewer, the two
/// streams of a pair, or all four vectors of a panel of 8 bit, are what the processor follows best by itself. Where a product
/// takes several instructions, memory is not what the kernel waits for, and twice is 0.7 to 1.08 times as fast (AVX2).
const fn asks<V: Vector>(bits: u32, nv: usize, digits: usize) -> Asks {
    match (bits, nv, digits * 8 / bits as usize) {
        (8, _, 6..) | (_, _, 8..=24) if V::ONE_INSTRUCTION_DOT => Asks::Twice,
        (8, VECTORS, _) | (_, PAIR, _) => Asks::Never,
        _ => Asks::Once,
    }
}

/// Asks for the lines that stand at `line` in what will be needed later.
#[inline(always)]
unsafe fn ask<V: Vector, const BITS: u32, const NV: usize>(line: *const u8, ahead: usize, digits: usize) {
    // SAFETY: hints, valid for any address.
    unsafe {
        match asks::<V>(BITS, NV, digits) {
            Asks::Never => (),
            Asks::Once => V::prefetch(line.wrapping_add(if BITS >= 4 { 6144 } else { 8192 })),
            Asks::Twice => {
                V::prefetch_far(line.wrapping_add(2 * ahead));
                V::prefetch(line.wrapping_add(ahead));
            }
        }
    }
}

/// Asks for all lines of a chunk.
#[inline(always)]
unsafe fn ask_all<V: Vector, const BITS: u32, const NV: usize>(chunk: *const u8, ahead: usize, digits: usize) {
    for l in 0..lines(BITS) {
        // SAFETY: hints.
        unsafe { ask::<V, BITS, NV>(chunk.wrapping_add(64 * l), ahead, digits) };
    }
}

/// Whether small tiles take two vectors at a time, which share each digit, instead of one. With registers enough, cores that
/// multiply as fast as they load (Zen 5) are 1.1 to 1.2 times as fast; where a vector is two registers of sixteen, only one
/// row of one plane leaves room (1.1 to 1.25 times, with more 0.75 to 0.95).
const fn share<V: Vector>(digits: usize) -> bool {
    V::ONE_INSTRUCTION_DOT || digits == 1
}

/// Vectors of sixteen columns in a panel.
const VECTORS: usize = PANEL / 16;

/// Vectors of two panels. A kernel that takes so many at a time is one for pairs: it goes through two panels side by side,
/// two streams that the processor follows (see [`crate::arch::processor`]).
pub(crate) const PAIR: usize = 2 * VECTORS;

/// A loop of up to eight turns that is written out. Whether the compiler unrolls a loop over so much hangs by a thread, and
/// sums whose place depends on a variable live in memory: the kernel would take twice its time.
macro_rules! for_each_below {
    ($count:expr, $i:ident, $body:expr) => {
        for_each_below!($count, $i, $body, 0 1 2 3 4 5 6 7)
    };
    ($count:expr, $i:ident, $body:expr, $($turn:literal)*) => {
        $(if $turn < $count {
            let $i = $turn;
            $body;
        })*
    };
}

/// Adds the products of `W` vectors from `v` on, of each a chunk, with every row and plane. A digit is loaded once for all of
/// them: where there are many rows, cores that multiply as fast as they load would wait for it.
///
/// # Safety
/// The instruction set of `V`; whole chunks; digits as in [`tile`].
#[inline(always)]
unsafe fn add_chunks<V: Vector, const BITS: u32, const P: usize, const MR: usize, const NV: usize, const W: usize>(
    chunks: [*const u8; W],
    v: usize,
    x: *const i32,
    plane: usize,
    acc: &mut [[[V::I; NV]; P]; MR],
) {
    // SAFETY: by the contract above.
    unsafe {
        // whether sums, lines, unpacked quads and a digit are more than there are registers: then a line is loaded again for
        // each of its quads, instead of sums that go to memory and back (AVX-VNNI, 6 rows: 1.25 to 2 times as fast). Not for
        // some vectors of many, whose kernels have their sums in registers as they are
        let crowded = W == NV && MR * P * NV + W * (lines(BITS) + 1) + 1 > V::REGISTERS;
        let mut w = [[V::splat_i(0); 3]; W];
        for (w, chunk) in w.iter_mut().zip(chunks) {
            *w = load::<V, BITS>(chunk);
        }
        for_each_below!(quads(BITS), i, {
            let xi = opaque(x.add(i * MR));
            let mut q = [V::splat_i(0); W];
            for j in 0..W {
                if crowded {
                    w[j] = load::<V, BITS>(opaque(chunks[j]));
                }
                q[j] = unpack::<V, BITS>(&w[j], i);
            }
            for r in 0..MR {
                for p in 0..P {
                    let digit = *xi.add(p * plane + r);
                    for j in 0..W {
                        let acc = &mut acc[r][p][v + j];
                        *acc = match BITS {
                            8 => V::dot::<true>(*acc, q[j], digit),
                            _ => V::dot::<false>(*acc, q[j], digit),
                        };
                    }
                }
            }
        });
    }
}

/// One tile of `MR` rows of `P` planes times one panel, `NV` vectors of sixteen columns at a time, or times a [`PAIR`]. Or two
/// tiles that stand one after the other, each block of the panel times one and then the other: it comes from memory at half
/// the pace, and for the second one from the first cache. How many there are is a constant, because counting them as the
/// kernel runs costs small tiles some per cent.
///
/// # Safety
/// The instruction set of `V`; the panel, of a pair each of both, holds every block and head of `a.blocks`; `x`, `x_scales`,
/// `x_sums` and `out` hold what their docs say for `MR` rows, for `TILES` tiles one after another.
#[inline(always)]
pub(crate) unsafe fn tile<
    V: Vector,
    const BITS: u32,
    const P: usize,
    const MR: usize,
    const NV: usize,
    const SEQ: bool,
    const TILES: usize,
>(
    a: &TileArgs,
) {
    let sum_kinds = if P == 3 { 2 } else { 1 };
    // SAFETY: by the contract above; every offset is one that the packer or the quantizer wrote.
    unsafe {
        let vectors = NV.max(VECTORS);
        for i in (0..TILES * MR * vectors).step_by(VECTORS) {
            // a few lines each: for all of them the compiler would call a function that takes its time to begin
            let line = opaque(a.out.add(16 * i)).cast_mut();
            (0..VECTORS).for_each(|v| V::store_f(line.add(16 * v), V::splat_f(0.0)));
        }
        // the bytes to the panel that vector v of a pair is in, and which one it is there
        let panel = |v: usize| if v < VECTORS { (0, v) } else { (a.other, v - VECTORS) };
        let count = a.blocks.len();
        let ahead = ahead(BITS, a.blocks);
        let tile_x = a.blocks.last().map_or(0, |last| last.x_quads + last.padded_quads()) * P * MR;
        for (b, block) in a.blocks.iter().enumerate() {
            let head = a.panel.add(block.head);
            let data = a.panel.add(block.data);
            let plane = block.padded_quads() * MR;
            let last = b + 1 == a.blocks.len();
            for r in 0..if last { a.target.rows } else { 0 } {
                for v in 0..VECTORS {
                    V::prefetch(a.target.first.wrapping_add(r * a.target.stride + 16 * v).cast());
                }
            }
            for t in 0..TILES {
                let x = a.x.add(t * tile_x + block.x_quads * P * MR);
                let sum = |kind: usize, r: usize| *a.x_sums.add(((t * count + b) * sum_kinds + kind) * MR + r);
                let mut weighed_sums = [[0; MR]; 2];
                if SEQ {
                    for kind in 0..sum_kinds {
                        for r in 0..MR {
                            weighed_sums[kind][r] = weighed(a, sum(kind, r));
                        }
                    }
                }
                let out = a.out.add(t * MR * PANEL);
                let (to, stride) =
                    if last && a.target.direct { (a.target.first.add(t * MR * a.target.stride), a.target.stride) } else { (out, PANEL) };
                for v0 in (0..vectors).step_by(NV) {
                    let mut d = [[V::splat_f(0.0); NV]; MR];
                    if SEQ {
                        let mut acc = [[[V::splat_i(0); NV]; 1]; MR];
                        for p in (0..P).rev() {
                            if P == 3 && p == 1 {
                                take_off::<V, MR, NV>(a, head, v0, weighed_sums[1].as_ptr(), &mut acc);
                                for r in 0..MR {
                                    for v in 0..NV {
                                        d[r][v] = V::to_f(acc[r][0][v]);
                                        acc[r][0][v] = V::splat_i(0);
                                    }
                                }
                            } else if p + 1 < P {
                                for r in 0..MR {
                                    for v in 0..NV {
                                        acc[r][0][v] = V::shl_i::<8>(acc[r][0][v]);
                                    }
                                }
                            }
                            let mut xq = x.add(p * plane);
                            // each pass over the block asks for its part, so that memory is never idle nor swamped; that of a
                            // tile that finds the panel in the second cache, too (exact, 512 rows: 1.01 times as fast)
                            let per_pass = (4 * lines(BITS)).div_ceil(TILES * P * 4 / NV);
                            let pass = (t * 4 + v0) / NV * P + P - 1 - p;
                            let asked = pass * per_pass..((pass + 1) * per_pass).min(4 * lines(BITS));
                            for c in 0..block.chunks {
                                let line = data.add((c * 4 + v0) * lines(BITS) * 64);
                                for l in asked.clone() {
                                    ask::<V, BITS, NV>(data.wrapping_add((c * 4 * lines(BITS) + l) * 64), ahead, P * MR);
                                }
                                if P > 1 && v0 == 0 {
                                    // the digits of the next block: of the first panel they come from far away, of others
                                    // from the second cache. Of one plane there are so few that asking costs what it gains
                                    let next = xq.cast::<u8>().wrapping_add(4 * P * plane);
                                    for l in 0..(4 * quads(BITS) * MR).div_ceil(64) {
                                        V::prefetch(next.wrapping_add(64 * l));
                                    }
                                }
                                let mut chunks = [line; NV];
                                for (v, chunk) in chunks.iter_mut().enumerate() {
                                    *chunk = line.add(v * lines(BITS) * 64);
                                }
                                add_chunks::<V, BITS, 1, MR, NV, NV>(chunks, 0, xq, 0, &mut acc);
                                xq = xq.add(quads(BITS) * MR);
                            }
                        }
                        // last: sums that begin with it, and not with 0, would wait for it (int8, 12 rows: 0.97 times as fast)
                        take_off::<V, MR, NV>(a, head, v0, weighed_sums[0].as_ptr(), &mut acc);
                        for r in 0..MR {
                            for v in 0..NV {
                                let low = V::to_f(acc[r][0][v]);
                                d[r][v] = if P == 3 { V::fma(V::splat_f(65536.0), d[r][v], low) } else { low };
                            }
                        }
                    } else {
                        let mut acc = [[[V::splat_i(0); NV]; P]; MR];
                        for r in 0..MR {
                            for v in 0..NV {
                                let (other, at) = panel(v0 + v);
                                acc[r][0][v] = zero_term::<V>(a, head.add(other), at, sum(0, r));
                                if P == 3 {
                                    acc[r][2][v] = zero_term::<V>(a, head.add(other), at, sum(1, r));
                                }
                            }
                        }
                        let mut xq = x;
                        for c in 0..block.chunks {
                            let line = |v: usize| {
                                let (other, at) = panel(v0 + v);
                                data.add(other + (c * VECTORS + at) * lines(BITS) * 64)
                            };
                            if NV > 1 && share::<V>(P * MR) {
                                for_each_below!(NV / 2, pair, {
                                    let chunks = [line(2 * pair), line(2 * pair + 1)];
                                    chunks.iter().for_each(|chunk| ask_all::<V, BITS, NV>(*chunk, ahead, P * MR));
                                    add_chunks::<V, BITS, P, MR, NV, 2>(chunks, 2 * pair, xq, plane, &mut acc);
                                });
                            } else {
                                for_each_below!(NV, v, {
                                    ask_all::<V, BITS, NV>(line(v), ahead, P * MR);
                                    add_chunks::<V, BITS, P, MR, NV, 1>([line(v)], v, xq, plane, &mut acc);
                                });
                            }
                            xq = xq.add(quads(BITS) * MR);
                        }
                        for r in 0..MR {
                            for v in 0..NV {
                                d[r][v] = match P {
                                    1 => V::to_f(acc[r][0][v]),
                                    2 => V::to_f(V::add_i(V::shl_i::<8>(acc[r][1][v]), acc[r][0][v])),
                                    _ => {
                                        let low = V::to_f(V::add_i(V::shl_i::<8>(acc[r][1][v]), acc[r][0][v]));
                                        V::fma(V::splat_f(65536.0), V::to_f(acc[r][2][v]), low)
                                    }
                                };
                            }
                        }
                    }
                    for v in 0..NV {
                        let (other, at) = panel(v0 + v);
                        let s = scales::<V>(a, head.add(other), at);
                        let (pair, column) = ((v0 + v) / VECTORS * MR * PANEL, 16 * at);
                        for r in 0..MR {
                            let x_scale = V::splat_f(*a.x_scales.add((t * count + b) * MR + r));
                            let sum = V::load_f(out.add(pair + r * PANEL + column));
                            V::store_f(to.add(pair + r * stride + column), V::fma(d[r][v], V::mul_f(s, x_scale), sum));
                        }
                    }
                }
            }
        }
    }
}
