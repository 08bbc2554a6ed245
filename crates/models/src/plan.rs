//! The modules of a decoder by name and size: what loading asks for, and what a folder is checked against.

use crate::DecoderConfig;
use billfish_formats::Checkpoint;
use std::collections::BTreeSet;

/// The table that tokens become rows of.
pub(crate) const EMBEDDING: &str = "model.embed_tokens";
/// The output head.
pub(crate) const HEAD: &str = "lm_head";
/// The norm before the head.
pub(crate) const FINAL_NORM: &str = "model.norm";

/// A linear module that a decoder asks for.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Its name in a folder.
    pub name: String,
    /// K.
    pub in_features: usize,
    /// N.
    pub out_features: usize,
    /// Whether it has a bias.
    pub bias: bool,
}

/// A norm of `size` weights.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub name: String,
    pub size: usize,
}

/// The modules of one layer.
pub(crate) struct LayerPlan {
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub output: Linear,
    pub qk_norms: Option<[Norm; 2]>,
    pub gate_up: GateUpPlan,
    pub down: Linear,
    pub attention_norm: Norm,
    pub mlp_norm: Norm,
    pub output_norms: Option<[Norm; 2]>,
}

/// Gate and up, apart or in one matrix.
pub(crate) enum GateUpPlan {
    Separate([Linear; 2]),
    Fused(Linear),
}

/// The modules of layer `i`.
pub(crate) fn layer(c: &DecoderConfig, i: usize) -> LayerPlan {
    let at = |name: &str| format!("model.layers.{i}.{name}");
    let linear = |name: &str, in_features, out_features, bias| Linear { name: at(name), in_features, out_features, bias };
    let norm = |name: &str, size| Norm { name: at(name), size };
    let (hidden, mlp) = (c.hidden_size, c.intermediate_size);
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let arch = c.architecture;
    LayerPlan {
        query: linear("self_attn.q_proj", hidden, q, c.qkv_bias),
        key: linear("self_attn.k_proj", hidden, kv, c.qkv_bias),
        value: linear("self_attn.v_proj", hidden, kv, c.qkv_bias),
        output: linear("self_attn.o_proj", q, hidden, c.o_bias),
        qk_norms: arch.qk_norm.then(|| [norm("self_attn.q_norm", c.head_dim), norm("self_attn.k_norm", c.head_dim)]),
        gate_up: match arch.fused_gate_up {
            true => GateUpPlan::Fused(linear("mlp.gate_up_proj", hidden, 2 * mlp, c.mlp_bias)),
            false => {
                GateUpPlan::Separate([linear("mlp.gate_proj", hidden, mlp, c.mlp_bias), linear("mlp.up_proj", hidden, mlp, c.mlp_bias)])
            }
        },
        down: linear("mlp.down_proj", mlp, hidden, c.mlp_bias),
        attention_norm: norm("input_layernorm", hidden),
        mlp_norm: norm("post_attention_layernorm", hidden),
        output_norms: arch.sandwich_norms.then(|| [norm("post_self_attn_layernorm", hidden), norm("post_mlp_layernorm", hidden)]),
    }
}

impl LayerPlan {
    fn linears(&self) -> impl Iterator<Item = &Linear> {
        let gate_up: &[Linear] = match &self.gate_up {
            GateUpPlan::Separate(both) => both,
            GateUpPlan::Fused(one) => std::slice::from_ref(one),
        };
        [&self.query, &self.key, &self.value, &self.output, &self.down].into_iter().chain(gate_up)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let optional = self.qk_norms.iter().chain(&self.output_norms).flatten();
        let norms = [&self.attention_norm, &self.mlp_norm].into_iter().chain(optional);
        self.linears().map(|l| l.name.as_str()).chain(norms.map(|n| n.name.as_str()))
    }
}

/// Whether the head is a module of its own. A quantized head of a tied model is what its writer meant; a dense one is a
/// copy of the embedding.
pub(crate) fn has_own_head(c: &DecoderConfig, checkpoint: &Checkpoint) -> bool {
    !c.tie_word_embeddings || checkpoint.has_codes(HEAD)
}

/// Tables that old checkpoints carry and every reader computes anew.
pub(crate) fn is_computed(tensor: &str) -> bool {
    [".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached", ".masked_bias"].iter().any(|s| tensor.ends_with(s))
}

/// How the modules of a folder and those of its decoder compare.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Modules of the decoder that the folder has no tensor of.
    pub missing: Vec<String>,
    /// Tensors of the folder that belong to no module of the decoder.
    pub unused: Vec<String>,
}

impl DecoderConfig {
    /// The linear modules that this decoder asks for, the embedding and the head among them.
    pub fn linears(&self) -> Vec<Linear> {
        let table = |name: &str| Linear { name: name.into(), in_features: self.hidden_size, out_features: self.vocab_size, bias: false };
        self.layer_linears().into_iter().chain([table(EMBEDDING), table(HEAD)]).collect()
    }

    /// Those of the layers.
    pub(crate) fn layer_linears(&self) -> Vec<Linear> {
        (0..self.layers).flat_map(|i| layer(self, i).linears().cloned().collect::<Vec<_>>()).collect()
    }

    /// Compares a folder's tensors with what this decoder asks for, by name; no tensor is read.
    pub fn compare(&self, checkpoint: &Checkpoint) -> Comparison {
        let layers: Vec<LayerPlan> = (0..self.layers).map(|i| layer(self, i)).collect();
        let mut wanted: BTreeSet<&str> = layers.iter().flat_map(LayerPlan::names).chain([EMBEDDING, FINAL_NORM]).collect();
        if has_own_head(self, checkpoint) {
            wanted.insert(HEAD);
        }
        let mut found = BTreeSet::new();
        let mut unused = vec![];
        for tensor in checkpoint.tensor_names() {
            let module = tensor.rsplit_once('.').map_or(tensor, |(module, _)| module);
            let copy_of_embedding = module == HEAD && self.tie_word_embeddings;
            if wanted.contains(module) {
                found.insert(module);
            } else if !is_computed(tensor) && !copy_of_embedding {
                unused.push(tensor.to_string());
            }
        }
        Comparison { missing: wanted.difference(&found).map(|m| m.to_string()).collect(), unused }
    }
}
