//! The KV cache of one layer of one sequence, in pages.

use crate::activations::Out;
use crate::aligned::AlignedBytes;
use crate::arch::generic::attention::PAGE;
use crate::arch::generic::dense::Element;
use crate::attention::AttentionScratch;
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
    /// Memory of several pages each. The system gives it when it is first written to.
    slabs: Vec<AlignedBytes>,
    /// Where the pages are: slab and offset.
    pages: Vec<(usize, usize)>,
    /// Pages that were written to since they were allocated.
    touched: usize,
    len: usize,
}

/// Elements that are rounded at a time.
const RUN: usize = 64;

/// Most pages of a slab: what no plan needs any more can be given back slab by slab.
const SLAB: usize = 64;

impl KvLayer {
    /// An empty cache for `kv_heads` heads of `head_dim`.
    pub fn new(kv_heads: usize, head_dim: usize, kind: KvType) -> Self {
        let padded = head_dim.next_multiple_of(16);
        Self { kv_heads, head_dim, padded, kind, slabs: vec![], pages: vec![], touched: 0, len: 0 }
    }

    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is in the cache.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all tokens from position `len` on; their pages stay for the tokens that come.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Tokens that there is room for.
    pub fn capacity(&self) -> usize {
        self.pages.len() * PAGE
    }

    /// Makes room for `tokens` tokens in all, so that no append up to there allocates. It is address space where the
    /// allocator takes it fresh from the system, as it does with large slabs: memory comes when a page is written to.
    pub fn reserve(&mut self, tokens: usize) {
        let wanted = tokens.div_ceil(PAGE);
        while self.pages.len() < wanted {
            self.add_slab((wanted - self.pages.len()).min(SLAB));
        }
    }

    /// Gives back slabs that lie wholly behind both the tokens in the cache and the first `tokens`.
    pub fn shrink(&mut self, tokens: usize) {
        let needed = tokens.max(self.len).div_ceil(PAGE);
        while let Some(last) = self.slabs.len().checked_sub(1) {
            let first = self.pages.partition_point(|(slab, _)| *slab < last);
            if first < needed {
                break;
            }
            self.pages.truncate(first);
            self.slabs.pop();
        }
        self.touched = self.touched.min(self.pages.len());
    }

    fn add_slab(&mut self, pages: usize) {
        let bytes = self.page_bytes();
        self.pages.extend((0..pages).map(|i| (self.slabs.len(), i * bytes)));
        self.slabs.push(AlignedBytes::zeroed(pages * bytes));
    }

    fn page_bytes(&self) -> usize {
        PAGE * self.kv_heads * (self.head_dim + self.padded) * self.kind.bytes()
    }

    /// Bytes of the pages that tokens were written to.
    pub fn bytes(&self) -> usize {
        self.touched * self.page_bytes()
    }

    /// The pages that hold tokens.
    pub(crate) fn pages(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.pages[..self.len.div_ceil(PAGE)].iter().map(|&(slab, at)| &self.slabs[slab].as_slice()[at..at + self.page_bytes()])
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
    pub fn append(&mut self, backend: &Backend, scratch: &mut AttentionScratch, keys: &[f32], values: &[f32]) {
        let tokens = keys.len() / (self.kv_heads * self.head_dim);
        backend.append(scratch, std::iter::once((self, tokens)), keys, values);
    }

    /// Makes room for `tokens` more tokens, counts them and calls `take` for each page that they are written to.
    fn extend(&mut self, tokens: usize, row: usize, take: &mut impl FnMut(Target)) {
        let first = self.len;
        self.len += tokens;
        let needed = self.len.div_ceil(PAGE);
        while self.pages.len() < needed {
            // twice as many as there are, for those who did not reserve
            self.add_slab((needed - self.pages.len()).max(self.pages.len()).min(SLAB));
        }
        self.touched = self.touched.max(needed);
        for page in first / PAGE..needed {
            let (slab, at) = self.pages[page];
            let positions = (first.max(page * PAGE), self.len.min((page + 1) * PAGE));
            let base = Out(self.slabs[slab].start().wrapping_add(at));
            take(Target { base, kind: self.kind, positions, row: row + positions.0 - first });
        }
    }
}

/// A page that new tokens are written to.
pub(crate) struct Target {
    base: Out<u8>,
    kind: KvType,
    /// First and one past the last position that is written.
    positions: (usize, usize),
    /// Row of the first among keys and values.
    row: usize,
}

impl Backend {
    /// Appends tokens to the caches of several sequences, each given with the number of its new tokens: `keys` and
    /// `values` are `[tokens, kv_heads * head_dim]`, sequence after sequence.
    ///
    /// # Panics
    /// If the lengths are not the sequences' tokens, or the layers are not of one shape.
    pub fn append<'k>(
        &self,
        scratch: &mut AttentionScratch,
        sequences: impl Iterator<Item = (&'k mut KvLayer, usize)>,
        keys: &[f32],
        values: &[f32],
    ) {
        let targets = &mut scratch.targets;
        targets.clear();
        let (mut shape, mut rows) = (None, 0);
        for (layer, tokens) in sequences {
            assert_eq!(*shape.get_or_insert((layer.kv_heads, layer.head_dim)), (layer.kv_heads, layer.head_dim), "layers of one shape");
            layer.extend(tokens, rows, &mut |target| targets.push(target));
            rows += tokens;
        }
        let Some((kv_heads, head_dim)) = shape else { return };
        let (width, padded) = (kv_heads * head_dim, head_dim.next_multiple_of(16));
        assert!(keys.len() == rows * width && values.len() == rows * width, "whole tokens");
        let targets = &*targets;
        // one head of one page at a time: its keys and values are contiguous there
        let piece = |i: usize| {
            let (target, head) = (&targets[i / kv_heads], i % kv_heads);
            let size = target.kind.bytes();
            let (key_bytes, value_bytes) = (head_dim * PAGE * size, padded * PAGE * size);
            // SAFETY: the keys and the values of this head lie inside the page, which belongs to a sequence that is
            // borrowed exclusively, and this piece alone writes them.
            let (head_keys, head_values) = unsafe {
                (
                    std::slice::from_raw_parts_mut(target.base.at(head * key_bytes), key_bytes),
                    std::slice::from_raw_parts_mut(target.base.at(kv_heads * key_bytes + head * value_bytes), value_bytes),
                )
            };
            for (row, position) in (target.row..).zip(target.positions.0..target.positions.1) {
                let at = row * width + head * head_dim;
                let slot = position % PAGE;
                self.round(target.kind, &keys[at..at + head_dim], |d, bytes| {
                    bytes
                        .chunks_exact(size)
                        .enumerate()
                        .for_each(|(i, b)| head_keys[((d + i) * PAGE + slot) * size..][..size].copy_from_slice(b));
                });
                self.round(target.kind, &values[at..at + head_dim], |d, bytes| {
                    head_values[(slot * padded + d) * size..][..bytes.len()].copy_from_slice(bytes);
                });
            }
        };
        let pieces = targets.len() * kv_heads;
        if rows * width < 1 << 14 {
            (0..pieces).for_each(piece);
        } else {
            self.pool.run(pieces, &piece);
        }
    }

    /// Rounds `x` to the stored type; `take` gets runs of bytes with the index of their first element.
    fn round(&self, kind: KvType, x: &[f32], mut take: impl FnMut(usize, &[u8])) {
        for (i, x) in x.chunks(RUN).enumerate() {
            let mut halves = [0u16; RUN];
            let halves = &mut halves[..x.len()];
            match kind {
                // SAFETY: the table's instruction set is available; the kernel checks lengths.
                KvType::F16 => unsafe { (self.kernels.to_f16)(x, halves) },
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
