//! Modules that other programs fuse into one, so that they must be alike, and rules that fusing sets at odds.

use super::findings::Findings;
use super::modules::Module;
use crate::experts::expert_of;
use crate::vllm::{VllmReport, fused_modules, fused_name, linear_modules};
use billfish_formats::{Checkpoint, ModuleReport};
use std::collections::BTreeMap;

const ALIKE: &str = "Billfish runs them as they are; for vLLM, quantize them alike";

pub(super) fn examine(checkpoint: &Checkpoint, modules: &[Module], vllm: Option<&VllmReport>, found: &mut Findings) {
    let names = linear_modules(checkpoint);
    let fused = fused_modules(&names);
    let mut groups: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in &names {
        let whole = fused_name(&fused, name);
        if whole != *name {
            groups.entry(whole).or_default().push(name);
        }
    }
    let by_name: BTreeMap<&str, &Module> = modules.iter().map(|m| (m.report.module.as_str(), m)).collect();
    for (whole, parts) in &groups {
        let expected = fused.parts(whole).unwrap_or_default();
        let subject = subject(&expected);
        let quantized: Vec<&Module> = parts.iter().filter_map(|p| by_name.get(p).copied()).collect();
        let Some(first) = quantized.first() else { continue };
        if parts.iter().any(|p| !checkpoint.has_codes(p)) || parts.len() != expected.len() {
            let evidence = "some are quantized and some are not";
            found.warning(&subject, evidence, "vLLM fuses them and refuses the folder", ALIKE);
            continue;
        }
        let same = |f: fn(&ModuleReport) -> (u32, usize, bool)| quantized.iter().all(|m| f(&m.report) == f(&first.report));
        if !same(|r| (r.bits, r.groups, r.sym)) {
            let evidence = "their bits, groups or symmetry differ";
            found.warning(&subject, evidence, "vLLM fuses them and fails or computes nonsense", ALIKE);
        }
        if quantized.iter().any(|m| m.order != first.order) {
            found.warning(&subject, "their `g_idx` differ", "vLLM keeps the last one it reads for all of them", ALIKE);
        }
    }
    traps(vllm, found);
}

/// Rules that match the parts of a fused module and not the whole, or the other way round.
fn traps(vllm: Option<&VllmReport>, found: &mut Findings) {
    for module in vllm.into_iter().flat_map(|v| &v.modules).filter(|m| !m.traps.is_empty()) {
        let rule = |r: &Option<String>| r.as_ref().map_or_else(|| "no rule".to_string(), |r| format!("`{r}`"));
        let each =
            |t: &billfish_formats::method::FusedTrap| format!("{} by {}", t.part.rsplit('.').next().unwrap_or(&t.part), rule(&t.written));
        let mut parts: Vec<String> = module.traps.iter().take(4).map(each).collect();
        if module.traps.len() > parts.len() {
            parts.push(format!("{} more", module.traps.len() - parts.len()));
        }
        let read = rule(&module.traps[0].read);
        let whole = module.module.rsplit('.').next().unwrap_or(&module.module);
        let evidence = format!("rules of `dynamic` tell parts and whole apart: {}, but `{whole}` by {read}", parts.join(", "));
        let subject = if expert_of(&module.parts[0]).is_some() { module.module.clone() } else { subject(&module.parts) };
        match &module.problem {
            Some((outcome, why)) => {
                let consequence = format!("vLLM takes the rule of the whole ({}): {why}", outcome.name());
                let remedy = "Billfish follows the tensors; for vLLM, write rules that match the parts and the fused name alike";
                found.warning(&subject, evidence, &consequence, remedy);
            }
            None => {
                let consequence = format!("vLLM takes the rule of the whole ({}), which is right for these tensors", module.verdict);
                found.note(&subject, evidence, &consequence, "nothing to do");
            }
        }
    }
}

/// `model.layers.0.mlp.{gate_proj,up_proj}`.
fn subject(parts: &[String]) -> String {
    let split = |p: &String| p.rsplit_once('.').map_or((String::new(), p.clone()), |(path, last)| (format!("{path}."), last.to_string()));
    let path = parts.first().map(|p| split(p).0).unwrap_or_default();
    let last: Vec<String> = parts.iter().map(|p| split(p).1).collect();
    format!("{path}{{{}}}", last.join(","))
}
