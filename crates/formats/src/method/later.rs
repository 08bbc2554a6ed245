//! What releases after the described one refuse in a GPTQ config.

use super::MethodError;
use super::python::{given, int, quant_method, text, truthy};
use serde_json::{Map, Value};

/// A refusal that came later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaterRefusal {
    /// The first release that is known to refuse; 0.20 does not.
    pub since: &'static str,
    /// The rule of `dynamic` that asks for it; `None` for the config itself.
    pub rule: Option<String>,
    /// Why, in vLLM's words.
    pub error: MethodError,
}

/// What releases up to 0.33 refuse of a GPTQ config that 0.14.1 reads: widths other than 4 and 8 and asymmetric ones since
/// 0.27, where one method took the place of `gptq` and `gptq_marlin`, and act-order since 0.33. Empty for other methods.
pub fn later_refusals(config: &Map<String, Value>) -> Vec<LaterRefusal> {
    let mut out = vec![];
    if quant_method(config) != "gptq" {
        return out;
    }
    let mut look = |rule: Option<&str>, keys: &Map<String, Value>| {
        let value = |key: &str| given(keys, key).or_else(|| given(config, key));
        let (bits, sym) = (value("bits"), value("sym"));
        let legal = matches!(bits.and_then(int), Some(4 | 8)) && sym.and_then(int) == Some(1);
        let act_order = truthy(value("desc_act")) && value("group_size").and_then(int) != Some(-1);
        let shown = |value: Option<&Value>| text(value.unwrap_or(&Value::Null));
        let kind = MethodError::MarlinConfig { bits: shown(bits), sym: shown(sym) };
        for (refused, since, error) in [(!legal, "0.27", kind), (act_order, "0.33", MethodError::ActOrder)] {
            if refused && out.iter().all(|known: &LaterRefusal| known.rule.is_some() || known.error != error) {
                out.push(LaterRefusal { since, rule: rule.map(crate::error::clip), error });
            }
        }
    };
    look(None, config);
    // rules that skip ask for nothing
    let rules = config.get("dynamic").and_then(Value::as_object).into_iter().flatten().filter(|(rule, _)| !rule.starts_with("-:"));
    for (rule, keys) in rules {
        if let Value::Object(keys) = keys {
            look(Some(rule), keys);
        }
    }
    out
}
