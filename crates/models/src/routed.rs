//! What `config.json` says about a mixture of experts.

use crate::ModelError;
use crate::architecture::{DenseLayers, MoeRules, SharedRule, Switch};
use crate::keys::Keys;
use billfish_kernels::{ExpertGroups, GroupScore, Routing};
use serde_json::Value;

/// Sizes and rules of a decoder's mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeConfig {
    /// How tokens choose their experts.
    pub routing: Routing,
    /// Width of an expert.
    pub width: usize,
    /// Width of the expert that every token goes to, if there is one.
    pub shared_width: Option<usize>,
    /// Whether each layer has experts; those that do not have one MLP.
    pub layers: Vec<bool>,
}

/// The config's own word for what goes wrong most often.
const REMEDY: &str = "take config.json from the model's original folder";

/// Most experts of all layers together: several times as many as the largest model has.
const MOST_EXPERTS: usize = 1 << 17;

/// Keys of mixtures that change what is computed. One that an architecture does not know is an error unless it has the value
/// that changes nothing.
const KEYS: [(&str, &[&str]); 13] = [
    ("norm_topk_prob", &[]),
    ("decoder_sparse_step", &["1"]),
    ("mlp_only_layers", &["[]"]),
    ("shared_expert_intermediate_size", &["0"]),
    ("n_shared_experts", &["0"]),
    ("n_group", &["1"]),
    ("topk_group", &["1"]),
    ("routed_scaling_factor", &["1", "1.0"]),
    ("first_k_dense_replace", &["0"]),
    ("moe_layer_freq", &["1"]),
    ("scoring_func", &[]),
    ("topk_method", &[]),
    ("swiglu_limit", &[]),
];

impl MoeConfig {
    /// Reads it by the architecture's rules.
    pub(crate) fn read(keys: Keys, rules: &MoeRules, layers: usize) -> Result<Self, ModelError> {
        Self::refuse_unknown(keys, rules)?;
        let mut experts = None;
        for key in rules.experts {
            let Some(n) = keys.size_opt(key)? else { continue };
            if experts.is_some_and(|(_, other)| other != n) {
                return Err(keys.error(key, format!("the number that the other of {:?} says", rules.experts), REMEDY));
            }
            experts = Some((*key, n));
        }
        let (key, experts) = experts.ok_or_else(|| keys.error(rules.experts[0], "a number of experts", REMEDY))?;
        // names of modules are made for all of them before a tensor is looked for
        if experts.saturating_mul(layers) > MOST_EXPERTS {
            return Err(keys.error(key, format!("at most {MOST_EXPERTS} experts in {layers} layers"), REMEDY));
        }
        let top_k = keys.size("num_experts_per_tok")?;
        let groups = match rules.groups {
            false => None,
            true => {
                let (count, chosen) = (keys.size_opt("n_group")?.unwrap_or(1), keys.size_opt("topk_group")?.unwrap_or(1));
                // one group of all is no choice
                (count > 1 || chosen > 1).then_some(ExpertGroups { count, chosen, score: GroupScore::BestTwo })
            }
        };
        let renormalize = keys.switch(rules.renormalize)?;
        let scaling = if rules.scaling { keys.positive("routed_scaling_factor", 1.0)? as f32 } else { 1.0 };
        let routing = Routing { experts, top_k, scoring: rules.scoring, groups, renormalize, scaling };
        if let Err(expected) = routing.check() {
            let key = if top_k > experts { "num_experts_per_tok" } else { "n_group" };
            return Err(keys.error(key, expected, REMEDY));
        }
        let width = keys.size(rules.width)?;
        let shared_width = match rules.shared {
            SharedRule::None => None,
            SharedRule::Gated => Some(keys.size("shared_expert_intermediate_size")?),
            SharedRule::Plain => match keys.count("n_shared_experts", 1)? {
                0 => None,
                n => {
                    let wide = "shared experts whose widths together are at most 2^31";
                    Some(n.checked_mul(width).filter(|w| *w <= 1 << 31).ok_or_else(|| keys.error("n_shared_experts", wide, REMEDY))?)
                }
            },
        };
        Ok(Self { routing, width, shared_width, layers: sparse_layers(keys, rules.dense_layers, layers)? })
    }

    /// Refuses keys that another router would follow.
    fn refuse_unknown(keys: Keys, rules: &MoeRules) -> Result<(), ModelError> {
        let mut known: Vec<&str> = match rules.dense_layers {
            DenseLayers::None => vec![],
            DenseLayers::Steps => vec!["decoder_sparse_step", "mlp_only_layers"],
            DenseLayers::First => vec!["first_k_dense_replace"],
        };
        match rules.shared {
            SharedRule::None => {}
            SharedRule::Gated => known.push("shared_expert_intermediate_size"),
            SharedRule::Plain => known.push("n_shared_experts"),
        }
        if rules.groups {
            known.extend(["n_group", "topk_group"]);
        }
        if rules.scaling {
            known.push("routed_scaling_factor");
        }
        if let Switch::Key(key, _) = rules.renormalize {
            known.push(key);
        }
        for (key, harmless) in KEYS {
            let Some(value) = keys.get(key).filter(|_| !known.contains(&key)) else { continue };
            let said = value.as_str().map_or_else(|| value.to_string(), str::to_string);
            let as_built = match key {
                "norm_topk_prob" => rules.renormalize == Switch::Always && said == "true",
                "scoring_func" => said == rules.scoring_name(),
                "topk_method" => said == if rules.groups { "noaux_tc" } else { "greedy" },
                _ => harmless.contains(&said.as_str()),
            };
            if !as_built {
                let expected = "nothing, or what this architecture does anyway";
                return Err(keys.error(key, expected, "a model that follows this key is another network, which is not supported"));
            }
        }
        Ok(())
    }
}

/// Which layers have experts.
fn sparse_layers(keys: Keys, rule: DenseLayers, layers: usize) -> Result<Vec<bool>, ModelError> {
    Ok(match rule {
        DenseLayers::None => vec![true; layers],
        DenseLayers::First => {
            let dense = keys.count("first_k_dense_replace", 1)?;
            (0..layers).map(|i| i >= dense).collect()
        }
        DenseLayers::Steps => {
            let step = keys.size_opt("decoder_sparse_step")?.unwrap_or(1);
            let listed: Option<Vec<usize>> = match keys.get("mlp_only_layers") {
                None => Some(vec![]),
                Some(Value::Array(list)) => list.iter().map(|v| v.as_u64().map(|n| n as usize)).collect(),
                Some(_) => None,
            };
            let listed = listed.ok_or_else(|| keys.error("mlp_only_layers", "a list of layer numbers", REMEDY))?;
            (0..layers).map(|i| !listed.contains(&i) && (i + 1).is_multiple_of(step)).collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DecoderConfig;
    use billfish_kernels::Scoring;
    use serde_json::Map;

    fn parse(extra: &str) -> Result<MoeConfig, ModelError> {
        let base = r#"{"hidden_size":64,"intermediate_size":128,"num_hidden_layers":5,"num_attention_heads":4,"vocab_size":10,
            "moe_intermediate_size":32,"num_experts_per_tok":2,"shared_expert_intermediate_size":48}"#;
        let mut map: Map<String, Value> = serde_json::from_str(base).unwrap();
        map.extend(serde_json::from_str::<Map<String, Value>>(extra).unwrap());
        if map["model_type"] != "qwen2_moe" {
            map.remove("shared_expert_intermediate_size");
        }
        DecoderConfig::from_json("config.json", &map).map(|c| c.moe.unwrap())
    }

    #[test]
    fn each_architecture_has_its_defaults() {
        let mixtral = parse(r#"{"model_type":"mixtral","num_local_experts":8}"#).unwrap();
        assert_eq!((mixtral.width, mixtral.routing.renormalize, mixtral.shared_width), (128, true, None));
        let qwen2 = parse(r#"{"model_type":"qwen2_moe","num_experts":6}"#).unwrap();
        assert_eq!((qwen2.width, qwen2.routing.renormalize, qwen2.shared_width), (32, false, Some(48)));
        let qwen3 = parse(r#"{"model_type":"qwen3_moe","num_local_experts":6,"num_experts":6,"norm_topk_prob":true}"#).unwrap();
        assert_eq!((qwen3.routing.experts, qwen3.routing.renormalize, &qwen3.layers[..]), (6, true, &[true; 5][..]));
        let glm = parse(r#"{"model_type":"glm4_moe","n_routed_experts":8,"routed_scaling_factor":2.5,"n_shared_experts":3}"#).unwrap();
        assert_eq!((glm.shared_width, glm.layers[0], glm.layers[1]), (Some(96), false, true));
        let routing = Routing { experts: 8, top_k: 2, scoring: Scoring::Sigmoid, groups: None, renormalize: true, scaling: 2.5 };
        assert_eq!(glm.routing, routing);
        let groups = parse(r#"{"model_type":"glm4_moe","n_routed_experts":8,"n_group":4,"topk_group":2,"n_shared_experts":0}"#).unwrap();
        assert_eq!(groups.routing.groups, Some(ExpertGroups { count: 4, chosen: 2, score: GroupScore::BestTwo }));
        assert_eq!(groups.shared_width, None);
    }

    #[test]
    fn layers_without_experts() {
        let layers = |extra: &str| parse(&format!(r#"{{"model_type":"qwen3_moe","num_experts":6{extra}}}"#)).unwrap().layers;
        assert_eq!(layers(r#","decoder_sparse_step":2"#), [false, true, false, true, false]);
        assert_eq!(layers(r#","mlp_only_layers":[0,3]"#), [false, true, true, false, true]);
        let glm = |k: usize| parse(&format!(r#"{{"model_type":"glm4_moe","n_routed_experts":8,"first_k_dense_replace":{k}}}"#)).unwrap();
        assert_eq!((glm(0).layers, glm(9).layers), (vec![true; 5], vec![false; 5]));
    }

    #[test]
    fn refuses_what_does_not_fit_and_what_it_does_not_know() {
        for (extra, words) in [
            (r#"{"model_type":"mixtral"}"#, vec!["num_local_experts", "nothing"]),
            (r#"{"model_type":"mixtral","num_local_experts":8,"num_experts":4}"#, vec!["num_experts", "4"]),
            (r#"{"model_type":"mixtral","num_local_experts":8,"num_experts_per_tok":9}"#, vec!["num_experts_per_tok", "1 to 8", "9"]),
            (r#"{"model_type":"mixtral","num_local_experts":100000}"#, vec!["num_local_experts", "at most 131072"]),
            (r#"{"model_type":"mixtral","num_local_experts":8,"norm_topk_prob":false}"#, vec!["norm_topk_prob", "another network"]),
            (r#"{"model_type":"mixtral","num_local_experts":8,"routed_scaling_factor":2.0}"#, vec!["routed_scaling_factor"]),
            (r#"{"model_type":"qwen3_moe","num_experts":6,"n_shared_experts":1}"#, vec!["n_shared_experts"]),
            (r#"{"model_type":"qwen3_moe","num_experts":6,"scoring_func":"sigmoid"}"#, vec!["scoring_func", "sigmoid"]),
            (r#"{"model_type":"qwen3_moe","num_experts":6,"mlp_only_layers":"all"}"#, vec!["mlp_only_layers", "list"]),
            (r#"{"model_type":"glm4_moe","n_routed_experts":8,"n_group":3}"#, vec!["n_group", "divide 8"]),
            (r#"{"model_type":"glm4_moe","n_routed_experts":8,"n_group":4,"topk_group":5}"#, vec!["n_group", "1 to 4 chosen"]),
            (r#"{"model_type":"glm4_moe","n_routed_experts":8,"topk_method":"greedy"}"#, vec!["topk_method", "greedy"]),
            (r#"{"model_type":"llama","num_experts":8}"#, vec!["num_experts", "another network"]),
        ] {
            let message = parse(extra).unwrap_err().to_string();
            assert!(words.iter().all(|w| message.contains(w)), "{extra}: {message}");
        }
        // what changes nothing may stand there
        let harmless = r#"{"model_type":"mixtral","num_local_experts":8,"norm_topk_prob":true,"scoring_func":"softmax","n_group":1}"#;
        parse(harmless).unwrap();
        parse(r#"{"model_type":"glm4_moe","n_routed_experts":8,"topk_method":"noaux_tc","scoring_func":"sigmoid"}"#).unwrap();
    }
}
