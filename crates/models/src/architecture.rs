//! The architectures, as data: everything in which one decoder differs from another.
//!
//! Facts are those of the models' configuration classes and forward passes in transformers 5.23.

use billfish_kernels::Scoring;

/// Whether a decoder has something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    Never,
    Always,
    /// As this key of the config says; this if it says nothing.
    Key(&'static str, bool),
}

/// Which dimensions of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pairing {
    /// i and i + rotary/2.
    Halves,
    /// 2i and 2i + 1.
    Adjacent,
}

/// Which layers see only a window of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Windows {
    /// None: full attention everywhere.
    Never,
    /// All layers, `sliding_window` tokens; this many if the key is absent, none if it is null.
    All { default: Option<usize> },
    /// All layers, only if `use_sliding_window`.
    AllIfUsed { default: usize },
    /// Only if `use_sliding_window`: the layers that `layer_types` calls sliding, else every second one, from the first on,
    /// of those below `max_window_layers`.
    EvenBelowLayer { default: usize, default_layer: usize },
    /// Only if `use_sliding_window`: the layers that `layer_types` calls sliding, else those from `max_window_layers` on.
    FromLayer { default: usize, default_layer: usize },
}

/// The expert that every token goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SharedRule {
    /// There is none.
    None,
    /// `shared_expert`, of width `shared_expert_intermediate_size`; the sigmoid of `shared_expert_gate` is its weight.
    Gated,
    /// `shared_experts`: `n_shared_experts` of them in one MLP, of weight 1.
    Plain,
}

/// Which layers of a mixture have one MLP instead of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DenseLayers {
    None,
    /// Those in `mlp_only_layers`, and all but every `decoder_sparse_step`th.
    Steps,
    /// The first `first_k_dense_replace`.
    First,
}

/// Where the experts of a layer stand in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExpertNames {
    /// The block that holds router and experts.
    pub block: &'static str,
    /// Gate, up and down of an expert.
    pub parts: [&'static str; 3],
}

/// Names that all programs of today write.
const PROJECTIONS: ExpertNames = ExpertNames { block: "mlp", parts: ["gate_proj", "up_proj", "down_proj"] };

/// A mixture of experts.
#[derive(Debug)]
pub(crate) struct MoeRules {
    /// Keys of the number of experts.
    pub experts: &'static [&'static str],
    /// Key of an expert's width.
    pub width: &'static str,
    /// How experts may be named; the first is what a folder without experts is held against.
    pub names: &'static [ExpertNames],
    pub scoring: Scoring,
    /// Whether the weights of a token's experts are divided by their sum.
    pub renormalize: Switch,
    /// Whether groups of experts are chosen first (`n_group`, `topk_group`), by the sum of their best two.
    pub groups: bool,
    /// Whether `e_score_correction_bias` is added to scores for the choice.
    pub correction: bool,
    /// Whether weights are multiplied by `routed_scaling_factor`.
    pub scaling: bool,
    pub shared: SharedRule,
    pub dense_layers: DenseLayers,
}

impl MoeRules {
    /// What configs call the scoring.
    pub fn scoring_name(&self) -> &'static str {
        match self.scoring {
            Scoring::Softmax => "softmax",
            Scoring::Sigmoid => "sigmoid",
        }
    }
}

const MIXTRAL: MoeRules = MoeRules {
    experts: &["num_local_experts", "num_experts"],
    width: "intermediate_size",
    names: &[PROJECTIONS, ExpertNames { block: "block_sparse_moe", parts: ["w1", "w3", "w2"] }],
    scoring: Scoring::Softmax,
    renormalize: Switch::Always,
    groups: false,
    correction: false,
    scaling: false,
    shared: SharedRule::None,
    dense_layers: DenseLayers::None,
};

const QWEN3_MOE: MoeRules = MoeRules {
    experts: &["num_experts", "num_local_experts"],
    width: "moe_intermediate_size",
    names: &[PROJECTIONS],
    renormalize: Switch::Key("norm_topk_prob", false),
    dense_layers: DenseLayers::Steps,
    ..MIXTRAL
};

const QWEN2_MOE: MoeRules = MoeRules { shared: SharedRule::Gated, ..QWEN3_MOE };

const GLM4_MOE: MoeRules = MoeRules {
    experts: &["n_routed_experts", "num_local_experts", "num_experts"],
    scoring: Scoring::Sigmoid,
    renormalize: Switch::Key("norm_topk_prob", true),
    groups: true,
    correction: true,
    scaling: true,
    shared: SharedRule::Plain,
    dense_layers: DenseLayers::First,
    ..QWEN3_MOE
};

/// One architecture.
#[derive(Debug)]
pub(crate) struct Architecture {
    /// `model_type` of the config.
    pub model_type: &'static str,
    pub qkv_bias: Switch,
    pub o_bias: Switch,
    pub mlp_bias: Switch,
    /// Whether queries and keys are normalized head by head.
    pub qk_norm: Switch,
    /// Whether the outputs of attention and MLP are normalized before they join the residual stream.
    pub sandwich_norms: bool,
    /// Whether gate and up are one matrix, gate first.
    pub fused_gate_up: bool,
    pub pairing: Pairing,
    /// Part of a head that is rotated, if the config does not say; `None` if it may not say.
    pub partial_rotary: Option<f64>,
    pub windows: Windows,
    /// Head size if the config does not say; `None` means hidden size / heads.
    pub head_dim: Option<usize>,
    pub rms_norm_eps: f64,
    /// What stands in place of the MLP, if it is a mixture of experts.
    pub moe: Option<&'static MoeRules>,
}

const LLAMA: Architecture = Architecture {
    model_type: "llama",
    qkv_bias: Switch::Key("attention_bias", false),
    o_bias: Switch::Key("attention_bias", false),
    mlp_bias: Switch::Key("mlp_bias", false),
    qk_norm: Switch::Never,
    sandwich_norms: false,
    fused_gate_up: false,
    pairing: Pairing::Halves,
    partial_rotary: None,
    windows: Windows::Never,
    head_dim: None,
    rms_norm_eps: 1e-6,
    moe: None,
};

pub(crate) const ARCHITECTURES: [Architecture; 9] = [
    LLAMA,
    Architecture {
        model_type: "mistral",
        qkv_bias: Switch::Never,
        o_bias: Switch::Never,
        mlp_bias: Switch::Never,
        windows: Windows::All { default: Some(4096) },
        ..LLAMA
    },
    Architecture {
        model_type: "qwen2",
        qkv_bias: Switch::Always,
        o_bias: Switch::Never,
        mlp_bias: Switch::Never,
        windows: Windows::FromLayer { default: 4096, default_layer: 28 },
        ..LLAMA
    },
    Architecture {
        model_type: "qwen3",
        mlp_bias: Switch::Never,
        qk_norm: Switch::Always,
        windows: Windows::FromLayer { default: 4096, default_layer: 28 },
        head_dim: Some(128),
        ..LLAMA
    },
    Architecture {
        model_type: "glm4",
        o_bias: Switch::Never,
        mlp_bias: Switch::Never,
        sandwich_norms: true,
        fused_gate_up: true,
        pairing: Pairing::Adjacent,
        partial_rotary: Some(0.5),
        head_dim: Some(128),
        rms_norm_eps: 1.5625e-7,
        ..LLAMA
    },
    Architecture {
        model_type: "mixtral",
        qkv_bias: Switch::Never,
        o_bias: Switch::Never,
        mlp_bias: Switch::Never,
        windows: Windows::All { default: None },
        rms_norm_eps: 1e-5,
        moe: Some(&MIXTRAL),
        ..LLAMA
    },
    Architecture {
        model_type: "qwen2_moe",
        qkv_bias: Switch::Key("qkv_bias", true),
        o_bias: Switch::Never,
        mlp_bias: Switch::Never,
        windows: Windows::EvenBelowLayer { default: 4096, default_layer: 28 },
        moe: Some(&QWEN2_MOE),
        ..LLAMA
    },
    Architecture {
        model_type: "qwen3_moe",
        mlp_bias: Switch::Never,
        qk_norm: Switch::Always,
        windows: Windows::AllIfUsed { default: 4096 },
        moe: Some(&QWEN3_MOE),
        ..LLAMA
    },
    Architecture {
        model_type: "glm4_moe",
        o_bias: Switch::Never,
        mlp_bias: Switch::Never,
        qk_norm: Switch::Key("use_qk_norm", false),
        partial_rotary: Some(0.5),
        rms_norm_eps: 1e-5,
        moe: Some(&GLM4_MOE),
        ..LLAMA
    },
];

/// The architectures that can be loaded, by `model_type`.
pub fn supported() -> impl Iterator<Item = &'static str> {
    ARCHITECTURES.iter().map(|a| a.model_type)
}
