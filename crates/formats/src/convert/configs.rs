//! The quantization config of the output, written from what the modules are and not from what the source's config says.

use super::Target;
use crate::agreement::kind;
use crate::method::FusedModules;
use crate::{Checkpoint, FormatError, GroupSize, ModuleReport, Writer};
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

/// Patterns of rules that match these of `all` modules alone, and the name of the module that vLLM makes of several where
/// all of them are there: its rules are matched with that name only. Experts of a block that all are there are one pattern.
pub fn rule_patterns(names: &[&str], all: &[&str]) -> Vec<String> {
    const EXPERTS: &str = ".experts.";
    let (mut out, mut done) = (vec![], BTreeSet::new());
    let wanted: BTreeSet<&str> = names.iter().copied().collect();
    let mut incomplete: BTreeSet<&str> = BTreeSet::new();
    for other in all.iter().filter(|n| !wanted.contains(*n)) {
        incomplete.extend(other.split_once(EXPERTS).map(|(block, _)| block));
    }
    for name in names {
        let pattern = match name.split_once(EXPERTS).filter(|(block, _)| !incomplete.contains(block)) {
            Some((block, _)) => format!("^{}\\.experts(?:\\..*)?$", block.replace('.', "\\.")),
            None => {
                let (parent, last) = name.rsplit_once('.').map_or(("", *name), |(parent, last)| (parent, last));
                let fused = FusedModules::llama();
                let whole = |parts: &[String]| parts.iter().all(|p| wanted.contains(format!("{parent}.{p}").as_str()));
                let group = fused.groups().find(|(_, parts)| parts.iter().any(|p| p == last) && whole(parts));
                let last = group.map_or_else(|| last.into(), |(whole, parts)| format!("(?:{}|{whole})", parts.join("|")));
                let dot = if parent.is_empty() { "" } else { "\\." };
                format!("^{}{dot}{last}$", parent.replace('.', "\\."))
            }
        };
        if done.insert(pattern.clone()) {
            out.push(pattern);
        }
    }
    out
}

/// Dense modules of kinds that are quantized elsewhere, and the head if it is dense: what a config has to except.
fn dense_modules(source: &Checkpoint, modules: &[ModuleReport]) -> Vec<String> {
    let kinds: BTreeSet<String> = modules.iter().map(|m| kind(&m.module)).collect();
    let dense = source.tensor_names().filter_map(|t| t.strip_suffix(".weight")).filter(|m| !source.has_codes(m));
    dense.filter(|m| kinds.contains(&kind(m)) || *m == "lm_head").map(String::from).collect()
}

/// The config, or `None` for a dense target. The commonest settings are the base, each other module has a rule.
pub(super) fn quantization(source: &Checkpoint, modules: &[ModuleReport], target: Target) -> Result<Option<Value>, FormatError> {
    let Some(format) = target.format().filter(|_| !modules.is_empty()) else { return Ok(None) };
    let mut counts: BTreeMap<Settings, usize> = BTreeMap::new();
    modules.iter().for_each(|m| *counts.entry(settings(m)).or_default() += 1);
    let Some((&base, _)) = counts.iter().max_by_key(|(_, count)| **count) else { return Ok(None) };
    match target {
        Target::Awq => awq(source, modules, base).map(Some),
        Target::CompressedTensors => Ok(Some(compressed(source, modules, base))),
        Target::Marlin => marlin(source, modules, base).map(Some),
        _ => Ok(Some(gptq(source, modules, base, format))),
    }
}

/// Who made the weights and who wrote this. GPTQModel loads asymmetric v1 zero points only beside its own name, so that
/// name stays where its way of storing them and ours give the same words: not for 3 bit before its version 7.
fn meta(source: &Checkpoint, modules: &[ModuleReport]) -> Value {
    let writer = source.quantization().and_then(|q| q.writer.as_ref()).filter(|w| w.is_gptqmodel());
    let alike = |w: &&Writer| w.major().is_some_and(|major| major >= 7 || modules.iter().all(|m| m.bits != 3));
    let mut names: Vec<String> = writer.filter(alike).map(|w| format!("{}:{}", w.name, w.version)).into_iter().collect();
    names.push(concat!("billfish:", env!("CARGO_PKG_VERSION")).into());
    json!({ "quantizer": names })
}

fn gptq(source: &Checkpoint, modules: &[ModuleReport], base: Settings, format: &str) -> Value {
    let mut dynamic = Map::new();
    let dense = dense_modules(source, modules);
    let dense: Vec<&str> = dense.iter().map(String::as_str).filter(|m| *m != "lm_head").collect();
    let all: Vec<&str> = modules.iter().map(|m| m.module.as_str()).chain(dense.iter().copied()).collect();
    for pattern in rule_patterns(&dense, &all) {
        dynamic.insert(format!("-:{pattern}"), json!({}));
    }
    let mut others: BTreeMap<Settings, Vec<&str>> = BTreeMap::new();
    modules.iter().filter(|m| settings(m) != base).for_each(|m| others.entry(settings(m)).or_default().push(&m.module));
    for (s, names) in others {
        let rule = json!({"bits": s.bits, "group_size": s.group_size, "sym": s.sym, "desc_act": s.desc_act});
        for pattern in rule_patterns(&names, &all) {
            dynamic.insert(format!("+:{pattern}"), rule.clone());
        }
    }
    let mut config = json!({
        "bits": base.bits,
        "group_size": base.group_size,
        "sym": base.sym,
        "desc_act": base.desc_act,
        "lm_head": modules.iter().any(|m| m.module == "lm_head"),
        "quant_method": "gptq",
        "method": "gptq",
        "checkpoint_format": format,
        "format": format,
        "pack_dtype": "int32",
        "meta": meta(source, modules),
    });
    if !dynamic.is_empty() {
        config["dynamic"] = Value::Object(dynamic);
    }
    config
}

fn lossy(source: &Checkpoint, target: Target, found: String) -> FormatError {
    FormatError::Lossy { folder: source.name().into(), target: target.to_string(), found }
}

/// An error unless all modules have the group size of most: some formats have one for all.
fn one_group_size(source: &Checkpoint, modules: &[ModuleReport], base: Settings, target: Target) -> Result<(), FormatError> {
    let Some(m) = modules.iter().find(|m| settings(m).group_size != base.group_size) else { return Ok(()) };
    let (module, other) = (&m.module, settings(m).group_size);
    let found = format!("`{module}` has groups of {other} rows and most others of {}, and {target} has one size", base.group_size);
    Err(lossy(source, target, found))
}

/// Marlin has no rules for modules: the readers of the format take every linear layer but the head for quantized.
fn marlin(source: &Checkpoint, modules: &[ModuleReport], base: Settings) -> Result<Value, FormatError> {
    one_group_size(source, modules, base, Target::Marlin)?;
    let dense: Vec<String> = dense_modules(source, modules).into_iter().filter(|m| m != "lm_head").collect();
    if !dense.is_empty() {
        let found = format!("modules are dense that others of their kind are not, and marlin has no place to say so: {}", dense.join(", "));
        return Err(lossy(source, Target::Marlin, found));
    }
    Ok(json!({
        "bits": 4,
        "group_size": base.group_size,
        "sym": true,
        "desc_act": false,
        "lm_head": modules.iter().any(|m| m.module == "lm_head"),
        "quant_method": "gptq",
        "checkpoint_format": "marlin",
        // what programs looked for before there was `checkpoint_format`
        "is_marlin_format": true,
        "meta": meta(source, modules),
    }))
}

fn awq(source: &Checkpoint, modules: &[ModuleReport], base: Settings) -> Result<Value, FormatError> {
    one_group_size(source, modules, base, Target::Awq)?;
    Ok(json!({
        "quant_method": "awq",
        "bits": 4,
        "group_size": base.group_size,
        "zero_point": true,
        "version": "gemm",
        "lm_head": modules.iter().any(|m| m.module == "lm_head"),
        "modules_to_not_convert": dense_modules(source, modules),
    }))
}

/// compressed-tensors has a group of modules for each kind of settings; the base speaks of all linear layers.
fn compressed(source: &Checkpoint, modules: &[ModuleReport], base: Settings) -> Value {
    let mut groups: BTreeMap<Settings, Vec<&str>> = BTreeMap::new();
    for m in modules {
        groups.entry(settings(m)).or_default().push(&m.module);
    }
    let mut config_groups = Map::new();
    for (number, (s, names)) in groups.into_iter().enumerate() {
        let channel = s.group_size == -1;
        let weights = json!({
            "num_bits": s.bits,
            "type": "int",
            "symmetric": s.sym,
            "strategy": if channel { "channel" } else { "group" },
            "group_size": if channel { Value::Null } else { s.group_size.into() },
            "actorder": if s.desc_act { json!("group") } else { Value::Null },
            "dynamic": false,
        });
        let targets = if s == base { vec!["Linear"] } else { names };
        config_groups.insert(format!("group_{number}"), json!({"format": "pack-quantized", "targets": targets, "weights": weights}));
    }
    let mut config = json!({
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": config_groups,
        "ignore": dense_modules(source, modules),
        // codes in one bit stream, as this version and later ones pack them
        "version": "0.19.0",
    });
    if let Some(scheme) = source.quantization().and_then(|q| q.cache_scheme.as_ref()) {
        config["kv_cache_scheme"] = scheme.keys.clone().into();
    }
    config
}
