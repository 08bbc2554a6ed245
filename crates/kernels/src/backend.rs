//! A backend: one instruction set and one pool of threads, and the operations a network is made of.

use crate::activations::{Activations, Cut, Input, Out, QuantizedInput, Tile, tiles};
use crate::aligned::Lines;
use crate::arch::generic::dense::Element;
use crate::arch::generic::{self, DenseArgs, DigitOrder, Target, TileArgs};
use crate::arch::{self, BAND_TILES, Kernels, RoundedFor, TileFn, band_rows, processor};
use crate::dense::PackedDense;
use crate::floats::Floats;
use crate::pack::{PANEL, PackedMatrix};
use crate::threads::Pool;
use crate::{Isa, KernelError};
use billfish_tensor::DType;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// Weight bytes that one claim of a thread should cover at least: long enough to hide the claim, short enough to balance.
pub(crate) const CHUNK_BYTES: usize = 96 * 1024;
/// Claims of each thread for a tile of rows, where there is enough to do. More gained nothing (16, 32), and the two streams of
/// a pair of panels begin anew with each.
const CLAIMS: usize = 8;

/// A weight in kernel layout.
pub enum Weight {
    /// Integer codes.
    Quantized(PackedMatrix),
    /// Floats; shared, because an embedding may be the output head too.
    Dense(Arc<PackedDense>),
}

impl Weight {
    /// K: length of the input vector.
    pub fn in_features(&self) -> usize {
        match self {
            Weight::Quantized(w) => w.in_features,
            Weight::Dense(w) => w.in_features,
        }
    }

    /// N: length of the output vector.
    pub fn out_features(&self) -> usize {
        match self {
            Weight::Quantized(w) => w.out_features,
            Weight::Dense(w) => w.out_features,
        }
    }

    /// Bytes that the packed weight takes.
    pub fn bytes(&self) -> usize {
        match self {
            Weight::Quantized(w) => w.bytes(),
            Weight::Dense(w) => w.bytes(),
        }
    }

    /// Name of the kernel's layout, for reports.
    pub fn kernel(&self) -> &'static str {
        match self {
            Weight::Quantized(w) => w.kernel(),
            Weight::Dense(w) => w.layout().kernel_name(w.dtype),
        }
    }

    fn bias(&self) -> Option<&[f32]> {
        match self {
            Weight::Quantized(w) => w.bias.as_deref(),
            Weight::Dense(w) => w.bias.as_deref(),
        }
    }

    fn panel_bytes(&self) -> usize {
        match self {
            Weight::Quantized(w) => w.panel_bytes,
            Weight::Dense(w) => w.panel_bytes(),
        }
    }
}

/// One product of a matmul: `out = x · W + bias`, `[M, N]`, or `out += x · W + bias`.
pub struct Product<'a> {
    weight: &'a Weight,
    out: &'a mut [f32],
    add: bool,
}

impl<'a> Product<'a> {
    /// A product that replaces what `out` holds.
    pub fn new(weight: &'a Weight, out: &'a mut [f32]) -> Self {
        Self { weight, out, add: false }
    }

    /// A product that is added to what `out` holds.
    pub fn onto(weight: &'a Weight, out: &'a mut [f32]) -> Self {
        Self { weight, out, add: true }
    }
}

/// Buffers that a matmul keeps from call to call, so that a decode step allocates nothing.
#[derive(Default)]
pub struct MatmulScratch {
    /// The input as floats, where a dense weight asks for it.
    whole: Floats,
    inputs: Vec<QuantizedInput>,
    tiles: Vec<Tile>,
    chunks: Vec<Chunk>,
}

/// Panels of product `product` times some tiles of rows, with quantized input `input` if the weight is quantized.
#[derive(Clone, Copy)]
pub(crate) struct Chunk {
    pub product: usize,
    pub input: usize,
    pub panels: (usize, usize),
    pub tiles: (usize, usize),
}

/// What a product of a region multiplies and where its results go.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub weight: &'a Weight,
    pub out: Out<f32>,
    pub add: bool,
    /// The row of the input whose result is row 0 of `out`.
    pub first: usize,
    /// The input as floats, for a dense weight; see [`Backend::floats`].
    pub floats: &'a [f32],
    /// How precise they are: says where a row of `floats` begins and what of it a weight takes.
    pub activations: Activations,
}

impl Place<'_> {
    /// Where column `column` of the first row of a tile is wanted.
    fn at(&self, t: &Tile, column: usize) -> *mut f32 {
        self.out.at((t.start - self.first) * self.weight.out_features() + column)
    }

    /// Whether all columns of panel `p` are there and nothing is added to a result: then a kernel may write whole tiles of it
    /// where they are wanted.
    fn is_plain(&self, p: usize) -> bool {
        (p + 1) * PANEL <= self.weight.out_features() && self.weight.bias().is_none() && !self.add
    }

    /// Copies the real rows and columns of a result of `width` columns, from column `first` on, to its place, `[M, n]`, with
    /// the bias, or adds them.
    fn store(&self, result: &[f32], width: usize, t: &Tile, first: usize) {
        let n = self.weight.out_features();
        let cols = width.min(n - first);
        let (start, bias) = (self.at(t, first), self.weight.bias().map(|b| &b[first..]));
        for r in 0..t.count {
            let row = &result[r * width..r * width + cols];
            // SAFETY: row `r` of the tile and these columns lie inside `out`, and no other chunk writes them.
            let place = unsafe { std::slice::from_raw_parts_mut(start.add(r * n), cols) };
            match (bias, self.add) {
                (None, false) => place.copy_from_slice(row),
                (None, true) => place.iter_mut().zip(row).for_each(|(o, &v)| *o += v),
                (Some(b), false) => place.iter_mut().zip(row).zip(b).for_each(|((o, &v), &b)| *o = v + b),
                (Some(b), true) => place.iter_mut().zip(row).zip(b).for_each(|((o, &v), &b)| *o += v + b),
            }
        }
    }
}

/// Whether a weight of this type takes activations rounded to `bf16`; see [`generic::rounded`].
fn rounds(dtype: DType, activations: Activations) -> bool {
    dtype == DType::BF16 && activations == Activations::Int8
}

/// Floats from one row of a dense weight's input to the next, and from its floats to its rounded pairs. Rows a power of two
/// apart would all want the same few lines of the first cache.
fn dense_stride(k: usize, activations: Activations) -> (usize, usize) {
    const LINE: usize = 16;
    let floats = k.next_multiple_of(LINE);
    let pairs = if activations == Activations::Int8 { k.div_ceil(2).next_multiple_of(LINE) } else { 0 };
    let all = floats + pairs + LINE;
    (if all.is_multiple_of(2 * LINE) { all + LINE } else { all }, floats)
}

/// Bytes of activations that are multiplied with a panel before the next panel comes: with the panel they fit the second
/// cache of every machine that the references measured.
const INPUT_BYTES: usize = 512 * 1024;

/// How many tiles of `rows` rows, of `row_bytes` each, are taken at a time.
fn tiles_at_once(rows: usize, row_bytes: usize) -> usize {
    (INPUT_BYTES / (rows * row_bytes).max(1)).max(1)
}

/// One instruction set and one pool of threads.
pub struct Backend {
    pub(crate) kernels: &'static Kernels,
    pub(crate) pool: Pool,
    /// Whether panels are taken in pairs where one row is multiplied.
    pairs: bool,
    /// Kernels for rounded activations in place of the table's.
    bf16_dots: Option<RoundedFor>,
}

impl Backend {
    /// A backend for `isa` that works with `threads` threads, the caller's included.
    ///
    /// # Errors
    /// [`KernelError::IsaMissing`] if the machine lacks `isa`, [`KernelError::Threads`] if threads cannot be started.
    pub fn new(isa: Isa, threads: usize) -> Result<Self, KernelError> {
        let isa = Isa::choose(Some(isa.name()))?;
        Self::with(arch::kernels(isa), threads)
    }

    /// A backend for a table that this machine can run.
    pub(crate) fn with(kernels: &'static Kernels, threads: usize) -> Result<Self, KernelError> {
        Ok(Self { kernels, pool: Pool::new(threads)?, pairs: processor::reads_pairs(), bf16_dots: arch::bf16_dots(kernels.isa) })
    }

    /// Has one row multiplied with panels side by side or one after another, where the instruction set has kernels for
    /// both, instead of as suits the processor. The bits of a result are the same.
    #[must_use]
    pub fn in_pairs(self, pairs: bool) -> Self {
        Self { pairs, ..self }
    }

    /// Does without dot products of pairs of `bf16`, where the processor has them. The bits of a result are the same.
    #[must_use]
    pub fn without_bf16_dots(self) -> Self {
        Self { bf16_dots: None, ..self }
    }

    /// How many multiply-adds of an unquantized weight count as one of floats: instructions for pairs do two.
    pub fn dense_rate(&self, dtype: DType, activations: Activations) -> f64 {
        if rounds(dtype, activations) && self.bf16_dots.is_some() { 2.0 } else { 1.0 }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.kernels.isa
    }

    /// Threads in use, the caller's included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// `out = x · W + bias` (or `+=`) for several weights with the same input, in one region of the pool: `x` is `[m, K]`,
    /// each `out` `[m, N]`, all row-major. A row of `out` depends on its own row of `x` only, and its bits depend neither
    /// on `m`, nor on the threads, nor on the instruction set.
    ///
    /// # Panics
    /// If the sizes do not fit, or there are more than four products.
    pub fn matmul(&self, scratch: &mut MatmulScratch, x: Input<'_>, m: usize, activations: Activations, products: &mut [Product<'_>]) {
        let MatmulScratch { whole, inputs, tiles: dense_tiles, chunks } = scratch;
        tiles(m, self.kernels.dense_rows, dense_tiles);
        chunks.clear();
        let mut distinct = 0;
        let mut dense = None;
        let bytes: usize = products.iter().map(|p| p.weight.bytes()).sum();
        for i in 0..products.len() {
            let weight = products[i].weight;
            x.check(m, weight.in_features());
            assert_eq!(products[i].out.len(), m * weight.out_features(), "out must be [M, N]");
            let mut input = 0;
            match weight {
                Weight::Quantized(w) => {
                    let same = chunks.iter().rev().find_map(|c: &Chunk| match products[c.product].weight {
                        Weight::Quantized(other) if w.shares_input(other) => Some(c.input),
                        _ => None,
                    });
                    input = same.unwrap_or_else(|| {
                        if inputs.len() == distinct {
                            inputs.push(QuantizedInput::default());
                        }
                        inputs[distinct].fill(self.kernels, &self.pool, w, x, m, activations);
                        distinct += 1;
                        distinct - 1
                    });
                }
                Weight::Dense(w) => dense = Some(w.in_features),
            }
            let cut = match weight {
                Weight::Dense(_) => Cut { tiles: dense_tiles, order: DigitOrder::Quads },
                Weight::Quantized(_) => inputs[input].cut_tiles(),
            };
            self.cut(chunks, Chunk { product: i, input, panels: (0, 0), tiles: (0, cut.tiles.len()) }, weight, cut, activations, bytes);
        }
        if let Some(k) = dense {
            self.floats(whole, m, k, activations, &|i, row| x.make(self.kernels, i, row));
        }
        let floats = &whole[..];
        // SAFETY (of the writes of `run`): each chunk writes columns of its own of one `out`, whose length was checked.
        let outs = products.iter_mut().map(|p| Place {
            weight: p.weight,
            out: Out(p.out.as_mut_ptr()),
            add: p.add,
            first: 0,
            floats,
            activations,
        });
        let mut flat: [Option<Place<'_>>; 4] = [None; 4];
        assert!(outs.len() <= flat.len(), "at most four weights share an input");
        flat.iter_mut().zip(outs).for_each(|(f, o)| *f = Some(o));
        self.run(chunks, inputs, dense_tiles, &|product| flat[product]);
    }

    /// Cuts a product into chunks, `all` being the tiles of its input and `whole` the product with all its panels and
    /// the range of its tiles. `bytes` are those of all weights of the region.
    pub(crate) fn cut(&self, chunks: &mut Vec<Chunk>, whole: Chunk, weight: &Weight, all: Cut<'_>, activations: Activations, bytes: usize) {
        let panels = weight.out_features().div_ceil(PANEL);
        let row_bytes = match weight {
            Weight::Quantized(w) => w.in_features * activations.planes(),
            Weight::Dense(w) => w.in_features * 4,
        };
        let (first, end) = whole.tiles;
        let at_once = tiles_at_once(all.tiles[first..end].first().map_or(1, |t| t.rows), row_bytes);
        // a band kernel unpacks codes for all its tiles once
        let at_once = match (all.order, at_once) {
            // each time as many, because the weight is read again for each, and an even number, for they go two by two; there
            // may be no rows at all
            (DigitOrder::Quads, _) => (end - first).div_ceil((end - first).div_ceil(at_once).max(1)).max(1).next_multiple_of(2),
            (DigitOrder::Steps, ..BAND_TILES) => at_once.max(2),
            (DigitOrder::Steps, _) => at_once / BAND_TILES * BAND_TILES,
        };
        // what a claim begins with nobody has asked for before; the more tiles, the less that is of its time
        let claim = (bytes / (CLAIMS * self.threads() * (end - first).max(1))).max(CHUNK_BYTES);
        let step = (claim / weight.panel_bytes().max(1)).clamp(1, panels);
        let step = match weight {
            Weight::Quantized(w) if end - first == 1 && self.pair(w, activations.planes(), all.tiles[first].rows).is_some() => {
                step.next_multiple_of(2)
            }
            _ => step,
        };
        // a thread begins with the chunks of a range: all that is to be multiplied with its part of the weight
        let parts = if end - first > at_once { self.threads() } else { 1 };
        for part in 0..parts {
            let (from, to) = (panels * part / parts, panels * (part + 1) / parts);
            for tile in (first..end).step_by(at_once) {
                let tiles = (tile, (tile + at_once).min(end));
                chunks.extend((from..to).step_by(step).map(|from| Chunk { panels: (from, (from + step).min(to)), tiles, ..whole }));
            }
        }
    }

    /// Computes all chunks in one region of the pool. `place` tells what a product reads and where it writes; the caller
    /// answers for its pointers: each must hold the rows of its chunks' tiles, and no two chunks may share an element.
    pub(crate) fn run<'a>(
        &self,
        chunks: &[Chunk],
        inputs: &[QuantizedInput],
        dense_tiles: &[Tile],
        place: &(dyn Fn(usize) -> Option<Place<'a>> + Sync),
    ) {
        self.pool.run(chunks.len(), &|i: usize| {
            let c = chunks[i];
            let Some(to) = place(c.product) else { return };
            match to.weight {
                Weight::Quantized(w) => self.quantized(w, &inputs[c.input], c, &to),
                Weight::Dense(w) => {
                    (c.panels.0..c.panels.1).for_each(|p| self.dense_panel(w, &dense_tiles[c.tiles.0..c.tiles.1], p, &to));
                }
            }
        });
    }

    fn quantized(&self, w: &PackedMatrix, input: &QuantizedInput, c: Chunk, to: &Place<'_>) {
        let rows = input.tiles[c.tiles.0].rows;
        let kernel = if c.tiles.1 - c.tiles.0 == 1 { self.pair(w, input.planes, rows) } else { None };
        let first = kernel.map_or(c.panels.0, |kernel| self.quantized_pairs(kernel, w, input, c, to));
        for p in first..c.panels.1 {
            match input.order {
                DigitOrder::Quads => self.quantized_panel(w, input, c.tiles, p, to),
                DigitOrder::Steps => self.quantized_bands(w, input, c.tiles, p, to),
            }
        }
    }

    /// The kernel for a tile of so many rows and pairs of panels of `w`, where they are to be taken so.
    fn pair(&self, w: &PackedMatrix, planes: usize, rows: usize) -> Option<TileFn> {
        if self.pairs && rows == 1 { (self.kernels.pair)(w.panel_bits, planes) } else { None }
    }

    /// Multiplies one row with the panels of the first half of a chunk, each beside the one as far into the second half:
    /// two streams that go on from pair to pair. Returns the first panel that is left.
    fn quantized_pairs(&self, kernel: TileFn, w: &PackedMatrix, input: &QuantizedInput, c: Chunk, to: &Place<'_>) -> usize {
        let t = &input.tiles[c.tiles.0];
        let half = (c.panels.1 - c.panels.0) / 2;
        let Lines(result) = &mut Lines([0.0f32; 2 * PANEL]);
        for p in c.panels.0..c.panels.0 + half {
            let args = TileArgs { other: half * w.panel_bytes, ..tile_args(w, p, input, t, result.as_mut_ptr()) };
            // SAFETY: the table's instruction set is available; both panels are of this weight and hold `w.blocks` by how
            // they were packed, the activations were quantized for the same blocks, and `result` holds a row of both.
            unsafe { kernel(&args) };
            for (p, result) in [p, p + half].into_iter().zip(result.chunks_exact(PANEL)) {
                to.store(result, PANEL, t, p * PANEL);
            }
        }
        c.panels.0 + 2 * half
    }

    fn quantized_panel(&self, w: &PackedMatrix, input: &QuantizedInput, tiles: (usize, usize), p: usize, to: &Place<'_>) {
        let Lines(result) = &mut Lines([MaybeUninit::<f32>::uninit(); 2 * MAX_ROWS * PANEL]);
        let mut rest = &input.tiles[tiles.0..tiles.1];
        while let Some(t) = rest.first() {
            let alike = |next: &Tile| next.rows == t.rows && next.padded_start == t.padded_start + t.rows;
            let both = rest.get(1).filter(|next| alike(next)).and_then(|_| (self.kernels.together)(w.panel_bits, input.planes, t.rows));
            let one = || (self.kernels.tile)(w.panel_bits, input.planes, t.rows).expect("tiles are cut to sizes that have kernels");
            let (kernel, group) = both.map_or_else(|| (one(), 1), |kernel| (kernel, 2));
            let (group, after) = rest.split_at(group);
            rest = after;
            let count = group.iter().map(|t| t.count).sum();
            assert!(t.rows <= MAX_ROWS, "no kernel has more rows");
            // without blocks a kernel only clears its buffer
            let direct = to.is_plain(p) && count == group.len() * t.rows && !w.blocks.is_empty();
            let target = Target { first: to.at(t, p * PANEL), rows: count, stride: w.out_features, direct };
            let args = TileArgs { target, ..tile_args(w, p, input, t, result.as_mut_ptr().cast()) };
            // SAFETY: the table's instruction set is available; the panel holds `w.blocks` by how it was packed, the
            // activations were quantized for the same blocks and stand one tile after another, and `result` holds MAX_ROWS
            // rows of each. A target that the kernel writes holds all rows of the tiles and 64 columns, which no other
            // chunk has.
            unsafe { kernel(&args) };
            if direct {
                continue;
            }
            for (i, t) in group.iter().enumerate() {
                // SAFETY: the kernel has written so many rows of each tile.
                let result = unsafe { std::slice::from_raw_parts(result[i * t.rows * PANEL..].as_ptr().cast::<f32>(), PANEL * t.rows) };
                to.store(result, PANEL, t, p * PANEL);
            }
        }
    }

    fn quantized_bands(&self, w: &PackedMatrix, input: &QuantizedInput, tiles: (usize, usize), p: usize, to: &Place<'_>) {
        const HALF: usize = PANEL / 2;
        let kernel = (self.kernels.band)(w.panel_bits, input.planes).expect("digits stand so only where there are band kernels");
        let rows = band_rows(input.planes);
        let Lines(result) = &mut Lines([MaybeUninit::<f32>::uninit(); BAND_TILES * band_rows(1) * PANEL]);
        for band in input.tiles[tiles.0..tiles.1].chunks(BAND_TILES) {
            let args = tile_args(w, p, input, &band[0], result.as_mut_ptr().cast());
            // SAFETY: the table's instruction set is available; the panel holds `w.blocks` by how it was packed, the
            // activations of these tiles were quantized for the same blocks, and `result` holds so many rows of a panel.
            unsafe { kernel(&args, band.len()) };
            // SAFETY: the kernel has written the results of all of its tiles.
            let result = unsafe { std::slice::from_raw_parts(result.as_ptr().cast::<f32>(), band.len() * rows * PANEL) };
            for (i, rows) in result.chunks_exact(rows * HALF).enumerate() {
                let first = p * PANEL + i / band.len() * HALF;
                if first < w.out_features {
                    to.store(rows, HALF, &band[i % band.len()], first);
                }
            }
        }
    }

    /// Has `fill` write the rows of a dense weight's input, `[rows, k]`, to `room`, a little apart from each other. Behind
    /// each stand its rounded pairs, where weights may take those.
    pub(crate) fn floats(
        &self,
        room: &mut Floats,
        rows: usize,
        k: usize,
        activations: Activations,
        fill: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        let (stride, pairs) = dense_stride(k, activations);
        self.rows(room.room(rows * stride), stride, &|i, row| {
            let (row, rounded) = row.split_at_mut(pairs);
            fill(i, &mut row[..k]);
            if activations == Activations::Int8 {
                generic::rounded::pairs(&row[..k], rounded);
            }
        });
    }

    fn dense_panel(&self, w: &PackedDense, tiles: &[Tile], p: usize, to: &Place<'_>) {
        let panel = w.panel(p);
        let narrow = panel.sevens.is_some();
        let element = match w.dtype {
            DType::F16 => Element::F16,
            DType::BF16 if narrow => Element::Narrow,
            DType::BF16 => Element::BF16,
            _ => Element::F32,
        };
        let (k, x) = (w.in_features, to.floats);
        let (stride, pairs) = dense_stride(k, to.activations);
        let rounded = rounds(w.dtype, to.activations);
        let (from, len) = if rounded { (pairs, k.div_ceil(2)) } else { (0, k) };
        let sevens = panel.sevens.unwrap_or_default();
        let Lines(result) = &mut Lines([MaybeUninit::<f32>::uninit(); PANEL * MAX_ROWS]);
        for t in tiles {
            let kernel = if rounded {
                self.bf16_dots.unwrap_or(self.kernels.rounded)(t.rows, narrow)
            } else {
                (self.kernels.dense)(element, t.rows)
            };
            let kernel = kernel.expect("tiles are cut to sizes that have kernels");
            // padding rows read the first row again; their results are dropped
            let rows = std::array::from_fn(|r| x[(t.start + if r < t.count { r } else { 0 }) * stride + from..][..len].as_ptr());
            let out = result.as_mut_ptr().cast();
            let direct = to.is_plain(p) && t.count == t.rows;
            let (target, stride) = if direct { (to.at(t, p * PANEL), w.out_features) } else { (out, PANEL) };
            // SAFETY: the table's instruction set is available; the panel holds K * 64 elements, or as narrow ones as many
            // runs, the rows K floats each or the pairs of so many, `result` MAX_ROWS rows, and what the kernel writes elsewhere all rows of the tile and 64
            // columns, which no other chunk has.
            unsafe { kernel(&DenseArgs { panel: panel.bytes.as_ptr(), sevens, k, x: rows, out, target, stride }) };
            if direct {
                continue;
            }
            // SAFETY: the kernel has written so many rows.
            let result = unsafe { std::slice::from_raw_parts(result.as_ptr().cast::<f32>(), PANEL * t.rows) };
            to.store(result, PANEL, t, p * PANEL);
        }
    }

    /// `out = x / rms(x) * weight` for each row of `x`, `[m, weight.len()]`.
    ///
    /// # Panics
    /// If the sizes do not fit.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let n = weight.len();
        assert_eq!(x.len(), out.len(), "as many rows as go in");
        self.rows(out, n, &|i, out| {
            Input::Normed { rows: x, weight, eps }.make(self.kernels, i, out);
        });
    }

    /// `gate = silu(gate) * up`, element by element.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        // any cut at a multiple of sixteen gives the same numbers
        const RUN: usize = 1024;
        assert_eq!(gate.len(), up.len(), "a gate for each element");
        self.pool.chunks_mut(gate, RUN, &|i, gate| {
            let out = &mut [0.0; RUN][..gate.len()];
            Input::Gated { gate, up: &up[i * RUN..], stride: gate.len() }.make(self.kernels, 0, out);
            gate.copy_from_slice(out);
        });
    }

    /// Calls `body(i, row i)` for each row of `n` elements of `out`, on all threads if there is enough to do.
    ///
    /// # Panics
    /// If `out` is not whole rows.
    pub fn rows(&self, out: &mut [f32], n: usize, body: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        assert!(n > 0 && out.len().is_multiple_of(n), "rows of {n}");
        let rows = out.len() / n;
        if out.len() < 32_768 {
            return out.chunks_exact_mut(n).enumerate().for_each(|(i, row)| body(i, row));
        }
        let run = rows.div_ceil(4 * self.threads());
        self.pool.chunks_mut(out, run * n, &|c, piece| {
            piece.chunks_exact_mut(n).enumerate().for_each(|(i, row)| body(c * run + i, row));
        });
    }
}

/// What a kernel needs for panel `p` and the tiles from `tile` on.
fn tile_args<'a>(w: &'a PackedMatrix, p: usize, input: &QuantizedInput, tile: &Tile, out: *mut f32) -> TileArgs<'a> {
    let (digits, scales, sums) = input.tile(tile);
    TileArgs {
        panel: w.panel(p).as_ptr(),
        blocks: &w.blocks,
        scale: w.scale,
        zero: w.zero,
        x: digits.as_ptr(),
        x_scales: scales.as_ptr(),
        x_sums: sums.as_ptr(),
        other: 0,
        out,
        target: Target { first: std::ptr::null_mut(), rows: 0, stride: 0, direct: false },
    }
}

/// Rows of the largest tile of any kernel but those for bands.
const MAX_ROWS: usize = generic::dense::MAX_ROWS;
