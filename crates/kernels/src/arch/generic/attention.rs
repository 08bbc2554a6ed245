//! Attention of a tile of query rows over some KV pages of one head, with an online softmax.
//!
//! A page is [`PAGE`] tokens in blocks of sixteen, which lie anywhere. Keys of a block lie `[head_dim][16]`, so that one
//! vector is its tokens and a score is a chain of fused multiply-adds over head_dim; values lie `[16][head_dim]`, so that an
//! output is a chain over tokens. A row carries the largest score so far `m`, the sum `l` of `exp(score - m)` and the sum `o` of `exp(score - m) * value`;
//! page after page, in ascending order, with `m'` the new maximum and `c = exp(m - m')`,
//!
//! ```text
//! l = fma(l, c, sum of the page)        o = chain of fma over the page's tokens, begun at o * c
//! ```
//!
//! Of quantized formats, a score is the chain times the key's scale, and a value's scale goes into its weight, which is
//! rounded once more. All rows of a tile are tokens of one block then, and read it in half precision.
//!
//! Pages begin anew at absolute positions, so a row's numbers do not depend on the rows beside it nor on how the prompt
//! was cut. States of two stretches of pages are joined by [`merge`].

use super::math::exp;
use super::opaque;
use crate::aligned::Lines;
use crate::arch::vector::Vector;
use crate::kv::{BLOCK, E2M1, INT4, KvType};
use std::ops::Range;

/// Tokens of a page.
pub(crate) const PAGE: usize = 64;
/// Blocks of a page.
const BLOCKS: usize = PAGE / BLOCK;
/// Rows of the largest tile of any kernel.
pub(crate) const MAX_ROWS: usize = 12;

/// Where the maximum of a row stands before its first token: below every score, and finite.
pub(crate) const LOWEST: f32 = -3.0e38;

/// What a tile kernel works on. All rows share the KV head.
pub(crate) struct AttendArgs<'a> {
    /// Queries, already scaled, `[head_dim][MR]`.
    pub queries: *const f32,
    /// First and one past the last visible position of each row, `[MR]`; the same twice for a row that sees nothing.
    pub spans: &'a [(usize, usize)],
    /// Pages to walk.
    pub pages: Range<usize>,
    /// The blocks of the sequence; block i holds positions `i * 16 ..`.
    pub blocks: &'a [*const u8],
    /// Where this KV head begins in a block: its keys, `[head_dim][16]`, or codes in pairs.
    pub keys_at: usize,
    /// Where those of the next KV head begin, which will be needed next.
    pub next_keys_at: usize,
    /// Where its values begin, `[16][padded]`.
    pub values_at: usize,
    /// Where the scales of its keys begin, 16 brain floats; those of the values follow.
    pub scales_at: usize,
    /// What the scales of keys, and those of values, are multiplied with.
    pub factors: [f32; 2],
    /// For quantized formats: the block of the rows, and the keys of this head there in halves.
    pub own: (usize, *const u8),
    /// Floats of a query.
    pub head_dim: usize,
    /// `head_dim` rounded up to sixteen.
    pub padded: usize,
    /// Maximum and sum of each row, `[MR]`.
    pub stats: *mut [f32; 2],
    /// Weighted values of each row, `[MR][padded]`.
    pub out: *mut f32,
}

impl AttendArgs<'_> {
    /// The values of this head in the block of the rows, in halves.
    fn own_values(&self) -> *const u8 {
        self.own.1.wrapping_add(2 * BLOCK * self.head_dim)
    }
}

/// Whether codes of format `E` lie in pairs.
const fn pairs(e: u8) -> bool {
    e == KvType::Int4 as u8 || e == KvType::Fp4E2M1 as u8
}

/// Whether rows of format `E` have scales.
const fn scaled(e: u8) -> bool {
    pairs(e) || e == KvType::Int8 as u8 || e == KvType::Fp8E4M3 as u8 || e == KvType::Fp8E5M2 as u8
}

/// Bytes of sixteen numbers of format `E`.
const fn sixteen(e: u8) -> usize {
    if e == KvType::F32 as u8 {
        64
    } else if pairs(e) {
        8
    } else if scaled(e) {
        16
    } else {
        32
    }
}

/// Rows of the largest tile that asks for the values of a page while it reads its keys, and then for the keys that come next.
/// They lie in many short pieces, of which the processor learns anew each time where they are; more rows hide that, and find
/// the blocks in a cache from the tile before.
const ASKING_ROWS: usize = 8;

/// Asks for the lines that begin where `count` times sixteen numbers are, of which number `index` is the first, if a tile of
/// `MR` rows asks at all.
#[inline(always)]
unsafe fn ask<V: Vector, const E: u8, const MR: usize>(p: *const u8, index: usize, count: usize) {
    if MR > ASKING_ROWS {
        return;
    }
    let from = index / 16 * sixteen(E);
    for i in 0..count {
        if (from + i * sixteen(E)).is_multiple_of(64) {
            // SAFETY: a hint.
            unsafe { V::prefetch(p.wrapping_add(from + i * sixteen(E))) };
        }
    }
}

/// Sixteen numbers, beginning with number `index`; of a format without pairs. To be called from loops: a closure that decodes
/// does not inherit the instruction set, and is then called with all it does.
#[inline(always)]
unsafe fn load<V: Vector, const E: u8>(p: *const u8, index: usize) -> V::F {
    // SAFETY: the caller's pointer and index.
    unsafe {
        if E == KvType::F16 as u8 {
            V::load_f16(p.add(2 * index))
        } else if E == KvType::BF16 as u8 {
            V::load_bf16(p.add(2 * index))
        } else if E == KvType::F32 as u8 {
            V::load_f(p.add(4 * index).cast())
        } else {
            let codes = V::load_u8(p.add(index));
            if E == KvType::Int8 as u8 { V::to_f(V::add_i(codes, V::splat_i(-128))) } else { fp8::<V, E>(codes) }
        }
    }
}

/// What codes of eight bits stand for. Sign, exponent and mantissa are put where those of an `f32` are, and a product with
/// a power of two sets the exponent right, of denormal numbers too. What is above the largest number is made infinite by
/// another product, and added times zero, NaN.
#[inline(always)]
unsafe fn fp8<V: Vector, const E: u8>(codes: V::I) -> V::F {
    // SAFETY: arithmetic on lanes.
    unsafe {
        let top = V::shl_i::<24>(codes);
        let (fields, exponent, beyond) = if E == KvType::Fp8E4M3 as u8 {
            // 1.1 * 448 is below 2^9, 1.1 * 480 above
            (V::and_i(V::sar_i::<4>(top), V::splat_i(0x87f0_0000_u32 as i32)), 120, 1.1 * power(119))
        } else {
            (V::and_i(V::sar_i::<3>(top), V::splat_i(0x8fe0_0000_u32 as i32)), 112, power(112))
        };
        let value = V::mul_f(V::bits_f(fields), V::splat_f(power(exponent)));
        V::fma(V::mul_f(value, V::splat_f(beyond)), V::splat_f(0.0), value)
    }
}

/// `2^n`, of a normal number.
const fn power(n: u32) -> f32 {
    f32::from_bits((n + 127) << 23)
}

/// The numbers of sixteen pairs: those of the low halves of bytes, and those of the high halves.
#[inline(always)]
unsafe fn load_pairs<V: Vector, const E: u8>(p: *const u8, index: usize) -> [V::F; 2] {
    // SAFETY: the caller's pointer and index; the tables have sixteen numbers.
    unsafe {
        let table = V::load_f(if E == KvType::Int4 as u8 { INT4.as_ptr() } else { E2M1.as_ptr() });
        let codes = V::load_u8(p.add(index));
        [V::pick(table, codes), V::pick(table, V::shr_i::<4>(codes))]
    }
}

/// Adds `q[d] * k[d]` to the scores of a tile.
#[inline(always)]
unsafe fn step<V: Vector, const MR: usize, const NV: usize>(q: *const f32, k: [V::F; NV], acc: &mut [[V::F; NV]; MR]) {
    for r in 0..MR {
        // SAFETY: `q` has `MR` floats; arithmetic on lanes.
        unsafe {
            let q = V::splat_f(*q.add(r));
            for v in 0..NV {
                acc[r][v] = V::fma(q, k[v], acc[r][v]);
            }
        }
    }
}

/// The scores of a tile against `NV` blocks, from block `first` of the page on.
///
/// # Safety
/// As [`attend`]; `keys` are those of one head in blocks of format `E`, `scales` those of these keys if it has any, `values`
/// what is needed next, at any address.
#[inline(always)]
unsafe fn scores<V: Vector, const E: u8, const MR: usize, const NV: usize>(
    a: &AttendArgs,
    keys: [*const u8; NV],
    scales: [*const u8; NV],
    values: [*const u8; NV],
    first: usize,
    scores: &mut [[f32; PAGE]; MR],
) {
    // SAFETY: by the contract above.
    unsafe {
        let mut acc = [[V::splat_f(0.0); NV]; MR];
        let zeros = [V::splat_f(0.0); NV];
        if pairs(E) {
            for d in (0..a.head_dim).step_by(2) {
                let (mut low, mut high) = (zeros, zeros);
                for v in 0..NV {
                    [low[v], high[v]] = load_pairs::<V, E>(keys[v], d / 2 * BLOCK);
                    ask::<V, E, MR>(values[v], d * BLOCK, 2);
                }
                step::<V, MR, NV>(a.queries.add(d * MR), low, &mut acc);
                if d + 1 < a.head_dim {
                    step::<V, MR, NV>(a.queries.add((d + 1) * MR), high, &mut acc);
                }
            }
        } else {
            for d in 0..a.head_dim {
                let mut k = zeros;
                for v in 0..NV {
                    k[v] = load::<V, E>(keys[v], d * BLOCK);
                    ask::<V, E, MR>(values[v], d * BLOCK, 1);
                }
                step::<V, MR, NV>(a.queries.add(d * MR), k, &mut acc);
            }
        }
        for v in 0..NV {
            if scaled(E) {
                let scale = V::mul_f(V::load_bf16(scales[v]), V::splat_f(a.factors[0]));
                for r in 0..MR {
                    acc[r][v] = V::mul_f(acc[r][v], scale);
                }
            }
            for r in 0..MR {
                V::store_f(scores[r].as_mut_ptr().add(BLOCK * (first + v)), acc[r][v]);
            }
        }
    }
}

/// Walks the pages for one tile and updates the states of its rows.
///
/// # Safety
/// The instruction set of `V`; pointers as their docs say; the pages exist and `spans` has `MR` entries.
#[inline(always)]
pub(crate) unsafe fn attend<V: Vector, const E: u8, const MR: usize, const NV: usize>(a: &AttendArgs) {
    // scores of a page, then its weights
    let Lines(weights) = &mut Lines([[0.0f32; PAGE]; MR]);
    for page in a.pages.clone() {
        // what each row sees, numbered from the beginning of the page
        let seen: [Range<usize>; MR] = std::array::from_fn(|r| {
            let (from, to) = a.spans[r];
            from.saturating_sub(page * PAGE)..to.saturating_sub(page * PAGE).min(PAGE)
        });
        let any = seen.iter().filter(|s| !s.is_empty()).cloned().reduce(|x, y| x.start.min(y.start)..x.end.max(y.end));
        let Some(tokens) = any else { continue };
        let has_own = scaled(E) && a.own.0 / BLOCKS == page;
        // SAFETY: by the contract above; every offset lies inside its block, its tile or its state.
        unsafe {
            for v0 in (0..BLOCKS).step_by(NV) {
                if v0 * BLOCK >= tokens.end || (v0 + NV) * BLOCK <= tokens.start {
                    continue;
                }
                // past the last block the scores of any other do: nobody sees them
                let parts: [*const u8; NV] = std::array::from_fn(|v| a.blocks[(page * BLOCKS + v0 + v).min(a.blocks.len() - 1)]);
                let keys = std::array::from_fn(|v| parts[v].add(a.keys_at));
                let scales = std::array::from_fn(|v| parts[v].add(a.scales_at));
                let values = std::array::from_fn(|v| parts[v].wrapping_add(a.values_at));
                scores::<V, E, MR, NV>(a, keys, scales, values, v0, weights);
            }
            if has_own {
                // in place of what the codes of the block gave, which may not be there yet
                scores::<V, { KvType::F16 as u8 }, MR, 1>(a, [a.own.1], [a.own.1], [a.own_values()], a.own.0 % BLOCKS, weights);
            }
            let keep = softmax::<V, MR>(weights, &seen, a.stats);
            let store = std::array::from_fn(|r| !seen[r].is_empty());
            if scaled(E) {
                for block in tokens.start / BLOCK..tokens.end.div_ceil(BLOCK) {
                    if has_own && page * BLOCKS + block == a.own.0 {
                        continue;
                    }
                    let stored = V::load_bf16(a.blocks[page * BLOCKS + block].add(a.scales_at + 2 * BLOCK));
                    let scale = V::mul_f(stored, V::splat_f(a.factors[1]));
                    for r in 0..MR {
                        let at = weights[r].as_mut_ptr().add(BLOCK * block);
                        V::store_f(at, V::mul_f(V::load_f(at), scale));
                    }
                }
            }
            let mut d0 = 0;
            while d0 + 16 * NV <= a.padded {
                add_values::<V, E, MR, NV>(a, page, tokens.clone(), d0, weights, &keep, &store);
                d0 += 16 * NV;
            }
            while d0 < a.padded {
                add_values::<V, E, MR, 1>(a, page, tokens.clone(), d0, weights, &keep, &store);
                d0 += 16;
            }
        }
    }
}

/// Writes `value` to what is not seen. A loop over all of them, which becomes a few vectors; a call to fill a few bytes would
/// cost more.
#[inline(always)]
fn outside(scores: &mut [f32; PAGE], seen: &Range<usize>, value: f32) {
    let (from, to) = (seen.start as u32, seen.end as u32);
    if (from, to) != (0, PAGE as u32) {
        for i in 0..PAGE as u32 {
            let place = &mut scores[i as usize];
            *place = if (from..to).contains(&i) { *place } else { value };
        }
    }
}

/// Turns the scores of a page into weights under the new maxima of their rows, adds them to the rows' sums and returns what
/// the old sums are to be multiplied with. Tokens outside `seen` weigh exactly nothing; a row that sees none stays as it is.
///
/// One thing after another for all rows: what a row waits for, the others hide.
///
/// # Safety
/// The instruction set of `V`; `stats` has `MR` entries.
#[inline(always)]
unsafe fn softmax<V: Vector, const MR: usize>(
    scores: &mut [[f32; PAGE]; MR],
    seen: &[Range<usize>; MR],
    stats: *mut [f32; 2],
) -> [f32; MAX_ROWS.next_multiple_of(16)] {
    // SAFETY: a row has four vectors, `stats` an entry for it; the caller's instruction set.
    unsafe {
        // exp(0) is 1
        let mut change = [0.0f32; MAX_ROWS.next_multiple_of(16)];
        let mut levels = [0.0f32; MR];
        for r in 0..MR {
            if seen[r].is_empty() {
                continue;
            }
            outside(&mut scores[r], &seen[r], LOWEST);
            let [max, _] = &mut *stats.add(r);
            let mut largest = V::splat_f(*max);
            for v in 0..4 {
                largest = V::max_f(V::load_f(scores[r].as_ptr().add(16 * v)), largest);
            }
            levels[r] = V::max_lane(largest);
            change[r] = *max - levels[r];
            *max = levels[r];
        }
        let mut keep = [0.0f32; MAX_ROWS.next_multiple_of(16)];
        V::store_f(keep.as_mut_ptr(), exp::<V>(V::load_f(change.as_ptr())));
        for r in 0..MR {
            let level = V::splat_f(levels[r]);
            for v in 0..4 {
                let at = scores[r].as_mut_ptr().add(16 * v);
                V::store_f(at, exp::<V>(V::sub_f(V::load_f(at), level)));
            }
        }
        for r in 0..MR {
            if seen[r].is_empty() {
                scores[r] = [0.0; PAGE];
                continue;
            }
            outside(&mut scores[r], &seen[r], 0.0);
            let at = scores[r].as_ptr();
            let mut total = V::load_f(at);
            for v in 1..4 {
                total = V::add_f(total, V::load_f(at.add(16 * v)));
            }
            let [_, sum] = &mut *stats.add(r);
            *sum = sum.mul_add(keep[r], V::sum(total));
        }
        keep
    }
}

/// Adds a token's value, weighted, to the outputs of a tile.
#[inline(always)]
unsafe fn add_token<V: Vector, const MR: usize, const NV: usize>(
    weights: &[[f32; PAGE]; MR],
    token: usize,
    value: [V::F; NV],
    acc: &mut [[V::F; NV]; MR],
) {
    let column = opaque(weights.as_ptr().cast::<f32>().wrapping_add(token));
    for r in 0..MR {
        // SAFETY: the weight of this row and token; arithmetic on lanes.
        unsafe {
            let weight = V::splat_f(*column.add(r * PAGE));
            for v in 0..NV {
                acc[r][v] = V::fma(weight, value[v], acc[r][v]);
            }
        }
    }
}

/// Adds the values of some tokens of a block, which are numbered from the beginning of the page.
///
/// # Safety
/// As [`add_values`]; `values` are those of one head in a block of format `E`, `next` what is needed next, at any address.
#[inline(always)]
unsafe fn add_block<V: Vector, const E: u8, const MR: usize, const NV: usize>(
    values: *const u8,
    next: *const u8,
    padded: usize,
    tokens: Range<usize>,
    d0: usize,
    weights: &[[f32; PAGE]; MR],
    acc: &mut [[V::F; NV]; MR],
) {
    // SAFETY: by the contract above.
    unsafe {
        let zeros = [V::splat_f(0.0); NV];
        if pairs(E) {
            for pair in tokens.start / 2..tokens.end.div_ceil(2) {
                let at = pair % (BLOCK / 2) * padded + d0;
                let (mut low, mut high) = (zeros, zeros);
                for v in 0..NV {
                    [low[v], high[v]] = load_pairs::<V, E>(values, at + 16 * v);
                }
                ask::<V, E, MR>(next, 2 * at, 2 * NV);
                if 2 * pair >= tokens.start {
                    add_token::<V, MR, NV>(weights, 2 * pair, low, acc);
                }
                if 2 * pair + 1 < tokens.end {
                    add_token::<V, MR, NV>(weights, 2 * pair + 1, high, acc);
                }
            }
        } else {
            for j in tokens {
                let mut value = zeros;
                for v in 0..NV {
                    value[v] = load::<V, E>(values, j % BLOCK * padded + d0 + 16 * v);
                }
                ask::<V, E, MR>(next, j % BLOCK * padded + d0, NV);
                add_token::<V, MR, NV>(weights, j, value, acc);
            }
        }
    }
}

/// Adds the values of a page's tokens, weighted, to columns `d0..` of the rows that see the page.
///
/// # Safety
/// As [`attend`]; columns `d0..d0 + 16 * NV` exist.
#[inline(always)]
unsafe fn add_values<V: Vector, const E: u8, const MR: usize, const NV: usize>(
    a: &AttendArgs,
    page: usize,
    tokens: Range<usize>,
    d0: usize,
    weights: &[[f32; PAGE]; MR],
    keep: &[f32],
    store: &[bool; MR],
) {
    // SAFETY: by the contract above.
    unsafe {
        let mut acc = [[V::splat_f(0.0); NV]; MR];
        for r in 0..MR {
            for v in 0..NV {
                acc[r][v] = V::mul_f(V::load_f(a.out.add(r * a.padded + d0 + 16 * v)), V::splat_f(keep[r]));
            }
        }
        for block in tokens.start / BLOCK..tokens.end.div_ceil(BLOCK) {
            let in_block = tokens.start.max(block * BLOCK)..tokens.end.min((block + 1) * BLOCK);
            let number = page * BLOCKS + block;
            if scaled(E) && number == a.own.0 {
                // what comes next is in another format, and not asked for
                let values = a.own_values();
                add_block::<V, { KvType::F16 as u8 }, MR, NV>(values, values, a.padded, in_block, d0, weights, &mut acc);
            } else {
                // the keys of the next page, or those that the next KV head begins with
                let next = match a.blocks.get(number + BLOCKS) {
                    Some(block) if page + 1 < a.pages.end => block.wrapping_add(a.keys_at),
                    _ => a.blocks[a.pages.start * BLOCKS + block].wrapping_add(a.next_keys_at),
                };
                add_block::<V, E, MR, NV>(a.blocks[number].add(a.values_at), next, a.padded, in_block, d0, weights, &mut acc);
            }
        }
        for r in 0..MR {
            if store[r] {
                for v in 0..NV {
                    V::store_f(a.out.add(r * a.padded + d0 + 16 * v), acc[r][v]);
                }
            }
        }
    }
}

/// Joins the state of a later stretch of pages to that of an earlier one: both are brought to the larger maximum `m`,
/// with `c = exp(m_earlier - m)` and `d = exp(m_later - m)`, `x = fma(x_earlier, c, x_later * d)` for the sum and each value.
///
/// # Safety
/// The instruction set of `V`; the outputs have the same length, whole vectors.
#[inline(always)]
pub(crate) unsafe fn merge<V: Vector>(stats: &mut [f32; 2], out: &mut [f32], later: &[f32; 2], later_out: &[f32]) {
    assert!(out.len() == later_out.len() && out.len().is_multiple_of(16));
    let max = if later[0] > stats[0] { later[0] } else { stats[0] };
    // SAFETY: both outputs hold `out.len()` floats; the caller's instruction set.
    unsafe {
        let (c, d) = (exp::<V>(V::splat_f(stats[0] - max)), exp::<V>(V::splat_f(later[0] - max)));
        *stats = [max, stats[1].mul_add(V::lanes(c)[0], later[1] * V::lanes(d)[0])];
        for i in (0..out.len()).step_by(16) {
            let at = out.as_mut_ptr().add(i);
            let scaled = V::mul_f(V::load_f(later_out.as_ptr().add(i)), d);
            V::store_f(at, V::fma(V::load_f(at), c, scaled));
        }
    }
}
