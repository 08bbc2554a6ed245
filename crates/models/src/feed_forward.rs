//! What follows the attention in a layer: one MLP, or a mixture of experts.

use crate::MoeConfig;
use billfish_kernels::{
    Activations, Backend, Choice, Expert, ExpertScratch, Experts, Floats, Input, MatmulScratch, Product, Shared, Weight,
};

/// The first half of an MLP.
pub(crate) enum GateUp {
    Separate {
        gate: Weight,
        up: Weight,
    },
    /// `[hidden, 2 * intermediate]`, gate first.
    Fused(Weight),
}

/// The MLP of one layer.
pub(crate) struct Mlp {
    pub gate_up: GateUp,
    pub down: Weight,
}

/// One MLP or many.
pub(crate) enum FeedForward {
    Mlp(Box<Mlp>),
    Moe(Box<Moe>),
}

/// An expert that every token goes to.
pub(crate) struct SharedExpert {
    pub expert: Expert,
    /// `[hidden, 1]`: the sigmoid of what it gives is the expert's weight, which is 1 without it.
    pub gate: Option<Weight>,
}

/// The experts of one layer.
pub(crate) struct Moe {
    pub config: MoeConfig,
    /// `[hidden, experts]`.
    pub router: Weight,
    /// Added to scores for the choice only.
    pub correction: Option<Vec<f32>>,
    pub experts: Experts,
    pub shared: Option<SharedExpert>,
}

/// Buffers of the experts, and how often each was chosen.
#[derive(Default)]
pub(crate) struct MoeScratch {
    experts: ExpertScratch,
    logits: Floats,
    shared: Floats,
    choices: Vec<Choice>,
    usage: Vec<u64>,
}

impl MoeScratch {
    /// What the last routing chose, `[m, top_k]`.
    pub fn choices(&self) -> &[Choice] {
        &self.choices
    }

    pub fn usage(&self) -> &[u64] {
        &self.usage
    }
}

impl Moe {
    /// Finds the experts that the rows of `x`, `[m, hidden]`, go to, and the weights of the shared one.
    pub fn route(&self, backend: &Backend, x: &[f32], activations: Activations, matmul: &mut MatmulScratch, scratch: &mut MoeScratch) {
        let routing = &self.config.routing;
        let m = x.len() / self.router.in_features();
        // which experts a token goes to is not to hang by eight bits, and costs next to nothing
        let activations = if activations == Activations::Int8 { Activations::Exact } else { activations };
        let MoeScratch { logits, shared, choices, .. } = scratch;
        let logits = logits.room(m * routing.experts);
        match self.shared_gate() {
            Some(gate) => {
                let weights = shared.room(m);
                let products = &mut [Product::new(&self.router, logits), Product::new(gate, weights)];
                backend.matmul(matmul, Input::Rows(x), m, activations, products);
                backend.sigmoid(weights);
            }
            None => backend.matmul(matmul, Input::Rows(x), m, activations, &mut [Product::new(&self.router, logits)]),
        }
        choices.clear();
        choices.resize(m * routing.top_k, Choice::default());
        backend.route(routing, logits, self.correction.as_deref(), choices);
    }

    fn shared_gate(&self) -> Option<&Weight> {
        self.shared.as_ref().and_then(|s| s.gate.as_ref())
    }

    /// Adds what the experts of layer `layer` make of `x`, `[m, hidden]`, to the residual stream.
    #[allow(clippy::too_many_arguments)] // the buffers of one pass
    pub fn run(
        &self,
        backend: &Backend,
        layer: usize,
        x: &[f32],
        activations: Activations,
        matmul: &mut MatmulScratch,
        scratch: &mut MoeScratch,
        residual: &mut [f32],
    ) {
        let routing = &self.config.routing;
        let m = x.len() / self.router.in_features();
        if m == 0 {
            return;
        }
        self.route(backend, x, activations, matmul, scratch);
        let MoeScratch { experts, shared, choices, usage, .. } = scratch;
        if usage.len() < self.config.layers.len() * routing.experts {
            usage.resize(self.config.layers.len() * routing.experts, 0);
        }
        choices.iter().for_each(|c| usage[layer * routing.experts + c.expert as usize] += 1);
        let weights = self.shared_gate().map(|_| &shared[..m]);
        let shared = self.shared.as_ref().map(|s| Shared { expert: &s.expert, weights });
        backend.experts(experts, &self.experts, shared, x, m, activations, choices, residual);
    }
}
