//! The modules of a decoder by name and size: what loading asks for, and what a folder is checked against.

use crate::architecture::{ExpertNames, MoeRules, SharedRule};
use crate::cache_scales;
use crate::{DecoderConfig, MoeConfig};
use billfish_formats::{Checkpoint, Matrix};
use std::collections::BTreeSet;

/// The table that tokens become rows of.
pub const EMBEDDING: &str = "model.embed_tokens";
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
    /// Tensors with the scales of keys and values in the cache.
    pub cache_scales: Option<[String; 2]>,
    pub feed_forward: FeedForwardPlan,
    pub attention_norm: Norm,
    pub mlp_norm: Norm,
    pub output_norms: Option<[Norm; 2]>,
}

/// What follows the attention.
pub(crate) enum FeedForwardPlan {
    Mlp { gate_up: GateUpPlan, down: Linear },
    Moe(Box<MoePlan>),
}

/// The modules of a mixture of experts.
pub(crate) struct MoePlan {
    pub config: MoeConfig,
    /// `[hidden, experts]`.
    pub router: Linear,
    /// A tensor that is added to scores for the choice.
    pub correction: Option<String>,
    pub experts: ExpertsPlan,
    pub shared: Option<[Linear; 3]>,
    pub shared_gate: Option<Linear>,
}

/// Gate, up and down of every expert.
pub(crate) enum ExpertsPlan {
    Each(Vec<[Linear; 3]>),
    /// Two tensors for all experts: `[experts, 2 * width, hidden]`, gate first, and `[experts, hidden, width]`, as transformers
    /// has them from version 5 on in every architecture of ours.
    Stacked {
        gate_up: String,
        down: String,
        /// The modules that they would be one by one.
        each: Vec<[Linear; 3]>,
    },
}

impl ExpertsPlan {
    fn linears(&self) -> impl Iterator<Item = &Linear> {
        match self {
            ExpertsPlan::Each(experts) => experts.as_flattened(),
            ExpertsPlan::Stacked { .. } => &[],
        }
        .iter()
    }

    /// Tensors that are no part of a module.
    fn tensors(&self) -> impl Iterator<Item = &str> {
        let (gate_up, down) = match self {
            ExpertsPlan::Each(_) => (None, None),
            ExpertsPlan::Stacked { gate_up, down, .. } => (Some(gate_up), Some(down)),
        };
        gate_up.into_iter().chain(down).map(String::as_str)
    }
}

/// Gate and up, apart or in one matrix.
pub(crate) enum GateUpPlan {
    Separate([Linear; 2]),
    Fused(Linear),
}

/// The modules of layer `i`, experts under the names that the folder has for them.
pub(crate) fn layer(c: &DecoderConfig, checkpoint: &Checkpoint, i: usize) -> LayerPlan {
    let at = |name: &str| format!("model.layers.{i}.{name}");
    let linear = |name: &str, in_features, out_features, bias| Linear { name: at(name), in_features, out_features, bias };
    let norm = |name: &str, size| Norm { name: at(name), size };
    let (hidden, mlp) = (c.hidden_size, c.intermediate_size);
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let arch = c.architecture;
    let experts = c.moe.as_ref().filter(|m| m.layers[i]).zip(arch.moe);
    LayerPlan {
        query: linear("self_attn.q_proj", hidden, q, c.qkv_bias),
        key: linear("self_attn.k_proj", hidden, kv, c.qkv_bias),
        value: linear("self_attn.v_proj", hidden, kv, c.qkv_bias),
        output: linear("self_attn.o_proj", q, hidden, c.o_bias),
        qk_norms: c.qk_norm.then(|| [norm("self_attn.q_norm", c.head_dim), norm("self_attn.k_norm", c.head_dim)]),
        cache_scales: cache_scales::names(c, checkpoint, i),
        feed_forward: match experts {
            Some((moe, rules)) => FeedForwardPlan::Moe(Box::new(MoePlan::of(hidden, moe, rules, checkpoint, i))),
            None => FeedForwardPlan::Mlp {
                gate_up: match arch.fused_gate_up {
                    true => GateUpPlan::Fused(linear("mlp.gate_up_proj", hidden, 2 * mlp, c.mlp_bias)),
                    false => {
                        let one = |name: &str| linear(name, hidden, mlp, c.mlp_bias);
                        GateUpPlan::Separate([one("mlp.gate_proj"), one("mlp.up_proj")])
                    }
                },
                down: linear("mlp.down_proj", mlp, hidden, c.mlp_bias),
            },
        },
        attention_norm: norm("input_layernorm", hidden),
        mlp_norm: norm("post_attention_layernorm", hidden),
        output_norms: arch.sandwich_norms.then(|| [norm("post_self_attn_layernorm", hidden), norm("post_mlp_layernorm", hidden)]),
    }
}

impl MoePlan {
    fn of(hidden: usize, moe: &MoeConfig, rules: &MoeRules, checkpoint: &Checkpoint, i: usize) -> MoePlan {
        let block = |names: &ExpertNames| format!("model.layers.{i}.{}", names.block);
        let found = rules.names.iter().find(|n| checkpoint.has_tensors(&format!("{}.experts.", block(n))));
        let names = found.unwrap_or(&rules.names[0]);
        let block = block(names);
        let linear = |name: String, in_features, out_features| Linear { name, in_features, out_features, bias: false };
        let mlp = |at: String, parts: [&str; 3], width: usize| {
            let sizes = [(hidden, width), (hidden, width), (width, hidden)];
            std::array::from_fn(|p| linear(format!("{at}.{}", parts[p]), sizes[p].0, sizes[p].1))
        };
        let stacked = format!("{block}.experts.gate_up_proj");
        let one = |e| mlp(format!("{block}.experts.{e}"), names.parts, moe.width);
        let each = (0..moe.routing.experts).map(one).collect();
        let experts = match checkpoint.info(&stacked) {
            Some(_) => ExpertsPlan::Stacked { gate_up: stacked, down: format!("{block}.experts.down_proj"), each },
            None => ExpertsPlan::Each(each),
        };
        let shared = |name: &str| moe.shared_width.map(|width| mlp(format!("{block}.{name}"), rules.names[0].parts, width));
        let (shared, shared_gate) = match rules.shared {
            SharedRule::None => (None, None),
            SharedRule::Gated => (shared("shared_expert"), Some(linear(format!("{block}.shared_expert_gate"), hidden, 1))),
            SharedRule::Plain => (shared("shared_experts"), None),
        };
        MoePlan {
            config: moe.clone(),
            router: linear(format!("{block}.gate"), hidden, moe.routing.experts),
            correction: rules.correction.then(|| format!("{block}.gate.e_score_correction_bias")),
            experts,
            shared,
            shared_gate,
        }
    }

    fn linears(&self) -> impl Iterator<Item = &Linear> {
        let one = std::iter::once(&self.router).chain(&self.shared_gate);
        one.chain(self.experts.linears()).chain(self.shared.iter().flatten())
    }
}

impl LayerPlan {
    fn linears(&self) -> impl Iterator<Item = &Linear> {
        let gate_up: &[Linear] = match &self.feed_forward {
            FeedForwardPlan::Mlp { gate_up: GateUpPlan::Separate(both), .. } => both,
            FeedForwardPlan::Mlp { gate_up: GateUpPlan::Fused(one), .. } => std::slice::from_ref(one),
            FeedForwardPlan::Moe(_) => &[],
        };
        let (down, moe) = match &self.feed_forward {
            FeedForwardPlan::Mlp { down, .. } => (Some(down), None),
            FeedForwardPlan::Moe(moe) => (None, Some(moe)),
        };
        let attention = [&self.query, &self.key, &self.value, &self.output];
        attention.into_iter().chain(down).chain(gate_up).chain(moe.into_iter().flat_map(|m| m.linears()))
    }

    /// Modules, and tensors that are no part of one.
    fn names(&self) -> impl Iterator<Item = &str> {
        let optional = self.qk_norms.iter().chain(&self.output_norms).flatten();
        let norms = [&self.attention_norm, &self.mlp_norm].into_iter().chain(optional);
        let stacked = match &self.feed_forward {
            FeedForwardPlan::Moe(moe) => Some(moe.experts.tensors()),
            FeedForwardPlan::Mlp { .. } => None,
        };
        let scales = self.cache_scales.iter().flatten().map(String::as_str);
        let modules = self.linears().map(|l| l.name.as_str()).chain(norms.map(|n| n.name.as_str()));
        modules.chain(stacked.into_iter().flatten()).chain(scales)
    }
}

/// Whether the head is a module of its own. A quantized head of a tied model is what its writer meant; a dense one is a
/// copy of the embedding.
pub(crate) fn has_own_head(c: &DecoderConfig, checkpoint: &Checkpoint) -> bool {
    !c.tie_word_embeddings || checkpoint.has_codes(HEAD)
}

/// Tables that old checkpoints carry and every reader computes anew.
pub fn is_computed(tensor: &str) -> bool {
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
    /// The linear modules that this decoder asks for, the embedding and the head among them; experts under the names that
    /// the folder has for them, but not those that stand in one tensor together.
    pub fn linears(&self, checkpoint: &Checkpoint) -> Vec<Linear> {
        let table = |name: &str| Linear { name: name.into(), in_features: self.hidden_size, out_features: self.vocab_size, bias: false };
        self.layer_linears(checkpoint).into_iter().chain([table(EMBEDDING), table(HEAD)]).collect()
    }

    /// Those of the layers.
    pub(crate) fn layer_linears(&self, checkpoint: &Checkpoint) -> Vec<Linear> {
        (0..self.layers).flat_map(|i| layer(self, checkpoint, i).linears().cloned().collect::<Vec<_>>()).collect()
    }

    /// The same folder with experts that stand in one tensor seen one by one, under the names that such modules have; none
    /// if there are no such experts.
    ///
    /// # Errors
    /// [`crate::ModelError`] if such a tensor has not the size that config.json says.
    pub fn unstacked(&self, checkpoint: &Checkpoint) -> Result<Option<Checkpoint>, crate::ModelError> {
        let mut matrices = vec![];
        for i in 0..self.layers {
            let FeedForwardPlan::Moe(moe) = layer(self, checkpoint, i).feed_forward else { continue };
            let ExpertsPlan::Stacked { gate_up, down, each } = &moe.experts else { continue };
            for (index, [gate, up, out]) in each.iter().enumerate() {
                let width = gate.out_features;
                for (linear, stack, rows) in [(gate, gate_up, 0..width), (up, gate_up, width..2 * width), (out, down, 0..out.out_features)]
                {
                    matrices.push(Matrix { name: format!("{}.weight", linear.name), stack: stack.clone(), index, rows });
                }
            }
        }
        Ok(if matrices.is_empty() { None } else { Some(checkpoint.unstacked(&matrices)?) })
    }

    /// Compares a folder's tensors with what this decoder asks for, by name; no tensor is read.
    pub fn compare(&self, checkpoint: &Checkpoint) -> Comparison {
        let layers: Vec<LayerPlan> = (0..self.layers).map(|i| layer(self, checkpoint, i)).collect();
        let mut wanted: BTreeSet<&str> = layers.iter().flat_map(LayerPlan::names).chain([EMBEDDING, FINAL_NORM]).collect();
        if has_own_head(self, checkpoint) {
            wanted.insert(HEAD);
        }
        let mut found = BTreeSet::new();
        let mut unused = vec![];
        for tensor in checkpoint.tensor_names() {
            let module = tensor.rsplit_once('.').map_or(tensor, |(module, _)| module);
            let copy_of_embedding = module == HEAD && self.tie_word_embeddings;
            if wanted.contains(tensor) {
                found.insert(tensor);
            } else if wanted.contains(module) {
                found.insert(module);
            } else if !is_computed(tensor) && !copy_of_embedding {
                unused.push(tensor.to_string());
            }
        }
        Comparison { missing: wanted.difference(&found).map(|m| m.to_string()).collect(), unused }
    }
}
