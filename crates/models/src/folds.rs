//! Where what a layer's modules see can be scaled without a change of what the layer computes.

use crate::DecoderConfig;
use crate::plan::{ExpertsPlan, FeedForwardPlan, GateUpPlan, LayerPlan, Linear};

/// Inputs that some linear modules share, and what makes them: dividing that by a factor for each channel and multiplying
/// the readers' weights by it changes nothing.
#[derive(Clone, Debug)]
pub struct FoldSite {
    /// The step of [`crate::LoneLayer`] in which the readers see these inputs.
    pub step: usize,
    /// The modules that see them, all there are, each with its group in the step; none for a module that is in no group
    /// because it always stays dense.
    pub readers: Vec<(Option<usize>, Linear)>,
    /// What makes them.
    pub maker: Maker,
}

/// What makes the inputs of some modules.
#[derive(Clone, Debug)]
pub enum Maker {
    /// A norm of this name with so many weights, a channel each.
    Norm(String, usize),
    /// Outputs of a linear module.
    Linear {
        /// The module.
        linear: Linear,
        /// The output that each input is made of: a product with it, or a sum of such products over tokens.
        outputs: Vec<usize>,
    },
}

impl Maker {
    /// Channels that have a factor.
    pub fn channels(&self) -> usize {
        match self {
            Maker::Norm(_, size) => *size,
            Maker::Linear { linear, .. } => linear.out_features,
        }
    }

    /// The channel of an input of the readers.
    pub fn channel(&self, input: usize) -> usize {
        match self {
            Maker::Norm(..) => input,
            Maker::Linear { outputs, .. } => outputs[input],
        }
    }

    /// Its module.
    pub fn name(&self) -> &str {
        match self {
            Maker::Norm(name, _) => name,
            Maker::Linear { linear, .. } => &linear.name,
        }
    }
}

/// The sites of a layer, in the order of the steps; of experts that stand in one tensor none.
pub(crate) fn sites(c: &DecoderConfig, p: &LayerPlan) -> Vec<FoldSite> {
    let reader = |group: usize, l: &Linear| (Some(group), l.clone());
    let norm = |n: &crate::plan::Norm| Maker::Norm(n.name.clone(), n.size);
    let to_down = |group: usize, maker: &Linear, first: usize, down: &Linear| FoldSite {
        step: 3,
        readers: vec![reader(group, down)],
        maker: Maker::Linear { linear: maker.clone(), outputs: (first..first + down.in_features).collect() },
    };
    // heads that share a value head see the same of its outputs
    let value = |input: usize| input / c.head_dim / (c.heads / c.kv_heads) * c.head_dim + input % c.head_dim;
    let outputs = (0..p.output.in_features).map(value).collect();
    let mut sites = vec![
        FoldSite { step: 0, readers: [&p.query, &p.key, &p.value].map(|l| reader(0, l)).into(), maker: norm(&p.attention_norm) },
        FoldSite { step: 1, readers: vec![reader(0, &p.output)], maker: Maker::Linear { linear: p.value.clone(), outputs } },
    ];
    match &p.feed_forward {
        FeedForwardPlan::Mlp { gate_up, down } => {
            let (readers, maker, first) = match gate_up {
                GateUpPlan::Separate([gate, up]) => (vec![reader(0, gate), reader(0, up)], up, 0),
                // gate first
                GateUpPlan::Fused(both) => (vec![reader(0, both)], both, down.in_features),
            };
            sites.push(FoldSite { step: 2, readers, maker: norm(&p.mlp_norm) });
            sites.push(to_down(0, maker, first, down));
        }
        FeedForwardPlan::Moe(moe) => {
            let ExpertsPlan::Each(list) = &moe.experts else { return sites };
            let experts = || list.iter().chain(&moe.shared).enumerate();
            let of_experts = experts().flat_map(|(e, [gate, up, _])| [reader(e, gate), reader(e, up)]);
            let dense = std::iter::once(&moe.router).chain(&moe.shared_gate).map(|l| (None, l.clone()));
            sites.push(FoldSite { step: 2, readers: of_experts.chain(dense).collect(), maker: norm(&p.mlp_norm) });
            sites.extend(experts().map(|(e, [_, up, down])| to_down(e, up, 0, down)));
        }
    }
    sites
}
