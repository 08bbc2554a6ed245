//! Attention over one layer of a pool: rows to tiles, pages to stretches, and both to threads.
//!
//! A stretch is [`STRETCH`] pages at a fixed absolute position. A row's state is found stretch by stretch, each begun
//! anew, and joined in ascending order, whether one thread walks all of them (prefill and large batches, where there are
//! many rows) or each is a piece of work of its own (decode, where there are few): the same operations in the same order.
//! Several sequences are one region of the pool: a tile belongs to one sequence and one KV head, and pieces are cut by
//! what their tiles see.

use crate::activations::{Out, Tile, add_tiles, grow};
use crate::arch::generic::AttendArgs;
use crate::arch::generic::attention::{LOWEST, MAX_ROWS, PAGE};
use crate::backend::Backend;
use crate::floats::Floats;
use crate::kv::{BLOCK, Halves, KvPool, KvScales, KvShape, KvTable, Target, touched};
use std::ops::Range;

/// Pages of a stretch.
const STRETCH: usize = 8;

/// Most pieces of work of one call: a region of the pool has about four times as many.
const MOST_PIECES: usize = 1 << 20;

/// What attention computes besides which keys and values it reads.
#[derive(Clone, Copy, Debug)]
pub struct AttentionRule {
    /// Query heads; head h reads KV head `h / (heads / kv_heads)`.
    pub heads: usize,
    /// Multiplies the scores.
    pub scale: f32,
    /// Tokens that a token sees, itself included; all before it if none.
    pub window: Option<usize>,
}

/// One sequence of a call of attention.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'k> {
    /// Its blocks.
    pub table: &'k KvTable,
    /// Tokens that were [appended](Backend::append) and not yet counted.
    pub tokens: usize,
    /// How many of these, the last ones, have queries.
    pub queries: usize,
}

/// Buffers that appending and attention keep from call to call.
#[derive(Default)]
pub struct AttentionScratch {
    pub(crate) targets: Vec<Target>,
    pub(crate) halves: Halves,
    tiles: Vec<Tile>,
    sequences: Vec<Sequence>,
    addresses: Addresses,
    half_addresses: Addresses,
    units: Vec<Unit>,
    pieces: Vec<Piece>,
    /// Queries of each piece of work, `[head_dim][rows]`.
    queries: Floats,
    stats: Vec<[f32; 2]>,
    outs: Floats,
}

/// Addresses of blocks of every sequence: of all, and in half precision of those that its query tokens lie in.
#[derive(Default)]
struct Addresses(Vec<*const u8>);

// SAFETY: the addresses are only read through, while the pool that they point into is borrowed.
unsafe impl Send for Addresses {}
// SAFETY: as above.
unsafe impl Sync for Addresses {}

/// One sequence of a call.
struct Sequence {
    /// Its addresses.
    blocks: Range<usize>,
    /// Where the addresses in half precision begin, if its blocks are quantized.
    halves: usize,
    /// Position of its first query token, and that token's row among all.
    first: usize,
    row: usize,
}

/// A tile of the rows of one sequence that share a KV head.
struct Unit {
    sequence: usize,
    kv_head: usize,
    tile: Tile,
    stretches: Range<usize>,
    /// Where its states begin if its stretches are pieces of their own.
    room: usize,
}

/// What one thread does at a time.
enum Piece {
    /// Some units from beginning to end.
    Units(Range<usize>),
    /// One stretch of a unit.
    Stretch(usize, usize),
}

/// What every piece of work of one call shares.
struct Call<'a> {
    backend: &'a Backend,
    attention: AttentionRule,
    shape: KvShape,
    sequences: &'a [Sequence],
    addresses: &'a Addresses,
    half_addresses: &'a Addresses,
    scales: Option<&'a KvScales>,
    queries: &'a [f32],
}

impl Call<'_> {
    /// Query heads that share a KV head.
    fn group(&self) -> usize {
        self.attention.heads / self.shape.kv_heads
    }

    fn width(&self) -> usize {
        self.attention.heads * self.shape.head_dim
    }

    /// Where a row of a sequence and KV head begins in queries and outputs.
    fn place(&self, s: &Sequence, kv_head: usize, row: usize) -> usize {
        (s.row + row / self.group()) * self.width() + (kv_head * self.group() + row % self.group()) * self.shape.head_dim
    }

    /// What a row of a sequence sees.
    fn span(&self, s: &Sequence, row: usize) -> (usize, usize) {
        let end = s.first + row / self.group() + 1;
        (self.attention.window.map_or(0, |w| end.saturating_sub(w)), end)
    }

    /// What some row of a tile sees.
    fn seen(&self, s: &Sequence, tile: &Tile) -> Range<usize> {
        self.span(s, tile.start).0..self.span(s, tile.start + tile.count - 1).1
    }

    /// Stretches that some row of a tile sees.
    fn stretches(&self, s: &Sequence, tile: &Tile) -> Range<usize> {
        let seen = self.seen(s, tile);
        seen.start / (PAGE * STRETCH)..seen.end.div_ceil(PAGE * STRETCH)
    }

    /// Writes the scaled queries of a tile as `[head_dim][rows]`, those of four rows at a time: one number at a time takes twice
    /// as long.
    fn gather(&self, unit: &Unit, out: &mut [f32]) {
        let (s, tile) = (&self.sequences[unit.sequence], &unit.tile);
        let query = |r: usize| {
            // padding rows see nothing; any numbers do
            let at = self.place(s, unit.kv_head, tile.start + r.min(tile.count - 1));
            &self.queries[at..at + self.shape.head_dim]
        };
        let fours = tile.rows / 4 * 4;
        for r in (0..fours).step_by(4) {
            let [a, b, c, d] = [r, r + 1, r + 2, r + 3].map(query);
            for ((((to, a), b), c), d) in out.chunks_exact_mut(tile.rows).zip(a).zip(b).zip(c).zip(d) {
                to[r..r + 4].copy_from_slice(&[a, b, c, d].map(|q| q * self.attention.scale));
            }
        }
        for r in fours..tile.rows {
            out.chunks_exact_mut(tile.rows).zip(query(r)).for_each(|(to, q)| to[r] = q * self.attention.scale);
        }
    }

    /// Asks for the queries of a tile that comes next: they lie in the second cache of another core, or further.
    fn ask(&self, unit: &Unit) {
        let s = &self.sequences[unit.sequence];
        for r in unit.tile.start..unit.tile.start + unit.tile.count {
            let at = self.place(s, unit.kv_head, r);
            // SAFETY: the table's instruction set is available.
            unsafe { (self.backend.kernels.ask)(&self.queries[at..at + self.shape.head_dim]) };
        }
    }

    /// The states of a tile's rows after one stretch, begun anew.
    fn walk(&self, unit: &Unit, stretch: usize, queries: &[f32], stats: &mut [[f32; 2]], out: &mut [f32]) {
        let (s, tile, shape) = (&self.sequences[unit.sequence], &unit.tile, self.shape);
        let keys_at = unit.kv_head * shape.head_bytes();
        let own = if shape.kind.is_quantized() {
            let own = (s.first + tile.start / self.group()) / BLOCK;
            let address = self.half_addresses.0[s.halves + own - s.first / BLOCK];
            (own, address.wrapping_add(unit.kv_head * shape.halves().head_bytes()))
        } else {
            (usize::MAX, std::ptr::null())
        };
        stats.fill([LOWEST, 0.0]);
        out.fill(0.0);
        // padding rows see nothing
        let spans: [(usize, usize); MAX_ROWS] = std::array::from_fn(|r| if r < tile.count { self.span(s, tile.start + r) } else { (0, 0) });
        let kernel = (self.backend.kernels.attend)(shape.kind, tile.rows).expect("tiles are cut to sizes that have kernels");
        // SAFETY: the table's instruction set is available; queries, states and spans have room for the tile's rows; the
        // blocks are those of the pool, which is borrowed, and spans end inside them.
        unsafe {
            kernel(&AttendArgs {
                queries: queries.as_ptr(),
                spans: &spans[..tile.rows],
                pages: stretch * STRETCH..((stretch + 1) * STRETCH).min((s.blocks.len() * BLOCK).div_ceil(PAGE)),
                blocks: &self.addresses.0[s.blocks.clone()],
                keys_at,
                next_keys_at: keys_at + shape.head_bytes(),
                values_at: keys_at + shape.key_bytes(),
                scales_at: keys_at + shape.scales_at(),
                factors: self.scales.map_or([1.0; 2], |s| s.of(unit.kv_head)),
                own,
                head_dim: shape.head_dim,
                padded: shape.padded(),
                stats: stats.as_mut_ptr(),
                out: out.as_mut_ptr(),
            });
        }
    }

    /// Takes over the state of a later stretch, or joins it, for the rows that see it.
    fn join(&self, unit: &Unit, stretch: usize, stats: &mut [[f32; 2]], out: &mut [f32], later: (&[[f32; 2]], &[f32])) {
        let (s, tile, padded) = (&self.sequences[unit.sequence], &unit.tile, self.shape.padded());
        let begin = stretch * STRETCH * PAGE;
        for r in 0..tile.count {
            let (from, to) = self.span(s, tile.start + r);
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
    fn finish(&self, unit: &Unit, stats: &[[f32; 2]], out: &[f32], result: Out<f32>) {
        let (s, padded) = (&self.sequences[unit.sequence], self.shape.padded());
        for r in 0..unit.tile.count {
            let scale = 1.0 / stats[r][1];
            let place = result.at(self.place(s, unit.kv_head, unit.tile.start + r));
            // SAFETY: this row and head of the result belong to this tile alone, and the result has their size.
            let place = unsafe { std::slice::from_raw_parts_mut(place, self.shape.head_dim) };
            place.iter_mut().zip(&out[r * padded..]).for_each(|(o, v)| *o = v * scale);
        }
    }

    /// Cuts the rows of all sequences into units. Returns what the largest costs, what all cost, and how many states
    /// there would be if every stretch were on its own.
    fn cut(&self, rows: impl Iterator<Item = usize>, cut: &mut Vec<Tile>, units: &mut Vec<Unit>) -> (usize, usize, usize) {
        units.clear();
        let (mut largest, mut total, mut states) = (0, 0, 0);
        for (sequence, rows) in rows.enumerate() {
            let s = &self.sequences[sequence];
            self.tiles(s, rows, cut);
            for kv_head in 0..self.shape.kv_heads {
                for &tile in &*cut {
                    let stretches = self.stretches(s, &tile);
                    let cost = self.cost(s, &tile);
                    largest = largest.max(cost);
                    total += cost;
                    units.push(Unit { sequence, kv_head, tile, room: states, stretches: stretches.clone() });
                    states += stretches.len();
                }
            }
        }
        (largest, total, states)
    }

    /// Cuts the rows of a sequence that share a KV head into tiles. Where blocks are quantized, the rows of a tile are tokens
    /// of one block.
    fn tiles(&self, s: &Sequence, rows: usize, cut: &mut Vec<Tile>) {
        cut.clear();
        let (group, mut from) = (self.group(), 0);
        while from < rows {
            let border = (BLOCK - (s.first + from / group) % BLOCK) * group + from;
            let kernels = self.backend.kernels;
            let (to, sizes) = match self.shape.kind.is_quantized() {
                true => (border.min(rows), kernels.attend_coded_rows),
                false => (rows, kernels.attend_rows),
            };
            add_tiles(from..to, sizes, &mut 0, cut);
            from = to;
        }
    }

    /// What a tile costs: its rows times the pages that they see.
    fn cost(&self, s: &Sequence, tile: &Tile) -> usize {
        tile.rows * self.seen(s, tile).len().div_ceil(PAGE)
    }

    /// Cuts units into at most `count` pieces that cost alike.
    fn share(&self, units: &[Unit], total: usize, count: usize, pieces: &mut Vec<Piece>) {
        let (mut from, mut done) = (0, 0);
        for (i, u) in units.iter().enumerate() {
            done += self.cost(&self.sequences[u.sequence], &u.tile);
            if done * count >= total * (pieces.len() + 1) {
                pieces.push(Piece::Units(from..i + 1));
                from = i + 1;
            }
        }
    }
}

impl Backend {
    /// Causal attention of several sequences over one layer in one region of the pool: `queries` and `out` are
    /// `[tokens with queries, heads * head_dim]`, sequence after sequence. A row depends on its own sequence only.
    ///
    /// # Panics
    /// If the sizes do not fit.
    #[allow(clippy::too_many_arguments)] // what attention reads, and where it writes
    pub fn attend<'k>(
        &self,
        scratch: &mut AttentionScratch,
        pool: &KvPool,
        layer: usize,
        attention: AttentionRule,
        sequences: impl Iterator<Item = Asking<'k>> + Clone,
        queries: &[f32],
        out: &mut [f32],
    ) {
        let AttentionScratch {
            tiles,
            sequences: list,
            addresses,
            half_addresses,
            halves,
            units,
            pieces,
            queries: gathered,
            stats,
            outs,
            ..
        } = scratch;
        let shape = pool.shape();
        let (kv_heads, head_dim, padded) = (shape.kv_heads, shape.head_dim, shape.padded());
        let width = attention.heads * head_dim;
        assert!(attention.heads.is_multiple_of(kv_heads) && attention.window != Some(0), "a token sees itself");
        list.clear();
        let Addresses(blocks) = &mut *addresses;
        blocks.clear();
        half_addresses.0.clear();
        let halves = &mut halves.parts();
        // room for all blocks that the sequences may have, so that a step into the next one allocates nothing
        blocks.reserve(sequences.clone().map(|s| s.table.planned() / BLOCK).sum());
        let (mut row, mut work, mut longest) = (0, 0, 0);
        for Asking { table, tokens, queries } in sequences.clone() {
            let (from, end) = (blocks.len(), table.len() + tokens);
            assert!(end <= table.capacity() && queries <= tokens, "queries are new tokens of the sequence");
            let first = end - queries;
            blocks.extend(table.blocks()[..end.div_ceil(BLOCK)].iter().map(|&b| pool.part(b, layer).at(0).cast_const()));
            let before = first / BLOCK - table.len() / BLOCK;
            list.push(Sequence { blocks: from..blocks.len(), halves: half_addresses.0.len() + before, first, row });
            if shape.kind.is_quantized() {
                let half = |block| pool.half_block(halves, layer, table, tokens, block).at(0).cast_const();
                half_addresses.0.extend(touched(table, tokens).map(half));
            }
            row += queries;
            work += queries * end * width;
            let planned = table.planned();
            longest = longest.max(attention.window.map_or(planned, |w| planned.min(w + 2 * PAGE * STRETCH)));
        }
        assert!(queries.len() == row * width && out.len() == queries.len(), "whole tokens");
        let (rows_of, group) = (sequences.map(|s| s.queries), attention.heads / kv_heads);
        let scales = pool.scales(layer).map(|s| &**s);
        let call = Call { backend: self, attention, shape, sequences: list, addresses, half_addresses, scales, queries };
        let (largest, total, states) = call.cut(rows_of.map(|tokens| tokens * group), tiles, units);
        // few rows over many stretches: the stretches are work of their own
        let apart = states > units.len() && states <= MOST_PIECES && (units.len() < 4 * self.threads() || largest * self.threads() > total);
        // where there will be more stretches before there must be more pages, room for those
        let later = units.len() * longest.div_ceil(PAGE * STRETCH);
        let most = if apart { states.max(later.min(MOST_PIECES)) } else { units.len().min(4 * self.threads()) };
        pieces.clear();
        pieces.reserve(most);
        if apart {
            pieces.extend(units.iter().enumerate().flat_map(|(u, unit)| unit.stretches.clone().map(move |s| Piece::Stretch(u, s))));
        } else {
            call.share(units, total, most, pieces);
        }
        // room for a tile and its queries for each piece, twice where a piece joins what it finds
        let rooms = if apart { most } else { 2 * most };
        gathered.room(rooms * MAX_ROWS * head_dim);
        grow(stats, rooms * MAX_ROWS);
        outs.room(rooms * MAX_ROWS * padded);
        let (q_room, stat_room, out_room) = (Out(gathered.as_mut_ptr()), Out(stats.as_mut_ptr()), Out(outs.as_mut_ptr()));
        // room `i` is a part of each buffer, which were sized just above
        let query_of = |i: usize, t: &Tile| {
            // SAFETY: part `i` is used by one thread at a time.
            unsafe { std::slice::from_raw_parts_mut(q_room.at(i * MAX_ROWS * head_dim), t.rows * head_dim) }
        };
        // SAFETY: as above.
        let stats_of = |i: usize, t: &Tile| unsafe { std::slice::from_raw_parts_mut(stat_room.at(i * MAX_ROWS), t.rows) };
        // SAFETY: as above.
        let out_of = |i: usize, t: &Tile| unsafe { std::slice::from_raw_parts_mut(out_room.at(i * MAX_ROWS * padded), t.rows * padded) };
        let result = Out(out.as_mut_ptr());
        let (units, pieces) = (&*units, &*pieces);
        let piece = |i: usize| match &pieces[i] {
            Piece::Stretch(u, stretch) => {
                let q = query_of(i, &units[*u].tile);
                call.gather(&units[*u], q);
                call.walk(&units[*u], *stretch, q, stats_of(i, &units[*u].tile), out_of(i, &units[*u].tile));
            }
            Piece::Units(range) => {
                for u in range.clone() {
                    let (unit, tile) = (&units[u], &units[u].tile);
                    let q = query_of(i, tile);
                    call.gather(unit, q);
                    if u + 1 < range.end {
                        call.ask(&units[u + 1]);
                    }
                    let (stats, out) = (stats_of(2 * i, tile), out_of(2 * i, tile));
                    let (later_stats, later_out) = (stats_of(2 * i + 1, tile), out_of(2 * i + 1, tile));
                    for stretch in unit.stretches.clone() {
                        call.walk(unit, stretch, q, later_stats, later_out);
                        call.join(unit, stretch, stats, out, (later_stats, later_out));
                    }
                    call.finish(unit, stats, out, result);
                }
            }
        };
        if work < 1 << 17 && !apart {
            (0..pieces.len()).for_each(piece);
        } else {
            self.pool.run(pieces.len(), &piece);
        }
        if !apart {
            return;
        }
        for unit in units {
            let (stats, out) = (stats_of(unit.room, &unit.tile), out_of(unit.room, &unit.tile));
            for (i, stretch) in unit.stretches.clone().enumerate().skip(1) {
                let later = unit.room + i;
                call.join(unit, stretch, stats, out, (stats_of(later, &unit.tile), out_of(later, &unit.tile)));
            }
            call.finish(unit, stats, out, result);
        }
    }
}
