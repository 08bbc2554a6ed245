//! Attention of a few query rows over the KV pages of one head.
//!
//! A page holds [`PAGE`] tokens. Keys lie `[head_dim][PAGE]`, so that one vector is sixteen tokens and a score is a
//! chain of fused multiply-adds over head_dim; values lie `[PAGE][head_dim]`, so that an output is a chain over tokens.
//! Both orders are fixed by the absolute position of a token: a row's result does not depend on the rows beside it nor
//! on how the prompt was cut.

use super::math::exp;
use crate::arch::vector::Vector;

/// Tokens of a page.
pub(crate) const PAGE: usize = 64;
/// Query rows that one call may carry.
pub(crate) const QUERIES: usize = 4;

/// What attention works on. All rows share the KV head.
pub(crate) struct AttendArgs<'a> {
    /// Query rows, already scaled, `[count]` pointers to `head_dim` floats.
    pub queries: &'a [*const f32],
    /// First and one past the last visible position of each row.
    pub spans: &'a [(usize, usize)],
    /// Key pages of this KV head, `[head_dim][PAGE]` elements each; page i holds positions `i * PAGE ..`.
    pub keys: &'a [*const u8],
    /// Value pages of this KV head, `[PAGE][head_dim padded]` elements each.
    pub values: &'a [*const u8],
    /// Floats of a query.
    pub head_dim: usize,
    /// `head_dim` rounded up to sixteen.
    pub padded: usize,
    /// Room for `QUERIES * keys.len() * PAGE` floats.
    pub scores: *mut f32,
    /// Where each row's output goes, `padded` floats each.
    pub out: &'a [*mut f32],
}

#[inline(always)]
unsafe fn load<V: Vector, const HALF: bool>(p: *const u8, index: usize) -> V::F {
    // SAFETY: the caller's pointer and index.
    unsafe { if HALF { V::load_f16(p.add(2 * index)) } else { V::load_f(p.add(4 * index).cast()) } }
}

/// `out = softmax(q · K) · V` for up to [`QUERIES`] rows.
///
/// # Safety
/// The instruction set of `V`; pointers as their docs say; spans are not empty and lie inside the pages.
#[inline(always)]
pub(crate) unsafe fn attend<V: Vector, const HALF: bool>(a: &AttendArgs) {
    let rows = a.queries.len();
    let first = a.spans.iter().map(|s| s.0).min().unwrap_or(0) / PAGE;
    let last = a.spans.iter().map(|s| s.1).max().unwrap_or(0).div_ceil(PAGE);
    let stride = a.keys.len() * PAGE;
    // SAFETY: by the contract above; rows < QUERIES, pages first..last exist.
    unsafe {
        for page in first..last {
            for r in (0..rows).step_by(2) {
                // two rows share each load of the keys; a lone last row is computed twice
                let pair = [r, (r + 1).min(rows - 1)];
                let mut acc = [[V::splat_f(0.0); 4]; 2];
                for d in 0..a.head_dim {
                    let k: [V::F; 4] = std::array::from_fn(|v| load::<V, HALF>(a.keys[page], d * PAGE + 16 * v));
                    for i in 0..2 {
                        let q = V::splat_f(*a.queries[pair[i]].add(d));
                        for v in 0..4 {
                            acc[i][v] = V::fma(q, k[v], acc[i][v]);
                        }
                    }
                }
                for i in 0..2 {
                    for v in 0..4 {
                        V::store_f(a.scores.add(pair[i] * stride + page * PAGE + 16 * v), acc[i][v]);
                    }
                }
            }
        }

        let mut scale = [0.0f32; QUERIES];
        for r in 0..rows {
            let (from, to) = a.spans[r];
            let scores = std::slice::from_raw_parts_mut(a.scores.add(r * stride), last * PAGE);
            let visible = from / PAGE * PAGE..to.next_multiple_of(PAGE);
            scores[visible.start..from].fill(f32::NEG_INFINITY);
            scores[to..visible.end].fill(f32::NEG_INFINITY);
            let mut max = V::splat_f(f32::NEG_INFINITY);
            for p in visible.clone().step_by(16) {
                max = V::max_f(V::load_f(scores.as_ptr().add(p)), max);
            }
            let max = V::splat_f(V::max_lane(max));
            for p in visible.clone().step_by(16) {
                let at = scores.as_mut_ptr().add(p);
                V::store_f(at, exp::<V>(V::sub_f(V::load_f(at), max)));
            }
            // what is not visible weighs exactly nothing
            scores[first * PAGE..from].fill(0.0);
            scores[to..].fill(0.0);
            let mut sum = V::splat_f(0.0);
            for p in visible.step_by(16) {
                sum = V::add_f(sum, V::load_f(scores.as_ptr().add(p)));
            }
            scale[r] = 1.0 / V::sum(sum);
        }

        for r in 0..rows {
            let (from, to) = a.spans[r];
            let scores = a.scores.add(r * stride);
            for d0 in (0..a.padded).step_by(64) {
                let vectors = (a.padded - d0).min(64) / 16;
                let mut acc = [V::splat_f(0.0); 4];
                for page in from / PAGE..to.div_ceil(PAGE) {
                    let start = from.max(page * PAGE);
                    let end = to.min((page + 1) * PAGE);
                    for j in start..end {
                        let p = V::splat_f(*scores.add(j));
                        for (v, acc) in acc.iter_mut().enumerate().take(vectors) {
                            let value = load::<V, HALF>(a.values[page], (j - page * PAGE) * a.padded + d0 + 16 * v);
                            *acc = V::fma(p, value, *acc);
                        }
                    }
                }
                for (v, acc) in acc.iter().enumerate().take(vectors) {
                    V::store_f(a.out[r].add(d0 + 16 * v), V::mul_f(*acc, V::splat_f(scale[r])));
                }
            }
        }
    }
}
