//! Tables for people, JSON and CSV for programs, and the machine in each of them.

use anyhow::Result;
use billfish::Isa;
use billfish::bench::Limits;
use billfish::machine::{COMMIT, Machine, VERSION};
use clap::ValueEnum;
use serde_json::{Map, Value, json};
use std::io::Write;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A Markdown table under a block about the machine.
    Md,
    /// A list of objects, each with an object about the machine.
    Json,
    /// A line for each result, what is known about the machine in columns of its own.
    Csv,
}

/// One result: what people see under each heading, and everything for programs.
pub struct Row {
    /// Headings and cells, the same headings in every row.
    pub cells: Vec<(&'static str, String)>,
    /// Everything.
    pub json: Value,
}

/// Prints results; `head` stands above a table.
pub fn print(format: Format, head: &[String], rows: &[Row]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match format {
        Format::Md => {
            head.iter().try_for_each(|line| writeln!(out, "- {line}"))?;
            writeln!(out)?;
            table(rows, &mut out)?;
        }
        Format::Json => writeln!(out, "{:#}", rows.iter().map(|r| r.json.clone()).collect::<Value>())?,
        Format::Csv => csv(rows, &mut out)?,
    }
    Ok(())
}

/// A Markdown table, words to the left and figures to the right.
fn table(rows: &[Row], out: &mut impl Write) -> Result<()> {
    let Some(first) = rows.first() else { return Ok(()) };
    let figure = |i: usize| rows.iter().all(|r| r.cells[i].1.starts_with(|c: char| c.is_ascii_digit() || c == '–'));
    let line = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
    let widths: Vec<usize> = (0..first.cells.len())
        .map(|i| rows.iter().map(|r| r.cells[i].1.chars().count()).chain([first.cells[i].0.chars().count(), 3]).max().unwrap_or(3))
        .collect();
    let pad = |i: usize, text: &str| {
        let space = " ".repeat(widths[i] - text.chars().count());
        if figure(i) { format!("{space}{text}") } else { format!("{text}{space}") }
    };
    writeln!(out, "{}", line(first.cells.iter().enumerate().map(|(i, (heading, _))| pad(i, heading)).collect()))?;
    let rule = |i: usize| if figure(i) { format!("{}:", "-".repeat(widths[i] - 1)) } else { "-".repeat(widths[i]) };
    writeln!(out, "{}", line((0..widths.len()).map(rule).collect()))?;
    for row in rows {
        writeln!(out, "{}", line(row.cells.iter().enumerate().map(|(i, (_, cell))| pad(i, cell)).collect()))?;
    }
    Ok(())
}

/// Objects of objects as one row: `machine_cpu`. Lists of words are one cell, lists of samples are left out.
fn flatten(prefix: &str, object: &Map<String, Value>, out: &mut Vec<(String, String)>) {
    for (key, value) in object {
        let key = format!("{prefix}{key}");
        match value {
            Value::Object(inner) => flatten(&format!("{key}_"), inner, out),
            Value::Array(list) if key.contains("samples") || list.iter().any(|v| v.is_object() || v.is_array()) => {}
            Value::Array(list) => out.push((key, list.iter().map(text).collect::<Vec<_>>().join(" "))),
            other => out.push((key, text(other))),
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

fn csv(rows: &[Row], out: &mut impl Write) -> Result<()> {
    let quoted = |cells: Vec<String>| cells.iter().map(|c| format!("\"{}\"", c.replace('"', "\"\""))).collect::<Vec<_>>().join(",");
    for (i, row) in rows.iter().enumerate() {
        let mut cells = vec![];
        if let Value::Object(object) = &row.json {
            flatten("", object, &mut cells);
        }
        let (keys, values): (Vec<String>, Vec<String>) = cells.into_iter().unzip();
        if i == 0 {
            writeln!(out, "{}", quoted(keys))?;
        }
        writeln!(out, "{}", quoted(values))?;
    }
    Ok(())
}

/// The machine, the program and the limits on so many threads, for programs.
pub fn machine_json(machine: &Machine, isa: Isa, threads: usize, limits: &Limits) -> Value {
    json!({
        "cpu": machine.cpu,
        "cpus": machine.cpus,
        "features": machine.features,
        "memory_bytes": machine.memory,
        "cache_bytes": machine.cache,
        "os": machine.os,
        "version": VERSION,
        "build_commit": COMMIT,
        "isa": isa.name(),
        "threads": threads,
        "read_gb_per_s": limits.read / 1e9,
        "int8_gop_per_s": limits.dots / 1e9,
        "f32_gop_per_s": limits.fmas / 1e9,
    })
}

/// The same for people; `limits` for each number of threads.
pub fn machine_lines(machine: &Machine, isa: Isa, limits: &[(usize, Limits)]) -> Vec<String> {
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".into(), |b| format!("{:.1} GB", b as f64 / 1e9));
    let cache = machine.cache.map_or_else(|| "unknown".into(), |b| format!("{:.1} MiB", b as f64 / f64::from(1 << 20)));
    let mut lines = vec![
        format!("machine: {}, {} CPUs, memory {}, cache {cache}, {}", machine.cpu, machine.cpus, size(machine.memory), machine.os),
        format!("features: {}; running on {}", machine.features.join(" "), isa.name()),
        format!("billfish {VERSION}, commit {COMMIT}"),
    ];
    for (threads, l) in limits {
        let int8 = if isa == Isa::Amx { "int8 on AMX tiles" } else { "int8" };
        lines.push(format!(
            "limits with {threads} thread{}, the best measured in this run: read {:.1} GB/s, {int8} {:.0} Gop/s, f32 {:.0} Gop/s",
            if *threads == 1 { "" } else { "s" },
            l.read / 1e9,
            l.dots / 1e9,
            l.fmas / 1e9
        ));
    }
    lines
}

/// The limits of a run, the best for each number of threads, in the order in which they came.
#[derive(Default)]
pub struct BestLimits(pub Vec<(usize, Limits)>);

impl BestLimits {
    /// Takes further limits into account.
    pub fn add(&mut self, threads: usize, limits: Limits) {
        match self.0.iter_mut().find(|(t, _)| *t == threads) {
            Some((_, best)) => *best = best.max(limits),
            None => self.0.push((threads, limits)),
        }
    }
}

/// Bytes as GB, or a dash.
pub fn gigabytes(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "–".into(), |b| format!("{:.3}", b as f64 / 1e9))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let row = |name: &str, rate: &str| Row {
            cells: vec![("test", name.into()), ("t/s", rate.into())],
            json: json!({"test": name, "t": 1.5, "samples_ts": [1, 2], "machine": {"cpu": "A \"B\", C", "features": ["x", "y"], "memory": null}}),
        };
        vec![row("pp512", "9.00 ± 1.00"), row("tg128 @ d4", "–")]
    }

    #[test]
    fn a_table_with_figures_to_the_right() {
        let mut out = vec![];
        table(&rows(), &mut out).unwrap();
        let want =
            "| test       |         t/s |\n| ---------- | ----------: |\n| pp512      | 9.00 ± 1.00 |\n| tg128 @ d4 |           – |\n";
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }

    #[test]
    fn csv_is_flat_and_quoted() {
        let mut out = vec![];
        csv(&rows(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], r#""test","t","machine_cpu","machine_features","machine_memory""#);
        assert_eq!(lines[1], r#""pp512","1.5","A ""B"", C","x y","""#);
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn the_peak_of_tiles_is_named() {
        let lines = |isa| machine_lines(&Machine::detect(), isa, &[(2, Limits { read: 1e9, dots: 5e12, fmas: 1e9 })]).join("\n");
        assert!(lines(Isa::Amx).contains("int8 on AMX tiles 5000 Gop/s") && lines(Isa::Avx512).contains("int8 5000 Gop/s"));
    }

    #[test]
    fn limits_are_the_best_of_each_number_of_threads() {
        let limit = |read| Limits { read, dots: 1.0, fmas: 1.0 };
        let mut best = BestLimits::default();
        [(2, 5.0), (1, 3.0), (2, 4.0), (2, 6.0)].into_iter().for_each(|(t, read)| best.add(t, limit(read)));
        assert_eq!(best.0.iter().map(|(t, l)| (*t, l.read)).collect::<Vec<_>>(), [(2, 6.0), (1, 3.0)]);
    }
}
