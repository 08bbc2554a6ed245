//! The report of a quantization as one page of HTML: no script, nothing fetched, light or dark as the reader has it.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

const TEMPLATE: &str = include_str!("quant_page.html");
/// Outputs that are listed as outliers.
const OUTLIERS: usize = 30;

/// The page for a `quant_report.json`. What the report does not have is left out; names in it may be any text.
pub fn quant_page(report: &Value) -> String {
    let modules = report["modules"].as_array().map_or(&[][..], Vec::as_slice);
    let mut out = String::with_capacity(TEMPLATE.len() + 512 * modules.len());
    // in one pass, so that a name that looks like a place is text
    for (i, part) in TEMPLATE.split("{{").enumerate() {
        let (key, rest) = if i == 0 { ("", part) } else { part.split_once("}}").unwrap_or(("", part)) };
        out += &match key {
            "title" => format!("Quantization of {}", escaped(text(&report["model"]))),
            "summary" => summary(report, modules),
            "times" => times(&report["seconds"]),
            "heat" => heat(modules),
            "histograms" => histograms(modules),
            "outliers" => outliers(modules),
            "fallbacks" => fallbacks(modules),
            "modules" => table(modules),
            _ => String::new(),
        };
        out += rest;
    }
    out
}

/// Text as it may stand between tags and in quoted attributes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            // what a parser would replace or drop
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

fn name(module: &Value) -> &str {
    text(&module["module"])
}

fn scheme(m: &Value) -> String {
    let sym = if m["sym"].as_bool() == Some(false) { " asym" } else { "" };
    let act = if m["desc_act"].as_bool() == Some(true) { " act" } else { "" };
    format!("w{}g{}{sym}{act}", number(&m["bits"]), number(&m["group_size"]))
}

fn summary(report: &Value, modules: &[Value]) -> String {
    let mean = modules.iter().map(|m| number(&m["output_error"])).sum::<f64>() / modules.len().max(1) as f64;
    let schemes: BTreeSet<String> = modules.iter().map(scheme).collect();
    let size = report["bytes"].as_u64().map_or(String::new(), |b| format!(", {:.3} MB of tensors", b as f64 / 1e6));
    format!(
        "{} as {}: {} modules ({}){size}, mean output error {mean:.3e}",
        escaped(text(&report["method"])),
        escaped(text(&report["format"])),
        modules.len(),
        schemes.into_iter().collect::<Vec<_>>().join(", ")
    )
}

/// A bar of this part of the room there is.
fn bar(part: f64) -> String {
    format!("<span class=\"bar\" style=\"width:{:.2}rem\"></span>", 20.0 * part.clamp(0.0, 1.0))
}

fn times(seconds: &Value) -> String {
    let seconds: Vec<(&String, f64)> = seconds.as_object().into_iter().flatten().map(|(k, v)| (k, number(v))).collect();
    let all: f64 = seconds.iter().map(|s| s.1).sum();
    let row = |(what, s): &(&String, f64)| {
        let part = if all > 0.0 { s / all } else { 0.0 };
        format!("<tr><th scope=\"row\">{}</th><td>{s:.1} s</td><td class=\"text\">{}</td></tr>\n", escaped(what), bar(part))
    };
    let rows: String = seconds.iter().map(row).collect();
    format!("<table class=\"times\"><caption>{all:.1} s in all</caption>\n<tbody>\n{rows}</tbody></table>")
}

/// The layer of a module and its name inside of it, with the number of an expert taken out.
fn place(module: &str) -> (Option<u64>, String) {
    let mut layer = None;
    let mut rest = vec![];
    let mut before = "";
    for segment in module.split('.') {
        match segment.parse::<u64>() {
            Ok(_) if before == "experts" => rest.push("*"),
            Ok(n) if layer.is_none() => {
                layer = Some(n);
                rest.clear();
            }
            _ => rest.push(segment),
        }
        before = segment;
    }
    (layer, rest.join("."))
}

/// Where an error lies between the least and the largest, by logarithms.
fn shade(error: f64, (least, largest): (f64, f64)) -> f64 {
    if error > 0.0 && largest > least { (error / least).ln() / (largest / least).ln() } else { 0.0 }
}

fn heat(modules: &[Value]) -> String {
    let mut cells: BTreeMap<Option<u64>, BTreeMap<String, f64>> = BTreeMap::new();
    let mut columns: Vec<String> = vec![];
    for m in modules {
        let (layer, column) = place(name(m));
        if !columns.contains(&column) {
            columns.push(column.clone());
        }
        let cell = cells.entry(layer).or_default().entry(column).or_insert(0.0);
        *cell = cell.max(number(&m["output_error"]));
    }
    let positive = || cells.values().flat_map(BTreeMap::values).copied().filter(|e| *e > 0.0);
    let range = (positive().fold(f64::INFINITY, f64::min), positive().fold(0.0, f64::max));
    let mut out = String::from("<table class=\"heat\"><thead><tr><th scope=\"col\">layer</th>");
    columns.iter().for_each(|c| out += &format!("<th scope=\"col\">{}</th>", escaped(c)));
    out += "</tr></thead>\n<tbody>\n";
    for (layer, row) in &cells {
        let layer = layer.map_or_else(|| "–".to_string(), |l| l.to_string());
        out += &format!("<tr><th scope=\"row\">{layer}</th>");
        for column in &columns {
            out += &match row.get(column) {
                Some(e) => format!("<td style=\"--e:{:.3}\">{e:.1e}</td>", shade(*e, range)),
                None => "<td class=\"none\">–</td>".into(),
            };
        }
        out += "</tr>\n";
    }
    out + "</tbody></table>"
}

/// How many values lie in each third of a power of ten.
fn histogram(caption: &str, values: &[f64]) -> String {
    const PARTS: f64 = 3.0;
    let mut bins: BTreeMap<i64, usize> = BTreeMap::new();
    values.iter().filter(|v| **v > 0.0).for_each(|v| *bins.entry((v.log10() * PARTS).floor() as i64).or_default() += 1);
    let most = bins.values().copied().max().unwrap_or(1) as f64;
    let edge = |i: i64| 10f64.powf(i as f64 / PARTS);
    let mut out = format!(
        "<table><caption>{caption}</caption>\n<thead><tr><th scope=\"col\">from</th><th scope=\"col\">to</th><th scope=\"col\">count</th><th></th></tr></thead>\n<tbody>\n"
    );
    let zeros = values.iter().filter(|v| **v <= 0.0).count();
    if zeros > 0 {
        out += &format!("<tr><td>0</td><td>0</td><td>{zeros}</td><td></td></tr>\n");
    }
    if let (Some((&first, _)), Some((&last, _))) = (bins.first_key_value(), bins.last_key_value()) {
        for i in first..=last {
            let count = bins.get(&i).copied().unwrap_or(0);
            let row = format!("<td>{:.1e}</td><td>{:.1e}</td><td>{count}</td>", edge(i), edge(i + 1));
            out += &format!("<tr>{row}<td class=\"text\">{}</td></tr>\n", bar(count as f64 / most));
        }
    }
    out + "</tbody></table>\n"
}

fn histograms(modules: &[Value]) -> String {
    let of = |key: &str| modules.iter().map(|m| number(&m[key])).collect::<Vec<f64>>();
    let groups: Vec<f64> = modules.iter().flat_map(|m| m["group_errors"].as_array().into_iter().flatten().map(number)).collect();
    let mut out = histogram("Modules by output error", &of("output_error")) + &histogram("Modules by weight error", &of("weight_error"));
    if !groups.is_empty() {
        out += &histogram("Groups of inputs by error", &groups);
    }
    out
}

fn outliers(modules: &[Value]) -> String {
    let mut found: Vec<(f64, u64, &Value)> = vec![];
    for m in modules {
        for pair in m["worst"].as_array().into_iter().flatten() {
            found.push((number(&pair[1]), pair[0].as_u64().unwrap_or(0), m));
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut out = String::from(
        "<table><thead><tr><th scope=\"col\">module</th><th scope=\"col\">output</th><th scope=\"col\">error</th><th scope=\"col\">times</th></tr></thead>\n<tbody>\n",
    );
    for (error, output, m) in found.into_iter().take(OUTLIERS) {
        let own = number(&m["output_error"]);
        let times = if own > 0.0 { format!("{:.1}", error / own) } else { "–".into() };
        let head = format!("<th scope=\"row\">{}</th>", escaped(name(m)));
        out += &format!("<tr>{head}<td>{output}</td><td>{error:.3e}</td><td>{times}</td></tr>\n");
    }
    out + "</tbody></table>"
}

/// What a user should look at: fallbacks, notes, rows that were left out.
fn remarks(m: &Value) -> String {
    let mut remarks: Vec<String> = m["fallback"].as_str().map(|f| format!("rounded to nearest: {f}")).into_iter().collect();
    remarks.extend(m["notes"].as_array().into_iter().flatten().filter_map(|n| n.as_str().map(String::from)));
    if number(&m["dropped_rows"]) > 0.0 {
        remarks.push(format!("{} rows were left out, not all of their numbers were finite", m["dropped_rows"]));
    }
    escaped(&remarks.join("; "))
}

fn fallbacks(modules: &[Value]) -> String {
    let least = modules.iter().map(|m| number(&m["damp"])).filter(|d| *d > 0.0).fold(f64::INFINITY, f64::min);
    let mut out = String::new();
    for m in modules {
        let (remarks, damp) = (remarks(m), number(&m["damp"]));
        let damped = if damp > least { format!("damped with {damp:.3}") } else { String::new() };
        let both = [remarks, damped].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join("; ");
        if !both.is_empty() {
            out += &format!("<tr><th scope=\"row\">{}</th><td class=\"bad\">{both}</td></tr>\n", escaped(name(m)));
        }
    }
    if out.is_empty() { "<p>None.</p>".into() } else { format!("<table><tbody>\n{out}</tbody></table>") }
}

fn table(modules: &[Value]) -> String {
    const HEADINGS: [&str; 12] = [
        "module",
        "scheme",
        "inputs",
        "outputs",
        "bytes",
        "bits per weight",
        "output error",
        "weight error",
        "worst output",
        "rows seen",
        "damping",
        "remarks",
    ];
    let mut out = String::from("<table><thead><tr>");
    HEADINGS.iter().for_each(|h| out += &format!("<th scope=\"col\">{h}</th>"));
    out += "</tr></thead>\n<tbody>\n";
    for m in modules {
        let weights = number(&m["in_features"]) * number(&m["out_features"]);
        let bits = if weights > 0.0 { 8.0 * number(&m["bytes"]) / weights } else { 0.0 };
        let worst = m["worst"].get(0).map_or_else(|| "–".into(), |w| format!("{}: {:.2e}", number(&w[0]), number(&w[1])));
        // writing to a string does not fail
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{bits:.3}</td><td>{:.3e}</td><td>{:.3e}</td><td>{worst}</td><td>{}</td><td>{:.3}</td><td class=\"bad\">{}</td></tr>",
            escaped(name(m)),
            scheme(m),
            number(&m["in_features"]),
            number(&m["out_features"]),
            number(&m["bytes"]),
            number(&m["output_error"]),
            number(&m["weight_error"]),
            number(&m["rows"]),
            number(&m["damp"]),
            remarks(m)
        );
    }
    out + "</tbody></table>"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Every tag that is opened is closed, in order; attributes are quoted.
    fn is_well_formed(page: &str) {
        const VOID: [&str; 2] = ["meta", "!DOCTYPE"];
        let mut open: Vec<&str> = vec![];
        for part in page.split('<').skip(1) {
            let (tag, after) = part.split_once('>').unwrap_or_else(|| panic!("no end: {part}"));
            let name = tag.split_ascii_whitespace().next().unwrap();
            assert!(!after.contains('>') || open.last() == Some(&"style") || name == "style", "a loose `>`: {part}");
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            match name.strip_prefix('/') {
                Some(closed) => assert_eq!(open.pop(), Some(closed), "{part}"),
                None if VOID.contains(&name) => {}
                None => open.push(name),
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    fn module(name: &str, error: f64) -> Value {
        json!({
            "module": name, "bits": 4, "group_size": 128, "sym": false, "desc_act": true, "in_features": 256, "out_features": 64,
            "bytes": 8448, "weight_error": error / 2.0, "output_error": error, "worst": [[17, error * 9.0], [3, error]],
            "rows": 2048, "dropped_rows": 0, "damp": 0.01, "fallback": null,
        })
    }

    #[test]
    fn every_module_is_there_with_its_numbers() {
        let mut modules: Vec<Value> = (0..3)
            .flat_map(|i| {
                let parts = ["self_attn.q_proj", "mlp.experts.0.up_proj", "mlp.experts.11.up_proj"];
                parts.map(|p| module(&format!("model.layers.{i}.{p}"), 10f64.powi(-i)))
            })
            .collect();
        modules.push(module("lm_head", 0.0));
        modules[1]["fallback"] = json!("5 rows were seen, fewer than 64");
        modules[2]["damp"] = json!(0.07);
        modules[3]["dropped_rows"] = json!(2);
        modules[4]["group_errors"] = json!([1e-3, 2e-3, 0.5]);
        let seconds = json!({"forward": 1.5, "hessian": 2.5, "solve": 4.0, "files": 2.0});
        let page =
            quant_page(&json!({"model": "m", "method": "gptq", "format": "gptq", "bytes": 1, "seconds": seconds, "modules": modules}));
        is_well_formed(&page);
        for m in &modules {
            assert!(page.contains(&format!("<th scope=\"row\">{}</th><td>w4g128 asym act</td>", name(m))), "{m}");
        }
        let words = [
            "10.0 s in all",
            "<th scope=\"row\">hessian</th><td>2.5 s</td>",
            "<th scope=\"row\">lm_head</th>",
            "<td style=\"--e:1.000\">1.0e0</td>",
            "<td style=\"--e:0.000\">1.0e-2</td>",
            "<th scope=\"col\">mlp.experts.*.up_proj</th>",
            "rounded to nearest: 5 rows were seen",
            "damped with 0.070",
            "2 rows were left out",
            "Groups of inputs by error",
            "<td>17</td><td>9.000e0</td><td>9.0</td>",
            "<td>4.125</td>",
            "prefers-color-scheme: dark",
        ];
        words.iter().for_each(|w| assert!(page.contains(w), "{w}"));
        assert!(!page.contains("{{") && !page.contains("http:") && !page.contains("https:") && !page.contains("<script"));
    }

    #[test]
    fn hostile_names_are_text() {
        let hostile = "model.layers.0.</script><script>alert('1')</script>\"onload=\"x{{modules}}&\u{0}";
        let report = json!({"model": hostile, "method": hostile, "format": hostile, "seconds": {hostile: 1.0},
            "modules": [{"module": hostile, "fallback": hostile, "notes": [hostile], "worst": [[hostile, hostile]]}, 7, null]});
        let page = quant_page(&report);
        is_well_formed(&page);
        assert!(!page.contains("<script") && !page.contains("</script") && !page.contains("\"onload"), "{page}");
        assert!(page.contains("&lt;/script&gt;&lt;script&gt;alert(&#39;1&#39;)") && page.contains("x{{modules}}&amp;"));
        // what is no report gives an empty page
        is_well_formed(&quant_page(&Value::Null));
    }
}
