//! In what two folders differ: tensors, the parts of quantized modules, configuration; and whether that matters.

use crate::checkpoint::{BiasRule, Checkpoint, LinearWeight};
use crate::values::words;
use crate::verify::Workers;
use crate::verify::{Certificate, verify};
use crate::{FormatError, ModuleReport, json};
use billfish_tensor::QuantMatrix;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a tensor that are compared together.
const CHUNK: usize = 1 << 20;

/// What the differences come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// No tensor and no configuration key differs.
    Same,
    /// No tensor differs, but the configuration does; the weights are equal.
    SameTensors,
    /// Tensors differ, but every weight is equal.
    SameWeights,
    /// The weights differ.
    Different,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Verdict::Same => "the same tensors and the same configuration",
            Verdict::SameTensors => "the same tensors, another configuration",
            Verdict::SameWeights => "the same weights in another format",
            Verdict::Different => "different weights",
        })
    }
}

/// A tensor that both folders have, with other contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDiff {
    /// The tensor.
    pub tensor: String,
    /// Type and shape in either folder.
    pub found: [String; 2],
    /// Bytes in either folder.
    pub bytes: [u64; 2],
    /// Bytes that differ, and the first of them, if both have the same number.
    pub differing: Option<(u64, u64)>,
}

/// How one part of a quantized module differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartDiff {
    /// `codes`, `zeros` (true ones), `scales` or `groups` (of rows).
    pub part: &'static str,
    /// Elements in either folder.
    pub elements: [u64; 2],
    /// Elements that differ; `None` when the sizes do, so that they cannot be set against each other.
    pub differing: Option<u64>,
    /// The first that differs: `[row, col]` of codes, `[group, col]` of zeros and scales, `[row]` of groups.
    pub first: Option<Vec<usize>>,
    /// That element in either folder.
    pub values: Option<[String; 2]>,
}

/// A module that is quantized in both folders, with other parts or stored otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleDiff {
    /// The module.
    pub module: String,
    /// How it is stored in either folder.
    pub found: [String; 2],
    /// Its parts that differ; none when it is only stored otherwise.
    pub parts: Vec<PartDiff>,
}

/// A configuration key with another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyDiff {
    /// `config.json`, or `quantization` for the quantization config, in whichever file it stands.
    pub file: &'static str,
    /// The key, dotted from the top.
    pub key: String,
    /// Its value in either folder.
    pub found: [Option<Value>; 2],
}

/// The outcome of [`diff()`].
#[derive(Clone, Debug, PartialEq)]
pub struct Diff {
    /// What it comes to.
    pub verdict: Verdict,
    /// The weights, compared as numbers.
    pub certificate: Certificate,
    /// Tensors that the first and the second folder lack, under the names of the files.
    pub missing: [Vec<String>; 2],
    /// Tensors with other contents.
    pub tensors: Vec<TensorDiff>,
    /// Quantized modules that differ in codes, zeros, scales, groups or in how they are stored.
    pub modules: Vec<ModuleDiff>,
    /// Configuration keys that differ.
    pub keys: Vec<KeyDiff>,
}

/// Finds what differs between two folders, from bytes up to weights. `progress` hears bytes done and bytes in all.
///
/// # Errors
/// [`FormatError`] when either folder cannot be read.
pub fn diff(a: &Checkpoint, b: &Checkpoint, workers: Workers<'_>, progress: &mut dyn FnMut(u64, u64)) -> Result<Diff, FormatError> {
    let whole = a.total_bytes() + b.total_bytes();
    let certificate = verify(a, b, workers, &mut |done, _| progress(done, 2 * whole))?;
    let mut missing = [vec![], vec![]];
    let mut tensors = vec![];
    let mut done = whole;
    let names: BTreeSet<&str> = a.tensor_names().chain(b.tensor_names()).collect();
    for name in names {
        match [a.info(name), b.info(name)] {
            [Some(_), Some(_)] => tensors.extend(tensor(a, b, name)?),
            [None, _] => missing[0].push(name.to_string()),
            [_, None] => missing[1].push(name.to_string()),
        }
        done += [a, b].iter().filter_map(|c| c.info(name)).map(|i| i.bytes as u64).sum::<u64>();
        progress(done, 2 * whole);
    }
    let changed: BTreeSet<&str> = tensors.iter().map(|t| t.tensor.as_str()).chain(missing.iter().flatten().map(String::as_str)).collect();
    let of_b: BTreeSet<String> = b.quantized_modules().into_iter().collect();
    let mut modules = vec![];
    for module in a.quantized_modules().into_iter().filter(|m| of_b.contains(m)) {
        let reports = [a.describe(&module)?, b.describe(&module)?];
        let touched = changed.range(module.as_str()..).take_while(|t| t.starts_with(&module)).any(|t| t[module.len()..].starts_with('.'));
        if touched || words(&reports[0]) != words(&reports[1]) {
            modules.extend(module_diff([a, b], &module, &reports)?);
        }
    }
    let keys = keys(a, b)?;
    let tensors_same = tensors.is_empty() && missing.iter().all(Vec::is_empty);
    let verdict = match (certificate.equal(), tensors_same, keys.is_empty()) {
        (false, ..) => Verdict::Different,
        (true, false, _) => Verdict::SameWeights,
        (true, true, false) => Verdict::SameTensors,
        (true, true, true) => Verdict::Same,
    };
    Ok(Diff { verdict, certificate, missing, tensors, modules, keys })
}

fn tensor(a: &Checkpoint, b: &Checkpoint, name: &str) -> Result<Option<TensorDiff>, FormatError> {
    let sides = [a.need(name)?, b.need(name)?];
    let found = [0, 1].map(|i| format!("{} {:?}", sides[i].info.dtype, sides[i].info.shape));
    let bytes = [0, 1].map(|i| sides[i].info.bytes);
    let mut differing = None;
    if bytes[0] == bytes[1] {
        let (mut count, mut first) = (0, 0);
        let mut buffers = [vec![], vec![]];
        for start in (0..bytes[0]).step_by(CHUNK) {
            for (side, buffer) in sides.iter().zip(&mut buffers) {
                buffer.resize(CHUNK.min(bytes[0] - start), 0);
                side.read_range(start, buffer)?;
            }
            let [x, y] = &buffers;
            if x == y {
                continue;
            }
            let differ = |i: &usize| x[*i] != y[*i];
            if count == 0 {
                first = (start + (0..x.len()).find(differ).unwrap_or(0)) as u64;
            }
            count += (0..x.len()).filter(differ).count() as u64;
        }
        differing = Some((count, first));
    }
    let same = found[0] == found[1] && differing.is_some_and(|(count, _)| count == 0);
    Ok((!same).then(|| TensorDiff { tensor: name.into(), found, bytes: bytes.map(|b| b as u64), differing }))
}

/// Counts the places at which `pair` gives two different values; `None` from it is a place where they are equal.
fn part(part: &'static str, elements: [usize; 2], places: impl Iterator<Item = (Vec<usize>, [String; 2])>) -> Option<PartDiff> {
    let elements_64 = elements.map(|e| e as u64);
    if elements[0] != elements[1] {
        return Some(PartDiff { part, elements: elements_64, differing: None, first: None, values: None });
    }
    let mut found: Option<PartDiff> = None;
    for (place, values) in places {
        let first = || PartDiff { part, elements: elements_64, differing: Some(0), first: Some(place), values: Some(values) };
        if let Some(count) = found.get_or_insert_with(first).differing.as_mut() {
            *count += 1;
        }
    }
    found
}

fn module_diff(folders: [&Checkpoint; 2], module: &str, reports: &[ModuleReport; 2]) -> Result<Option<ModuleDiff>, FormatError> {
    let read = |i: usize| -> Result<Option<QuantMatrix>, FormatError> {
        let weight = folders[i].linear(module, reports[i].in_features, reports[i].out_features, BiasRule::Optional)?;
        Ok(match weight {
            LinearWeight::Quantized(m) => Some(m),
            LinearWeight::Dense { .. } => None,
        })
    };
    let (Some(a), Some(b)) = (read(0)?, read(1)?) else { return Ok(None) };
    let pair = [&a, &b];
    let (k, n) = (a.in_features(), a.out_features());
    let size = pair.map(|m| m.in_features() * m.out_features());
    let alike = k == b.in_features() && n == b.out_features();
    let parts = if alike {
        let per_group = |what: fn(&QuantMatrix, usize, usize) -> String, same: fn([&QuantMatrix; 2], usize, usize) -> bool| {
            let count = a.group_count().min(b.group_count());
            let places = (0..count * n).filter(move |&i| !same(pair, i / n, i % n));
            places.map(move |i| (vec![i / n, i % n], pair.map(|m| what(m, i / n, i % n))))
        };
        let zeros = per_group(|m, g, n| m.zero(g, n).to_string(), |[a, b], g, n| a.zero(g, n) == b.zero(g, n));
        let scales = per_group(|m, g, n| scale(m, g, n).to_string(), |[a, b], g, n| scale(a, g, n) == scale(b, g, n));
        let rows = (0..k).filter(|&k| a.group_of(k) != b.group_of(k));
        let groups = rows.map(|k| (vec![k], pair.map(|m| m.group_of(k).to_string())));
        let groups_size = pair.map(|m| m.group_count() * n);
        [
            part("codes", size, codes(pair)),
            part("zeros", groups_size, zeros),
            part("scales", groups_size, scales),
            part("groups", [k, k], groups),
        ]
    } else {
        [Some(PartDiff { part: "codes", elements: size.map(|s| s as u64), differing: None, first: None, values: None }), None, None, None]
    };
    let parts: Vec<PartDiff> = parts.into_iter().flatten().collect();
    let found = [words(&reports[0]), words(&reports[1])];
    // a bias, or spare bits that mean nothing, may be all that differs
    Ok((!parts.is_empty() || found[0] != found[1]).then(|| ModuleDiff { module: module.into(), found, parts }))
}

fn scale(m: &QuantMatrix, g: usize, n: usize) -> f32 {
    m.scales().get(g * m.out_features() + n)
}

/// Codes that differ, row by row.
fn codes<'a>(pair: [&'a QuantMatrix; 2]) -> impl Iterator<Item = (Vec<usize>, [String; 2])> + 'a {
    let (k, n) = (pair[0].in_features(), pair[0].out_features());
    (0..k).step_by(32).flat_map(move |k0| {
        let rows = (k - k0).min(32);
        let [x, y] = pair.map(|m| {
            let mut codes = vec![0; rows * n];
            m.codes().unpack_rows(m.bits(), n, k0, 0..n, &mut codes);
            codes
        });
        let differ: Vec<_> = (0..rows * n).filter(|&i| x[i] != y[i]).collect();
        differ.into_iter().map(move |i| (vec![k0 + i / n, i % n], [x[i].to_string(), y[i].to_string()]))
    })
}

/// The quantization config as it stands, from the file that is in force.
fn quantization(c: &Checkpoint) -> Result<Map<String, Value>, FormatError> {
    for name in ["quantize_config.json", "quant_config.json"] {
        if let Some(bytes) = c.file(name)? {
            return json::object(&format!("{}/{name}", c.name()), &bytes);
        }
    }
    let config = c.config();
    let text = config.get("text_config").and_then(|t| t.get("quantization_config"));
    let places = [config.get("quantization_config"), config.get("compression_config"), text];
    Ok(places.into_iter().flatten().find_map(Value::as_object).cloned().unwrap_or_default())
}

fn keys(a: &Checkpoint, b: &Checkpoint) -> Result<Vec<KeyDiff>, FormatError> {
    let mut model = [a.config().clone(), b.config().clone()];
    for config in &mut model {
        config.retain(|key, _| !["quantization_config", "compression_config"].contains(&key.as_str()));
    }
    let mut out = vec![];
    for (file, maps) in [("config.json", model), ("quantization", [quantization(a)?, quantization(b)?])] {
        let flat = maps.map(|map| {
            let mut flat = BTreeMap::new();
            flatten("", Value::Object(map), &mut flat);
            flat
        });
        let keys: BTreeSet<&String> = flat.iter().flat_map(|f| f.keys()).collect();
        for key in keys {
            let found = [flat[0].get(key), flat[1].get(key)];
            if found[0] != found[1] {
                out.push(KeyDiff { file, key: key.clone(), found: found.map(|v| v.cloned()) });
            }
        }
    }
    Ok(out)
}

/// Every value that is no object, under its dotted key.
fn flatten(key: &str, value: Value, out: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) if !map.is_empty() || key.is_empty() => {
            let dotted = |name: String| if key.is_empty() { name } else { format!("{key}.{name}") };
            map.into_iter().for_each(|(name, value)| flatten(&dotted(name), value, out));
        }
        other => drop(out.insert(key.into(), other)),
    }
}
