//! The shapes that can be synthesized: sizes of public models, from their published `config.json`.

/// Sizes and rules of one model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Its name in a spec.
    pub name: &'static str,
    pub model_type: &'static str,
    pub class: &'static str,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub intermediate: usize,
    pub vocab: usize,
    pub tied: bool,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    /// Factor of the llama3 rope rule over a context of 8192.
    pub rope_factor: Option<f64>,
    pub max_positions: usize,
    pub qkv_bias: bool,
    pub qk_norm: bool,
    /// Experts in place of the MLP.
    pub experts: Option<Experts>,
}

/// A mixture of experts of one shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Experts {
    pub count: usize,
    pub top_k: usize,
    pub width: usize,
}

const LLAMA: Shape = Shape {
    name: "llama-1b",
    model_type: "llama",
    class: "LlamaForCausalLM",
    hidden: 2048,
    layers: 16,
    heads: 32,
    kv_heads: 8,
    head_dim: 64,
    intermediate: 8192,
    vocab: 128_256,
    tied: true,
    rms_norm_eps: 1e-5,
    rope_theta: 5e5,
    rope_factor: Some(32.0),
    max_positions: 131_072,
    qkv_bias: false,
    qk_norm: false,
    experts: None,
};

const QWEN2: Shape = Shape {
    name: "qwen2-0.5b",
    model_type: "qwen2",
    class: "Qwen2ForCausalLM",
    hidden: 896,
    layers: 24,
    heads: 14,
    kv_heads: 2,
    intermediate: 4864,
    vocab: 151_936,
    rms_norm_eps: 1e-6,
    rope_theta: 1e6,
    rope_factor: None,
    max_positions: 32_768,
    qkv_bias: true,
    ..LLAMA
};

const QWEN3_MOE: Shape = Shape {
    name: "qwen3-30b-a3b",
    model_type: "qwen3_moe",
    class: "Qwen3MoeForCausalLM",
    hidden: 2048,
    layers: 48,
    heads: 32,
    kv_heads: 4,
    head_dim: 128,
    intermediate: 6144,
    tied: false,
    max_positions: 40_960,
    qkv_bias: false,
    qk_norm: true,
    experts: Some(Experts { count: 128, top_k: 8, width: 768 }),
    ..QWEN2
};

/// All shapes: Llama-3.2-1B and -3B, Llama-3.1-8B, Qwen2-0.5B-Instruct, Qwen3-0.6B, Qwen3-30B-A3B and an eighth of it (its
/// layers as they are, an eighth of them and of the vocabulary), and two for tests.
pub(crate) const SHAPES: [Shape; 9] = [
    LLAMA,
    Shape { name: "llama-3b", hidden: 3072, layers: 28, heads: 24, head_dim: 128, ..LLAMA },
    Shape { name: "llama-8b", hidden: 4096, layers: 32, head_dim: 128, intermediate: 14_336, tied: false, rope_factor: Some(8.0), ..LLAMA },
    QWEN2,
    Shape {
        name: "qwen3-0.6b",
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        hidden: 1024,
        layers: 28,
        heads: 16,
        kv_heads: 8,
        head_dim: 128,
        intermediate: 3072,
        max_positions: 40_960,
        qkv_bias: false,
        qk_norm: true,
        ..QWEN2
    },
    QWEN3_MOE,
    Shape { name: "moe-small", layers: 6, vocab: 18_992, ..QWEN3_MOE },
    TINY,
    Shape {
        name: "tiny-moe",
        model_type: "qwen3_moe",
        class: "Qwen3MoeForCausalLM",
        qk_norm: true,
        experts: Some(Experts { count: 8, top_k: 2, width: 32 }),
        ..TINY
    },
];

const TINY: Shape = Shape {
    name: "tiny",
    hidden: 64,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    head_dim: 16,
    intermediate: 128,
    vocab: 4096,
    tied: false,
    rope_theta: 1e4,
    rope_factor: None,
    max_positions: 2048,
    ..LLAMA
};

/// A linear layer of a block: `y[n] = x[k] · W + bias`.
pub(crate) struct Linear {
    /// Its name in the block.
    pub name: String,
    pub k: usize,
    pub n: usize,
    pub bias: bool,
    /// Name of its input: layers with the same input see its rows in the same order.
    pub input: String,
}

impl Shape {
    /// The linear layers of one block, routers aside.
    pub fn linears(&self) -> Vec<Linear> {
        let (hidden, q, kv) = (self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let linear = |name: &str, k, n, bias, input: &str| Linear { name: name.into(), k, n, bias, input: input.into() };
        let mut out = vec![
            linear("self_attn.q_proj", hidden, q, self.qkv_bias, "self_attn"),
            linear("self_attn.k_proj", hidden, kv, self.qkv_bias, "self_attn"),
            linear("self_attn.v_proj", hidden, kv, self.qkv_bias, "self_attn"),
            linear("self_attn.o_proj", q, hidden, false, "self_attn.o_proj"),
        ];
        // experts see different tokens, so that each has an order of its own
        let mut mlp = |at: &str, width| {
            out.push(linear(&format!("{at}.gate_proj"), hidden, width, false, at));
            out.push(linear(&format!("{at}.up_proj"), hidden, width, false, at));
            out.push(linear(&format!("{at}.down_proj"), width, hidden, false, &format!("{at}.down_proj")));
        };
        match self.experts {
            None => mlp("mlp", self.intermediate),
            Some(experts) => (0..experts.count).for_each(|e| mlp(&format!("mlp.experts.{e}"), experts.width)),
        }
        out
    }
}
