//! `billfish explain`: where one weight comes from.

use super::options::{FolderArgs, warn};
use anyhow::Result;
use billfish_formats::{Element, Explanation, StoredBits, Weight, explain};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A model folder
    model: PathBuf,
    #[command(flatten)]
    folder: FolderArgs,
    /// 'module[row, col]', the input as row and the output as column, or 'tensor[index]' as stored
    place: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let c = args.folder.open(Some(&args.model))?;
    let explanation = explain(&c, &args.place)?;
    warn(&[&c]);
    let mut out = std::io::stdout().lock();
    match (&explanation, args.json) {
        (Explanation::Quantized(w), true) => writeln!(out, "{:#}", weight_json(w))?,
        (Explanation::Quantized(w), false) => print_weight(w, &mut out)?,
        (Explanation::Dense(e), true) => writeln!(out, "{:#}", element_json(e))?,
        (Explanation::Dense(e), false) => {
            let value = e.value.map_or_else(|| "no number".to_string(), |v| v.to_string());
            writeln!(out, "{}", e.place)?;
            writeln!(out, "  stored   {}{:?} of {:?}, {}", e.tensor, e.index, e.shape, e.dtype)?;
            writeln!(out, "  bits     {:#0width$x}", e.bits, width = 2 + 2 * e.dtype.size())?;
            writeln!(out, "  value    {value}")?;
        }
    }
    Ok(())
}

fn scale_bits(w: &Weight) -> String {
    format!("{:#0width$x}", w.scale_bits, width = 2 + 2 * w.module.scales.size())
}

fn weight_json(w: &Weight) -> Value {
    let fields = |bits: &[StoredBits]| -> Value {
        let field = |b: &StoredBits| {
            json!({
                "tensor": b.tensor,
                "row": b.index[0],
                "column": b.index[1],
                "word": format!("{:#010x}", b.word),
                "bit_offset": b.offset,
                "width": b.width,
                "shift": b.shift,
            })
        };
        bits.iter().map(field).collect()
    };
    json!({
        "module": w.place.name,
        "row": w.place.index[0],
        "column": w.place.index[1],
        "quantized": true,
        "bits": w.module.bits,
        "dynamic_rule": w.module.rule.applied,
        "code": w.code,
        "code_bits": fields(&w.code_bits),
        "zero": w.zero,
        "stored_zero": w.stored_zero,
        "zero_bits": fields(&w.zero_bits),
        "zero_point_dialect": w.module.zeros.to_string(),
        "zero_point_evidence": w.module.reason,
        "evidence_kind": w.module.evidence.name(),
        "scale": w.scale,
        "scale_bits": scale_bits(w),
        "scale_dtype": w.module.scales.name(),
        "group": w.group,
        "g_idx": w.g_idx,
        "value": w.value,
    })
}

fn element_json(e: &Element) -> Value {
    json!({
        "name": e.place.name,
        "place": e.place.index,
        "quantized": false,
        "tensor": e.tensor,
        "index": e.index,
        "shape": e.shape,
        "dtype": e.dtype.name(),
        "bits": format!("{:#0width$x}", e.bits, width = 2 + 2 * e.dtype.size()),
        // JSON has no infinity and no NaN
        "value": e.value,
        "value_text": e.value.map(|v| v.to_string()),
    })
}

fn print_weight(w: &Weight, out: &mut impl Write) -> std::io::Result<()> {
    let m = &w.module;
    let line = |b: &StoredBits, what: &str| {
        let part = if b.shift > 0 { format!(", from bit {} of the {what}", b.shift) } else { String::new() };
        let bits = if b.width == 1 { format!("bit {}", b.offset) } else { format!("bits {}..{}", b.offset, b.offset + b.width) };
        format!("{}[{}, {}] = {:#010x}, {bits}{part}", b.tensor, b.index[0], b.index[1], b.word)
    };
    writeln!(out, "{}", w.place)?;
    writeln!(
        out,
        "  module   [{}, {}], {} bit, group_size {}, {}{}",
        m.in_features,
        m.out_features,
        m.bits,
        m.group_size,
        if m.sym { "symmetric" } else { "asymmetric" },
        m.rule.applied.as_ref().map_or(String::new(), |r| format!(", rule `{r}`"))
    )?;
    writeln!(out, "  code     {}", w.code)?;
    for bits in &w.code_bits {
        writeln!(out, "           {}", line(bits, "code"))?;
    }
    match w.g_idx {
        Some(entry) => writeln!(out, "  group    {} (g_idx holds {entry})", w.group)?,
        None => writeln!(out, "  group    {} (row / group_size)", w.group)?,
    }
    let stored = w.stored_zero.map_or(String::new(), |z| format!(", stored as {z}"));
    writeln!(out, "  zero     {}{stored}", w.zero)?;
    for bits in &w.zero_bits {
        writeln!(out, "           {}", line(bits, "zero"))?;
    }
    writeln!(out, "           {}; {} decides: {}", m.zeros, m.evidence.name(), m.reason)?;
    writeln!(out, "  scale    {} = {} {}", w.scale, scale_bits(w), m.scales)?;
    writeln!(out, "  value    ({} - {}) * {} = {}", w.code, w.zero, w.scale, w.value)
}
