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
//! Pages begin anew at absolute positions, so a row's numbers do not depend on the rows beside it nor on how the prompt
//! was cut. States of two stretches of pages are joined by [`merge`].

use super::dense::Element;
use super::math::exp;
use crate::arch::vector::Vector;
use crate::kv::BLOCK;
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
    /// Where the keys of this KV head begin in a block, `[head_dim][16]` elements.
    pub keys_at: usize,
    /// Where its values begin, `[16][padded]` elements.
    pub values_at: usize,
    /// Floats of a query.
    pub head_dim: usize,
    /// `head_dim` rounded up to sixteen.
    pub padded: usize,
    /// Maximum and sum of each row, `[MR]`.
    pub stats: *mut [f32; 2],
    /// Weighted values of each row, `[MR][padded]`.
    pub out: *mut f32,
}

#[inline(always)]
unsafe fn load<V: Vector, const E: u8>(p: *const u8, index: usize) -> V::F {
    // SAFETY: the caller's pointer and index.
    unsafe {
        if E == Element::F16 as u8 {
            V::load_f16(p.add(2 * index))
        } else if E == Element::BF16 as u8 {
            V::load_bf16(p.add(2 * index))
        } else {
            V::load_f(p.add(4 * index).cast())
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
    let mut weights = [[0.0f32; PAGE]; MR];
    for page in a.pages.clone() {
        let seen = |r: usize| {
            let (from, to) = a.spans[r];
            from.max(page * PAGE)..to.min((page + 1) * PAGE)
        };
        let any = (0..MR).map(seen).filter(|s| !s.is_empty()).reduce(|x, y| x.start.min(y.start)..x.end.max(y.end));
        let Some(any) = any else { continue };
        // SAFETY: by the contract above; every offset lies inside its page, its tile or its state.
        unsafe {
            for v0 in (0..BLOCKS).step_by(NV) {
                // past the last block the scores of any other do: nobody sees them
                let keys: [*const u8; NV] =
                    std::array::from_fn(|v| a.blocks[(page * BLOCKS + v0 + v).min(a.blocks.len() - 1)].add(a.keys_at));
                let mut acc = [[V::splat_f(0.0); NV]; MR];
                for d in 0..a.head_dim {
                    let k: [V::F; NV] = std::array::from_fn(|v| load::<V, E>(keys[v], d * BLOCK));
                    let q = a.queries.add(d * MR);
                    for r in 0..MR {
                        let q = V::splat_f(*q.add(r));
                        for v in 0..NV {
                            acc[r][v] = V::fma(q, k[v], acc[r][v]);
                        }
                    }
                }
                for r in 0..MR {
                    for v in 0..NV {
                        V::store_f(weights[r].as_mut_ptr().add(16 * (v0 + v)), acc[r][v]);
                    }
                }
            }
            let mut keep = [1.0f32; MR];
            for r in 0..MR {
                let s = seen(r);
                if s.is_empty() {
                    weights[r] = [0.0; PAGE];
                    continue;
                }
                let [max, sum] = &mut *a.stats.add(r);
                keep[r] = softmax::<V>(&mut weights[r], s.start - page * PAGE..s.end - page * PAGE, max, sum);
            }
            let store = std::array::from_fn(|r| !seen(r).is_empty());
            let tokens = any.start - page * PAGE..any.end - page * PAGE;
            let mut d0 = 0;
            while d0 + 16 * NV <= a.padded {
                add_values::<V, E, MR, NV>(a, page, tokens.clone(), d0, &weights, &keep, &store);
                d0 += 16 * NV;
            }
            while d0 < a.padded {
                add_values::<V, E, MR, 1>(a, page, tokens.clone(), d0, &weights, &keep, &store);
                d0 += 16;
            }
        }
    }
}

/// Turns the scores of one row and page into weights under the new maximum, adds them to the sum and returns what the
/// old sums are to be multiplied with. Tokens outside `seen` weigh exactly nothing.
#[inline(always)]
unsafe fn softmax<V: Vector>(scores: &mut [f32; PAGE], seen: Range<usize>, max: &mut f32, sum: &mut f32) -> f32 {
    scores[..seen.start].fill(LOWEST);
    scores[seen.end..].fill(LOWEST);
    // SAFETY: a row has four vectors; the caller's instruction set.
    unsafe {
        let at = scores.as_mut_ptr();
        let mut largest = V::splat_f(*max);
        for v in 0..4 {
            largest = V::max_f(V::load_f(at.add(16 * v)), largest);
        }
        let largest = V::max_lane(largest);
        let keep = V::lanes(exp::<V>(V::splat_f(*max - largest)))[0];
        let level = V::splat_f(largest);
        for v in 0..4 {
            V::store_f(at.add(16 * v), exp::<V>(V::sub_f(V::load_f(at.add(16 * v)), level)));
        }
        scores[..seen.start].fill(0.0);
        scores[seen.end..].fill(0.0);
        let mut total = V::load_f(at);
        for v in 1..4 {
            total = V::add_f(total, V::load_f(at.add(16 * v)));
        }
        *max = largest;
        *sum = sum.mul_add(keep, V::sum(total));
        keep
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
    keep: &[f32; MR],
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
            let values = a.blocks[page * BLOCKS + block].add(a.values_at);
            for j in tokens.start.max(block * BLOCK)..tokens.end.min((block + 1) * BLOCK) {
                let value: [V::F; NV] = std::array::from_fn(|v| load::<V, E>(values, j % BLOCK * a.padded + d0 + 16 * v));
                for r in 0..MR {
                    let weight = V::splat_f(weights[r][j]);
                    for v in 0..NV {
                        acc[r][v] = V::fma(weight, value[v], acc[r][v]);
                    }
                }
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
