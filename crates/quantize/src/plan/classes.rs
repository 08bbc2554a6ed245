//! What a module is, told by the whole segments of its name and never by a part of one: `normal_mlp` is no norm, and the
//! `c_proj` of an MLP is no output of an attention.

use std::fmt;

/// What a module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// The table that tokens become rows of.
    Embedding,
    /// The output head.
    Head,
    /// A norm.
    Norm,
    /// What chooses experts, or weighs a shared one.
    Router,
    /// Parts of an expert that every token goes to.
    SharedExpert,
    /// Parts of an expert that some tokens go to.
    Expert,
    /// A head that predicts later tokens, and its layers.
    Draft,
    /// The compressions and expansions of multi-head latent attention.
    Latent,
    /// Query, key and value, apart or in one.
    AttentionIn,
    /// The output of an attention.
    AttentionOut,
    /// A linear attention or a state space.
    Recurrent,
    /// Gate and up, apart or in one.
    MlpIn,
    /// Down.
    MlpDown,
}

impl Class {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Class::Embedding => "embedding",
            Class::Head => "head",
            Class::Norm => "norm",
            Class::Router => "router",
            Class::SharedExpert => "shared expert",
            Class::Expert => "expert",
            Class::Draft => "draft head",
            Class::Latent => "latent attention",
            Class::AttentionIn => "attention in",
            Class::AttentionOut => "attention out",
            Class::Recurrent => "recurrent",
            Class::MlpIn => "mlp in",
            Class::MlpDown => "mlp down",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

const NORMS: &[&str] = &[
    "norm",
    "norm1",
    "norm2",
    "norm_f",
    "ln_1",
    "ln_2",
    "ln_f",
    "layernorm",
    "layer_norm",
    "rmsnorm",
    "rms_norm",
    "LayerNorm",
    "input_layernorm",
    "post_attention_layernorm",
    "post_self_attn_layernorm",
    "post_mlp_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
    "final_layernorm",
    "final_layer_norm",
    "self_attn_layer_norm",
    "word_embeddings_layernorm",
    "attention_norm",
    "ffn_norm",
    "q_norm",
    "k_norm",
    "q_a_layernorm",
    "kv_a_layernorm",
];
const DRAFTS: &[&str] = &["mtp", "mtp_head", "mtp_heads", "mtp_layers", "mtp_predictor", "multi_token_predictor", "draft_head"];
const EMBEDDINGS: &[&str] =
    &["embed_tokens", "embed_positions", "embed_in", "wte", "wpe", "tok_embeddings", "word_embeddings", "position_embeddings"];
const HEADS: &[&str] = &["lm_head", "output_layer", "embed_out"];
const ROUTERS: &[&str] = &["router", "shared_expert_gate"];
/// What a `gate` in it chooses experts with.
const MIXTURES: &[&str] = &["mlp", "moe", "block_sparse_moe", "feed_forward", "ffn"];
const SHARED: &[&str] = &["shared_expert", "shared_experts"];
const RECURRENT: &[&str] = &["linear_attn", "mixer", "mamba", "ssm"];
const ATTENTIONS: &[&str] = &["self_attn", "attn", "attention", "self_attention", "cross_attn"];
const MLPS: &[&str] = &["mlp", "feed_forward", "ffn", "intermediate"];
const LATENT: &[&str] = &["q_a_proj", "q_b_proj", "kv_a_proj", "kv_a_proj_with_mqa", "kv_b_proj"];
/// Names that mean the same wherever they stand.
const QUERIES: &[&str] = &["q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn", "W_pack", "wqkv", "Wqkv"];
const MLP_IN: &[&str] = &["gate_proj", "up_proj", "gate_up_proj", "fc1", "c_fc", "dense_h_to_4h"];
const MLP_DOWN: &[&str] = &["down_proj", "fc2", "fc_out", "dense_4h_to_h"];
/// Names that mean something inside of an attention only.
const IN_ATTENTION: &[&str] = &["query", "key", "value", "qkv", "wq", "wk", "wv"];
const OUT_OF_ATTENTION: &[&str] = &["o_proj", "out_proj", "c_proj", "dense", "wo", "output"];

/// What the module of this name is, none if nothing is known of such names.
pub fn class_of(module: &str) -> Option<Class> {
    let segments: Vec<&str> = module.split('.').collect();
    let (&last, path) = segments.split_last()?;
    let inside = |of: &[&str]| path.iter().any(|s| of.contains(s));
    let is = |of: &[&str]| of.contains(&last);
    let parent = path.last().copied().unwrap_or_default();
    let class = match () {
        () if is(NORMS) => Class::Norm,
        () if inside(DRAFTS) || is(DRAFTS) => Class::Draft,
        () if is(EMBEDDINGS) => Class::Embedding,
        // `attention.output` is no head
        () if is(HEADS) || module == "output" => Class::Head,
        () if is(ROUTERS) || (last == "gate" && MIXTURES.contains(&parent)) => Class::Router,
        () if inside(SHARED) => Class::SharedExpert,
        () if inside(&["experts"]) => Class::Expert,
        () if inside(RECURRENT) => Class::Recurrent,
        () if is(LATENT) => Class::Latent,
        () if is(QUERIES) => Class::AttentionIn,
        () if inside(ATTENTIONS) && is(IN_ATTENTION) => Class::AttentionIn,
        () if inside(ATTENTIONS) && is(OUT_OF_ATTENTION) => Class::AttentionOut,
        () if is(MLP_IN) || (inside(MLPS) && is(&["w1", "w3"])) => Class::MlpIn,
        () if parent == "intermediate" && last == "dense" => Class::MlpIn,
        () if is(MLP_DOWN) || (inside(MLPS) && is(&["w2", "c_proj"])) => Class::MlpDown,
        () if parent == "output" && last == "dense" => Class::MlpDown,
        () => return None,
    };
    Some(class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_many_families() {
        use Class::*;
        for (name, class) in [
            ("model.layers.0.self_attn.q_proj", AttentionIn),
            ("model.layers.0.self_attn.o_proj", AttentionOut),
            ("model.layers.0.mlp.gate_up_proj", MlpIn),
            ("model.layers.0.mlp.gate_proj", MlpIn),
            ("model.layers.0.mlp.down_proj", MlpDown),
            ("model.layers.0.mlp.gate", Router),
            ("model.layers.0.mlp.experts.12.gate_proj", Expert),
            ("model.layers.0.block_sparse_moe.gate", Router),
            ("model.layers.0.block_sparse_moe.experts.0.w1", Expert),
            ("model.layers.0.mlp.shared_expert.up_proj", SharedExpert),
            ("model.layers.0.mlp.shared_expert_gate", Router),
            ("model.layers.0.self_attn.kv_a_proj_with_mqa", Latent),
            ("model.embed_tokens", Embedding),
            ("model.norm", Norm),
            ("lm_head", Head),
            ("output", Head),
        ] {
            assert_eq!(class_of(name), Some(class), "{name}");
        }
    }

    /// Names that a search for parts of words takes for something else.
    #[test]
    fn names_that_mislead() {
        use Class::*;
        for (name, class) in [
            ("transformer.h.0.mlp.c_proj", Some(MlpDown)),
            ("transformer.h.0.attn.c_proj", Some(AttentionOut)),
            ("gpt_neox.layers.0.mlp.dense_h_to_4h", Some(MlpIn)),
            ("encoder.layer.0.intermediate.dense", Some(MlpIn)),
            ("encoder.layer.0.output.dense", Some(MlpDown)),
            ("encoder.layer.0.attention.output.dense", Some(AttentionOut)),
            ("model.layers.0.attention.output", Some(AttentionOut)),
            ("model.decoder.layers.0.fc2", Some(MlpDown)),
            ("model.layers.0.attention.wqkv", Some(AttentionIn)),
            ("model.layers.0.self_attn.W_pack", Some(AttentionIn)),
            ("model.layers.0.linear_attn.in_proj_qkvz", Some(Recurrent)),
            ("backbone.layers.0.mixer.in_proj", Some(Recurrent)),
            ("model.mtp.layers.0.mlp.down_proj", Some(Draft)),
            ("model.layers.0.self_attn.kv_a_layernorm", Some(Norm)),
            ("transformer.word_embeddings_layernorm", Some(Norm)),
            // a norm, an expert, a router and a head in parts of words
            ("model.layers.0.normal_mlp.up_proj", Some(MlpIn)),
            ("model.layers.0.experts_mlp.down_proj", Some(MlpDown)),
            ("model.layers.0.delegate.weighted_gate", None),
            ("model.layers.0.normalizer", None),
            ("model.value_head", None),
            ("model.layers.0.dense", None),
            ("", None),
        ] {
            assert_eq!(class_of(name), class, "{name}");
        }
    }
}
