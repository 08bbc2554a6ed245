//! `billfish diff`: in what two folders differ.

use super::options::{PairArgs, byte_bar, follow, warn};
use super::verify::{list, to_json as certificate};
use anyhow::Result;
use billfish_formats::{Diff, ModuleDiff, PartDiff, TensorDiff, Verdict, diff};
use serde_json::{Value, json};
use std::io::Write;

pub fn run(args: &PairArgs) -> Result<()> {
    let ([a, b], pool) = (args.open()?, args.pool()?);
    let bar = byte_bar("comparing", 0);
    let found = diff(&a, &b, &|count, body| pool.run(count, body), &mut follow(&bar));
    bar.finish_and_clear();
    let d = found?;
    warn(&[&a, &b]);
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{:#}", to_json(&d))?
    } else {
        print(&d, &mut out)?
    }
    Ok(())
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Same => "same",
        Verdict::SameTensors => "same_tensors",
        Verdict::SameWeights => "same_weights",
        Verdict::Different => "different",
    }
}

fn to_json(d: &Diff) -> Value {
    let tensor = |t: &TensorDiff| {
        json!({
            "tensor": t.tensor,
            "found": t.found,
            "bytes": t.bytes,
            "differing_bytes": t.differing.map(|(count, _)| count),
            "first_byte": t.differing.filter(|(count, _)| *count > 0).map(|(_, first)| first),
        })
    };
    let part =
        |p: &PartDiff| json!({"part": p.part, "elements": p.elements, "differing": p.differing, "first": p.first, "values": p.values});
    let module = |m: &ModuleDiff| json!({"module": m.module, "found": m.found, "parts": m.parts.iter().map(part).collect::<Vec<_>>()});
    json!({
        "verdict": verdict(d.verdict),
        "weights": certificate(&d.certificate),
        "missing": d.missing,
        "tensors": d.tensors.iter().map(tensor).collect::<Vec<_>>(),
        "modules": d.modules.iter().map(module).collect::<Vec<_>>(),
        "keys": d.keys.iter().map(|k| json!({"file": k.file, "key": k.key, "found": k.found})).collect::<Vec<_>>(),
    })
}

fn tensor_words(t: &TensorDiff) -> String {
    let mut words = t.tensor.clone();
    if t.found[0] != t.found[1] {
        words += &format!(": {} against {}", t.found[0], t.found[1]);
    }
    match t.differing {
        Some((0, _)) => words + ", the same bytes",
        Some((count, first)) => words + &format!(": {count} of {} bytes differ, the first at {first}", t.bytes[0]),
        None => words + &format!(", {} and {} bytes", t.bytes[0], t.bytes[1]),
    }
}

fn part_words(p: &PartDiff) -> String {
    match (p.differing, &p.first, &p.values) {
        (Some(count), Some(first), Some([x, y])) => {
            format!("{} of {} {} differ, the first at {first:?}: {x} and {y}", count, p.elements[0], p.part)
        }
        _ => format!("{} and {} {}", p.elements[0], p.elements[1], p.part),
    }
}

fn module_words(m: &ModuleDiff) -> String {
    let mut parts: Vec<String> = m.parts.iter().map(part_words).collect();
    if m.found[0] != m.found[1] {
        parts.insert(0, format!("{} against {}", m.found[0], m.found[1]));
    }
    format!("{}: {}", m.module, parts.join("; "))
}

fn print(d: &Diff, out: &mut impl Write) -> std::io::Result<()> {
    let shown = |v: &Option<Value>| v.as_ref().map_or_else(|| "absent".to_string(), Value::to_string);
    for (folder, missing) in d.certificate.folders.iter().zip(&d.missing).filter(|(_, m)| !m.is_empty()) {
        writeln!(out, "tensors missing in {folder}")?;
        list(out, missing.iter().cloned())?;
    }
    if !d.tensors.is_empty() {
        writeln!(out, "tensors that differ")?;
        list(out, d.tensors.iter().map(tensor_words))?;
    }
    if !d.modules.is_empty() {
        writeln!(out, "quantized modules that differ")?;
        list(out, d.modules.iter().map(module_words))?;
    }
    if !d.keys.is_empty() {
        writeln!(out, "configuration")?;
        list(out, d.keys.iter().map(|k| format!("{} `{}`: {} and {}", k.file, k.key, shown(&k.found[0]), shown(&k.found[1]))))?;
    }
    if d.verdict == Verdict::Different {
        super::verify::print(&d.certificate, out)?;
    }
    writeln!(out, "verdict: {}", d.verdict)
}
