//! Choices as rules of a quantization config.

use super::Choice;
use crate::Recipe;
use crate::gptq::Order;
use billfish_formats::rule_patterns;
use billfish_models::Linear;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A module and its settings; none if it stays dense.
pub(super) type Ruled<'a> = (&'a Linear, Option<Choice>);

/// A quantization config with the settings of most weights and `dynamic` rules. The rules name every module, so that they
/// mean the same beside other settings too; they hold for the names in files and for those of modules that other programs
/// fuse.
pub fn rules(modules: &[(&Linear, Option<Choice>)], recipe: &Recipe) -> Value {
    let mut by_choice: BTreeMap<Option<Choice>, (u64, Vec<&str>)> = BTreeMap::new();
    for (l, choice) in modules {
        let (weights, names) = by_choice.entry(*choice).or_default();
        *weights += l.in_features as u64 * l.out_features as u64;
        names.push(&l.name);
    }
    let all: Vec<&str> = modules.iter().map(|(l, _)| l.name.as_str()).collect();
    let group = |c: &Choice| c.group_size.map_or(-1, |g| g as i64);
    let mut dynamic = Map::new();
    for (choice, (_, names)) in &by_choice {
        for pattern in merged(rule_patterns(names, &all)) {
            match choice {
                None => dynamic.insert(format!("-:{pattern}"), json!({})),
                Some(c) => dynamic.insert(format!("+:{pattern}"), json!({"bits": c.bits, "group_size": group(c), "sym": recipe.sym})),
            };
        }
    }
    let most = by_choice.iter().filter_map(|(c, (weights, _))| c.map(|c| (*weights, c))).max();
    let base = most.map_or(Choice { bits: recipe.bits, group_size: recipe.group_size }, |(_, c)| c);
    json!({
        "bits": base.bits,
        "group_size": group(&base),
        "sym": recipe.sym,
        "desc_act": recipe.order == Order::Desc,
        "quant_method": "gptq",
        "dynamic": dynamic,
    })
}

/// Patterns that differ in the number of the layer alone as one.
fn merged(patterns: Vec<String>) -> Vec<String> {
    const LAYERS: &str = r"\.layers\.";
    let mut layers: Vec<((String, String), Vec<String>)> = vec![];
    for pattern in patterns {
        let parts = pattern.split_once(LAYERS).and_then(|(before, rest)| {
            let (number, after) = rest.split_once('\\')?;
            number.bytes().all(|b| b.is_ascii_digit()).then(|| ((before.to_string(), after.to_string()), number.to_string()))
        });
        let (key, number) = parts.unwrap_or_else(|| ((pattern, String::new()), String::new()));
        match layers.iter_mut().find(|(k, _)| *k == key) {
            Some((_, numbers)) => numbers.push(number),
            None => layers.push((key, vec![number])),
        }
    }
    let whole = |((before, after), numbers): ((String, String), Vec<String>)| match numbers.as_slice() {
        [none] if none.is_empty() => before,
        [one] => format!("{before}{LAYERS}{one}\\{after}"),
        many => format!("{before}{LAYERS}(?:{})\\{after}", many.join("|")),
    };
    layers.into_iter().map(whole).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use billfish_formats::Dynamic;

    fn linear(name: &str) -> Linear {
        Linear { name: name.into(), in_features: 64, out_features: 64, bias: false }
    }

    #[test]
    fn rules_name_each_module_once_and_what_is_fused() {
        let names: Vec<String> = (0..12)
            .flat_map(|i| {
                let parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.experts.0.up_proj", "mlp.experts.1.up_proj"];
                parts.map(|p| format!("model.layers.{i}.{p}"))
            })
            .collect();
        let linears: Vec<Linear> = names.iter().map(|n| linear(n)).collect();
        let choice = |name: &str| match name {
            n if n.contains(".layers.1.self_attn") => None,
            n if n.contains("experts") => Some(Choice { bits: 3, group_size: Some(32) }),
            n if n.contains(".layers.11.") => Some(Choice { bits: 8, group_size: None }),
            _ => Some(Choice { bits: 4, group_size: Some(64) }),
        };
        let ruled: Vec<Ruled<'_>> = linears.iter().map(|l| (l, choice(&l.name))).collect();
        let made = rules(&ruled, &Recipe::default());
        assert_eq!((&made["bits"], &made["group_size"]), (&json!(4), &json!(64)), "{made}");
        let dynamic = Dynamic::parse("rules", &made).unwrap();
        assert_eq!(dynamic.rules().len(), 4, "{made}");
        let fused = ["model.layers.1.self_attn.qkv_proj", "model.layers.11.self_attn.qkv_proj", "model.layers.10.mlp.experts"];
        for name in names.iter().map(String::as_str).chain(fused) {
            let found = dynamic.find(name).unwrap();
            assert!(!found.differ(), "{name}");
            let rule = found.in_order().unwrap_or_else(|| panic!("{name}: {made}"));
            let expected = choice(name);
            assert_eq!(rule.skips(), expected.is_none(), "{name}");
            assert_eq!(rule.overrides().bits, expected.map(|c| c.bits), "{name}");
        }
        for other in ["model.layers.1.self_attn.o_proj", "model.layers.111.self_attn.q_proj", "model.layers.1.mlp.experts_gate"] {
            assert!(dynamic.find(other).unwrap().in_order().is_none(), "{other}");
        }
    }
}
