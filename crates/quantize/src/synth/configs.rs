//! The JSON files of a synthetic model.

use super::shape::Shape;
use super::spec::Quantization;
use billfish_formats::GroupSize;
use serde_json::{Map, Value, json};

/// `config.json`.
pub(crate) fn model(shape: &Shape, quantization: Option<&Quantization>, special: &Special) -> Value {
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| map.insert(key.into(), value);
    put("architectures", json!([shape.class]));
    put("model_type", json!(shape.model_type));
    put("hidden_size", json!(shape.hidden));
    put("num_hidden_layers", json!(shape.layers));
    put("num_attention_heads", json!(shape.heads));
    put("num_key_value_heads", json!(shape.kv_heads));
    put("head_dim", json!(shape.head_dim));
    put("intermediate_size", json!(shape.intermediate));
    put("vocab_size", json!(shape.vocab));
    put("max_position_embeddings", json!(shape.max_positions));
    put("hidden_act", json!("silu"));
    put("rms_norm_eps", json!(shape.rms_norm_eps));
    put("tie_word_embeddings", json!(shape.tied));
    put("attention_dropout", json!(0.0));
    put("initializer_range", json!(0.02));
    put("use_cache", json!(true));
    // the names of old: every program reads them
    put("torch_dtype", json!("bfloat16"));
    put("rope_theta", json!(shape.rope_theta));
    let llama3 = |factor: f64| {
        json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        })
    };
    put("rope_scaling", shape.rope_factor.map_or(Value::Null, llama3));
    if shape.model_type == "llama" {
        put("attention_bias", json!(false));
        put("mlp_bias", json!(false));
    } else {
        put("attention_bias", json!(shape.qkv_bias));
        put("use_sliding_window", json!(false));
        put("sliding_window", Value::Null);
        put("max_window_layers", json!(shape.layers));
    }
    if let Some(experts) = shape.experts {
        let keys = json!({
            "num_experts": experts.count,
            "num_experts_per_tok": experts.top_k,
            "moe_intermediate_size": experts.width,
            "norm_topk_prob": true,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        });
        map.extend(keys.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
    }
    special.put(&mut map);
    if let Some(q) = quantization {
        map.insert("quantization_config".into(), quantize(q));
    }
    Value::Object(map)
}

/// `quantize_config.json`, which is also `quantization_config` of `config.json`.
pub(crate) fn quantize(q: &Quantization) -> Value {
    json!({
        "quant_method": "gptq",
        "bits": q.bits,
        "group_size": match q.group_size { GroupSize::Channel => -1, GroupSize::Rows(rows) => rows as i64 },
        "desc_act": q.desc_act,
        "sym": q.sym,
        "lm_head": false,
        "checkpoint_format": q.format().name(),
        "pack_dtype": "int32",
        "meta": {"quantizer": [concat!("billfish-synth:", env!("CARGO_PKG_VERSION"))]},
    })
}

/// `generation_config.json`: greedy, as random weights have nothing to say that sampling could improve.
pub(crate) fn generation(special: &Special) -> Value {
    let mut map = Map::new();
    map.insert("do_sample".into(), json!(false));
    special.put(&mut map);
    Value::Object(map)
}

/// Ids of the special tokens, from the tokenizer that goes with the model. Without them programs fall back to defaults of
/// the architecture, which belong to another tokenizer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Special {
    pub bos: Option<u64>,
    pub eos: Option<u64>,
}

impl Special {
    /// Looks the tokens of `tokenizer_config.json` up in `tokenizer.json`; what cannot be found or lies outside the
    /// vocabulary is left out.
    pub fn find(files: &[(&str, &[u8])], vocab: usize) -> Special {
        let json = |name: &str| -> Option<Value> {
            let (_, bytes) = files.iter().find(|(n, _)| *n == name)?;
            serde_json::from_slice(bytes).ok()
        };
        let (Some(config), Some(tokenizer)) = (json("tokenizer_config.json"), json("tokenizer.json")) else { return Special::default() };
        let id = |key: &str| -> Option<u64> {
            let value = &config[key];
            let token = value.as_str().or_else(|| value["content"].as_str())?;
            let added = tokenizer["added_tokens"].as_array()?.iter().find(|t| t["content"] == token)?;
            added["id"].as_u64().filter(|&id| id < vocab as u64)
        };
        Special { bos: id("bos_token"), eos: id("eos_token") }
    }

    fn put(&self, map: &mut Map<String, Value>) {
        for (key, id) in [("bos_token_id", self.bos), ("eos_token_id", self.eos)] {
            if let Some(id) = id {
                map.insert(key.into(), json!(id));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::shape::SHAPES;
    use billfish_models::DecoderConfig;

    #[test]
    fn the_decoder_reads_every_shape_as_meant() {
        for shape in SHAPES {
            let json = model(&shape, None, &Special::default());
            let config = DecoderConfig::from_json("config.json", json.as_object().unwrap()).unwrap();
            assert_eq!(config.model_type(), shape.model_type);
            assert_eq!((config.heads, config.kv_heads, config.head_dim), (shape.heads, shape.kv_heads, shape.head_dim));
            assert_eq!(config.rope.kind(), if shape.rope_factor.is_some() { "llama3" } else { "default" });
            assert_eq!(config.tie_word_embeddings, shape.tied);
            assert!(config.windows.iter().all(Option::is_none));
            let experts = config.moe.map(|m| (m.routing.experts, m.routing.top_k, m.width));
            assert_eq!(experts, shape.experts.map(|e| (e.count, e.top_k, e.width)));
        }
    }

    #[test]
    fn special_tokens_come_from_the_tokenizer() {
        let tokenizer = br#"{"added_tokens":[{"id":3,"content":"<s>"},{"id":9,"content":"</s>"}]}"#;
        let config = br#"{"bos_token":"<s>","eos_token":{"content":"</s>"}}"#;
        let files: [(&str, &[u8]); 2] = [("tokenizer.json", tokenizer), ("tokenizer_config.json", config)];
        assert_eq!(Special::find(&files, 10), Special { bos: Some(3), eos: Some(9) });
        assert_eq!(Special::find(&files, 9), Special { bos: Some(3), eos: None });
        assert_eq!(Special::find(&files[..1], 10), Special::default());
        assert_eq!(Special::find(&[("tokenizer.json", b"{"), ("tokenizer_config.json", b"[]")], 10), Special::default());
    }
}
