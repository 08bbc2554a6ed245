//! One layer of a decoder by itself, whose linear modules can be looked at and replaced: what a quantizer runs.

use crate::decoder::{Layer, Scratch};
use crate::feed_forward::{FeedForward, GateUp};
use crate::folds::{self, FoldSite};
use crate::load::LoadOptions;
use crate::pass::{OverCache, Pass};
use crate::plan::{self, EMBEDDING, ExpertsPlan, FINAL_NORM, FeedForwardPlan, GateUpPlan, LayerPlan};
use crate::{DecoderConfig, Linear, ModelError};
use billfish_formats::Checkpoint;
use billfish_kernels::{Asking, BLOCK, Backend, Input, KvPool, KvShape, KvTable, Product, Weight};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// Takes the number of a step, that of a group in it, and rows that the modules of this group see, `[rows, K]`.
pub type Look<'a> = &'a mut dyn FnMut(usize, usize, &[f32]);
/// Says of the number of a step and that of a group whether it is to be looked at.
pub type Wanted<'a> = &'a dyn Fn(usize, usize) -> bool;

/// Steps of a pass through a layer.
const STEPS: usize = 4;

/// One layer. It runs whole sequences from their beginning.
pub struct LoneLayer {
    layer: Layer,
    plan: LayerPlan,
    config: DecoderConfig,
    index: usize,
    backend: Arc<Backend>,
    options: LoadOptions,
    scratch: Scratch,
}

/// Sequences from their beginning.
struct Fresh {
    pool: KvPool,
    tables: Vec<(KvTable, usize)>,
}

impl Fresh {
    fn over(&mut self) -> OverCache<'_, impl Iterator<Item = Asking<'_>> + Clone> {
        let sequences = self.tables.iter().map(|(table, len)| Asking { table, tokens: *len, queries: *len });
        OverCache { pool: &mut self.pool, layer: 0, sequences }
    }
}

impl LoneLayer {
    /// Reads layer `index`.
    ///
    /// # Errors
    /// [`ModelError`] naming the file, tensor or key that is wrong.
    pub fn load(
        checkpoint: &Checkpoint,
        config: &DecoderConfig,
        index: usize,
        backend: Arc<Backend>,
        options: LoadOptions,
    ) -> Result<Self, ModelError> {
        Self::load_without(checkpoint, config, index, backend, options, &|_| false)
    }

    /// Reads layer `index` without those of its [`replaceable`] modules that are `absent`. Others must be put in their places
    /// before a pass comes to them.
    ///
    /// # Errors
    /// As [`LoneLayer::load`].
    pub fn load_without(
        checkpoint: &Checkpoint,
        config: &DecoderConfig,
        index: usize,
        backend: Arc<Backend>,
        options: LoadOptions,
        absent: &dyn Fn(&str) -> bool,
    ) -> Result<Self, ModelError> {
        let can_be: BTreeSet<String> = replaceable(checkpoint, config, index).into_iter().flatten().flatten().map(|l| l.name).collect();
        let absent = |module: &str| can_be.contains(module) && absent(module);
        let layer = crate::load::layer(checkpoint, config, index, backend.pool(), &absent)?;
        let plan = plan::layer(config, checkpoint, index);
        Ok(Self { layer, plan, config: config.clone(), index, backend, options, scratch: Scratch::default() })
    }

    /// Steps of a pass through the layer, in each of which some linear modules see their inputs: query, key and value; the
    /// output; gate and up; down.
    pub fn steps(&self) -> usize {
        STEPS
    }

    /// The modules of a step by group; those of a group see the same rows. With experts, each is a group of its own, and
    /// the shared one is the last.
    pub fn groups(&self, step: usize) -> Vec<Vec<Linear>> {
        groups(&self.plan, &self.config, step)
    }

    /// Where what its modules see can be scaled.
    pub fn fold_sites(&self) -> Vec<FoldSite> {
        folds::sites(&self.config, &self.plan)
    }

    /// Uses other weights for the norm before the attention or the one before what follows it.
    ///
    /// # Panics
    /// If the layer has no such norm, or it has another size.
    pub fn replace_norm(&mut self, norm: &str, weights: &[f32]) {
        let p = &self.plan;
        let places = [(&p.attention_norm, &mut self.layer.attention_norm), (&p.mlp_norm, &mut self.layer.mlp_norm)];
        let found = places.into_iter().find(|(plan, _)| plan.name == norm);
        found.unwrap_or_else(|| panic!("the layer has no norm {norm}")).1.copy_from_slice(weights);
    }

    /// Uses another weight for a module from now on.
    ///
    /// # Panics
    /// If the layer has no such module.
    pub fn replace(&mut self, module: &str, weight: Weight) {
        let p = &self.plan;
        let a = &mut self.layer.attention;
        for (linear, place) in [(&p.query, &mut a.query), (&p.key, &mut a.key), (&p.value, &mut a.value), (&p.output, &mut a.output)] {
            if linear.name == module {
                *place = weight;
                return;
            }
        }
        match (&mut self.layer.feed_forward, &p.feed_forward) {
            (FeedForward::Mlp(mlp), FeedForwardPlan::Mlp { gate_up, down }) => {
                if down.name == module {
                    mlp.down = weight;
                    return;
                }
                match (&mut mlp.gate_up, gate_up) {
                    (GateUp::Separate { gate, .. }, GateUpPlan::Separate([g, _])) if g.name == module => return *gate = weight,
                    (GateUp::Separate { up, .. }, GateUpPlan::Separate([_, u])) if u.name == module => return *up = weight,
                    (GateUp::Fused(one), GateUpPlan::Fused(f)) if f.name == module => return *one = weight,
                    _ => {}
                }
            }
            (FeedForward::Moe(moe), FeedForwardPlan::Moe(plan)) => {
                if plan.router.name == module {
                    return moe.router = weight;
                }
                let shared_gate = plan.shared_gate.as_ref().is_some_and(|l| l.name == module);
                if let Some(shared) = moe.shared.as_mut().filter(|_| shared_gate) {
                    return shared.gate = Some(weight);
                }
                let list: &[[Linear; 3]] = match &plan.experts {
                    ExpertsPlan::Each(list) => list,
                    ExpertsPlan::Stacked { .. } => &[],
                };
                for (e, parts) in list.iter().enumerate() {
                    if let Some(part) = parts.iter().position(|l| l.name == module) {
                        return moe.experts.replace(e, part, weight);
                    }
                }
                let shared = moe.shared.as_mut().zip(plan.shared.as_ref());
                if let Some((shared, part)) = shared.and_then(|(s, parts)| Some((s, parts.iter().position(|l| l.name == module)?))) {
                    let e = &mut shared.expert;
                    *[&mut e.gate, &mut e.up, &mut e.down][part] = weight;
                    return;
                }
            }
            _ => {}
        }
        panic!("the layer has no module {module}");
    }

    /// Brings `rows` into the buffers: sequences of these `lengths`, one after another.
    fn begin(&mut self, rows: &[f32], lengths: &[usize]) -> Fresh {
        let (c, m) = (&self.config, lengths.iter().sum::<usize>());
        assert_eq!(rows.len(), m * c.hidden_size, "rows of all sequences");
        let s = &mut self.scratch;
        Pass { config: c, backend: &self.backend, activations: self.options.activations, m }.room(s);
        s.residual[..rows.len()].copy_from_slice(rows);
        s.angles.clear();
        lengths.iter().for_each(|&len| c.rope.angles(&c.rope.frequencies(len), 0, len, &mut s.angles));
        let shape = KvShape { layers: 1, kv_heads: c.kv_heads, head_dim: c.head_dim, kind: self.options.kv() };
        let mut pool = KvPool::new(shape, lengths.len());
        let mut table = |slot: usize, len: usize| {
            let mut table = KvTable::new(slot as u32);
            let from = pool.blocks();
            pool.grow(from + len.div_ceil(BLOCK));
            (from..pool.blocks()).for_each(|block| table.push(block as u32));
            (table, len)
        };
        let tables = lengths.iter().enumerate().map(|(slot, &len)| table(slot, len)).collect();
        Fresh { pool, tables }
    }

    /// Replaces `rows` by what comes out of the layer: sequences of these `lengths`, one after another, each from its
    /// beginning, `[rows, hidden]`.
    ///
    /// # Panics
    /// If there are not as many rows.
    pub fn run(&mut self, rows: &mut [f32], lengths: &[usize]) {
        let mut sequences = self.begin(rows, lengths);
        let pass = Pass { config: &self.config, backend: &self.backend, activations: self.options.activations, m: lengths.iter().sum() };
        pass.layer(&self.layer, self.index, &mut self.scratch, sequences.over());
        rows.copy_from_slice(&self.scratch.residual[..rows.len()]);
    }

    /// Runs the layer as far as `steps` reach and hands out what the modules of these steps see, group by group, those groups
    /// that are `wanted`; what only others would see is not computed where it can be left out. A token's row goes to the
    /// experts that it is routed to, or to all of them with `all_experts`.
    ///
    /// # Panics
    /// If there are not as many rows as the lengths say.
    pub fn observe(&mut self, rows: &[f32], lengths: &[usize], steps: Range<usize>, all_experts: bool, wanted: Wanted<'_>, look: Look<'_>) {
        let wanted = |step: usize, group: usize| steps.contains(&step) && wanted(step, group);
        let mut sequences = self.begin(rows, lengths);
        let m = lengths.iter().sum();
        let pass = Pass { config: &self.config, backend: &self.backend, activations: self.options.activations, m };
        let (s, layer) = (&mut self.scratch, &self.layer);
        let hidden = m * self.config.hidden_size;
        if wanted(0, 0) {
            pass.norm(&layer.attention_norm, s);
            look(0, 0, &s.normed[..hidden]);
        }
        if steps.end > 1 {
            pass.attend(layer, s, sequences.over());
        }
        if wanted(1, 0) {
            look(1, 0, &s.mixed[..m * self.config.heads * self.config.head_dim]);
        }
        if steps.end < 3 {
            return;
        }
        pass.output(layer, s);
        match &layer.feed_forward {
            FeedForward::Mlp(mlp) => {
                if wanted(2, 0) {
                    pass.norm(&layer.mlp_norm, s);
                    look(2, 0, &s.normed[..hidden]);
                }
                if wanted(3, 0) {
                    pass.gate_up(layer, mlp, s);
                    let width = mlp.down.in_features();
                    let rows = gated_rows(&self.backend, pass.gated(&s.gate, &s.up), m, width);
                    look(3, 0, &rows);
                }
            }
            FeedForward::Moe(moe) => {
                pass.norm(&layer.mlp_norm, s);
                let normed = &s.normed[..hidden];
                moe.route(&self.backend, normed, self.options.activations, &mut s.matmul, &mut s.moe);
                let choices = s.moe.choices();
                let count = moe.config.routing.experts;
                let shared = moe.shared.as_ref().map(|s| &s.expert);
                for (e, expert) in moe.experts.list().iter().chain(shared).enumerate() {
                    if !(wanted(2, e) || wanted(3, e)) {
                        continue;
                    }
                    let goes = |token: usize| {
                        let of = &choices[token * moe.config.routing.top_k..(token + 1) * moe.config.routing.top_k];
                        e >= count || all_experts || of.iter().any(|c| c.expert as usize == e)
                    };
                    let tokens = normed.chunks_exact(self.config.hidden_size).enumerate();
                    let seen: Vec<f32> = tokens.filter(|(t, _)| goes(*t)).flat_map(|(_, row)| row).copied().collect();
                    if wanted(2, e) {
                        look(2, e, &seen);
                    }
                    if !wanted(3, e) {
                        continue;
                    }
                    let (n, width) = (seen.len() / self.config.hidden_size, expert.down.in_features());
                    let (mut gate, mut up) = (vec![0.0; n * width], vec![0.0; n * width]);
                    let products = &mut [Product::new(&expert.gate, &mut gate), Product::new(&expert.up, &mut up)];
                    if n > 0 {
                        self.backend.matmul(&mut s.matmul, Input::Rows(&seen), n, self.options.activations, products);
                        self.backend.silu_mul(&mut gate, &up);
                    }
                    look(3, e, &gate);
                }
            }
        }
    }
}

/// The modules of layer `index` that a quantizer may replace, by step and group as [`LoneLayer`] has them. No tensor is read.
pub fn replaceable(checkpoint: &Checkpoint, config: &DecoderConfig, index: usize) -> Vec<Vec<Vec<Linear>>> {
    let plan = plan::layer(config, checkpoint, index);
    (0..STEPS).map(|step| groups(&plan, config, step)).collect()
}

fn groups(p: &LayerPlan, config: &DecoderConfig, step: usize) -> Vec<Vec<Linear>> {
    let halves = |parts: &[Linear; 3]| {
        let [gate, up, down] = parts.clone();
        if step == 2 { vec![gate, up] } else { vec![down] }
    };
    match (step, &p.feed_forward) {
        (0, _) => vec![vec![p.query.clone(), p.key.clone(), p.value.clone()]],
        (1, _) => vec![vec![p.output.clone()]],
        (2, FeedForwardPlan::Mlp { gate_up: GateUpPlan::Separate(both), .. }) => vec![both.to_vec()],
        (2, FeedForwardPlan::Mlp { gate_up: GateUpPlan::Fused(one), .. }) => vec![vec![one.clone()]],
        (_, FeedForwardPlan::Mlp { down, .. }) => vec![vec![down.clone()]],
        (_, FeedForwardPlan::Moe(moe)) => {
            let each = match &moe.experts {
                ExpertsPlan::Each(list) => list.iter().map(halves).collect(),
                // one tensor for all: nothing of it can be replaced alone
                ExpertsPlan::Stacked { .. } => vec![vec![]; config.moe.as_ref().map_or(0, |m| m.routing.experts)],
            };
            each.into_iter().chain(moe.shared.iter().map(halves)).collect()
        }
    }
}

/// The rows that an input stands for.
fn gated_rows(backend: &Backend, x: Input<'_>, m: usize, width: usize) -> Vec<f32> {
    let Input::Gated { gate, up, stride } = x else { return vec![] };
    let row = |all: &[f32], i: usize| all[i * stride..i * stride + width].to_vec();
    let mut rows: Vec<f32> = (0..m).flat_map(|i| row(gate, i)).collect();
    let up: Vec<f32> = (0..m).flat_map(|i| row(up, i)).collect();
    backend.silu_mul(&mut rows, &up);
    rows
}

/// What the embedding of a folder makes of tokens, `[tokens, hidden]`.
///
/// # Errors
/// [`ModelError::Token`] for an id outside the vocabulary, and what reading gives.
pub fn embed(checkpoint: &Checkpoint, config: &DecoderConfig, tokens: &[u32]) -> Result<Vec<f32>, ModelError> {
    let (vocabulary, hidden) = (config.vocab_size, config.hidden_size);
    // only the rows that are asked for: a vocabulary may be larger than all else that is in memory
    let table = checkpoint.dense_rows(&format!("{EMBEDDING}.weight"), [vocabulary, hidden])?;
    let mut rows = vec![0.0; tokens.len() * hidden];
    let mut stored = vec![0; hidden * table.dtype().size()];
    for (position, (&token, row)) in tokens.iter().zip(rows.chunks_exact_mut(hidden)).enumerate() {
        if token as usize >= vocabulary {
            return Err(ModelError::Token { token, position, vocabulary });
        }
        table.read(token as usize, &mut stored)?;
        table.dtype().read_f32(&stored, row);
    }
    Ok(rows)
}

/// What the output head sees of rows that come out of the last layer.
///
/// # Errors
/// [`ModelError`] if the norm cannot be read.
pub fn final_norm(checkpoint: &Checkpoint, config: &DecoderConfig, backend: &Backend, rows: &[f32]) -> Result<Vec<f32>, ModelError> {
    let weight = checkpoint.dense(&format!("{FINAL_NORM}.weight"), &[config.hidden_size])?.to_f32();
    let mut out = vec![0.0; rows.len()];
    backend.rms_norm(rows, &weight, config.rms_norm_eps, &mut out);
    Ok(out)
}
