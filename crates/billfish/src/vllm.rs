//! What vLLM 0.14.1 would make of a folder, module by module, on a GPU of compute capability 8.0.
//!
//! The rules stand in [`billfish_formats::method`]; here they meet the tensors of a folder.

use crate::Outcome;
use crate::experts::expert_of;
use billfish_formats::method::{
    Activation, AwqConfig, FusedModules, FusedTrap, Layer, MethodError, ModuleConfig, MoeShape, Note, Platform, Resolution, ResolvedScheme,
    check_engine, infer_modules, select,
};
use billfish_formats::{Checkpoint, ModuleReport, ZeroDialect};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Where it would run.
const GPU: Platform = Platform::Cuda { capability: 80 };

/// The config of a method whose modules are described.
enum Described {
    Gptq(ModuleConfig),
    Awq(AwqConfig),
}

impl Described {
    /// The config for `method`; `None` if its modules are not described.
    fn read(method: &str, config: &Map<String, Value>) -> Result<Option<Self>, MethodError> {
        Ok(match method {
            "gptq" | "gptq_marlin" => Some(Self::Gptq(ModuleConfig::read(method, config)?)),
            "awq" | "awq_marlin" => Some(Self::Awq(AwqConfig::read(method, config)?)),
            _ => None,
        })
    }

    /// Fills in the list of modules that the config does not give, from the tensors.
    fn infer(&mut self, checkpoint: &Checkpoint, names: &[String]) {
        let tensors = checkpoint.tensor_names().filter_map(|name| Some((name, checkpoint.info(name)?.dtype)));
        let quantized = infer_modules(tensors);
        match self {
            Self::Gptq(c) => c.infer_modules(quantized),
            Self::Awq(c) => c.infer_dense(names.iter().filter(|n| !quantized.contains(n)).cloned().collect()),
        }
    }

    fn resolve(&self, layer: Layer, module: &str, fused: &FusedModules) -> Result<Resolution, MethodError> {
        match self {
            Self::Gptq(c) => c.resolve(layer, module, fused, GPU),
            Self::Awq(c) => c.resolve(layer, module, fused, GPU),
        }
    }

    /// Parts of a fused module that another rule was written for. A pattern that cannot be decided is an error of
    /// [`Described::resolve`] already.
    fn traps(&self, module: &str, parts: &[String]) -> Vec<FusedTrap> {
        match self {
            Self::Gptq(c) if parts.len() > 1 => c.fused_traps(module, parts).unwrap_or_default(),
            _ => vec![],
        }
    }
}

/// One module of vLLM's model: fused where it fuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VllmModule {
    /// Its name there.
    pub module: String,
    /// The modules of the folder that it is made of.
    pub parts: Vec<String>,
    /// What it is taken for.
    pub verdict: String,
    /// What goes wrong, if anything does.
    pub problem: Option<(Outcome, String)>,
    /// Parts that were written under another rule of `dynamic` than the fused module is read by.
    pub traps: Vec<FusedTrap>,
}

/// The verdict on a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VllmReport {
    /// What it would do.
    pub outcome: Outcome,
    /// As which method, or why not.
    pub why: String,
    /// The modules, where the method is one whose modules are described.
    pub modules: Vec<VllmModule>,
}

impl VllmReport {
    /// The verdict in one line.
    pub fn line(&self) -> String {
        format!("{}: {}", self.outcome.name(), self.why)
    }
}

/// The groups that vLLM fuses in this folder: a module that is one in the file is not fused.
pub(crate) fn fused_modules(modules: &[String]) -> FusedModules {
    let whole = |fused: &str| modules.iter().any(|m| m.rsplit('.').next() == Some(fused));
    let llama = FusedModules::llama();
    let kept: Vec<(&str, Vec<&str>)> =
        llama.groups().filter(|(f, _)| !whole(f)).map(|(f, parts)| (f, parts.iter().map(String::as_str).collect())).collect();
    FusedModules::new(kept.iter().map(|(f, parts)| (*f, parts.as_slice())))
}

/// The name of the fused module that a module of the file is a part of, or its own.
pub(crate) fn fused_name(fused: &FusedModules, module: &str) -> String {
    let (path, last) = module.rsplit_once('.').map_or(("", module), |(path, last)| (path, last));
    match fused.groups().find(|(_, parts)| parts.iter().any(|p| p == last)) {
        Some((whole, _)) if path.is_empty() => whole.into(),
        Some((whole, _)) => format!("{path}.{whole}"),
        None => module.into(),
    }
}

/// Linear modules of a folder, without the embedding.
pub(crate) fn linear_modules(checkpoint: &Checkpoint) -> Vec<String> {
    let mut modules = checkpoint.linear_modules();
    modules.retain(|m| !m.ends_with("embed_tokens"));
    modules
}

/// The quantization config as other programs find it: inside `config.json` first.
pub(crate) fn public_config(checkpoint: &Checkpoint) -> Option<Map<String, Value>> {
    let files = checkpoint.quantization_files();
    let inside = files.iter().find(|f| !f.prefix.is_empty()).map(|f| f.map.clone());
    inside.or_else(|| {
        let mut map = files.first()?.map.clone();
        // a file of its own says the method by its name where the key is missing
        map.entry("quant_method").or_insert_with(|| "gptq".into());
        Some(map)
    })
}

/// The verdict on a folder with these quantized modules; `None` if it has none or no config that speaks of them.
pub fn vllm(checkpoint: &Checkpoint, modules: &[ModuleReport]) -> Option<VllmReport> {
    use Outcome::{Refuses, Runs, Wrong};
    let config = public_config(checkpoint).filter(|_| !modules.is_empty())?;
    let report = |outcome, why: String, modules| Some(VllmReport { outcome, why, modules });
    let selection = match select(Some(&config), None, GPU, false) {
        Ok(selection) => selection,
        Err(e) => return report(Refuses, e.to_string(), vec![]),
    };
    let Some(method) = selection.method else { return report(Refuses, "the config names no method".into(), vec![]) };
    let silent: Vec<&str> = selection.notes.iter().filter_map(|n| if let Note::Silent(s) = n { Some(s.as_str()) } else { None }).collect();
    let read = match Described::read(&method, &config) {
        Ok(Some(read)) => read,
        Ok(None) => {
            let outcome = if silent.is_empty() { Runs } else { Wrong };
            return report(outcome, [&[format!("as {method}").as_str()], silent.as_slice()].concat().join(", "), vec![]);
        }
        Err(e) => return report(Refuses, format!("as {method}: {e}"), vec![]),
    };
    let resolved = resolve_all(checkpoint, modules, read);
    let worst = |outcome| resolved.iter().filter_map(move |m| m.problem.as_ref().filter(|(o, _)| *o == outcome).map(|(_, why)| (m, why)));
    for outcome in [Refuses, Wrong] {
        if let Some((module, why)) = worst(outcome).next() {
            let more = worst(outcome).count() - 1;
            let more = if more > 0 { format!(", and {more} more modules") } else { String::new() };
            return report(outcome, format!("as {method}: `{}`: {why}{more}", module.module), resolved);
        }
    }
    if !silent.is_empty() {
        return report(Wrong, format!("as {method}: {}", silent.join("; ")), resolved);
    }
    let dtype = ["dtype", "torch_dtype"].iter().find_map(|key| checkpoint.config().get(*key)?.as_str());
    let refused = dtype == Some("bfloat16") && check_engine(&method, GPU, Activation::BF16).is_err();
    report(Runs, format!("as {method}{}", if refused { ", with --dtype float16" } else { "" }), resolved)
}

fn resolve_all(checkpoint: &Checkpoint, reports: &[ModuleReport], mut read: Described) -> Vec<VllmModule> {
    let names = linear_modules(checkpoint);
    read.infer(checkpoint, &names);
    let fused = fused_modules(&names);
    let mut wholes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in names {
        // the experts of a layer are one module there
        let whole = expert_of(&name).map_or_else(|| fused_name(&fused, &name), |(experts, ..)| experts.into());
        wholes.entry(whole).or_default().push(name);
    }
    let by_name: BTreeMap<&str, &ModuleReport> = reports.iter().map(|r| (r.module.as_str(), r)).collect();
    let resolve = |(module, mut parts): (String, Vec<String>)| {
        // in the order of the group, not of the names
        let order = fused.parts(&module).unwrap_or_default();
        parts.sort_by_key(|part| order.iter().position(|p| p == part));
        let stored: Vec<Option<&ModuleReport>> = parts.iter().map(|p| by_name.get(p.as_str()).copied()).collect();
        let experts = parts.first().filter(|p| expert_of(p).is_some()).map(|_| moe_shape(stored.iter().flatten().copied()));
        let layer = match experts {
            Some(shape) => Layer::Experts(shape),
            None if module.ends_with("lm_head") => Layer::Head,
            None => Layer::Linear,
        };
        let (verdict, problem) = match read.resolve(layer, &module, &fused) {
            Err(e) => ("refused".into(), Some((Outcome::Refuses, e.to_string()))),
            Ok(Resolution::Unquantized(_)) => {
                let quantized = stored.iter().any(Option::is_some);
                let why = "taken for dense, but its tensors are quantized: loading ends at a parameter that is not there";
                ("dense".into(), quantized.then(|| (Outcome::Refuses, why.to_string())))
            }
            Ok(Resolution::Quantized { scheme, .. }) => {
                let text = format!("{} bit, group {}, {}", scheme.bits, scheme.group_size, scheme.method);
                let trap = experts.and_then(|shape| scale_trap(&scheme, shape));
                let problem = stored.iter().find_map(|part| compare(&scheme, *part)).or(trap);
                (text, problem)
            }
        };
        let traps = read.traps(&module, &parts);
        VllmModule { module, parts, verdict, problem, traps }
    };
    wholes.into_iter().map(resolve).collect()
}

/// The sizes of a layer's experts, from the modules that are quantized.
fn moe_shape<'a>(mut parts: impl Iterator<Item = &'a ModuleReport>) -> MoeShape {
    let down = |r: &ModuleReport| r.module.ends_with(".down_proj") || r.module.ends_with(".w2");
    let sizes = |r: &ModuleReport| if down(r) { (r.out_features, r.in_features) } else { (r.in_features, r.out_features) };
    let (hidden_size, intermediate_per_rank) = parts.next().map_or((0, 0), sizes);
    MoeShape { hidden_size, intermediate_per_rank, silu: true, router_weight_on_input: false }
}

/// The scales of gate and up are put into the kernel's order by the width of an expert instead of the hidden size: where the
/// width is one group, that is the order for one group a column.
fn scale_trap(scheme: &ResolvedScheme, shape: MoeShape) -> Option<(Outcome, String)> {
    let group = usize::try_from(scheme.group_size).ok()?;
    let trap = scheme.method == "gptq_marlin" && shape.intermediate_per_rank == group && shape.hidden_size > group;
    let why = format!("an expert's width is one group ({group}): the scales of gate and up are put in the wrong order (vLLM PR #50196)");
    trap.then_some((Outcome::Wrong, why))
}

/// What goes wrong when tensors are read by a scheme.
fn compare(scheme: &ResolvedScheme, part: Option<&ModuleReport>) -> Option<(Outcome, String)> {
    use Outcome::{Refuses, Wrong};
    let Some(part) = part else {
        return Some((Refuses, "taken for quantized, but its tensors are dense: loading ends at a parameter that is not there".into()));
    };
    let group = usize::try_from(scheme.group_size).unwrap_or(part.in_features).max(1);
    if i64::from(part.bits) != scheme.bits || part.in_features.div_ceil(group) != part.groups {
        let (bits, groups) = (part.bits, part.groups);
        let why = format!("taken for {} bit with groups of {group} rows, but its tensors hold {bits} bit in {groups} groups", scheme.bits);
        return Some((Refuses, why + ": loading ends at a tensor of another shape"));
    }
    if part.act_order && !scheme.desc_act {
        return Some((Wrong, "`desc_act` is not set, so its `g_idx` is ignored".into()));
    }
    if scheme.sym {
        return (!part.midpoint).then(|| (Wrong, "taken for symmetric, so its zero points are not read".into()));
    }
    let why = match part.zeros {
        ZeroDialect::V2 if !scheme.v2 => "its zero points are stored as they are (v2) and read as v1",
        ZeroDialect::V1 if scheme.v2 => "its zero points are stored less one (v1) and read as v2",
        ZeroDialect::V1Legacy => "its zero points hold the legacy 3-bit constants, which are not undone",
        ZeroDialect::V1Borrowed | ZeroDialect::V1Modulo if scheme.v2 => "its zero points are stored less one (v1) and read as v2",
        _ => return None,
    };
    Some((Wrong, why.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expert_as_wide_as_a_group_is_a_trap() {
        let scheme = |method, group_size| ResolvedScheme { method, bits: 4, group_size, desc_act: false, sym: true, v2: false };
        let shape = |width| MoeShape { hidden_size: 512, intermediate_per_rank: width, silu: true, router_weight_on_input: false };
        let (outcome, why) = scale_trap(&scheme("gptq_marlin", 128), shape(128)).unwrap();
        assert!(outcome == Outcome::Wrong && why.contains("one group (128)"), "{why}");
        for (method, group, width) in
            [("gptq_marlin", 128, 256), ("moe_wna16", 128, 128), ("gptq_marlin", -1, 128), ("gptq_marlin", 512, 512)]
        {
            assert_eq!(scale_trap(&scheme(method, group), shape(width)), None, "{method} {group} {width}");
        }
    }
}
