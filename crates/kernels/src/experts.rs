//! The fused block of a mixture of experts: tokens grouped by expert, each token made integers once, gate and up of all
//! active experts in one region of the pool, down of all of them in another, and a weighted sum in a fixed order.

use crate::activations::{Activations, Cut, Input, Out, QuantizedInput, Tile, add_tiles};
use crate::arch::generic::DigitOrder;
use crate::backend::{Chunk, Place};
use crate::{Backend, Choice, Floats, KernelError, PackedMatrix, Weight};

/// One expert: `down(silu(gate(x)) * up(x))`.
pub struct Expert {
    /// `[hidden, width]`.
    pub gate: Weight,
    /// `[hidden, width]`.
    pub up: Weight,
    /// `[width, hidden]`.
    pub down: Weight,
}

impl Expert {
    /// Hidden size and width, if its three weights fit together.
    fn sizes(&self) -> Result<(usize, usize), KernelError> {
        let (hidden, width) = (self.gate.in_features(), self.gate.out_features());
        let parts = [("up", &self.up, hidden, width), ("down", &self.down, width, hidden)];
        match parts.into_iter().find(|(_, w, k, n)| (w.in_features(), w.out_features()) != (*k, *n)) {
            None => Ok((hidden, width)),
            Some((part, w, k, n)) => {
                let reason = format!("{part} of an expert whose gate is [{hidden}, {width}] must be [{k}, {n}]");
                Err(KernelError::Shape { in_features: w.in_features(), out_features: w.out_features(), reason })
            }
        }
    }

    /// Bytes that its weights take.
    pub fn bytes(&self) -> usize {
        self.gate.bytes() + self.up.bytes() + self.down.bytes()
    }

    fn part(&self, part: usize) -> &Weight {
        if part == 0 { &self.gate } else { &self.up }
    }
}

/// The experts of one layer, all of one shape, or those of them that one rank has.
pub struct Experts {
    list: Vec<Expert>,
    /// Index in `list` of each expert of the layer; all of them in order if `None`.
    map: Option<Vec<Option<u32>>>,
    hidden: usize,
    width: usize,
    weights_on_input: bool,
}

impl Experts {
    /// Takes the experts of a layer. Those whose rows stand in the same order share it, so that a token is made integers
    /// once for all of them.
    ///
    /// # Errors
    /// [`KernelError::Shape`] if there is none, or two of them differ in shape.
    pub fn new(mut list: Vec<Expert>) -> Result<Self, KernelError> {
        let none = || KernelError::Shape { in_features: 0, out_features: 0, reason: "a layer needs one expert or more".into() };
        let (hidden, width) = list.first().ok_or_else(none)?.sizes()?;
        for (i, expert) in list.iter().enumerate() {
            let (in_features, out_features) = expert.sizes()?;
            if (in_features, out_features) != (hidden, width) {
                let reason = format!("expert {i} must have the shape of expert 0, [{hidden}, {width}]");
                return Err(KernelError::Shape { in_features, out_features, reason });
            }
        }
        share_orders(list.iter_mut().flat_map(|e| [&mut e.gate, &mut e.up]));
        share_orders(list.iter_mut().map(|e| &mut e.down));
        Ok(Self { list, map: None, hidden, width, weights_on_input: false })
    }

    /// Only those experts of a layer that this rank has: `map[e]` is the place in the list of expert `e` of the layer.
    /// What the others would add is left out.
    ///
    /// # Errors
    /// [`KernelError::Shape`] if a place is none of the list.
    pub fn with_map(mut self, map: Vec<Option<u32>>) -> Result<Self, KernelError> {
        if let Some(place) = map.iter().flatten().find(|&&place| place as usize >= self.list.len()) {
            let reason = format!("the map names place {place} of {} experts", self.list.len());
            return Err(KernelError::Shape { in_features: self.hidden, out_features: self.width, reason });
        }
        self.map = Some(map);
        Ok(self)
    }

    /// Applies the weight of an expert to its input instead of its output. (What gate and up give is scaled, which is the
    /// same for weights without biases.)
    ///
    /// # Errors
    /// [`KernelError::Shape`] if a gate or an up has a bias.
    pub fn with_weights_on_input(mut self) -> Result<Self, KernelError> {
        let bias = |w: &Weight| match w {
            Weight::Quantized(w) => w.bias.is_some(),
            Weight::Dense(w) => w.bias.is_some(),
        };
        if self.list.iter().any(|e| bias(&e.gate) || bias(&e.up)) {
            let reason = "weights on the input need gate and up without a bias".into();
            return Err(KernelError::Shape { in_features: self.hidden, out_features: self.width, reason });
        }
        self.weights_on_input = true;
        Ok(self)
    }

    /// The experts, in order.
    pub fn list(&self) -> &[Expert] {
        &self.list
    }

    /// Uses another weight for gate (0), up (1) or down (2) of the expert at a place of the list.
    ///
    /// # Panics
    /// If there is no such expert or part, or the weight has another shape.
    pub fn replace(&mut self, place: usize, part: usize, weight: Weight) {
        let Expert { gate, up, down } = &mut self.list[place];
        let old = [gate, up, down].into_iter().nth(part).expect("gate, up or down");
        let shape = |w: &Weight| (w.in_features(), w.out_features());
        assert_eq!(shape(old), shape(&weight), "a weight of the same shape");
        *old = weight;
    }

    /// The place in the list of expert `e` of the layer.
    fn local(&self, e: u32) -> Option<u32> {
        match &self.map {
            None => Some(e),
            Some(map) => map[e as usize],
        }
    }
}

/// Lets weights with equal row orders share one, so that their common input is permuted and quantized once.
pub fn share_orders<'a>(weights: impl Iterator<Item = &'a mut Weight>) {
    let mut distinct: Vec<&'a PackedMatrix> = vec![];
    for weight in weights {
        let Weight::Quantized(w) = weight else { continue };
        distinct.iter().rev().for_each(|other| w.share_order(other));
        if !distinct.iter().any(|other| w.shares_input(other)) {
            distinct.push(w);
        }
    }
}

/// An expert that every token goes to, and what its output is multiplied by: 1 without `weights`, `[m]`.
#[derive(Clone, Copy)]
pub struct Shared<'a> {
    /// The expert.
    pub expert: &'a Expert,
    /// Its weight for each token.
    pub weights: Option<&'a [f32]>,
}

/// The tokens of one expert: rows `first..first + count` of those that are sorted by expert.
#[derive(Clone, Copy)]
struct Segment {
    /// Place in the list; that of the shared expert is [`SHARED`].
    expert: u32,
    first: usize,
    count: usize,
}

const SHARED: u32 = u32::MAX;

/// What a product of a segment reads: a quantized input (none for a dense weight) and its tiles.
#[derive(Clone, Copy, Default)]
struct Source {
    input: Option<usize>,
    tiles: (usize, usize),
}

/// An input of some segments: rows in one order, in blocks of one kind.
#[derive(Clone, Copy)]
struct Distinct {
    /// A segment and a part of it whose weight has the order.
    of: (usize, usize),
    users: usize,
}

/// Buffers of the fused block, kept from call to call.
#[derive(Default)]
pub struct ExpertScratch {
    inputs: Vec<QuantizedInput>,
    dense_tiles: Vec<Tile>,
    chunks: Vec<Chunk>,
    segments: Vec<Segment>,
    sources: Vec<Source>,
    distinct: Vec<Distinct>,
    /// Tokens of each expert, then where its next token goes.
    counts: Vec<usize>,
    /// The token of each sorted row, then all tokens, for the shared expert.
    tokens: Vec<u32>,
    /// The weight of each sorted row.
    weights: Vec<f32>,
    /// The sorted rows of each token, ascending; those of experts that are not here come last, as [`NOWHERE`].
    rows: Vec<u32>,
    floats: Floats,
    gate: Floats,
    up: Floats,
    down: Floats,
    shared_floats: Floats,
    shared_gate: Floats,
    shared_up: Floats,
    shared_down: Floats,
}

const NOWHERE: u32 = u32::MAX;

impl ExpertScratch {
    /// Sorts tokens by expert, ascending, the tokens of one in their order. Experts without tokens get no segment.
    fn align(&mut self, experts: &Experts, choices: &[Choice], m: usize) -> usize {
        let Self { segments, counts, tokens, weights, rows, .. } = self;
        let top_k = choices.len().checked_div(m).unwrap_or(0);
        counts.clear();
        counts.resize(experts.list.len(), 0);
        let mut total = 0;
        for expert in choices.iter().filter_map(|c| experts.local(c.expert)) {
            counts[expert as usize] += 1;
            total += 1;
        }
        segments.clear();
        let mut first = 0;
        for (expert, n) in counts.iter_mut().enumerate() {
            let count = std::mem::replace(n, first);
            if count > 0 {
                segments.push(Segment { expert: expert as u32, first, count });
            }
            first += count;
        }
        tokens.clear();
        tokens.resize(total, 0);
        weights.clear();
        weights.resize(total, 0.0);
        rows.clear();
        for (token, choices) in choices.chunks_exact(top_k.max(1)).enumerate() {
            let start = rows.len();
            for c in choices {
                let Some(expert) = experts.local(c.expert) else {
                    rows.push(NOWHERE);
                    continue;
                };
                let row = counts[expert as usize];
                counts[expert as usize] += 1;
                (tokens[row], weights[row]) = (token as u32, c.weight);
                rows.push(row as u32);
            }
            rows[start..].sort_unstable();
        }
        total
    }

    /// Finds the quantized inputs that the parts of all segments share, and how many segments each has.
    fn find_inputs<'a>(&mut self, parts: usize, weight: &dyn Fn(Segment, usize) -> &'a Weight) {
        let Self { inputs, segments, sources, distinct, .. } = self;
        sources.clear();
        distinct.clear();
        for (s, &segment) in segments.iter().enumerate() {
            for part in 0..parts {
                let mut source = Source::default();
                if let Weight::Quantized(w) = weight(segment, part) {
                    let same = |d: &Distinct| matches!(weight(segments[d.of.0], d.of.1), Weight::Quantized(o) if w.shares_input(o));
                    let input = distinct.iter().rposition(same).unwrap_or_else(|| {
                        distinct.push(Distinct { of: (s, part), users: 0 });
                        distinct.len() - 1
                    });
                    source.input = Some(input);
                    let seen = sources[s * parts..].iter().any(|other| other.input == source.input);
                    distinct[input].users += usize::from(!seen);
                }
                sources.push(source);
            }
        }
        if inputs.len() < distinct.len() {
            inputs.resize_with(distinct.len(), QuantizedInput::default);
        }
    }
}

/// One of the two halves of the block: its weights and the rows that they are multiplied with.
struct Half<'a> {
    /// Weights of a segment: gate and up, or down.
    parts: usize,
    weight: &'a dyn Fn(Segment, usize) -> &'a Weight,
    x: Input<'a>,
    /// The row of `x` of each sorted row, if they are not the same.
    pick: Option<&'a [u32]>,
    /// Rows of `x`.
    rows: usize,
}

impl Backend {
    /// `out += Σ weight · expert(x)` over the choices of each token, then the shared expert: `x` and `out` are
    /// `[m, hidden]`, `choices` `[m, top_k]`. The sum of a token runs over its experts in ascending order, then the shared
    /// one, and is then added to `out`. Experts without tokens are not read.
    ///
    /// A row of `out` depends on its own row of `x` and its own choices only, and its bits depend neither on `m`, nor on
    /// the threads, nor on the instruction set.
    ///
    /// # Panics
    /// If the sizes do not fit.
    #[allow(clippy::too_many_arguments)] // what a block is made of
    pub fn experts(
        &self,
        scratch: &mut ExpertScratch,
        experts: &Experts,
        shared: Option<Shared<'_>>,
        x: &[f32],
        m: usize,
        activations: Activations,
        choices: &[Choice],
        out: &mut [f32],
    ) {
        let Experts { hidden, width, .. } = *experts;
        assert!(x.len() == m * hidden && out.len() == m * hidden, "x and out must be [m, hidden]");
        assert!(m > 0 && choices.len().is_multiple_of(m), "as many choices for each token");
        let total = scratch.align(experts, choices, m);
        let shared_width = shared.map_or(0, |s| {
            assert_eq!(s.expert.sizes().ok().map(|(hidden, _)| hidden), Some(hidden), "a shared expert of the same hidden size");
            assert!(s.weights.is_none_or(|w| w.len() == m), "a weight for each token");
            scratch.segments.push(Segment { expert: SHARED, first: total, count: m });
            scratch.tokens.extend(0..m as u32);
            s.expert.gate.out_features()
        });
        let expert = |segment: Segment| match shared {
            Some(s) if segment.expert == SHARED => s.expert,
            _ => &experts.list[segment.expert as usize],
        };

        let tokens = std::mem::take(&mut scratch.tokens);
        let mut floats = std::mem::take(&mut scratch.floats);
        let weight = |s: Segment, part: usize| expert(s).part(part);
        let half = Half { parts: 2, weight: &weight, x: Input::Rows(x), pick: Some(&tokens), rows: m };
        self.prepare(scratch, &half, activations);
        if scratch.segments.iter().any(|&s| (0..2).any(|part| matches!(weight(s, part), Weight::Dense(_)))) {
            self.floats(&mut floats, tokens.len(), hidden, activations, &|i, row| {
                Input::Rows(x).make(self.kernels, tokens[i] as usize, row)
            });
        }
        scratch.gate.room(total * width);
        scratch.up.room(total * width);
        scratch.shared_gate.room(m * shared_width);
        scratch.shared_up.room(m * shared_width);
        // SAFETY (of the writes of `run`): rows of a segment lie in the buffers just sized, which no other segment writes.
        let outs = [&mut scratch.gate, &mut scratch.up].map(|v| Out(v.as_mut_ptr()));
        let shared_outs = [&mut scratch.shared_gate, &mut scratch.shared_up].map(|v| Out(v.as_mut_ptr()));
        let segments = &scratch.segments;
        self.run(&scratch.chunks, &scratch.inputs, &scratch.dense_tiles, &|product| {
            let segment = segments[product / 2];
            let part = product % 2;
            let (out, first) = if segment.expert == SHARED { (shared_outs[part], total) } else { (outs[part], 0) };
            Some(Place { weight: weight(segment, part), out, add: false, first, floats: &floats, activations })
        });
        (scratch.tokens, scratch.floats) = (tokens, floats);

        if experts.weights_on_input {
            for rows in [&mut scratch.gate, &mut scratch.up] {
                let weights = &scratch.weights;
                self.rows(&mut rows[..total * width], width, &|i, row| row.iter_mut().for_each(|v| *v *= weights[i]));
            }
            scratch.weights.fill(1.0);
        }
        self.down(scratch, experts, shared, total, m, shared_width, activations);
        self.join(scratch, shared, hidden, choices.len() / m, out);
    }

    /// The second half: `silu(gate) * up`, made while it becomes integers, times down.
    #[allow(clippy::too_many_arguments)] // sizes of the block
    fn down(
        &self,
        scratch: &mut ExpertScratch,
        experts: &Experts,
        shared: Option<Shared<'_>>,
        total: usize,
        m: usize,
        shared_width: usize,
        activations: Activations,
    ) {
        let Experts { hidden, width, .. } = *experts;
        // the shared expert's rows have another width and an input of their own
        let shared_segment = shared.and_then(|_| scratch.segments.pop());
        let (gate, up) = (std::mem::take(&mut scratch.gate), std::mem::take(&mut scratch.up));
        let (shared_gate, shared_up) = (std::mem::take(&mut scratch.shared_gate), std::mem::take(&mut scratch.shared_up));
        let weight = |s: Segment, _: usize| &experts.list[s.expert as usize].down;
        let x = Input::Gated { gate: &gate, up: &up, stride: width };
        self.prepare(scratch, &Half { parts: 1, weight: &weight, x, pick: None, rows: total }, activations);
        if scratch.segments.iter().any(|&s| matches!(weight(s, 0), Weight::Dense(_))) {
            self.floats(&mut scratch.floats, total, width, activations, &|i, row| x.make(self.kernels, i, row));
        }
        let routed = scratch.segments.len();
        if let (Some(s), Some(_)) = (shared, shared_segment) {
            let x = Input::Gated { gate: &shared_gate, up: &shared_up, stride: shared_width };
            let input = scratch.distinct.len();
            let tiles = match &s.expert.down {
                Weight::Quantized(w) => {
                    if scratch.inputs.len() == input {
                        scratch.inputs.push(QuantizedInput::default());
                    }
                    scratch.inputs[input].fill(self.kernels, &self.pool, w, x, m, activations);
                    (0, scratch.inputs[input].tiles.len())
                }
                Weight::Dense(_) => {
                    self.floats(&mut scratch.shared_floats, m, shared_width, activations, &|i, row| x.make(self.kernels, i, row));
                    let from = scratch.dense_tiles.len();
                    add_tiles(0..m, self.kernels.dense_rows, &mut 0, &mut scratch.dense_tiles);
                    (from, scratch.dense_tiles.len())
                }
            };
            let ExpertScratch { chunks, inputs, dense_tiles, .. } = scratch;
            let all = match s.expert.down {
                Weight::Dense(_) => Cut { tiles: dense_tiles, order: DigitOrder::Quads },
                Weight::Quantized(_) => inputs[input].cut_tiles(),
            };
            let bytes = s.expert.down.bytes();
            self.cut(chunks, Chunk { product: routed, input, panels: (0, 0), tiles }, &s.expert.down, all, activations, bytes);
        }
        scratch.down.room(total * hidden);
        scratch.shared_down.room(if shared.is_some() { m * hidden } else { 0 });
        // SAFETY (of the writes of `run`): as in the first half.
        let (out, shared_out) = (Out(scratch.down.as_mut_ptr()), Out(scratch.shared_down.as_mut_ptr()));
        let segments = &scratch.segments;
        let (floats, shared_floats) = (&scratch.floats, &scratch.shared_floats);
        self.run(&scratch.chunks, &scratch.inputs, &scratch.dense_tiles, &|product| match segments.get(product) {
            Some(&segment) => Some(Place { weight: weight(segment, 0), out, add: false, first: 0, floats, activations }),
            None => {
                shared.map(|s| Place { weight: &s.expert.down, out: shared_out, add: false, first: 0, floats: shared_floats, activations })
            }
        });
        (scratch.gate, scratch.up, scratch.shared_gate, scratch.shared_up) = (gate, up, shared_gate, shared_up);
    }

    /// Makes the inputs of one half integers, cuts them into tiles by segment, and the products into chunks.
    fn prepare(&self, scratch: &mut ExpertScratch, half: &Half<'_>, activations: Activations) {
        let Half { parts, weight, x, pick, rows } = *half;
        scratch.find_inputs(parts, weight);
        let ExpertScratch { inputs, dense_tiles, chunks, segments, sources, distinct, .. } = scratch;
        for (input, d) in distinct.iter().enumerate() {
            let Weight::Quantized(w) = weight(segments[d.of.0], d.of.1) else { continue };
            let quantized = &mut inputs[input];
            quantized.begin(w, activations);
            // rows that several experts want are made integers once and gathered
            let singles = pick.filter(|_| d.users > 1);
            if singles.is_some() {
                quantized.cut_singles(rows);
            }
            let from = quantized.tiles.len();
            for (s, segment) in segments.iter().enumerate() {
                let mut tiles = None;
                for part in 0..parts {
                    let source = &mut sources[s * parts + part];
                    if source.input == Some(input) {
                        let range = segment.first..segment.first + segment.count;
                        source.tiles = *tiles.get_or_insert_with(|| {
                            let cut = quantized.cut(self.kernels, range, singles);
                            (cut.start, cut.end)
                        });
                    }
                }
            }
            let end = quantized.tiles.len();
            match singles {
                Some(singles) => {
                    quantized.quantize(self.kernels, &self.pool, w, x, 0..from, None);
                    quantized.gather(&self.pool, from..end, singles);
                }
                None => quantized.quantize(self.kernels, &self.pool, w, x, 0..end, pick),
            }
        }
        dense_tiles.clear();
        chunks.clear();
        let bytes = segments.iter().map(|&s| (0..parts).map(|part| weight(s, part).bytes()).sum::<usize>()).sum();
        for (s, &segment) in segments.iter().enumerate() {
            for part in 0..parts {
                let source = &mut sources[s * parts + part];
                let weight = weight(segment, part);
                let all = match source.input {
                    Some(input) => inputs[input].cut_tiles(),
                    None => {
                        let from = dense_tiles.len();
                        let range = segment.first..segment.first + segment.count;
                        add_tiles(range, self.kernels.dense_rows, &mut 0, dense_tiles);
                        source.tiles = (from, dense_tiles.len());
                        Cut { tiles: dense_tiles, order: DigitOrder::Quads }
                    }
                };
                let input = source.input.unwrap_or_default();
                let whole = Chunk { product: s * parts + part, input, panels: (0, 0), tiles: source.tiles };
                self.cut(chunks, whole, weight, all, activations, bytes);
            }
        }
    }

    /// Adds the weighted sum of each token's rows to `out`.
    fn join(&self, scratch: &ExpertScratch, shared: Option<Shared<'_>>, hidden: usize, top_k: usize, out: &mut [f32]) {
        const COLUMNS: usize = 64;
        let ExpertScratch { rows, weights, down, shared_down, .. } = scratch;
        self.rows(out, hidden, &|token, out| {
            let here = rows[token * top_k..(token + 1) * top_k].iter().take_while(|&&row| row != NOWHERE);
            for (at, out) in (0..hidden).step_by(COLUMNS).zip(out.chunks_mut(COLUMNS)) {
                let mut sum = [0.0f32; COLUMNS];
                let mut add = |rows: &[f32], row: usize, weight: f32| {
                    let y = &rows[row * hidden + at..][..out.len()];
                    sum.iter_mut().zip(y).for_each(|(s, y)| *s += weight * y);
                };
                here.clone().for_each(|&row| add(down, row as usize, weights[row as usize]));
                if let Some(s) = shared {
                    add(shared_down, token, s.weights.map_or(1.0, |w| w[token]));
                }
                out.iter_mut().zip(&sum).for_each(|(o, s)| *o += s);
            }
        });
    }
}
