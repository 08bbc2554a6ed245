//! The KV cache of one layer of one sequence, in pages.

use crate::activations::Out;
use crate::aligned::AlignedBytes;
use crate::arch::generic::attention::PAGE;
use crate::arch::generic::dense::Element;
use crate::backend::Backend;
use half::bf16;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvType {
    /// Half precision.
    F16,
    /// Brain floats.
    BF16,
    /// Single precision.
    F32,
}

impl KvType {
    /// All of them.
    pub const ALL: [KvType; 3] = [KvType::F16, KvType::BF16, KvType::F32];

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        if self == KvType::F32 { 4 } else { 2 }
    }

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::BF16 => "bf16",
            KvType::F32 => "f32",
        }
    }

    pub(crate) fn element(self) -> Element {
        match self {
            KvType::F16 => Element::F16,
            KvType::BF16 => Element::BF16,
            KvType::F32 => Element::F32,
        }
    }
}

/// Keys and values of one layer. A page holds 64 tokens of every KV head: keys `[kv_heads][head_dim][64]`, then values
/// `[kv_heads][64][head_dim rounded up to 16]`.
pub struct KvLayer {
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) padded: usize,
    pub(crate) kind: KvType,
    pages: Vec<AlignedBytes>,
    len: usize,
    /// Room for the addresses of the pages that an append writes.
    bases: Vec<Out<u8>>,
}

/// Elements that are rounded at a time.
const RUN: usize = 64;

impl KvLayer {
    /// An empty cache for `kv_heads` heads of `head_dim`.
    pub fn new(kv_heads: usize, head_dim: usize, kind: KvType) -> Self {
        Self { kv_heads, head_dim, padded: head_dim.next_multiple_of(16), kind, pages: vec![], len: 0, bases: vec![] }
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

    /// The pages that hold tokens.
    pub(crate) fn pages(&self) -> impl Iterator<Item = &[u8]> {
        self.pages.iter().map(AlignedBytes::as_slice)
    }

    /// Where the keys of a head begin in a page.
    pub(crate) fn key_offset(&self, head: usize) -> usize {
        head * self.head_dim * PAGE * self.kind.bytes()
    }

    /// Where the values of a head begin in a page.
    pub(crate) fn value_offset(&self, head: usize) -> usize {
        (self.kv_heads * self.head_dim + head * self.padded) * PAGE * self.kind.bytes()
    }

    /// Appends tokens: `keys` and `values` are `[tokens, kv_heads * head_dim]`.
    ///
    /// # Panics
    /// If the lengths are not whole tokens or differ.
    pub fn append(&mut self, backend: &Backend, keys: &[f32], values: &[f32]) {
        let width = self.kv_heads * self.head_dim;
        assert!(keys.len() == values.len() && keys.len().is_multiple_of(width), "whole tokens");
        let tokens = keys.len() / width;
        let first = self.len;
        self.len += tokens;
        let page_bytes = PAGE * self.kv_heads * (self.head_dim + self.padded) * self.kind.bytes();
        while self.pages.len() * PAGE < self.len {
            self.pages.push(AlignedBytes::zeroed(page_bytes));
        }
        let size = self.kind.bytes();
        // one head of one page at a time: its keys and values are contiguous there
        let pages = first / PAGE..self.len.div_ceil(PAGE);
        let mut bases = std::mem::take(&mut self.bases);
        bases.clear();
        bases.extend(self.pages[pages.clone()].iter_mut().map(|p| Out(p.as_mut_slice().as_mut_ptr())));
        let this = &*self;
        let piece = |i: usize| {
            let (page, head) = (pages.start + i / this.kv_heads, i % this.kv_heads);
            let base = bases[i / this.kv_heads];
            // SAFETY: the keys and the values of this head lie inside the page, and this piece alone writes them.
            let (head_keys, head_values) = unsafe {
                (
                    std::slice::from_raw_parts_mut(base.at(this.key_offset(head)), this.head_dim * PAGE * size),
                    std::slice::from_raw_parts_mut(base.at(this.value_offset(head)), this.padded * PAGE * size),
                )
            };
            for position in first.max(page * PAGE)..this.len.min((page + 1) * PAGE) {
                let at = (position - first) * width + head * this.head_dim;
                let slot = position % PAGE;
                this.round(backend, &keys[at..at + this.head_dim], |d, bytes| {
                    bytes
                        .chunks_exact(size)
                        .enumerate()
                        .for_each(|(i, b)| head_keys[((d + i) * PAGE + slot) * size..][..size].copy_from_slice(b));
                });
                this.round(backend, &values[at..at + this.head_dim], |d, bytes| {
                    head_values[(slot * this.padded + d) * size..][..bytes.len()].copy_from_slice(bytes);
                });
            }
        };
        let pieces = pages.len() * self.kv_heads;
        if tokens * width < 1 << 14 {
            (0..pieces).for_each(piece);
        } else {
            backend.pool.run(pieces, &piece);
        }
        self.bases = bases;
    }

    /// Rounds `x` to the stored type; `take` gets runs of bytes with the index of their first element.
    fn round(&self, backend: &Backend, x: &[f32], mut take: impl FnMut(usize, &[u8])) {
        for (i, x) in x.chunks(RUN).enumerate() {
            let mut halves = [0u16; RUN];
            let halves = &mut halves[..x.len()];
            match self.kind {
                // SAFETY: the table's instruction set is available; the kernel checks lengths.
                KvType::F16 => unsafe { (backend.kernels.to_f16)(x, halves) },
                KvType::BF16 => halves.iter_mut().zip(x).for_each(|(h, v)| *h = bf16::from_f32(*v).to_bits()),
                KvType::F32 => {
                    let mut bytes = [0u8; 4 * RUN];
                    bytes.as_chunks_mut::<4>().0.iter_mut().zip(x).for_each(|(b, v)| *b = v.to_le_bytes());
                    take(i * RUN, &bytes[..4 * x.len()]);
                    continue;
                }
            }
            let mut bytes = [0u8; 2 * RUN];
            bytes.as_chunks_mut::<2>().0.iter_mut().zip(&*halves).for_each(|(b, h)| *b = h.to_le_bytes());
            take(i * RUN, &bytes[..2 * x.len()]);
        }
    }
}
