//! Attention over the cache of one layer: rows to tiles, pages to stretches, and both to threads.
//!
//! A stretch is [`STRETCH`] pages at a fixed absolute position. A row's state is found stretch by stretch, each begun
//! anew, and joined in ascending order, whether one thread walks all of them (prefill, where there are many rows) or
//! each is a piece of work of its own (decode, where there are few): the same operations in the same order.

use crate::activations::{Out, Tile, grow, tiles};
use crate::arch::generic::AttendArgs;
use crate::arch::generic::attention::{LOWEST, MAX_ROWS, PAGE};
use crate::backend::Backend;
use crate::kv::KvLayer;
use std::ops::Range;

/// Pages of a stretch.
const STRETCH: usize = 8;

/// Buffers that attention keeps from call to call.
#[derive(Default)]
pub struct AttentionScratch {
    tiles: Vec<Tile>,
    pages: Vec<PagePointers>,
    /// Queries of each piece of work, `[head_dim][rows]`.
    queries: Vec<f32>,
    stats: Vec<[f32; 2]>,
    outs: Vec<f32>,
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

/// What every piece of work of one call shares.
struct Call<'a> {
    backend: &'a Backend,
    layer: &'a KvLayer,
    pages: &'a [PagePointers],
    queries: &'a [f32],
    heads: usize,
    scale: f32,
    window: Option<usize>,
    /// Position of the first query token.
    first: usize,
}

impl Call<'_> {
    /// Query heads that share a KV head.
    fn group(&self) -> usize {
        self.heads / self.layer.kv_heads
    }

    fn width(&self) -> usize {
        self.heads * self.layer.head_dim
    }

    /// Where row `row` of KV head `kv_head` begins in queries and outputs.
    fn place(&self, kv_head: usize, row: usize) -> usize {
        row / self.group() * self.width() + (kv_head * self.group() + row % self.group()) * self.layer.head_dim
    }

    /// What row `row` sees.
    fn span(&self, row: usize) -> (usize, usize) {
        let end = self.first + row / self.group() + 1;
        (self.window.map_or(0, |w| end.saturating_sub(w)), end)
    }

    /// What the rows of a tile see; padding rows see nothing.
    fn spans(&self, tile: &Tile) -> [(usize, usize); MAX_ROWS] {
        std::array::from_fn(|r| if r < tile.count { self.span(tile.start + r) } else { (0, 0) })
    }

    /// Stretches that some row of a tile sees.
    fn stretches(&self, tile: &Tile) -> Range<usize> {
        let (from, to) = (self.span(tile.start).0, self.span(tile.start + tile.count - 1).1);
        from / (PAGE * STRETCH)..to.div_ceil(PAGE * STRETCH)
    }

    /// Writes the scaled queries of a tile as `[head_dim][rows]`.
    fn gather(&self, kv_head: usize, tile: &Tile, out: &mut [f32]) {
        for r in 0..tile.rows {
            // padding rows see nothing; any numbers do
            let at = self.place(kv_head, tile.start + r.min(tile.count - 1));
            for (d, q) in self.queries[at..at + self.layer.head_dim].iter().enumerate() {
                out[d * tile.rows + r] = q * self.scale;
            }
        }
    }

    /// The states of a tile's rows after one stretch, begun anew.
    fn walk(&self, kv_head: usize, tile: &Tile, stretch: usize, queries: &[f32], stats: &mut [[f32; 2]], out: &mut [f32]) {
        let pages = &self.pages[kv_head];
        stats.fill([LOWEST, 0.0]);
        out.fill(0.0);
        let kernel = (self.backend.kernels.attend)(self.layer.kind.element(), tile.rows).expect("tiles are cut to sizes that have kernels");
        // SAFETY: the table's instruction set is available; queries, states and spans have room for the tile's rows; the
        // pages are those of the layer, which is borrowed, and spans end inside them.
        unsafe {
            kernel(&AttendArgs {
                queries: queries.as_ptr(),
                spans: &self.spans(tile)[..tile.rows],
                pages: stretch * STRETCH..((stretch + 1) * STRETCH).min(pages.keys.len()),
                keys: &pages.keys,
                values: &pages.values,
                head_dim: self.layer.head_dim,
                padded: self.layer.padded,
                stats: stats.as_mut_ptr(),
                out: out.as_mut_ptr(),
            });
        }
    }

    /// Takes over the state of a later stretch, or joins it, for the rows that see it.
    fn join(&self, tile: &Tile, stretch: usize, stats: &mut [[f32; 2]], out: &mut [f32], later: (&[[f32; 2]], &[f32])) {
        let padded = self.layer.padded;
        let begin = stretch * STRETCH * PAGE;
        for r in 0..tile.count {
            let (from, to) = self.span(tile.start + r);
            if to <= begin || from >= begin + STRETCH * PAGE {
                continue;
            }
            let (values, later_values) = (&mut out[r * padded..(r + 1) * padded], &later.1[r * padded..(r + 1) * padded]);
            if from >= begin {
                stats[r] = later.0[r];
                values.copy_from_slice(later_values);
            } else {
                // SAFETY: the table's instruction set is available; the kernel checks lengths.
                unsafe { (self.backend.kernels.merge)(&mut stats[r], values, &later.0[r], later_values) };
            }
        }
    }

    /// Divides by the sums and writes the rows of a tile to the result.
    fn finish(&self, kv_head: usize, tile: &Tile, stats: &[[f32; 2]], out: &[f32], result: Out<f32>) {
        for r in 0..tile.count {
            let scale = 1.0 / stats[r][1];
            let place = result.at(self.place(kv_head, tile.start + r));
            // SAFETY: this row and head of the result belong to this tile alone, and the result has their size.
            let place = unsafe { std::slice::from_raw_parts_mut(place, self.layer.head_dim) };
            place.iter_mut().zip(&out[r * self.layer.padded..]).for_each(|(o, v)| *o = v * scale);
        }
    }
}

impl KvLayer {
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
        assert!(queries.len() == tokens * width && out.len() == queries.len() && heads.is_multiple_of(self.kv_heads));
        assert!(tokens <= self.len() && window != Some(0), "queries are the last tokens of the cache and see themselves");
        let AttentionScratch { tiles: cut, pages, queries: gathered, stats, outs } = scratch;
        self.point_to(pages);
        tiles(tokens * heads / self.kv_heads, backend.kernels.attend_rows, cut);
        let call = Call { backend, layer: self, pages, queries, heads, scale, window, first: self.len() - tokens };
        let result = Out(out.as_mut_ptr());
        let (cut, padded) = (&*cut, self.padded);
        // few rows over many stretches: the stretches are work of their own
        let stretches = cut.iter().map(|t| call.stretches(t).len()).max().unwrap_or(0);
        let units = self.kv_heads * cut.len();
        let apart = stretches > 1 && units < 4 * backend.threads();
        let pieces = if apart { units * stretches } else { units.min(4 * backend.threads()) };
        // room for a tile and its queries, twice where a piece joins what it finds
        let room = pieces * if apart { 1 } else { 2 };
        grow(gathered, pieces * MAX_ROWS * self.head_dim);
        grow(stats, room * MAX_ROWS);
        grow(outs, room * MAX_ROWS * padded);
        let (q_room, stat_room, out_room) = (Out(gathered.as_mut_ptr()), Out(stats.as_mut_ptr()), Out(outs.as_mut_ptr()));
        // piece or half `i` has its own part of each buffer, which were sized just above
        let query_of = |i: usize, t: &Tile| {
            // SAFETY: part `i` is used by one thread at a time.
            unsafe { std::slice::from_raw_parts_mut(q_room.at(i * MAX_ROWS * self.head_dim), t.rows * self.head_dim) }
        };
        // SAFETY: as above.
        let stats_of = |i: usize, t: &Tile| unsafe { std::slice::from_raw_parts_mut(stat_room.at(i * MAX_ROWS), t.rows) };
        // SAFETY: as above.
        let out_of = |i: usize, t: &Tile| unsafe { std::slice::from_raw_parts_mut(out_room.at(i * MAX_ROWS * padded), t.rows * padded) };
        let unit = |u: usize| (u / cut.len(), &cut[u % cut.len()]);
        if apart {
            backend.pool.run(pieces, &|i| {
                let (kv_head, tile) = unit(i / stretches);
                if let Some(stretch) = call.stretches(tile).nth(i % stretches) {
                    let q = query_of(i, tile);
                    call.gather(kv_head, tile, q);
                    call.walk(kv_head, tile, stretch, q, stats_of(i, tile), out_of(i, tile));
                }
            });
            for u in 0..units {
                let (kv_head, tile) = unit(u);
                let (stats, out) = (stats_of(u * stretches, tile), out_of(u * stretches, tile));
                for (i, stretch) in call.stretches(tile).enumerate().skip(1) {
                    let later = u * stretches + i;
                    call.join(tile, stretch, stats, out, (stats_of(later, tile), out_of(later, tile)));
                }
                call.finish(kv_head, tile, stats, out, result);
            }
            return;
        }
        let piece = |i: usize| {
            for u in units * i / pieces..units * (i + 1) / pieces {
                let (kv_head, tile) = unit(u);
                let q = query_of(i, tile);
                call.gather(kv_head, tile, q);
                let (stats, out) = (stats_of(2 * i, tile), out_of(2 * i, tile));
                let (later_stats, later_out) = (stats_of(2 * i + 1, tile), out_of(2 * i + 1, tile));
                for stretch in call.stretches(tile) {
                    call.walk(kv_head, tile, stretch, q, later_stats, later_out);
                    call.join(tile, stretch, stats, out, (later_stats, later_out));
                }
                call.finish(kv_head, tile, stats, out, result);
            }
        };
        if tokens * self.len() * width < 1 << 17 {
            (0..pieces).for_each(piece);
        } else {
            backend.pool.run(pieces, &piece);
        }
    }

    /// Finds the addresses of all pages.
    fn point_to(&self, pages: &mut Vec<PagePointers>) {
        pages.resize_with(self.kv_heads, PagePointers::default);
        for (head, p) in pages.iter_mut().enumerate() {
            p.keys.clear();
            p.values.clear();
            p.keys.extend(self.pages().map(|page| page[self.key_offset(head)..].as_ptr()));
            p.values.extend(self.pages().map(|page| page[self.value_offset(head)..].as_ptr()));
        }
    }
}
