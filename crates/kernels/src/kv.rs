//! The KV cache of one layer of one sequence, in pages, and attention over it.

use crate::activations::Out;
use crate::aligned::AlignedBytes;
use crate::arch::generic::AttendArgs;
use crate::arch::generic::attention::{PAGE, QUERIES};
use crate::backend::Backend;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvType {
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

impl KvType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        if self == KvType::F16 { 2 } else { 4 }
    }

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        if self == KvType::F16 { "f16" } else { "f32" }
    }
}

/// Keys and values of one layer. A page holds 64 tokens of every KV head: keys `[kv_heads][head_dim][64]`, then values
/// `[kv_heads][64][head_dim rounded up to 16]`.
pub struct KvLayer {
    kv_heads: usize,
    head_dim: usize,
    padded: usize,
    kind: KvType,
    pages: Vec<AlignedBytes>,
    len: usize,
}

/// Buffers that attention keeps from call to call.
#[derive(Default)]
pub struct AttentionScratch {
    queries: Vec<f32>,
    scores: Vec<f32>,
    outs: Vec<f32>,
    pages: Vec<PagePointers>,
}

/// Addresses of the pages of one KV head.
#[derive(Default)]
struct PagePointers {
    keys: Vec<*const u8>,
    values: Vec<*const u8>,
}

// SAFETY: the addresses are only read through, while the layer that they point into is borrowed.
unsafe impl Send for PagePointers {}
// SAFETY: as above.
unsafe impl Sync for PagePointers {}

impl KvLayer {
    /// An empty cache for `kv_heads` heads of `head_dim`.
    pub fn new(kv_heads: usize, head_dim: usize, kind: KvType) -> Self {
        Self { kv_heads, head_dim, padded: head_dim.next_multiple_of(16), kind, pages: vec![], len: 0 }
    }

    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is in the cache.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all tokens from position `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.pages.truncate(self.len.div_ceil(PAGE));
    }

    /// Bytes of the pages.
    pub fn bytes(&self) -> usize {
        self.pages.iter().map(|p| p.as_slice().len()).sum()
    }

    fn value_offset(&self) -> usize {
        self.kv_heads * self.head_dim * PAGE
    }

    /// Appends tokens: `keys` and `values` are `[tokens, kv_heads * head_dim]`.
    ///
    /// # Panics
    /// If the lengths are not whole tokens or differ.
    pub fn append(&mut self, backend: &Backend, keys: &[f32], values: &[f32]) {
        let width = self.kv_heads * self.head_dim;
        assert!(keys.len() == values.len() && keys.len().is_multiple_of(width), "whole tokens");
        for (k, v) in keys.chunks_exact(width).zip(values.chunks_exact(width)) {
            let slot = self.len % PAGE;
            if slot == 0 {
                let elements = self.kv_heads * PAGE * (self.head_dim + self.padded);
                self.pages.push(AlignedBytes::zeroed(elements * self.kind.bytes()));
            }
            let (head_dim, padded, value_offset, kind) = (self.head_dim, self.padded, self.value_offset(), self.kind);
            let Some(page) = self.pages.last_mut() else { return };
            let bytes = page.as_mut_slice();
            for head in 0..self.kv_heads {
                let k = &k[head * head_dim..][..head_dim];
                let v = &v[head * head_dim..][..head_dim];
                let key_at = |d: usize| (head * head_dim + d) * PAGE + slot;
                let value_at = value_offset + (head * PAGE + slot) * padded;
                match kind {
                    KvType::F16 => {
                        let mut half = [0u16; 16];
                        for d0 in (0..head_dim).step_by(16) {
                            let n = (head_dim - d0).min(16);
                            // SAFETY: the table's instruction set is available; the kernel checks lengths.
                            unsafe { (backend.kernels.to_f16)(&k[d0..d0 + n], &mut half[..n]) };
                            for (i, h) in half[..n].iter().enumerate() {
                                bytes[2 * key_at(d0 + i)..][..2].copy_from_slice(&h.to_le_bytes());
                            }
                            // SAFETY: as above.
                            unsafe { (backend.kernels.to_f16)(&v[d0..d0 + n], &mut half[..n]) };
                            for (i, h) in half[..n].iter().enumerate() {
                                bytes[2 * (value_at + d0 + i)..][..2].copy_from_slice(&h.to_le_bytes());
                            }
                        }
                    }
                    KvType::F32 => {
                        for d in 0..head_dim {
                            bytes[4 * key_at(d)..][..4].copy_from_slice(&k[d].to_le_bytes());
                            bytes[4 * (value_at + d)..][..4].copy_from_slice(&v[d].to_le_bytes());
                        }
                    }
                }
            }
            self.len += 1;
        }
    }

    /// Causal attention of `queries`, `[tokens, heads * head_dim]`, the last `tokens` tokens of the cache; `out` has the
    /// same shape. Query head h reads KV head `h / (heads / kv_heads)`; scores are multiplied by `scale`. With a `window`
    /// a token sees itself and the `window - 1` tokens before it.
    ///
    /// # Panics
    /// If the sizes do not fit.
    #[allow(clippy::too_many_arguments)] // the operands of attention
    pub fn attend(
        &self,
        backend: &Backend,
        scratch: &mut AttentionScratch,
        queries: &[f32],
        heads: usize,
        scale: f32,
        window: Option<usize>,
        out: &mut [f32],
    ) {
        let width = heads * self.head_dim;
        let tokens = queries.len() / width;
        assert!(queries.len() == tokens * width && out.len() == queries.len() && tokens <= self.len && heads.is_multiple_of(self.kv_heads));
        let group = heads / self.kv_heads;
        let first = self.len - tokens;
        let AttentionScratch { queries: scaled, scores, outs, pages } = scratch;
        scaled.clear();
        scaled.extend(queries.iter().map(|q| q * scale));
        pages.resize_with(self.kv_heads, PagePointers::default);
        let size = self.kind.bytes();
        for (head, p) in pages.iter_mut().enumerate() {
            p.keys.clear();
            p.values.clear();
            p.keys.extend(self.pages.iter().map(|page| page.as_slice()[head * self.head_dim * PAGE * size..].as_ptr()));
            let values = (self.value_offset() + head * PAGE * self.padded) * size;
            p.values.extend(self.pages.iter().map(|page| page.as_slice()[values..].as_ptr()));
        }
        // a unit of work is QUERIES (token, head) pairs that share a KV head, in token order
        let per_head = (tokens * group).div_ceil(QUERIES);
        let units = self.kv_heads * per_head;
        let stride = self.pages.len() * PAGE * QUERIES;
        // units in flight at once need room each; so many as there are threads, claimed in runs
        let runs = units.min(backend.threads() * 4);
        scores.resize(scores.len().max(runs * stride), 0.0);
        outs.resize(outs.len().max(runs * QUERIES * self.padded), 0.0);
        let (score_room, out_room, result) = (Out(scores.as_mut_ptr()), Out(outs.as_mut_ptr()), Out(out.as_mut_ptr()));
        let (scaled, pages) = (&*scaled, &*pages);
        let attend = backend.kernels.attend[usize::from(self.kind == KvType::F32)];
        let run = |i: usize| {
            for unit in (units * i / runs)..(units * (i + 1) / runs) {
                let (kv_head, part) = (unit / per_head, unit % per_head);
                let from = part * QUERIES;
                let count = (tokens * group - from).min(QUERIES);
                let mut q = [std::ptr::null(); QUERIES];
                let mut spans = [(0, 0); QUERIES];
                let mut o = [std::ptr::null_mut(); QUERIES];
                let place = |j: usize| {
                    let (token, head) = ((from + j) / group, kv_head * group + (from + j) % group);
                    (token, token * width + head * self.head_dim)
                };
                for j in 0..count {
                    let (token, at) = place(j);
                    q[j] = scaled[at..].as_ptr();
                    let end = first + token + 1;
                    spans[j] = (window.map_or(0, |w| end.saturating_sub(w)), end);
                    o[j] = out_room.at((i * QUERIES + j) * self.padded);
                }
                // SAFETY: the table's instruction set is available; queries, spans and pages lie inside the cache and
                // the scratch as sized above; run `i` alone uses room `i`.
                unsafe {
                    attend(&AttendArgs {
                        queries: &q[..count],
                        spans: &spans[..count],
                        keys: &pages[kv_head].keys,
                        values: &pages[kv_head].values,
                        head_dim: self.head_dim,
                        padded: self.padded,
                        scores: score_room.at(i * stride),
                        out: &o[..count],
                    });
                    for (j, o) in o[..count].iter().enumerate() {
                        let (_, at) = place(j);
                        std::ptr::copy_nonoverlapping(*o, result.at(at), self.head_dim);
                    }
                }
            }
        };
        if units * self.len * self.head_dim < 32_768 {
            (0..runs).for_each(run);
        } else {
            backend.pool.run(runs, &run);
        }
    }
}
