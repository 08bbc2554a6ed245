//! One layer of a pass, in the four steps between which a quantizer looks at what the linear modules see.

use crate::decoder::{Layer, Scratch};
use crate::feed_forward::{FeedForward, GateUp, Mlp};
use crate::{DecoderConfig, batch};
use billfish_kernels::{Activations, Asking, AttentionRule, Backend, Input, KvPool, Product, Weight};

/// What all layers of a pass share.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    pub config: &'a DecoderConfig,
    pub backend: &'a Backend,
    pub activations: Activations,
    /// Rows.
    pub m: usize,
}

/// Where the keys and values of a layer are: sequences in a pool, with how many of the rows belong to each, and how many
/// of these go on behind the attention.
pub(crate) struct OverCache<'p, I> {
    pub pool: &'p mut KvPool,
    /// The number of the layer in the pool.
    pub layer: usize,
    pub sequences: I,
}

impl Pass<'_> {
    /// Makes room for every step.
    pub fn room(&self, s: &mut Scratch) {
        let (c, m) = (self.config, self.m);
        let (hidden, width) = (m * c.hidden_size, m * self.width());
        for buffer in [&mut s.residual, &mut s.normed, &mut s.output] {
            buffer.room(hidden);
        }
        for (buffer, heads) in [(&mut s.query, c.heads), (&mut s.key, c.kv_heads), (&mut s.value, c.kv_heads), (&mut s.mixed, c.heads)] {
            buffer.room(m * heads * c.head_dim);
        }
        s.gate.room(if c.architecture.fused_gate_up { 0 } else { width });
        s.up.room(if c.architecture.fused_gate_up { 2 * width } else { width });
    }

    /// Width of the MLP, 0 if every layer has experts.
    fn width(&self) -> usize {
        let all = self.config.moe.as_ref().is_some_and(|moe| moe.layers.iter().all(|&l| l));
        if all { 0 } else { self.config.intermediate_size }
    }

    /// The residual stream.
    fn residual<'s>(&self, s: &'s mut [f32]) -> &'s mut [f32] {
        &mut s[..self.m * self.config.hidden_size]
    }

    /// Query, key and value of the residual stream, rotation, and attention. What the output module sees is in `mixed` then:
    /// the rows that go on, which are those of the pass that this gives back; in the residual stream they are the first ones.
    pub fn attend<'k>(&self, layer: &Layer, s: &mut Scratch, over: OverCache<'_, impl Iterator<Item = Asking<'k>> + Clone>) -> Self {
        let (c, backend, a) = (self.config, self.backend, &layer.attention);
        let OverCache { pool, layer: index, sequences } = over;
        let rest = Pass { m: sequences.clone().map(|s| s.queries).sum(), ..*self };
        let (q_width, kv_width) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let Scratch { matmul, attention, angles, residual, query, key, value, mixed, .. } = s;
        let (query, mixed) = (&mut query[..rest.m * q_width], &mut mixed[..self.m * q_width]);
        let (key, value) = (&mut key[..self.m * kv_width], &mut value[..self.m * kv_width]);
        let input = Input::Normed { rows: self.residual(residual), weight: &layer.attention_norm, eps: c.rms_norm_eps };
        let [k, v] = [Product::new(&a.key, key), Product::new(&a.value, value)];
        let all_go_on = rest.m == self.m;
        if all_go_on {
            backend.matmul(matmul, input, self.m, self.activations, &mut [Product::new(&a.query, query), k, v]);
        } else {
            backend.matmul(matmul, input, self.m, self.activations, &mut [k, v]);
        }
        if let Some((_, k_norm)) = &a.qk_norms {
            // a norm does not write over what it reads; `mixed` is free until attention
            let copy = &mut mixed[..self.m * kv_width];
            copy.copy_from_slice(key);
            backend.rms_norm(copy, k_norm, c.rms_norm_eps, key);
        }
        backend.rows(key, kv_width, &|i, row| c.rope.rotate(angles, i, row, c.head_dim));
        pool.set_scales(index, a.cache_scales.as_ref());
        backend.append(attention, pool, index, sequences.clone().map(|s| (s.table, s.tokens)), key, value);
        if rest.m == 0 {
            return rest;
        }
        if !all_go_on {
            batch::to_front(sequences.clone(), c.hidden_size, self.residual(residual));
            let (lists, pairs) = angles.parts();
            lists.into_iter().for_each(|list| batch::to_front(sequences.clone(), pairs, list));
            let input = Input::Normed { rows: rest.residual(residual), weight: &layer.attention_norm, eps: c.rms_norm_eps };
            backend.matmul(matmul, input, rest.m, self.activations, &mut [Product::new(&a.query, query)]);
        }
        let mixed = &mut mixed[..rest.m * q_width];
        if let Some((q_norm, _)) = &a.qk_norms {
            mixed.copy_from_slice(query);
            backend.rms_norm(mixed, q_norm, c.rms_norm_eps, query);
        }
        backend.rows(query, q_width, &|i, row| c.rope.rotate(angles, i, row, c.head_dim));
        let rule = AttentionRule { heads: c.heads, scale: 1.0 / (c.head_dim as f32).sqrt(), window: a.window };
        backend.attend(attention, pool, index, rule, sequences, query, mixed);
        rest
    }

    /// The output module: `mixed` to the residual stream.
    pub fn output(&self, layer: &Layer, s: &mut Scratch) {
        let mixed = std::mem::take(&mut s.mixed);
        let x = Input::Rows(&mixed[..self.m * self.config.heads * self.config.head_dim]);
        self.join(s, x, &layer.attention.output, layer.output_norms.as_ref().map(|n| &n.0));
        s.mixed = mixed;
    }

    /// Norms of the residual stream in `normed`.
    pub fn norm(&self, weight: &[f32], s: &mut Scratch) {
        let len = self.m * self.config.hidden_size;
        self.backend.rms_norm(&s.residual[..len], weight, self.config.rms_norm_eps, &mut s.normed[..len]);
    }

    /// Gate and up of an MLP.
    pub fn gate_up(&self, layer: &Layer, mlp: &Mlp, s: &mut Scratch) {
        let (m, width) = (self.m, self.width());
        let Scratch { matmul, residual, gate, up, .. } = s;
        let input = Input::Normed { rows: self.residual(residual), weight: &layer.mlp_norm, eps: self.config.rms_norm_eps };
        match &mlp.gate_up {
            GateUp::Separate { gate: g, up: u } => {
                let products = &mut [Product::new(g, &mut gate[..m * width]), Product::new(u, &mut up[..m * width])];
                self.backend.matmul(matmul, input, m, self.activations, products);
            }
            GateUp::Fused(w) => {
                self.backend.matmul(matmul, input, m, self.activations, &mut [Product::new(w, &mut up[..2 * m * width])]);
            }
        }
    }

    /// What the down module of an MLP sees, of what [`Pass::gate_up`] gave.
    pub fn gated<'s>(&self, gate: &'s [f32], up: &'s [f32]) -> Input<'s> {
        let width = self.width();
        if self.config.architecture.fused_gate_up {
            Input::Gated { gate: up, up: &up[width..], stride: 2 * width }
        } else {
            Input::Gated { gate, up, stride: width }
        }
    }

    /// The half of a layer after the attention.
    pub fn feed_forward(&self, layer: &Layer, index: usize, s: &mut Scratch) {
        match &layer.feed_forward {
            FeedForward::Mlp(mlp) => {
                self.gate_up(layer, mlp, s);
                let (gate, up) = (std::mem::take(&mut s.gate), std::mem::take(&mut s.up));
                self.join(s, self.gated(&gate, &up), &mlp.down, layer.output_norms.as_ref().map(|n| &n.1));
                (s.gate, s.up) = (gate, up);
            }
            FeedForward::Moe(experts) => {
                // router and experts read the same rows
                self.norm(&layer.mlp_norm, s);
                let len = self.m * self.config.hidden_size;
                let Scratch { matmul, moe, residual, normed, .. } = s;
                experts.run(self.backend, index, &normed[..len], self.activations, matmul, moe, &mut residual[..len]);
            }
        }
    }

    /// A whole layer, of which the residual stream has those rows that go on behind the attention.
    pub fn layer<'k>(&self, layer: &Layer, index: usize, s: &mut Scratch, over: OverCache<'_, impl Iterator<Item = Asking<'k>> + Clone>) {
        let rest = self.attend(layer, s, over);
        if rest.m > 0 {
            rest.output(layer, s);
            rest.feed_forward(layer, index, s);
        }
    }

    /// Adds `x · W` to the residual stream, through its norm if it has one.
    fn join(&self, s: &mut Scratch, x: Input<'_>, weight: &Weight, norm: Option<&Vec<f32>>) {
        let (hidden, m) = (self.config.hidden_size, self.m);
        let Scratch { matmul, residual, output, normed, .. } = s;
        let (residual, output, normed) = (&mut residual[..m * hidden], &mut output[..m * hidden], &mut normed[..m * hidden]);
        let Some(norm) = norm else {
            return self.backend.matmul(matmul, x, m, self.activations, &mut [Product::onto(weight, residual)]);
        };
        self.backend.matmul(matmul, x, m, self.activations, &mut [Product::new(weight, output)]);
        self.backend.rms_norm(output, norm, self.config.rms_norm_eps, normed);
        self.backend.rows(residual, hidden, &|i, row| row.iter_mut().zip(&normed[i * hidden..]).for_each(|(r, a)| *r += a));
    }
}
