//! `billfish inspect`: what a folder is, module by module, and how it would run. Weights are not read.

use super::options::{FolderArgs, isa_from_env};
use anyhow::Result;
use billfish::machine::cpu_features;
use billfish::{Checkpoint, ExpertLayer, Isa, Summary, VllmModule, VllmReport, expert_layers, read_tokenizer, vllm};
use billfish_formats::{ModuleReport, RuleReport};
use billfish_kernels::kernel_name;
use billfish_models::{DecoderConfig, supported};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A model folder; the built-in model if none is named
    model: Option<PathBuf>,
    #[command(flatten)]
    folder: FolderArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// List every tensor with its type, shape and bytes
    #[arg(long)]
    tensors: bool,
}

/// One linear module.
struct Module {
    name: String,
    k: usize,
    n: usize,
    bytes: u64,
    /// What it is, in words; modules with equal words are shown as one line.
    scheme: String,
    kernel: &'static str,
    json: Value,
}

struct Report {
    modules: Vec<Module>,
    experts: Vec<ExpertLayer>,
    parameters: u64,
    config: Result<DecoderConfig, String>,
    vllm: Option<VllmReport>,
    warnings: Vec<String>,
}

fn rule_words(rule: &RuleReport) -> String {
    let mut words = rule.applied.as_ref().map_or(String::new(), |r| format!(", rule `{r}`"));
    if rule.differ() {
        let side = |r: &Option<String>| r.as_ref().map_or_else(|| "no rule".to_string(), |r| format!("`{r}`"));
        words += &format!(" (vLLM reads {}, GPTQModel {})", side(&rule.in_order), side(&rule.negatives_first));
    }
    if let Some(entry) = &rule.listed {
        words += &format!(", entry {entry}");
    }
    words
}

/// The entry of a list of the config that decides about a module.
fn entry_json(rule: &RuleReport) -> Value {
    rule.listed.as_ref().map_or(Value::Null, |e| json!({"key": e.key, "entry": e.entry, "dense": e.dense}))
}

fn quantized(report: &ModuleReport) -> Module {
    let group = match report.group_size {
        billfish_formats::GroupSize::Channel => "one group a column".to_string(),
        billfish_formats::GroupSize::Rows(g) => format!("group {g}"),
    };
    let sym = if report.sym { "sym" } else { "asym" };
    let order = if report.act_order { "act-order" } else { "plain" };
    let integers = format!(
        "{}-bit, {group}, {sym}, zeros {} ({}), {order}, {} scales{}{}",
        report.bits,
        report.zeros,
        report.reason,
        report.scales,
        if report.bias { ", bias" } else { "" },
        rule_words(&report.rule)
    );
    let (scheme, kernel) = match &report.refusal {
        Some(_) => (format!("{}-bit {}, {} scales, not read", report.bits, report.format.name(), report.scales), "none"),
        None => (integers, kernel_name(report.bits)),
    };
    let group_size: i64 = match report.group_size {
        billfish_formats::GroupSize::Channel => -1,
        billfish_formats::GroupSize::Rows(g) => g as i64,
    };
    let json = json!({
        "module": report.module,
        "in_features": report.in_features,
        "out_features": report.out_features,
        "quantized": true,
        "bits": report.bits,
        "group_size": group_size,
        "groups": report.groups,
        "sym": report.sym,
        "zero_point_dialect": report.zeros.to_string(),
        "zero_point_evidence": report.reason,
        "zeros_all_midpoint": report.midpoint,
        "zeros_wrapped": report.wrapped_zeros,
        "zeros_lost": report.lost_zeros,
        "zeros_mixed_with": report.mixed_zeros.map(|d| d.to_string()),
        "act_order": report.act_order,
        "bias": report.bias,
        "scales": report.scales.name(),
        "packing": format!("{:?}", report.packing).to_lowercase(),
        "dynamic_rule": report.rule.applied,
        "dynamic_readings_differ": report.rule.differ(),
        "dynamic_rule_vllm": report.rule.in_order,
        "dynamic_rule_gptqmodel": report.rule.negatives_first,
        "config_entry": entry_json(&report.rule),
        "bytes": report.bytes,
        "bits_per_weight": report.bits_per_weight(),
        "format": report.format.name(),
        "refused": report.refusal,
        "kernel": kernel,
    });
    Module { name: report.module.clone(), k: report.in_features, n: report.out_features, bytes: report.bytes, scheme, kernel, json }
}

/// A dense matrix: a linear module or the embedding.
fn dense(c: &Checkpoint, name: &str) -> Result<Option<Module>> {
    let Some(info) = c.info(&format!("{name}.weight")).filter(|i| i.shape.len() == 2) else { return Ok(None) };
    // the embedding is no linear module: rules and lists of a quantization config do not speak of it
    if name != "model.embed_tokens" {
        c.is_quantized(name)?;
    }
    let kernel = match info.dtype.name() {
        "F16" => "dense-f16",
        "BF16" => "dense-bf16",
        "F32" => "dense-f32",
        _ => "none",
    };
    let rule = c.rules(name, false)?;
    let (n, k) = (info.shape[0], info.shape[1]);
    let json = json!({
        "module": name,
        "in_features": k,
        "out_features": n,
        "quantized": false,
        "dtype": info.dtype.name(),
        "dynamic_rule": rule.applied,
        "dynamic_readings_differ": rule.differ(),
        "config_entry": entry_json(&rule),
        "bytes": info.bytes,
        "bits_per_weight": info.dtype.size() * 8,
        "kernel": kernel,
    });
    let scheme = format!("{} dense{}", info.dtype, rule_words(&rule));
    Ok(Some(Module { name: name.into(), k, n, bytes: info.bytes as u64, scheme, kernel, json }))
}

fn report(c: &Checkpoint) -> Result<Report> {
    let mut modules = vec![];
    let parameters = Summary::of(c)?.parameters;
    let (mut refused, mut reports) = (BTreeSet::new(), vec![]);
    for name in &c.quantized_modules() {
        let described = c.describe(name)?;
        refused.extend(described.refusal.clone());
        modules.push(quantized(&described));
        reports.push(described);
    }
    let vllm = vllm(c, &reports);
    let experts = expert_layers(c, &reports);
    for tensor in c.tensor_names() {
        let Some((module, part)) = tensor.rsplit_once('.') else { continue };
        if c.is_part(tensor) {
            continue;
        }
        if part == "weight" {
            modules.extend(dense(c, module)?);
        }
    }
    modules.sort_by_key(|m| natural(&m.name));
    let config = DecoderConfig::from_json(&format!("{}/config.json", c.name()), c.config()).map_err(|e| e.to_string());
    let mut warnings: Vec<String> = c.warnings().iter().map(ToString::to_string).collect();
    if let Ok(config) = &config {
        let compared = config.compare(c);
        warnings.extend(compared.missing.iter().map(|m| format!("it will not run: module `{m}` is missing")));
        warnings.extend(billfish::unused_warning(&compared.unused));
        warnings.extend(config.cache_note(c, None));
    }
    match (read_tokenizer(c), &config) {
        (Err(e), _) => warnings.push(e.to_string()),
        (Ok(t), Ok(config)) if t.vocab_size() > config.vocab_size => {
            warnings.push(format!(
                "tokenizer.json has {} tokens, the embedding {} rows: it will not load",
                t.vocab_size(),
                config.vocab_size
            ));
        }
        _ => {}
    }
    if let Err(e) = &config {
        warnings.push(format!("it will not run: {e}"));
    }
    warnings.extend(refused.iter().map(|what| format!("it will not run: its {what} are not read")));
    Ok(Report { modules, experts, parameters, config, vllm, warnings })
}

/// A name with its numbers padded, so that layer 10 comes after layer 9.
fn natural(name: &str) -> String {
    name.split('.').map(|p| p.parse::<u64>().map_or_else(|_| p.to_string(), |n| format!("{n:06}"))).collect::<Vec<_>>().join(".")
}

/// A module's name with its layer numbers replaced by `*`.
fn pattern(name: &str) -> String {
    name.split('.').map(|p| if p.parse::<u64>().is_ok() { "*" } else { p }).collect::<Vec<_>>().join(".")
}

pub fn run(args: &Args) -> Result<()> {
    let c = args.folder.open(args.model.as_deref())?;
    let isa = Isa::choose(isa_from_env()?.as_deref())?;
    let r = report(&c)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{:#}", to_json(&c, &r, isa, args.tensors))?
    } else {
        print(&c, &r, isa, args.tensors, &mut out)?
    }
    Ok(())
}

/// What `inspect --json` prints of a folder.
pub fn object(c: &Checkpoint, isa: Option<&str>) -> Result<Value> {
    Ok(to_json(c, &report(c)?, Isa::choose(isa)?, false))
}

fn to_json(c: &Checkpoint, r: &Report, isa: Isa, tensors: bool) -> Value {
    let mut object = json!({
        "name": c.name(),
        "model_type": c.config().get("model_type"),
        "supported": r.config.is_ok(),
        "parameters": r.parameters,
        "bytes": c.total_bytes(),
        "bits_per_weight": c.total_bytes() as f64 * 8.0 / r.parameters.max(1) as f64,
        "isa": isa.name(),
        "cpu_features": cpu_features(),
        "modules": r.modules.iter().map(|m| m.json.clone()).collect::<Vec<_>>(),
        "experts": r.experts.iter().map(experts_json).collect::<Vec<_>>(),
        "vllm": r.vllm.as_ref().map(vllm_json),
        "warnings": r.warnings,
    });
    if let Ok(config) = &r.config {
        object["config"] = json!({
            "layers": config.layers,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "heads": config.heads,
            "kv_heads": config.kv_heads,
            "head_dim": config.head_dim,
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.max_position_embeddings,
            "rope": config.rope.kind(),
            "tie_word_embeddings": config.tie_word_embeddings,
            "sliding_windows": config.windows,
            "moe": config.moe.as_ref().map(|m| json!({
                "experts": m.routing.experts,
                "experts_per_token": m.routing.top_k,
                "width": m.width,
                "shared_width": m.shared_width,
                "layers": m.layers,
            })),
        });
    }
    if tensors {
        let list = c.tensor_names().filter_map(|n| c.info(n).map(|i| (n, i)));
        object["tensors"] = list.map(|(n, i)| json!({"name": n, "dtype": i.dtype.name(), "shape": i.shape, "bytes": i.bytes})).collect();
    }
    object
}

fn experts_json(layer: &ExpertLayer) -> Value {
    let differing = layer.differing.iter().map(|(scheme, numbers)| json!({"scheme": scheme, "experts": numbers}));
    json!({
        "module": layer.name,
        "experts": layer.count,
        "sizes": layer.sizes,
        "scheme": layer.scheme,
        "differing": differing.collect::<Vec<_>>(),
    })
}

fn vllm_json(v: &VllmReport) -> Value {
    let module = |m: &VllmModule| {
        let problem = m.problem.as_ref().map(|(_, why)| why);
        json!({"module": m.module, "parts": m.parts, "verdict": m.verdict, "problem": problem})
    };
    json!({"outcome": v.outcome.name(), "why": v.why, "modules": v.modules.iter().map(module).collect::<Vec<_>>()})
}

fn print(c: &Checkpoint, r: &Report, isa: Isa, tensors: bool, out: &mut impl Write) -> Result<()> {
    writeln!(out, "{}", c.name())?;
    match &r.config {
        Ok(g) => {
            writeln!(
                out,
                "  architecture  {}: {} layers, hidden {}, MLP {}, {} heads of {} ({} KV), vocabulary {}{}",
                g.model_type(),
                g.layers,
                g.hidden_size,
                g.intermediate_size,
                g.heads,
                g.head_dim,
                g.kv_heads,
                g.vocab_size,
                if g.tie_word_embeddings { ", tied" } else { "" }
            )?;
            if let Some(m) = &g.moe {
                let shared = m.shared_width.map_or(String::new(), |w| format!(", and one of {w} for every token"));
                let (experts, top_k, layers) = (m.routing.experts, m.routing.top_k, m.layers.iter().filter(|l| **l).count());
                writeln!(out, "  experts       {experts} of {} in {layers} layers, {top_k} a token{shared}", m.width)?;
            }
            let context = g.max_position_embeddings.map_or_else(|| "unknown".to_string(), |m| m.to_string());
            let windows: BTreeSet<usize> = g.windows.iter().flatten().copied().collect();
            let sliding = g.windows.iter().flatten().count();
            write!(out, "  positions     {context}, rope {}", g.rope.kind())?;
            if sliding > 0 {
                write!(out, ", sliding window {windows:?} in {sliding} layers")?;
            }
            writeln!(out)?;
        }
        Err(_) => {
            let found = c.config().get("model_type").map_or_else(|| "none".to_string(), Value::to_string);
            writeln!(out, "  architecture  {found}, not supported (supported: {})", supported().collect::<Vec<_>>().join(", "))?;
        }
    }
    let bpw = c.total_bytes() as f64 * 8.0 / r.parameters.max(1) as f64;
    writeln!(out, "  parameters    {:.1} M in {:.1} MB, {bpw:.2} bits a weight", r.parameters as f64 / 1e6, c.total_bytes() as f64 / 1e6)?;
    match c.quantization() {
        Some(q) => {
            let writer = q.writer.as_ref().map_or_else(|| "an unnamed writer".to_string(), |w| format!("{} {}", w.name, w.version));
            writeln!(out, "  quantization  {} by {writer}, from {}", q.format.name(), q.file)?;
        }
        None => writeln!(out, "  quantization  none")?,
    }
    writeln!(out, "  runs on       {} ({})", isa.name(), Isa::available().map(Isa::name).collect::<Vec<_>>().join(", ") + " available")?;
    if let Some(vllm) = &r.vllm {
        writeln!(out, "  vLLM 0.14.1   {}", vllm.line())?;
    }
    writeln!(out, "  processor     {}", cpu_features().join(" "))?;
    writeln!(out, "modules")?;
    let mut groups: Vec<(String, Vec<&Module>)> = vec![];
    for m in &r.modules {
        let key = format!("{} [{}, {}] {}", pattern(&m.name), m.k, m.n, m.scheme);
        match groups.iter_mut().find(|(k, _)| *k == key) {
            Some((_, members)) => members.push(m),
            None => groups.push((key, vec![m])),
        }
    }
    for (_, members) in &groups {
        let m = members[0];
        let (bytes, weights) = members.iter().fold((0, 0), |(b, w), m| (b + m.bytes, w + m.k * m.n));
        let name = if members.len() > 1 { format!("{} x{}", pattern(&m.name), members.len()) } else { m.name.clone() };
        writeln!(
            out,
            "  {name}  [{}, {}]  {}  {:.2} MB, {:.2} bits a weight  -> {}",
            m.k,
            m.n,
            m.scheme,
            bytes as f64 / 1e6,
            bytes as f64 * 8.0 / weights.max(1) as f64,
            m.kernel
        )?;
    }
    print_experts(&r.experts, out)?;
    if tensors {
        writeln!(out, "tensors")?;
        for name in c.tensor_names() {
            if let Some(i) = c.info(name) {
                writeln!(out, "  {name}  {} {:?}  {} bytes", i.dtype, i.shape, i.bytes)?;
            }
        }
    }
    if r.warnings.is_empty() {
        writeln!(out, "no warnings")?;
    }
    for w in &r.warnings {
        writeln!(out, "warning: {w}")?;
    }
    Ok(())
}

/// Layers whose experts are alike as one line, with those that differ below.
fn print_experts(layers: &[ExpertLayer], out: &mut impl Write) -> Result<()> {
    if layers.is_empty() {
        return Ok(());
    }
    writeln!(out, "experts")?;
    let mut kinds: Vec<(ExpertLayer, Vec<&str>)> = vec![];
    for layer in layers {
        let kind = ExpertLayer { name: pattern(&layer.name), ..layer.clone() };
        match kinds.iter_mut().find(|(k, _)| *k == kind) {
            Some((_, names)) => names.push(&layer.name),
            None => kinds.push((kind, vec![&layer.name])),
        }
    }
    for (kind, names) in &kinds {
        let name = if let [one] = names.as_slice() { one.to_string() } else { format!("{} x{}", kind.name, names.len()) };
        writeln!(out, "  {name}  {} of {}  {}", kind.count, kind.sizes, kind.scheme)?;
        for difference in kind.differences() {
            writeln!(out, "    but {difference}")?;
        }
    }
    Ok(())
}
