//! The architectures, as data: everything in which one decoder differs from another.
//!
//! Facts are those of the models' configuration classes and forward passes in transformers 5.23.

/// Whether linear layers have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Biases {
    Never,
    Always,
    /// If this key of the config is true.
    Key(&'static str),
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
    All { default: usize },
    /// Only if `use_sliding_window`: the layers that `layer_types` calls sliding, else those from `max_window_layers` on.
    FromLayer { default: usize, default_layer: usize },
}

/// One architecture.
#[derive(Debug)]
pub(crate) struct Architecture {
    /// `model_type` of the config.
    pub model_type: &'static str,
    pub qkv_bias: Biases,
    pub o_bias: Biases,
    pub mlp_bias: Biases,
    /// Whether queries and keys are normalized head by head.
    pub qk_norm: bool,
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
}

const LLAMA: Architecture = Architecture {
    model_type: "llama",
    qkv_bias: Biases::Key("attention_bias"),
    o_bias: Biases::Key("attention_bias"),
    mlp_bias: Biases::Key("mlp_bias"),
    qk_norm: false,
    sandwich_norms: false,
    fused_gate_up: false,
    pairing: Pairing::Halves,
    partial_rotary: None,
    windows: Windows::Never,
    head_dim: None,
    rms_norm_eps: 1e-6,
};

pub(crate) const ARCHITECTURES: [Architecture; 5] = [
    LLAMA,
    Architecture {
        model_type: "mistral",
        qkv_bias: Biases::Never,
        o_bias: Biases::Never,
        mlp_bias: Biases::Never,
        windows: Windows::All { default: 4096 },
        ..LLAMA
    },
    Architecture {
        model_type: "qwen2",
        qkv_bias: Biases::Always,
        o_bias: Biases::Never,
        mlp_bias: Biases::Never,
        windows: Windows::FromLayer { default: 4096, default_layer: 28 },
        ..LLAMA
    },
    Architecture {
        model_type: "qwen3",
        mlp_bias: Biases::Never,
        qk_norm: true,
        windows: Windows::FromLayer { default: 4096, default_layer: 28 },
        head_dim: Some(128),
        ..LLAMA
    },
    Architecture {
        model_type: "glm4",
        o_bias: Biases::Never,
        mlp_bias: Biases::Never,
        sandwich_norms: true,
        fused_gate_up: true,
        pairing: Pairing::Adjacent,
        partial_rotary: Some(0.5),
        head_dim: Some(128),
        rms_norm_eps: 1.5625e-7,
        ..LLAMA
    },
];

/// The architectures that can be loaded, by `model_type`.
pub fn supported() -> impl Iterator<Item = &'static str> {
    ARCHITECTURES.iter().map(|a| a.model_type)
}
