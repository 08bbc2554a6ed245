//! What `config.json` says about a decoder.

use crate::architecture::{ARCHITECTURES, Architecture, Windows};
use crate::keys::Keys;
use crate::routed::MoeConfig;
use crate::{ModelError, Rope, supported};
use serde_json::{Map, Value};

/// Sizes and rules of one decoder.
#[derive(Clone, Debug)]
pub struct DecoderConfig {
    pub(crate) architecture: &'static Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Positions that the model was made for, if the config says.
    pub max_position_embeddings: Option<usize>,
    /// Added to the mean square before the root.
    pub rms_norm_eps: f32,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// The rotary embedding.
    pub rope: Rope,
    /// Tokens that each layer sees, `None` for all.
    pub windows: Vec<Option<usize>>,
    /// The mixture of experts, if it is one.
    pub moe: Option<MoeConfig>,
    pub(crate) qk_norm: bool,
    pub(crate) qkv_bias: bool,
    pub(crate) o_bias: bool,
    pub(crate) mlp_bias: bool,
}

/// Keys of other architectures that change what a decoder computes. A file that has one and calls itself one of ours was
/// made for a program that follows it.
const OTHER_ARITHMETIC: [&str; 8] = [
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "attention_multiplier",
    "residual_multiplier",
    "embedding_multiplier",
    "logits_scaling",
    "logit_scale",
];

/// Keys that say how many experts there are.
const EXPERTS: [&str; 3] = ["num_local_experts", "num_experts", "n_routed_experts"];

impl DecoderConfig {
    /// Reads a config; `file` is its name for messages.
    ///
    /// # Errors
    /// [`ModelError::Architecture`] for a `model_type` that is not supported, [`ModelError::Config`] for a key that is
    /// missing, of the wrong type, or asks for something that the decoder does not do.
    pub fn from_json(file: &str, map: &Map<String, Value>) -> Result<Self, ModelError> {
        let keys = Keys { file, map };
        let found = keys.text("model_type")?.unwrap_or("");
        let architecture = ARCHITECTURES.iter().find(|a| a.model_type == found).ok_or_else(|| ModelError::Architecture {
            file: file.into(),
            found: found.chars().take(100).collect(),
            supported: supported().collect::<Vec<_>>().join(", "),
        })?;
        let act = keys.text("hidden_act")?.unwrap_or("silu");
        if act != "silu" && act != "swish" {
            return Err(keys.error("hidden_act", "silu", "this model is not supported"));
        }
        let moe = architecture.moe;
        for key in OTHER_ARITHMETIC.iter().chain(EXPERTS.iter().filter(|key| moe.is_none_or(|m| !m.experts.contains(key)))) {
            if keys.get(key).is_some_and(|v| v.as_f64() != Some(1.0)) {
                return Err(keys.error(key, "nothing", format!("a `{found}` with this key is another network, which is not supported")));
            }
        }
        let heads = keys.size("num_attention_heads")?;
        let kv_heads = keys.size_opt("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(keys.error(
                "num_key_value_heads",
                format!("a divisor of num_attention_heads = {heads}"),
                "take config.json from the model's original folder",
            ));
        }
        let hidden_size = keys.size("hidden_size")?;
        let head_dim = match keys.size_opt("head_dim")?.or(architecture.head_dim) {
            Some(d) => d,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => {
                return Err(keys.error(
                    "head_dim",
                    format!("a head size, since {heads} heads do not divide hidden_size = {hidden_size}"),
                    "add it",
                ));
            }
        };
        let layers = keys.size("num_hidden_layers")?;
        if layers > 10_000 || heads.checked_mul(head_dim).is_none_or(|w| w > 1 << 31) {
            return Err(keys.error(
                "num_hidden_layers",
                "at most 10000 layers and 2^31 features of attention",
                "take config.json from the model's original folder",
            ));
        }
        let max_position_embeddings = keys.size_opt("max_position_embeddings")?;
        Ok(Self {
            architecture,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            layers,
            heads,
            kv_heads,
            head_dim,
            vocab_size: keys.size("vocab_size")?,
            max_position_embeddings,
            rms_norm_eps: keys.positive("rms_norm_eps", architecture.rms_norm_eps)? as f32,
            tie_word_embeddings: keys.bool("tie_word_embeddings", false)?,
            rope: Rope::from_config(keys, architecture, head_dim, max_position_embeddings)?,
            windows: windows(keys, architecture.windows, layers)?,
            moe: moe.map(|rules| MoeConfig::read(keys, rules, layers)).transpose()?,
            qk_norm: keys.switch(architecture.qk_norm)?,
            qkv_bias: keys.switch(architecture.qkv_bias)?,
            o_bias: keys.switch(architecture.o_bias)?,
            mlp_bias: keys.switch(architecture.mlp_bias)?,
        })
    }

    /// `model_type` of the architecture.
    pub fn model_type(&self) -> &'static str {
        self.architecture.model_type
    }
}

/// The window of each layer.
fn windows(keys: Keys, rule: Windows, layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
    // absent and null differ here: absent means the architecture's default, null means no window
    let window = |default: Option<usize>| match keys.map.get("sliding_window") {
        None => Ok(default),
        Some(_) => keys.size_opt("sliding_window"),
    };
    match rule {
        Windows::Never => Ok(vec![None; layers]),
        Windows::All { default } => Ok(vec![window(default)?; layers]),
        Windows::AllIfUsed { default } => {
            let size = if keys.bool("use_sliding_window", false)? { window(Some(default))? } else { None };
            Ok(vec![size; layers])
        }
        Windows::FromLayer { default, default_layer } | Windows::EvenBelowLayer { default, default_layer } => {
            let size = if keys.bool("use_sliding_window", false)? { window(Some(default))? } else { None };
            let slides: Vec<bool> = match keys.get("layer_types") {
                None => {
                    let first = match keys.get("max_window_layers") {
                        Some(Value::Number(n)) if n.as_u64() == Some(0) => 0,
                        _ => keys.size_opt("max_window_layers")?.unwrap_or(default_layer),
                    };
                    let even = matches!(rule, Windows::EvenBelowLayer { .. });
                    (0..layers).map(|i| if even { i < first && i % 2 == 0 } else { i >= first }).collect()
                }
                Some(Value::Array(kinds)) if kinds.len() == layers => {
                    let slides = |kind: &Value| match kind.as_str() {
                        Some("sliding_attention") => Some(true),
                        Some("full_attention") => Some(false),
                        _ => None,
                    };
                    let all: Option<Vec<bool>> = kinds.iter().map(slides).collect();
                    all.ok_or_else(|| {
                        keys.error("layer_types", "full_attention or sliding_attention for each layer", "this model is not supported")
                    })?
                }
                Some(_) => {
                    return Err(keys.error(
                        "layer_types",
                        format!("{layers} entries, one for each layer"),
                        "take config.json from the model's original folder",
                    ));
                }
            };
            if size.is_none() && slides.contains(&true) && keys.get("layer_types").is_some() {
                let remedy = "set use_sliding_window and sliding_window, or make every layer full_attention";
                return Err(keys.error("sliding_window", "a window, since layer_types has sliding layers", remedy));
            }
            Ok(slides.into_iter().map(|s| size.filter(|_| s)).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extra: &str) -> Result<DecoderConfig, ModelError> {
        let base = r#"{"model_type":"llama","hidden_size":64,"intermediate_size":128,"num_hidden_layers":3,"num_attention_heads":4,"vocab_size":10}"#;
        let mut map: Map<String, Value> = serde_json::from_str(base).unwrap();
        map.extend(serde_json::from_str::<Map<String, Value>>(extra).unwrap());
        DecoderConfig::from_json("config.json", &map)
    }

    #[test]
    fn defaults_come_from_the_architecture() {
        let llama = parse("{}").unwrap();
        assert_eq!((llama.head_dim, llama.kv_heads, llama.qkv_bias), (16, 4, false));
        assert_eq!(parse(r#"{"model_type":"qwen3"}"#).unwrap().head_dim, 128);
        assert!(parse(r#"{"model_type":"qwen2"}"#).unwrap().qkv_bias);
        assert_eq!(parse(r#"{"model_type":"glm4","head_dim":32}"#).unwrap().rope.rotary_dim(), 16);
    }

    #[test]
    fn windows_follow_each_rule() {
        let windows = |extra: &str| parse(extra).unwrap().windows;
        assert_eq!(windows("{}"), [None; 3]);
        assert_eq!(windows(r#"{"model_type":"mistral"}"#), [Some(4096); 3]);
        assert_eq!(windows(r#"{"model_type":"mistral","sliding_window":null}"#), [None; 3]);
        assert_eq!(windows(r#"{"model_type":"qwen2","sliding_window":8,"max_window_layers":1}"#), [None; 3]);
        let used = r#"{"model_type":"qwen2","use_sliding_window":true,"sliding_window":8,"max_window_layers":1}"#;
        assert_eq!(windows(used), [None, Some(8), Some(8)]);
        let moe = r#""num_experts":4,"num_experts_per_tok":1,"moe_intermediate_size":8,"shared_expert_intermediate_size":8,"use_sliding_window":true,"sliding_window":8"#;
        assert_eq!(windows(&format!(r#"{{"model_type":"qwen2_moe","max_window_layers":3,{moe}}}"#)), [Some(8), None, Some(8)]);
        assert_eq!(windows(&format!(r#"{{"model_type":"qwen2_moe","max_window_layers":2,{moe}}}"#)), [Some(8), None, None]);
        let all = r#"{"model_type":"qwen3_moe","num_experts":4,"num_experts_per_tok":1,"moe_intermediate_size":8"#;
        assert_eq!(windows(&format!("{all}}}")), [None; 3]);
        assert_eq!(windows(&format!(r#"{all},"use_sliding_window":true}}"#)), [Some(4096); 3]);
        let types = r#"{"model_type":"qwen2","use_sliding_window":true,"sliding_window":8,"layer_types":["sliding_attention","full_attention","full_attention"]}"#;
        assert_eq!(windows(types), [Some(8), None, None]);
    }

    #[test]
    fn refuses_with_the_key_and_the_choice() {
        for (extra, words) in [
            (r#"{"model_type":"gpt9"}"#, vec!["gpt9", "llama", "glm4"]),
            (r#"{"hidden_act":"gelu"}"#, vec!["hidden_act", "silu"]),
            (r#"{"final_logit_softcapping":30.0}"#, vec!["final_logit_softcapping", "30", "not supported"]),
            (r#"{"num_key_value_heads":3}"#, vec!["num_key_value_heads", "divisor"]),
            (r#"{"hidden_size":"x"}"#, vec!["hidden_size", "whole number"]),
            (r#"{"hidden_size":66}"#, vec!["head_dim"]),
            (r#"{"vocab_size":null}"#, vec!["vocab_size", "null"]),
            (r#"{"vocab_size":99999999999999}"#, vec!["vocab_size"]),
            (r#"{"model_type":"qwen2","layer_types":["full_attention"]}"#, vec!["layer_types", "3 entries"]),
        ] {
            let message = parse(extra).unwrap_err().to_string();
            assert!(words.iter().all(|w| message.contains(w)), "{message}");
        }
    }
}
