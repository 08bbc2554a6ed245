//! The quantization config of the output, written from what the modules are and not from what the source's config says.

use super::{Module, Target};
use crate::agreement::kind;
use crate::{Checkpoint, FormatError, GroupSize, ModuleReport};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What a rule of `dynamic` can set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Settings {
    bits: u32,
    group_size: i64,
    sym: bool,
    desc_act: bool,
}

fn settings(r: &ModuleReport) -> Settings {
    let group_size = match r.group_size {
        GroupSize::Channel => -1,
        GroupSize::Rows(rows) => rows as i64,
    };
    // a symmetric config lets readers skip the zero points, so it must be true of them
    Settings { bits: r.bits, group_size, sym: r.sym && r.midpoint, desc_act: r.act_order }
}

/// A pattern that matches this name alone.
fn exactly(name: &str) -> String {
    format!("^{}$", name.replace('.', "\\."))
}

/// The config, or `None` for a dense target. The commonest settings are the base, each other module has a rule.
pub(super) fn quantization(source: &Checkpoint, modules: &[Module], target: Target) -> Result<Option<Value>, FormatError> {
    let Some(format) = target.format().filter(|_| !modules.is_empty()) else { return Ok(None) };
    let mut counts: BTreeMap<Settings, usize> = BTreeMap::new();
    modules.iter().for_each(|m| *counts.entry(settings(&m.report)).or_default() += 1);
    let Some((&base, _)) = counts.iter().max_by_key(|(_, count)| **count) else { return Ok(None) };
    let mut dynamic = Map::new();
    let kinds: BTreeSet<String> = modules.iter().map(|m| kind(&m.report.module)).collect();
    for tensor in source.tensor_names() {
        if let Some(module) = tensor.strip_suffix(".weight").filter(|m| kinds.contains(&kind(m)) && !source.has_codes(m)) {
            dynamic.insert(format!("-:{}", exactly(module)), json!({}));
        }
    }
    for m in modules {
        let s = settings(&m.report);
        if s != base {
            let rule = json!({"bits": s.bits, "group_size": s.group_size, "sym": s.sym, "desc_act": s.desc_act});
            dynamic.insert(format!("+:{}", exactly(&m.report.module)), rule);
        }
    }
    let mut config = json!({
        "bits": base.bits,
        "group_size": base.group_size,
        "sym": base.sym,
        "desc_act": base.desc_act,
        "lm_head": modules.iter().any(|m| m.report.module == "lm_head"),
        "quant_method": "gptq",
        "method": "gptq",
        "checkpoint_format": format,
        "format": format,
        "pack_dtype": "int32",
        "meta": {"quantizer": [concat!("billfish:", env!("CARGO_PKG_VERSION"))]},
    });
    if !dynamic.is_empty() {
        config["dynamic"] = Value::Object(dynamic);
    }
    Ok(Some(config))
}
