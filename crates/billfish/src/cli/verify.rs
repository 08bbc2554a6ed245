//! `billfish verify`: whether two folders hold the same weights.

use super::GateFailed;
use super::options::{PairArgs, byte_bar, warn};
use anyhow::Result;
use billfish_formats::{Certificate, Encodings, verify};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;

/// Entries of a long list that are printed; `--json` has them all.
const MOST: usize = 20;

pub fn run(args: &PairArgs) -> Result<()> {
    let ([a, b], pool) = (args.open()?, args.pool()?);
    let bar = byte_bar("comparing", a.total_bytes() + b.total_bytes());
    let certificate = verify(&a, &b, &|count, body| pool.run(count, body), &mut |done, _| bar.set_position(done));
    bar.finish_and_clear();
    let c = certificate?;
    warn(&[&a, &b]);
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{:#}", to_json(&c))?
    } else {
        print(&c, &mut out)?
    }
    if c.equal() {
        return Ok(());
    }
    Err(GateFailed(format!("{} and {} do not hold the same weights", args.a.display(), args.b.display())).into())
}

pub fn to_json(c: &Certificate) -> Value {
    let encodings = |list: &[Encodings]| -> Value { list.iter().map(|e| json!({"tensor": e.tensor, "found": e.found})).collect() };
    let differences = c.differences.iter().map(|d| {
        json!({
            "tensor": d.tensor,
            "weights": d.weights,
            "differing": d.differing,
            "first": {"name": d.first.name, "index": d.first.index, "values": d.values},
        })
    });
    let largest = c.largest.as_ref().map(|l| {
        json!({
            "name": l.place.name,
            "index": l.place.index,
            "values": l.values.map(|v| v.to_string()),
            "difference": l.difference.to_string(),
        })
    });
    json!({
        "equal": c.equal(),
        "folders": c.folders,
        "sha256": c.hashes,
        "tensors": c.tensors,
        "quantized": c.modules,
        "weights": c.weights,
        "differing": c.differing,
        "largest": largest,
        "differences": differences.collect::<Vec<_>>(),
        "encodings": encodings(&c.encodings),
        "mismatched": encodings(&c.mismatched),
        "missing": c.missing,
    })
}

/// The lines of a list, the rest of a long one as a number.
pub fn list(out: &mut impl Write, lines: impl ExactSizeIterator<Item = String>) -> std::io::Result<()> {
    let rest = lines.len().saturating_sub(MOST);
    for line in lines.take(MOST) {
        writeln!(out, "  {line}")?;
    }
    if rest > 0 {
        writeln!(out, "  and {rest} more (--json lists them all)")?;
    }
    Ok(())
}

pub fn print(c: &Certificate, out: &mut impl Write) -> std::io::Result<()> {
    for (folder, hash) in c.folders.iter().zip(&c.hashes) {
        writeln!(out, "sha256 {hash}  {folder}")?;
    }
    writeln!(out, "{} weights in {} tensors, {} of them quantized; {} weights differ", c.weights, c.tensors, c.modules, c.differing)?;
    if let Some(l) = &c.largest {
        writeln!(out, "largest difference {} at {}: {} and {}", l.difference, l.place, l.values[0], l.values[1])?;
    }
    if !c.differences.is_empty() {
        writeln!(out, "other values")?;
        let line = |d: &billfish_formats::TensorDifference| {
            let [x, y] = &d.values;
            format!("{}: {} of {} differ, the first at {}: {x} and {y}", d.tensor, d.differing, d.weights, d.first)
        };
        list(out, c.differences.iter().map(line))?;
    }
    let pair = |e: &Encodings| format!("{}: {} against {}", e.tensor, e.found[0], e.found[1]);
    if !c.mismatched.is_empty() {
        writeln!(out, "cannot be compared")?;
        list(out, c.mismatched.iter().map(pair))?;
    }
    for (folder, missing) in c.folders.iter().zip(&c.missing).filter(|(_, m)| !m.is_empty()) {
        writeln!(out, "missing in {folder}")?;
        list(out, missing.iter().cloned())?;
    }
    // encodings are alike in most tensors: one line each way they differ
    let mut groups: BTreeMap<&[String; 2], (usize, &str)> = BTreeMap::new();
    for e in &c.encodings {
        groups.entry(&e.found).or_insert((0, &e.tensor)).0 += 1;
    }
    if !groups.is_empty() {
        writeln!(out, "stored otherwise")?;
        let line = |([a, b], (count, first)): (&&[String; 2], &(usize, &str))| format!("{count} tensors, first {first}: {a} against {b}");
        list(out, groups.iter().map(line))?;
    }
    writeln!(out, "{}", if c.equal() { "equal" } else { "not equal" })
}
